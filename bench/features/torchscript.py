"""The tensors of a TorchScript file, read without running anything of it.

A TorchScript is a program: loading one with `torch.jit.load` runs what its author wrote, which may
read and write files. It is also a zip archive that holds the weights as plain numbers beside a
pickle of the modules' attributes. This module reads these two alone, with an unpickler that knows
tensors and attribute tables and refuses every other name.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.base.errors import UserError, one_line

MOST_FILES = 100_000
MOST_ATTRIBUTES = 8 * 2**20  # bytes of the pickle; SSCD's has 60 kB
LEAP = 1000  # of the numbers by which a table remembers its parts
DEEPEST = 8  # tuples within one another
LONGEST_NAME = 1000  # characters of a module's dotted name
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
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError):
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
            held = sum(entry.file_size for entry in archive.infolist())
            return _collect(_Attributes(archive, pickled).load(), held)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        EOFError,
        RuntimeError,
        ArithmeticError,
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
    # What is stored takes as much room as in the archive; compressed, it could take a thousandfold.
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


class _Numbers:
    """The numbers of a storage, or a tensor cut out of them; nothing can be put into it."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a tensor that is built from something else")


class _Module:
    """A module of the file: nothing but its attributes by name."""

    attributes: dict[str, Any]

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise ValueError("a module's attributes are no table")
        self.attributes = state


class _Made:
    """A function that the table may call; it has no state that the table could change."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("a function that is to be changed")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Numbers:
    if not isinstance(storage, _Numbers):
        raise ValueError("a tensor without numbers")
    if math.prod(size) > len(storage.tensor):  # one number could stand for as many as one likes
        raise ValueError("a tensor of more numbers than it holds")
    # `as_strided` refuses whatever leads outside the storage.
    return _Numbers(storage.tensor.as_strided(tuple(size), tuple(stride), int(offset)))


def _parameter(tensor: Any, *_: Any) -> _Numbers:
    if not isinstance(tensor, _Numbers):
        raise ValueError("a parameter that is no tensor")
    return tensor


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    **{
        ("torch.jit._pickle", f"build_{kind}list"): lambda value: value
        for kind in ("int", "double", "bool", "tensor")
    },
    ("torch.jit._pickle", "restore_type_tag"): lambda value, *_: value,
}
# What torch writes, of all that a pickle may say (the names of the standard library's pickletools).
_OPCODES = set(
    "PROTO GLOBAL EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 NEWOBJ EMPTY_DICT EMPTY_LIST MARK"
    " BINPUT LONG_BINPUT BINGET LONG_BINGET BINUNICODE BININT BININT1 BININT2 LONG1 BINFLOAT"
    " NEWTRUE NEWFALSE NONE BINPERSID REDUCE SETITEM SETITEMS APPEND APPENDS BUILD STOP".split()
)


_TAKES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "NEWOBJ": 2, "REDUCE": 2, "BUILD": 1}
_TAKES |= {"SETITEM": 2, "APPEND": 1, "BINPERSID": 1, "STOP": 1}
_TO_MARK = ("TUPLE", "SETITEMS", "APPENDS")
_KEEPS = ("BUILD", "SETITEM", "SETITEMS", "APPEND", "APPENDS", "STOP", "PROTO")  # push nothing


def _check_opcodes(table: bytes) -> None:
    """Go through a pickle without carrying it out.

    Raises `ValueError` for one that says what torch never writes, that numbers what it remembers in
    leaps (the memory for it would be taken at once), or that nests tuples more than `DEEPEST` deep
    (the digest of one of sixty, each twice in the next, would never end).
    """
    stack: list[int | None] = []  # how deep tuples are nested in each value; None for a mark
    memory: dict[int, int] = {}
    argument: Any
    for code, argument, _ in pickletools.genops(table):
        name = code.name
        if name not in _OPCODES:
            raise ValueError(f"its table says {name}, which no network needs")
        if name == "MARK":
            stack.append(None)
        elif name in ("BINPUT", "LONG_BINPUT"):
            if argument > len(memory) + LEAP:
                raise ValueError("its table remembers what it never said")
            memory[argument] = stack[-1] or 0
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memory[argument])
        else:
            taken = [stack.pop() or 0 for _ in range(_TAKES.get(name, 0))]
            while name in _TO_MARK and (value := stack.pop()) is not None:
                taken.append(value)
            deep = max(taken, default=0) + name.startswith("TUPLE")
            if deep > DEEPEST:
                raise ValueError("its table nests tuples without end")
            if name not in _KEEPS:
                stack.append(deep)


class _Attributes(pickle.Unpickler):
    """The table of attributes; whatever it names beside tensors and modules is refused."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        table = archive.read(name)
        _check_opcodes(table)
        super().__init__(io.BytesIO(table))
        self.archive, self.folder = archive, name.removesuffix("data.pkl")
        self.known: dict[str, _Numbers] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in _KINDS:
            return name
        if (module, name) in _FUNCTIONS:
            return _Made(_FUNCTIONS[module, name])
        raise ValueError(f"it names {module}.{name}, which is no part of a network's weights"[:120])

    def persistent_load(self, pid: Any) -> _Numbers:
        word, kind, key, _, count = pid
        if word != "storage" or kind not in _KINDS:
            raise ValueError("numbers of an unknown kind")
        key = str(key)
        if key not in self.known:
            content = self.archive.read(f"{self.folder}data/{key}")
            empty = torch.empty(0, dtype=_KINDS[kind])
            found = torch.frombuffer(bytearray(content), dtype=empty.dtype) if content else empty
            if len(found) != count:
                raise ValueError("the numbers of a tensor are not all there")
            self.known[key] = _Numbers(found)
        return self.known[key]


def _collect(root: Any, held: int) -> dict[str, Tensor]:
    """The tensors of a module and of those within it, by dotted name; `held`: bytes of the file,
    of which no tensor is there twice.
    """
    tensors: dict[str, Tensor] = {}
    waiting, entered = deque([("", root)]), set[int]()
    room = 0
    while waiting:
        name, value = waiting.popleft()
        if isinstance(value, _Numbers):
            room += value.tensor.numel() * value.tensor.element_size()
            if room > held:
                raise ValueError("its tensors take more room than the file")
            tensors[name] = value.tensor.clone()
        elif isinstance(value, _Module):
            if id(value) in entered:  # a table could name parts without end
                raise ValueError("one of its modules stands in two places")
            entered.add(id(value))
            inner = getattr(value, "attributes", {})
            # before what waits already: the order of the file
            waiting.extendleft(
                reversed(
                    [
                        (f"{name}.{key}" if name else str(key), part)
                        for key, part in inner.items()
                        if isinstance(part, _Numbers | _Module)
                    ]
                )
            )
            if len(name) > LONGEST_NAME:
                raise ValueError("the name of a module has no end")
    return tensors
