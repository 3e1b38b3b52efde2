"""Files that a suite needs and this project does not ship: what each is, where it lies, whether it is whole, and how an archive is unpacked.

    <cache>/<path>                   the file, or the folder that an archive was unpacked into
            .<name>.fetched.json     beside it: sha256 of what came, where from, and size, time and sha256 of every file it became
            .<name>.part             what has come so far (bench.assets.download); nothing ever reads it as the file

A file is hashed once. After that its size and its time of modification say that it is the same; where they differ, it is hashed again.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from bench.base.errors import UserError, one_line, visible
from bench.base.files import write_atomically

CHUNK = 1 << 18  # bytes read at once
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")  # of a path inside the cache; hidden names are the cache's own
UNREADABLE = (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, ValueError)
SPECIAL = {stat.S_IFLNK: "a link", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


class BadArchive(Exception):
    """An archive that is damaged, or holds what must not be unpacked."""


def inside_the_cache(path: str) -> str:
    """The path, where it is one that a cache may have. Raises `ValueError`."""
    if not all(PART.fullmatch(part) for part in path.split("/")):
        raise ValueError(f"'{visible(path)}' is not a relative path of letters, digits and _.+- whose parts begin with a letter, a digit or _")
    return path


class Asset(BaseModel):
    """A file to fetch. Frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _./+-]*$", description="what people call it; unique in a list")
    urls: tuple[str, ...] = Field((), description="http(s) or file addresses or local paths of the same file, tried in this order")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$", description="of the file as it comes; None where nobody knows it")
    bytes: int | None = Field(None, ge=0, description="its size as it comes")
    path: str = Field(description="inside the cache: the file, or the folder that an archive becomes")
    unpack: Literal["none", "zip", "tar"] = Field("none", description="tar: plain or compressed with gzip, bzip2 or xz")

    @field_validator("path")
    @classmethod
    def _inside_the_cache(cls, path: str) -> str:
        return inside_the_cache(path)

    @property
    def file(self) -> str:
        """The path of the file as it comes, in a mirror that has the layout of the cache."""
        return self.path if self.unpack == "none" else f"{self.path}.{self.unpack}"


@dataclass(frozen=True)
class Memory:
    """What is remembered of a file that came: its digest, its source, and (size, time, sha256) of every file it became, by relative path."""

    sha256: str
    source: str
    files: dict[str, tuple[int, int, str]]

    @property
    def bytes(self) -> int:
        return sum(size for size, _, _ in self.files.values())


def cache_folder(given: Path | None = None) -> Path:
    """Where assets are kept: the folder given, else the environment variable BENCH_CACHE, else the user's cache folder."""
    if given is not None:
        return given.expanduser()
    if named := os.environ.get("BENCH_CACHE"):
        return Path(named).expanduser()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("diffusion-memorization-bench", appauthor=False))


def beside(path: Path, what: str) -> Path:
    """A hidden file of the cache beside `path`."""
    return path.with_name(f".{path.name}.{what}")


def recall(asset: Asset, cache: Path) -> Memory | None:
    """What is remembered of an asset; None where nothing is, or what is there cannot be read."""
    try:
        facts = json.loads(beside(cache / asset.path, "fetched.json").read_bytes())
        files = {str(name): (int(size), int(time), str(digest)) for name, (size, time, digest) in facts["files"].items()}
        return Memory(str(facts["sha256"]), str(facts["source"]), files)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def remember(asset: Asset, cache: Path, memory: Memory) -> None:
    write_atomically(beside(cache / asset.path, "fetched.json"), json.dumps(vars(memory), sort_keys=True).encode())


def forget(asset: Asset, cache: Path) -> None:
    """Trust nothing that is remembered of an asset."""
    with suppress(OSError):
        beside(cache / asset.path, "fetched.json").unlink(missing_ok=True)


def locate(asset: Asset, cache: Path, again: bool = False) -> Path | None:
    """Where an asset lies, once it is there with the right digest; else None. `again` hashes every file whatever is remembered.

    A file that somebody put there is taken when its sha256 is pinned and right. One whose sha256 nobody knows, and a
    folder, are taken only when `fetch` made them and they have not changed since.
    """
    path, memory = cache / asset.path, recall(asset, cache)
    if asset.unpack == "none" and (memory is None or memory.sha256 != (asset.sha256 or memory.sha256)):
        memory = Memory(asset.sha256, "put there by hand", {"": (-1, -1, asset.sha256)}) if asset.sha256 else None
    if memory is None or (asset.sha256 and memory.sha256 != asset.sha256):
        return None
    try:
        present = _sizes_and_times(path, asset)
        if present.keys() != memory.files.keys():
            return None
        changed = [name for name, facts in present.items() if again or facts != memory.files[name][:2]]
        if asset.unpack == "none" and asset.bytes not in (None, present[""][0]):
            return None
        if any(sha256_of(path / name) != memory.files[name][2] for name in changed):
            return None
    except OSError:
        return None
    if any(present[name] != memory.files[name][:2] for name in changed):
        files = {name: (*facts, memory.files[name][2]) for name, facts in present.items()}
        with suppress(UserError):  # a cache that may only be read is a good cache
            remember(asset, cache, Memory(memory.sha256, memory.source, files))
    return path


def _sizes_and_times(path: Path, asset: Asset) -> dict[str, tuple[int, int]]:
    if asset.unpack == "none":
        return {"": _size_and_time(path)} if path.is_file() else {}
    files = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    return {file.relative_to(path).as_posix(): _size_and_time(file) for file in files}


def _size_and_time(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def sha256_of(path: Path) -> str:
    """sha256 of a file as it lies on the disk now, whatever is remembered of it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def facts_of(path: Path, digest: str) -> tuple[int, int, str]:
    """Size, time and digest of a file whose digest is known."""
    return (*_size_and_time(path), digest)


def unpack(archive: Path, kind: str, folder: Path, check: Callable[[], None]) -> dict[str, tuple[int, int, str]]:
    """Unpack into a new folder; (size, time, sha256) of every file. `check` is called between pieces and may raise to stop.

    Every member is judged before the first is written: `BadArchive` for one that is absolute, leads out of the folder, comes twice, or
    is neither file nor folder. Permissions, owners and times of the archive are not taken. `UserError` when it cannot be written.
    """
    try:
        with zipfile.ZipFile(archive) if kind == "zip" else tarfile.open(archive, "r:*") as opened:
            members = _judged(list(_zip_members(opened) if isinstance(opened, zipfile.ZipFile) else _tar_members(opened)))
            needed, free = sum(member.size for member in members), shutil.disk_usage(archive.parent).free
            if needed > free:
                raise UserError(f"{folder} cannot be written: it needs {needed:,} bytes, and {free:,} are free")
            _make(folder)
            facts = {member.name: _write_member(member, folder / member.name, check) for member in members if _is_file(member, folder)}
            if isinstance(opened, tarfile.TarFile) and opened.fileobj is not None:
                while opened.fileobj.read(CHUNK):  # tarfile stops before the end, where gzip keeps its checksum
                    check()
            return facts
    except UNREADABLE as error:
        raise BadArchive(f"it is no whole {kind} archive: {one_line(error)[:200]}") from error


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    special: str  # what it is, where it is neither file nor folder
    open: Callable[[], IO[bytes] | None] | None  # None for a folder


def _zip_members(archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        special = "encrypted" if info.flag_bits & 1 else SPECIAL.get(stat.S_IFMT(info.external_attr >> 16), "")
        # The name as it was written: zipfile cuts the other at a zero byte.
        yield _Member(info.orig_filename, info.file_size, special, None if info.is_dir() else lambda info=info: archive.open(info))  # type: ignore[misc]


def _tar_members(archive: tarfile.TarFile) -> Iterator[_Member]:
    for info in archive.getmembers():
        special = "" if info.isreg() or info.isdir() else "a link" if info.issym() or info.islnk() else "a device or pipe"
        yield _Member(info.name, info.size, special, None if info.isdir() else lambda info=info: archive.extractfile(info))  # type: ignore[misc]


def _judged(members: Sequence[_Member]) -> list[_Member]:
    """The members with plain names. Raises `BadArchive` when one must not be unpacked."""
    judged: list[_Member] = []
    files: set[PurePosixPath] = set()
    folders: set[PurePosixPath] = set()
    for member in members:
        shown, path = visible(member.name)[:200], PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name or re.match("[A-Za-z]:", member.name):
            raise BadArchive(f"its member '{shown}' leads out of the folder: nothing was unpacked")
        if member.special:
            raise BadArchive(f"its member '{shown}' is {member.special}: nothing was unpacked")
        if member.open and (path in files or not path.parts):
            raise BadArchive(f"its member '{shown}' comes twice or has no name: nothing was unpacked")
        (files if member.open else folders).add(path)
        folders.update(path.parents)
        judged.append(_Member(path.as_posix(), member.size, "", member.open))
    if both := files & folders:
        raise BadArchive(f"its member '{visible(str(min(both)))[:200]}' is a file and a folder: nothing was unpacked")
    return judged


def _is_file(member: _Member, folder: Path) -> bool:
    if member.open is None:
        _make(folder / member.name)
    return member.open is not None


def _write_member(member: _Member, target: Path, check: Callable[[], None]) -> tuple[int, int, str]:
    source = member.open() if member.open else None
    if source is None:
        raise BadArchive(f"its member '{visible(member.name)[:200]}' cannot be read")
    _make(target.parent)
    digest, size = hashlib.sha256(), 0
    with source, writable(target, "xb") as stream:
        while chunk := source.read(CHUNK):
            check()
            size += len(chunk)
            if size > member.size:
                raise BadArchive(f"its member '{visible(member.name)[:200]}' is larger than it says")
            digest.update(chunk)
            write_all(stream, chunk, target)
    if size < member.size:
        raise BadArchive(f"its member '{visible(member.name)[:200]}' is cut")
    return facts_of(target, digest.hexdigest())


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error


def writable(path: Path, mode: Literal["ab", "wb", "xb"]) -> Any:
    """An unbuffered stream: what was written is in the file, and closing it cannot fail for a full disk."""
    try:
        return path.open(mode, buffering=0)
    except OSError as error:
        raise unwritable(path, error) from error


def write_all(stream: Any, chunk: bytes, path: Path) -> None:
    """Write all of `chunk`. Raises `UserError` when the disk is full."""
    view = memoryview(chunk)
    try:
        while view:
            view = view[stream.write(view) :]
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> UserError:
    """The error for a place in the cache that cannot be written."""
    return UserError(f"{path} cannot be written: {one_line(error)}; what has come is kept, and the same command goes on with it")
