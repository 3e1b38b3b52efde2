"""Where a sample store's files lie: a folder on this machine's disk, or one behind any URL that
fsspec knows (`s3://`, `gs://`, `memory://`, ...).

Both give the same promise: a file is there and whole, or it is not there. On a disk it is written
under a temporary name, flushed and renamed. Object stores show an object when it was put whole, so
there the put is that step; other file systems behind URLs rename, as a disk does.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from bench.base.errors import UserError, one_line
from bench.base.files import read_regular_file, remove_debris, write_atomically
from bench.base.locks import LOCK, locked

Root = Path | str  # of a store: a path, or a URL
DISK = ("file://", "local://")
# Those of fsspec's protocols under which an object that is put is seen whole or not at all.
OBJECTS = frozenset({"memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss", "hf"})


class Folder(Protocol):
    """A folder of files, each with a name relative to it (`features/x/0.npy`); `str()` gives its
    path or URL.

    Every method raises `UserError`, one line that names the file, for what cannot be read or
    written.
    """

    def at(self, name: str) -> Folder:
        """A folder inside it, there or not."""
        ...

    def names(self, inside: str = "") -> list[str]:
        """The whole files directly in it or in a folder inside it, sorted; none where there is no
        such folder.
        """
        ...

    def folders(self) -> list[str]:
        """The folders directly in it, sorted."""
        ...

    def exists(self, name: str) -> bool: ...

    def read(self, name: str) -> bytes: ...

    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically: readers see the old one, or none, and then the whole new one."""
        ...

    def tidy(self, inside: str = "") -> None:
        """Remove what writers that were killed left, where files lie on a disk."""
        ...

    def alone(self) -> AbstractContextManager[object]:
        """A block that no two processes are in at a time, where files lie on a disk that has
        locks. On others, and behind a URL, nothing is promised.
        """
        ...

    def local(self, name: str) -> Path | None:
        """The file as a path of this machine, for readers that map it into memory; None where it
        has none.
        """
        ...

    def opened(self, name: str) -> Any:
        """The file for readers that take only parts of it: a path, or an open binary file."""
        ...


def open_folder(root: Root) -> Folder:
    """The folder of a path or URL; `~` is the user's own.

    Raises `UserError` for a protocol that is unknown or whose package is not installed.
    """
    if isinstance(root, str):
        for prefix in DISK:
            root = root.removeprefix(prefix)
        if "://" in root:
            return BehindUrl(root.rstrip("/")).checked()
    try:
        return OnDisk(Path(root).expanduser())
    except RuntimeError as error:  # a user that this machine does not know
        raise UserError(f"the store {root} cannot be opened: {one_line(error)}") from error


def is_partial(name: str) -> bool:
    """Whether a name is that of a file which is still being written."""
    return name.startswith(".") and name.endswith(".tmp")


@dataclass(frozen=True)
class OnDisk:
    """A folder of this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def at(self, name: str) -> OnDisk:
        return OnDisk(self.path / name)

    def names(self, inside: str = "") -> list[str]:
        return self._inside(inside, folders=False)

    def folders(self) -> list[str]:
        return self._inside("", folders=True)

    def _inside(self, inside: str, folders: bool) -> list[str]:
        try:
            with os.scandir(self.path / inside) as entries:
                return sorted(
                    entry.name
                    for entry in entries
                    if entry.is_dir() == folders
                    and not (is_partial(entry.name) or entry.name == LOCK)
                )
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UserError(f"{self.path / inside} cannot be read: {one_line(error)}") from error

    def exists(self, name: str) -> bool:
        return (self.path / name).exists()

    def read(self, name: str) -> bytes:
        try:
            return read_regular_file(self.path / name, sys.maxsize)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path / name} cannot be read: {one_line(error)}") from error

    def write(self, name: str, content: bytes) -> None:
        write_atomically(self.path / name, content)

    def tidy(self, inside: str = "") -> None:
        remove_debris(self.path / inside)

    def alone(self) -> AbstractContextManager[object]:
        return locked(self.path)

    def local(self, name: str) -> Path | None:
        return self.path / name

    def opened(self, name: str) -> Any:
        return self.path / name


@dataclass(frozen=True)
class BehindUrl:
    """A folder behind a URL, through fsspec."""

    url: str

    def __str__(self) -> str:
        return re.sub("//[^/@]*@", "//...@", self.url)  # a URL may hold a password

    def checked(self) -> BehindUrl:
        _ = self._found
        return self

    @cached_property
    def _found(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        try:
            system, path = url_to_fs(self.url)
        except ImportError as error:
            raise UserError(
                f"the store {self} cannot be opened: {_how_to_install(self.url, error)}"
            ) from error
        except Exception as error:  # every file system raises its own
            raise UserError(
                f"the store {self} cannot be opened: {one_line(error)[:200]}"
            ) from error
        return system, path

    @property
    def _system(self) -> Any:
        return self._found[0]

    def _path(self, name: str) -> str:
        return f"{self._found[1].rstrip('/')}/{name}" if name else self._found[1]

    @contextmanager
    def _explained(self, what: str, name: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # every file system raises its own, also others than OSError
            raise UserError(f"{self}/{name} cannot be {what}: {one_line(error)[:200]}") from error

    def at(self, name: str) -> BehindUrl:
        return BehindUrl(f"{self.url}/{name}")

    def names(self, inside: str = "") -> list[str]:
        return self._inside(inside, folders=False)

    def folders(self) -> list[str]:
        return self._inside("", folders=True)

    def _inside(self, inside: str, folders: bool) -> list[str]:
        path = self._path(inside)
        with self._explained("read", inside):
            self._system.invalidate_cache()  # others write here too
            try:
                entries = self._system.ls(path, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
            names = {
                entry["name"].rstrip("/").rpartition("/")[2]
                for entry in entries
                if (entry["type"] == "directory") == folders
            }
        return sorted(name for name in names if not is_partial(name))

    def exists(self, name: str) -> bool:
        with self._explained("read", name):
            self._system.invalidate_cache()
            return bool(self._system.exists(self._path(name)))

    def read(self, name: str) -> bytes:
        with self._explained("read", name):
            return bytes(self._system.cat_file(self._path(name)))

    def write(self, name: str, content: bytes) -> None:
        path = self._path(name)
        parent, _, own = path.rpartition("/")
        temporary = None if self._puts_whole else f"{parent}/.{own}.{uuid4().hex[:12]}.tmp"
        try:
            if temporary is None:
                self._system.pipe_file(path, content)
                return
            self._system.makedirs(parent, exist_ok=True)
            self._system.pipe_file(temporary, content)
            if self._system.exists(path):  # some cannot rename onto a file
                self._system.rm_file(path)
            self._system.mv(temporary, path)
        except BaseException as error:
            if temporary is not None:
                with suppress(Exception):
                    self._system.rm_file(temporary)
            if isinstance(error, Exception):
                raise UserError(
                    f"{self}/{name} cannot be written: {one_line(error)[:200]}; what was written"
                    " before is kept"
                ) from error
            raise

    def tidy(self, inside: str = "") -> None:
        pass  # a store's service has no half-written files

    def alone(self) -> AbstractContextManager[object]:
        return nullcontext()

    @property
    def _puts_whole(self) -> bool:
        protocol = self._system.protocol
        return not OBJECTS.isdisjoint([protocol] if isinstance(protocol, str) else protocol)

    def local(self, name: str) -> Path | None:
        return None

    def opened(self, name: str) -> Any:
        with self._explained("read", name):
            # readers of Parquet ask for what they need, and no more should be sent
            return self._system.open(self._path(name), "rb", cache_type="none")


def _how_to_install(url: str, error: ImportError) -> str:
    from fsspec.registry import known_implementations

    known = known_implementations.get(re.split("::|://", url)[0], {})
    package = str(known.get("class", "")).partition(".")[0]
    return (
        f"it needs the package {package}: pip install {package}"
        if package not in ("", "fsspec")
        else str(known.get("err") or one_line(error))
    )
