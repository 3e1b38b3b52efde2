"""What suites may name as `asset:NAME`: files, models of the Hugging Face hub, and pictures behind
the links of a prompt list.

The shipped entries stand in `catalogue.toml`; a suite adds its own, or replaces one, under
`[assets.NAME]`. Where an entry lies, whether it is whole, and what its digest is, are asked here;
bringing it is the work of `bench fetch`.

A suite may be a stranger's. What it states itself lies in a folder of the cache that follows from
what is stated (`own_entries`), so that it can be taken for nothing that anybody else means.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bench.assets.asset import OWN, Asset, Receipt, inside_the_cache, locate, read_receipt
from bench.assets.hub import hub_url, in_hub_cache
from bench.base.digests import digest_of, path_digest
from bench.base.errors import UnknownName, UserError, visible
from bench.base.parameters import refusal
from bench.base.prompt_lists import read_list

PREFIX = "asset:"
SHIPPED = Path(__file__).with_name("catalogue.toml")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.+-]*")
# the namespace, and the name, of a repository on the hub
REPOSITORY = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")
DIGEST = re.compile(r"[0-9a-f]{64}")


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(description="place in the cache")
    licence: str = ""

    _inside = field_validator("path")(inside_the_cache)


class FileEntry(_Entry):
    """One file, or an archive that becomes a folder."""

    urls: tuple[str, ...] = Field(
        (), description="addresses of the same file, tried in this order; none: to be got by hand"
    )
    sha256: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="of the file as it comes; left out where nobody published it",
    )
    bytes: int | None = Field(None, ge=0)
    unpack: Literal["none", "zip", "tar"] = "none"


class HubEntry(_Entry):
    """A model on the Hugging Face hub, pinned by revision; `files` with their sha256, or an empty
    text where it is not known.
    """

    hub: str = Field(description="namespace/name")
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    variant: str = ""
    files: dict[str, str] = Field(min_length=1)
    bytes: int | None = Field(None, ge=0, description="of all files together")
    tflop: float | None = Field(
        None,
        gt=0,
        description=(
            "10^12 operations of one UNet row at the model's own size (tests/benchmarks/flops.py)"
        ),
    )

    @field_validator("hub")
    @classmethod
    def _a_repository(cls, hub: str) -> str:
        parts = hub.split("/")
        if (
            len(parts) != 2
            or not all(REPOSITORY.fullmatch(part) for part in parts)
            or hub.endswith(".git")
        ):
            raise ValueError(f"'{visible(hub)[:200]}' is no namespace/name of the hub")
        return hub

    @field_validator("files")
    @classmethod
    def _in_the_repository(cls, files: dict[str, str]) -> dict[str, str]:
        for file, sha256 in files.items():
            inside_the_cache(file)
            if sha256 and not DIGEST.fullmatch(sha256):
                raise ValueError(
                    f"'{visible(sha256)[:200]}' of the file '{file}' is no sha256 of 64 hex digits,"
                    " nor an empty text"
                )
        return files


class PicturesEntry(_Entry):
    """The pictures behind the links of a prompt list. Links rot: some will not be found."""

    list: str = Field(description="asset:NAME of the list")
    id: str = Field(description="its column of ids, under which prompts find their pictures")
    url: str = Field("URL", description="its column of addresses")
    delimiter: str = ","
    format: Literal["csv", "jsonl"] = "csv"


Entry = FileEntry | HubEntry | PicturesEntry


def parse_entries(tables: Mapping[str, Any], file: Path) -> dict[str, Entry]:
    """Entries by name. Raises `UserError` naming the file and the entry that is wrong."""
    if not isinstance(tables, Mapping):
        raise UserError(f"{file}: assets must be a table")
    entries: dict[str, Entry] = {}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise UserError(f"{file}: asset {visible(name)[:200]} must be a table")
        if not NAME.fullmatch(name):
            raise UserError(
                f"{file}: an asset's name has letters, digits, spaces and _.+-, and begins with a"
                f" letter or a digit, not '{visible(name)[:200]}'"
            )
        kind = HubEntry if "hub" in table else PicturesEntry if "list" in table else FileEntry
        try:
            entries[name] = kind.model_validate(table)
        except ValidationError as error:
            raise refusal(
                error, kind, f"key of asset {name} in {file.name}", f"{file}: asset {name}"
            ) from error
    return entries


@cache
def shipped_entries() -> dict[str, Entry]:
    """The catalogue that comes with the project."""
    return parse_entries(tomllib.loads(SHIPPED.read_text(encoding="utf-8")), SHIPPED)


def own_entries(stated: Mapping[str, Entry]) -> dict[str, Entry]:
    """The entries that a suite states, each in a folder of the cache that nothing else lies in.

    A suite says what the file, say, `prompts/list.csv` is; in a cache that several suites share, a
    stranger's would otherwise say it for all of them, also of files that the catalogue names. Two
    suites that state the same share one folder. What the catalogue states in the same words lies
    where the catalogue says.
    """
    shipped = shipped_entries()
    known = {**shipped, **stated}
    return {
        name: entry
        if entry == shipped.get(name)
        else entry.model_copy(update={"path": f"{OWN}/{_key(entry, known)}/{entry.path}"})
        for name, entry in stated.items()
    }


def _key(entry: Entry, known: Mapping[str, Entry]) -> str:
    """16 hex digits that stand for what an entry brings: of a file its pinned sha256, else the
    addresses that it is taken from; of pictures the list with their links.
    """
    facts = entry.model_dump(mode="json", exclude={"licence", "bytes", "tflop"})
    if isinstance(entry, FileEntry) and entry.sha256:
        del facts["urls"]
    if isinstance(entry, PicturesEntry):
        name, inner = name_of(entry.list)
        behind = known.get(name)
        facts["list"] = [_key(behind, known), inner] if isinstance(behind, FileEntry) else name
    return digest_of(facts)[:16]


def is_shipped(name: str, entry: Entry) -> bool:
    """Whether an entry is one of the catalogue, and not of a suite's own."""
    return shipped_entries().get(name) == entry


def name_of(text: str) -> tuple[str, str]:
    """`asset:NAME/inner/path` to the name and the path inside it."""
    name, _, inner = text.removeprefix(PREFIX).partition("/")
    return name, inner


def files_of(name: str, entry: FileEntry | HubEntry, login: bool = False) -> list[Asset]:
    """What is to be fetched for an entry. The user's login goes along for what the catalogue names,
    and with `login` for what a suite states itself.
    """
    login = login or is_shipped(name, entry)
    if isinstance(entry, FileEntry):
        return [Asset(name=name, login=login, **entry.model_dump(exclude={"licence"}))]
    return [
        Asset(
            name=f"{name}/{file}",
            urls=_sources(entry, file),
            sha256=sha256 or None,
            bytes=None,
            path=f"{entry.path}/{file}",
            unpack="none",
            login=login,
        )
        for file, sha256 in entry.files.items()
    ]


def _sources(entry: HubEntry, file: str) -> tuple[str, ...]:
    url = hub_url(entry.hub, entry.revision, file)
    there = in_hub_cache(entry.hub, entry.revision, file)
    return (str(there), url) if there else (url,)


@dataclass(frozen=True)
class Lacking:
    """An asset that is not here, or not whole: its name, what is missing of it, bytes to fetch
    where known.
    """

    name: str
    what: str
    bytes: int | None = None
    by_hand: bool = False  # it has no address


@dataclass(frozen=True)
class Assets:
    """The entries that one suite can name, and the cache that they lie in."""

    suite: str
    entries: Mapping[str, Entry]
    cache: Path
    # looked at already: hashing a model twice would be a pity
    whole: set[str] = field(default_factory=set, compare=False)

    def entry(self, text: str) -> Entry:
        name = name_of(text)[0]
        if name not in self.entries:
            raise UnknownName(f"asset of suite {self.suite}", name, self.entries)
        return self.entries[name]

    def place(self, text: str) -> Path:
        """Where `asset:NAME/inner` is expected, there or not."""
        inner = name_of(text)[1]
        return (
            self.cache / self.entry(text).path / inner
            if inner
            else self.cache / self.entry(text).path
        )

    def path(self, text: str) -> Path:
        """The same, once it is there and whole. Raises `UserError` that says how to get it."""
        name, inner = name_of(text)
        if self.lacking(name):
            raise UserError(self.advice(name, "is missing, or not whole"))
        path = self.place(text)
        if inner and not path.exists():
            raise UserError(f"suite {self.suite}: the asset '{name}' holds no '{inner}'")
        return path

    def advice(self, name: str, what: str) -> str:
        return (
            f"suite {self.suite}: the asset '{name}' {what}; get it with: bench fetch --suite"
            f" {self.suite} --only {name}"
        )

    def digest(self, text: str) -> str:
        """sha256 that stands for the content of an asset that is there: of the file as it came, of
        a model's files by name, of the pictures found by id.
        """
        entry, (name, inner) = self.entry(text), name_of(text)
        self.path(text)
        if inner:
            place = self.place(text)
            inside = {
                path: digest
                for path, digest in self.digests_inside(text).items()
                if path == place or place in path.parents
            }
            if not inside:
                raise UserError(self.advice(name, f"has no known digest of '{inner}'"))
            return (
                inside[place]
                if place in inside
                else digest_of(
                    {path.relative_to(place).as_posix(): digest for path, digest in inside.items()}
                )
            )
        if isinstance(entry, PicturesEntry):
            from bench.assets.links import read_images

            rows = read_images(self.place(text))
            return digest_of({id: rows[id].sha256 for id in self.pictures(text)})
        memories = {
            asset.path: receipt
            for asset in files_of(name, entry)
            if (receipt := read_receipt(asset, self.cache))
        }
        if isinstance(entry, FileEntry):
            return entry.sha256 or memories[entry.path].sha256
        return digest_of(
            {
                file: sha256 or memories[f"{entry.path}/{file}"].sha256
                for file, sha256 in entry.files.items()
            }
        )

    def digests_inside(self, text: str) -> dict[Path, str]:
        """sha256 of every file that an asset became, by path, as remembered when it came."""
        entry, name = self.entry(text), name_of(text)[0]
        folder = self.cache / entry.path
        if isinstance(entry, PicturesEntry):
            from bench.assets.links import read_images

            return {
                folder / row.file: row.sha256 for row in read_images(folder).values() if row.file
            }
        found: dict[Path, str] = {}
        for asset in files_of(name, entry):
            receipt: Receipt | None = read_receipt(asset, self.cache)
            if receipt:
                found |= {
                    self.cache / asset.path / inner: digest
                    for inner, (_, _, digest) in receipt.files.items()
                }
            # put there by hand, in a cache that may only be read
            elif asset.sha256 and asset.unpack == "none":
                found[self.cache / asset.path] = asset.sha256
        return found

    def pictures(self, text: str) -> dict[str, Path]:
        """The pictures that were found for a list, by id.

        Raises `UserError` when they were never fetched, and for one that was changed since.
        """
        from bench.assets.links import read_images

        folder = self.path(text)
        found = {
            id: row
            for id, row in read_images(folder).items()
            if row.state == "found" and (folder / row.file).is_file()
        }
        for row in found.values():
            if path_digest(folder / row.file) != row.sha256:
                raise UserError(
                    f"suite {self.suite}: the picture {folder / row.file} is not what was fetched:"
                    f" bench fetch --suite {self.suite} --check"
                )
        return {id: folder / row.file for id, row in found.items()}

    def failed_links(self, name: str) -> int:
        """How many pictures of a list could not be had for now: their links are not dead, and may
        answer the next time.
        """
        from bench.assets.links import read_images

        return sum(
            row.state == "failed"
            for row in read_images(self.cache / self.entry(name).path).values()
        )

    def picture_rows(self, entry: PicturesEntry) -> list[tuple[str, str, str]]:
        """(id, address, empty) of every row of the list.

        Raises `UserError` when the list is not there.
        """
        if not isinstance(self.entry(entry.list), FileEntry):
            raise UserError(
                f"suite {self.suite}: '{visible(entry.list)[:200]}', the list of pictures to fetch,"
                " is no file"
            )
        found = read_list(self.path(entry.list), entry.format, entry.delimiter)
        for column in (entry.id, entry.url):
            if column not in found.columns:
                raise UserError(
                    f"suite {self.suite}: the list {entry.list} has no column '{column}' (it has:"
                    f" {', '.join(sorted(found.columns))})"
                )
        return [(row[entry.id], row[entry.url], "") for row in found.rows]

    def lacking(self, name: str) -> list[Lacking]:
        """What is missing of an entry; nothing when it can be used."""
        if name in self.whole:
            return []
        found = self._lacking(name)
        if not found:
            self.whole.add(name)
        return found

    def _unasked(self, name: str, entry: PicturesEntry) -> list[Lacking]:
        """The pictures whose links nobody has asked yet: never, or the command was interrupted, or
        offline.
        """
        from bench.assets.links import read_images

        rows = read_images(self.cache / entry.path)
        try:
            ids = [id for id, _, _ in self.picture_rows(entry)]
        except UserError:  # its list is not here
            ids = list(rows)
        waiting = sum(id not in rows or rows[id].state == "unasked" for id in ids)
        if ids and not waiting:
            return []
        return [
            Lacking(
                name,
                f"pictures behind {f'{waiting} of {len(ids)}' if rows else 'the'} links of"
                f" {entry.list}",
            )
        ]

    def _lacking(self, name: str) -> list[Lacking]:
        entry = self.entry(name)
        if isinstance(entry, PicturesEntry):
            return self._unasked(name, entry)
        absent = [asset for asset in files_of(name, entry) if locate(asset, self.cache) is None]
        if not absent:
            return []
        if isinstance(entry, FileEntry):
            return [Lacking(name, entry.path, entry.bytes, not entry.urls)]
        whole = len(absent) == len(entry.files)
        return [
            Lacking(
                name,
                f"{entry.hub} at {entry.revision[:12]}, {len(absent)} of {len(entry.files)} files",
                entry.bytes if whole else None,
            )
        ]
