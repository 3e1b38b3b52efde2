"""The tensors of a TorchScript file, read without running anything of it.

A TorchScript is a program: loading one with `torch.jit.load` runs what its author wrote, which may
read and write files. It is also a zip archive that holds the weights as plain numbers beside a
pickle of the modules' attributes. This module reads these two alone, with an unpickler that knows
tensors and attribute tables and refuses every other name.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.base.errors import UserError, one_line

MOST_FILES = 100_000
MOST_ATTRIBUTES = 64 * 2**20  # bytes of the pickle; SSCD's has 60 kB
MOST_PARTS = 1_000_000  # modules, tensors and settings
_KINDS = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def is_torchscript(path: Path) -> bool:
    """Whether a file is a zip archive with code in it, as TorchScript files are and checkpoints
    are not. Raises `UserError` when it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (zipfile.BadZipFile, EOFError, ValueError):
        return False
    except OSError as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers by dotted name, in the order of the file, on the CPU.

    Raises `UserError` for a file that is damaged, compressed (the format is not), or refers to
    anything but tensors and plain values.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = _pickled_name(archive)
            return _collect(_Attributes(archive, pickled).load())
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        EOFError,
        RuntimeError,
        RecursionError,
        MemoryError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ) as error:
        raise UserError(
            f"{path} is no readable TorchScript file ({one_line(error)[:100]}); fetch or build it"
            " again"
        ) from error


def _pickled_name(archive: zipfile.ZipFile) -> str:
    entries = archive.infolist()
    if len(entries) > MOST_FILES:
        raise ValueError(f"it holds {len(entries)} files")
    # A stored file takes no more room than the archive; a compressed one could take a thousandfold.
    packed = [
        entry.filename
        for entry in entries
        if entry.compress_type != zipfile.ZIP_STORED and _is_read(entry.filename)
    ]
    if packed:
        raise ValueError(f"its part {packed[0][:60]} is compressed")
    found = [
        entry
        for entry in entries
        if entry.filename.endswith("/data.pkl") and entry.filename.count("/") == 1
    ]
    if len(found) != 1 or found[0].file_size > MOST_ATTRIBUTES:
        raise ValueError("it has no table of attributes of a usual size")
    return found[0].filename


def _is_read(name: str) -> bool:
    """Whether a part of the archive is read here: the table and the numbers, and not the code."""
    return name.endswith("/data.pkl") or "/data/" in name


class _Module:
    """A module of the file: nothing but its attributes by name."""

    attributes: dict[str, Any]

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise ValueError("a module's attributes are no table")
        self.attributes = state


def _plain(value: Any) -> Any:
    return value


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Tensor):
        raise ValueError("a tensor without numbers")
    if math.prod(size) > len(storage):  # one number could stand for as many as one likes
        raise ValueError("a tensor of more numbers than it holds")
    # `as_strided` refuses whatever leads outside the storage.
    return storage.as_strided(tuple(size), tuple(stride), int(offset)).clone()


def _parameter(tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise ValueError("a parameter that is no tensor")
    return tensor


_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    **{
        ("torch.jit._pickle", f"build_{kind}list"): _plain
        for kind in ("int", "double", "bool", "tensor")
    },
    ("torch.jit._pickle", "restore_type_tag"): lambda value, *_: value,
}


class _Attributes(pickle.Unpickler):
    """The table of attributes; whatever it names beside tensors and modules is refused."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        super().__init__(archive.open(name))
        self.archive, self.folder = archive, name.removesuffix("data.pkl")
        self.known: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in _KINDS:
            return name
        if (module, name) in _NAMES:
            return _NAMES[module, name]
        raise ValueError(f"it names {module}.{name}, which is no part of a network's weights"[:120])

    def persistent_load(self, pid: Any) -> Tensor:
        word, kind, key, _, count = pid
        if word != "storage" or kind not in _KINDS:
            raise ValueError("numbers of an unknown kind")
        key = str(key)
        if key not in self.known:
            content = self.archive.read(f"{self.folder}data/{key}")
            numbers = torch.frombuffer(bytearray(content), dtype=_KINDS[kind]) if content else None
            self.known[key] = torch.empty(0, dtype=_KINDS[kind]) if numbers is None else numbers
            if len(self.known[key]) != int(count):
                raise ValueError("the numbers of a tensor are not all there")
        return self.known[key]


def _collect(root: Any) -> dict[str, Tensor]:
    """The tensors of a module and of those within it, by dotted name."""
    tensors: dict[str, Tensor] = {}
    waiting, seen = deque([("", root)]), 0
    while waiting:
        # Modules may stand in several places, so that a small file could name parts without end.
        seen += 1
        if seen > MOST_PARTS:
            raise ValueError("its modules have no end")
        name, value = waiting.popleft()
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, _Module):
            inner = getattr(value, "attributes", {}).items()
            # before what waits already: the order of the file
            waiting.extendleft(
                reversed([(f"{name}.{key}" if name else str(key), part) for key, part in inner])
            )
    return tensors
