"""Unpacking archives that strangers made, and writing files without leaving half of one."""

from __future__ import annotations

import hashlib
import lzma
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from bench.base import limits
from bench.base.errors import UserError, one_line, visible

MIB = limits.MIB
CHUNK = 1 << 18  # bytes read at once
# hidden files by which the cache tells what it may trust (bench.assets.asset, .download, .session)
CACHE_FILE = re.compile(
    r"\.lock|\..+\.(fetched\.json|part|part\.json|unpacking|old|tmp)", re.IGNORECASE
)
# what the standard library raises for an archive that is damaged
UNREADABLE = (
    OSError,
    EOFError,
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
# members of a zip file that are neither file nor folder
SPECIAL = {
    stat.S_IFLNK: "a link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


class BadArchive(Exception):
    """An archive that is damaged, or holds what must not be unpacked."""


def size_and_time(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def sha256_of(path: Path) -> str:
    """sha256 of a file as it lies on the disk now, whatever its receipt says."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def facts_of(path: Path, digest: str) -> tuple[int, int, str]:
    """Size, time and digest of a file whose digest is known."""
    return (*size_and_time(path), digest)


def unpack(
    archive: Path, kind: str, folder: Path, check: Callable[[], None]
) -> dict[str, tuple[int, int, str]]:
    """Unpack into a new folder; returns (size, time, sha256) of every file by relative path.

    `check` is called between pieces and may raise an exception to stop.

    Every member is judged before the first is written: `BadArchive` for one that is absolute, leads
    out of the folder, comes twice, is neither file nor folder, or is called like a file by which
    the cache tells what it may trust. Permissions, owners and times of the archive are not taken.
    `UserError` when it cannot be written.
    """
    try:
        with zipfile.ZipFile(archive) if kind == "zip" else tarfile.open(archive, "r:*") as opened:
            packed = archive.stat().st_size
            members = _judged(
                _zip_members(opened)
                if isinstance(opened, zipfile.ZipFile)
                else _tar_members(opened, folder),
                limits.ARCHIVE_RATIO * max(packed, MIB),
            )
            _refuse_without_room(folder, archive.parent, members)
            _make(folder)
            facts = {}
            for member in members:
                if member.open is None:
                    _make(folder / member.name)
                else:
                    facts[member.name] = _write_member(member, folder / member.name, check)
            if isinstance(opened, tarfile.TarFile) and opened.fileobj is not None:
                # tarfile stops before the end, where gzip keeps its checksum
                while opened.fileobj.read(CHUNK):
                    check()
            return facts
    except UNREADABLE as error:
        raise BadArchive(f"it is no whole {kind} archive: {one_line(error)[:200]}") from error


def _refuse_without_room(folder: Path, disk: Path, members: Sequence[_Member]) -> None:
    needed, free = sum(member.size for member in members), shutil.disk_usage(disk).free
    if needed > free:
        raise UserError(
            f"{folder} cannot be written: it needs {needed:,} bytes, and {free:,} are free"
        )


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    special: str  # what it is, where it is neither file nor folder
    open: Callable[[], IO[bytes] | None] | None  # None for a folder


def _zip_members(archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        special = (
            "encrypted"
            if info.flag_bits & 1
            else SPECIAL.get(stat.S_IFMT(info.external_attr >> 16), "")
        )
        # The name as it was written: zipfile cuts the other at a zero byte.
        yield _Member(
            info.orig_filename,
            info.file_size,
            special,
            None if info.is_dir() else partial(archive.open, info),
        )


def _tar_members(archive: tarfile.TarFile, folder: Path) -> Iterator[_Member]:
    for info in archive:  # header by header, so that limits hold while it is read
        yield _Member(
            info.name,
            info.size,
            _special_of_tar(info, folder),
            None if info.isdir() else partial(archive.extractfile, info),
        )


def _special_of_tar(info: tarfile.TarInfo, folder: Path) -> str:
    """What a member is, where it must not be unpacked: by the standard library's filter for data,
    and no links, which the filter allows inside the folder.
    """
    if info.issym() or info.islnk():
        return "a link"
    try:
        tarfile.data_filter(info, str(folder))
    except tarfile.SpecialFileError:
        return "a device or pipe"
    except tarfile.FilterError as error:
        return f"not plain data ({one_line(error)[:200]})"
    return ""


def _judged(members: Iterable[_Member], most: int) -> list[_Member]:
    """The members with plain names. Raises `BadArchive` when one must not be unpacked, and when
    all of them have more than `most` bytes.
    """
    size = 0
    judged: list[_Member] = []
    files: set[PurePosixPath] = set()
    folders: set[PurePosixPath] = set()
    for member in members:
        if len(judged) == limits.ARCHIVE_FILES:
            raise BadArchive(f"it has more than {limits.ARCHIVE_FILES:,} members")
        size += member.size
        if size > most:
            raise BadArchive(
                f"it would unpack to more than {limits.ARCHIVE_RATIO} times its size: nothing was"
                " unpacked"
            )
        shown, path = visible(member.name)[:200], PurePosixPath(member.name)
        if (
            path.is_absolute()
            or ".." in path.parts
            or "\\" in member.name
            or "\0" in member.name
            or re.match("[A-Za-z]:", member.name)
        ):
            raise BadArchive(f"its member '{shown}' leads out of the folder: nothing was unpacked")
        if any(CACHE_FILE.fullmatch(part) for part in path.parts):
            raise BadArchive(
                f"its member '{shown}' is called like a file of the cache's own: nothing was"
                " unpacked"
            )
        if member.special:
            raise BadArchive(f"its member '{shown}' is {member.special}: nothing was unpacked")
        if member.open and (path in files or not path.parts):
            raise BadArchive(
                f"its member '{shown}' comes twice or has no name: nothing was unpacked"
            )
        (files if member.open else folders).add(path)
        folders.update(path.parents)
        judged.append(_Member(path.as_posix(), member.size, "", member.open))
    if both := files & folders:
        raise BadArchive(
            f"its member '{visible(str(min(both)))[:200]}' is a file and a folder: nothing was"
            " unpacked"
        )
    return judged


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
                raise BadArchive(
                    f"its member '{visible(member.name)[:200]}' is larger than it says"
                )
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
    """An unbuffered stream: what was written is in the file, and closing it cannot fail for a full
    disk.
    """
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
    return UserError(
        f"{path} cannot be written: {one_line(error)}; what has come is kept, and the same command"
        " goes on with it"
    )
