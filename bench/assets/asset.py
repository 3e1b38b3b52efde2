"""Files that a suite needs and this project does not ship: what each is, where it lies in the
cache, and whether it is whole.

    <cache>/<path>                   the file, or the folder that an archive was unpacked into
            .<name>.fetched.json     its receipt: the download's sha256 and source, and size, time
                                     and sha256 of every file that it became
            .<name>.part             an unfinished download (bench.assets.download), which is never
                                     read as the file
    <cache>/own/<key>/<path>         the same, of what a suite states itself (`own_entries`)

A file is hashed once. After that its size and its time of modification say that it is the same;
where they differ, it is hashed again.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from bench.assets.archive import sha256_of, size_and_time
from bench.base.errors import UserError, visible
from bench.base.files import write_atomically

# of a path inside the cache; hidden names are the cache's own
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
OWN = "own"  # the folder of the cache with what suites state themselves
KEPT = re.compile(rf"^{OWN}/[0-9a-f]{{16}}/")  # where such an entry lies, before its own path
NOTHING = b"{}\n"  # a receipt that vouches for no file


def inside_the_cache(path: str) -> str:
    """The path, where it is one that a cache may have. Raises `ValueError`."""
    if not all(PART.fullmatch(part) for part in path.split("/")):
        raise ValueError(
            f"'{visible(path)}' is not a relative path of letters, digits and _.+- whose parts"
            " begin with a letter, a digit or _"
        )
    return path


class Asset(BaseModel):
    """A file to fetch. Frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9 _./+-]*$",
        description="what people call it; unique in a list",
    )
    urls: tuple[str, ...] = Field(
        (),
        description=(
            "http(s) or file addresses or local paths of the same file, tried in this order"
        ),
    )
    sha256: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="of the file as it comes; None where nobody knows it",
    )
    bytes: int | None = Field(None, ge=0, description="its size as it comes")
    path: str = Field(
        description="inside the cache: the file, or the folder that an archive becomes"
    )
    unpack: Literal["none", "zip", "tar"] = Field(
        "none", description="tar: plain or compressed with gzip, bzip2 or xz"
    )
    login: bool = Field(
        False, description="whether the user's login is sent along to addresses of the hub"
    )

    @field_validator("path")
    @classmethod
    def _inside_the_cache(cls, path: str) -> str:
        return inside_the_cache(path)

    @property
    def file(self) -> str:
        """The path of the file as it comes, in a mirror that has the layout of the cache; what a
        suite states itself lies there where the suite says.
        """
        path = KEPT.sub("", self.path)
        return path if self.unpack == "none" else f"{path}.{self.unpack}"


@dataclass(frozen=True)
class Receipt:
    """What was fetched: the sha256 of the download, its source, and (size in bytes, time of
    modification in nanoseconds, sha256) of every file that it became, by relative path.
    """

    sha256: str
    source: str
    files: dict[str, tuple[int, int, str]]

    @property
    def bytes(self) -> int:
        return sum(size for size, _, _ in self.files.values())


def _absolute(folder: Path) -> Path:
    """A folder without `~` and `..`, so that what lies in it can be told by its path."""
    return Path(os.path.abspath(folder.expanduser()))  # noqa: PTH100 (resolve follows links)


def cache_folder(given: Path | None = None) -> Path:
    """Where assets are kept: the folder given, else the environment variable BENCH_CACHE, else the
    user's cache folder.
    """
    if given is not None:
        return _absolute(given)
    if named := os.environ.get("BENCH_CACHE"):
        return _absolute(Path(named))
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("diffusion-memorization-bench", appauthor=False))


def beside(path: Path, what: str) -> Path:
    """A hidden file of the cache beside `path`."""
    return path.with_name(f".{path.name}.{what}")


def read_receipt(asset: Asset, cache: Path) -> Receipt | None:
    """The receipt of an asset; None where there is none, or none that can be read."""
    try:
        facts = json.loads(beside(cache / asset.path, "fetched.json").read_bytes())
        files = {
            str(name): (int(size), int(time), str(digest))
            for name, (size, time, digest) in facts["files"].items()
        }
        return Receipt(str(facts["sha256"]), str(facts["source"]), files)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write_receipt(asset: Asset, cache: Path, receipt: Receipt) -> None:
    write_atomically(
        beside(cache / asset.path, "fetched.json"),
        json.dumps(vars(receipt), sort_keys=True).encode(),
    )


def distrust(asset: Asset, cache: Path) -> None:
    """Let the receipt of an asset, where it has one, vouch for no file any more. It stays, since it
    says that what lies there was fetched and may be replaced.
    """
    if was_fetched(asset, cache):
        with suppress(UserError):  # a cache that may only be read
            write_atomically(beside(cache / asset.path, "fetched.json"), NOTHING)


def was_fetched(asset: Asset, cache: Path) -> bool:
    """Whether `fetch` made what lies at the place of an asset, whatever became of it since."""
    return beside(cache / asset.path, "fetched.json").is_file()


def locate(asset: Asset, cache: Path, again: bool = False) -> Path | None:
    """The place of an asset that is in the cache with the right digest; None for any other.

    `again` hashes every file, whatever its receipt says. A file that somebody put there by hand, or
    whose receipt is not that of the pinned file, is accepted when its sha256 is pinned and right. A
    file without a pinned sha256, and a folder, are accepted only when `fetch` made them and they
    have not changed since.
    """
    path, receipt = cache / asset.path, read_receipt(asset, cache)
    if asset.unpack == "none" and not (receipt and _is_of_one_file(receipt, asset.sha256)):
        receipt = (
            Receipt(asset.sha256, "put there by hand", {"": (-1, -1, asset.sha256)})
            if asset.sha256
            else None
        )
    if receipt is None or (asset.sha256 and receipt.sha256 != asset.sha256):
        return None
    try:
        present = _sizes_and_times(path, asset)
        if present.keys() != receipt.files.keys():
            return None
        changed = [
            name for name, facts in present.items() if again or facts != receipt.files[name][:2]
        ]
        if asset.unpack == "none" and asset.bytes not in (None, present[""][0]):
            return None
        if any(sha256_of(path / name) != receipt.files[name][2] for name in changed):
            return None
    except OSError:
        return None
    if any(present[name] != receipt.files[name][:2] for name in changed):
        files = {name: (*facts, receipt.files[name][2]) for name, facts in present.items()}
        with suppress(UserError):  # a cache that may only be read is a good cache
            write_receipt(asset, cache, Receipt(receipt.sha256, receipt.source, files))
    return path


def _is_of_one_file(receipt: Receipt, pinned: str | None) -> bool:
    """Whether a receipt is that of one file, with its pinned digest where there is one: what came
    is then what lies there, and its digest stands in the receipt twice.
    """
    digest = pinned or receipt.sha256
    return receipt.sha256 == digest and [*receipt.files] == [""] and receipt.files[""][2] == digest


def _sizes_and_times(path: Path, asset: Asset) -> dict[str, tuple[int, int]]:
    if asset.unpack == "none":
        return {"": size_and_time(path)} if path.is_file() else {}
    files = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    return {file.relative_to(path).as_posix(): size_and_time(file) for file in files}
