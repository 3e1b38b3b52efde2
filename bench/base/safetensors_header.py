"""The header of a safetensors file, read without loading a weight; who its tensors are; and texts
put into it.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.base.errors import UserError, one_line

PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")
LONGEST = 100 << 20  # bytes of a header, as the library has it: a longer one is damage


@dataclass(frozen=True)
class Header:
    """`tensors` by name: dtype, shape and data_offsets, counted from byte `start` of the file,
    which has `size` bytes. `texts` is what the header says besides.
    """

    tensors: dict[str, Any]
    start: int
    size: int
    texts: dict[str, str]


def refuse_pickled_tensors(path: Path) -> None:
    """Raises `UserError` for a file whose name says that it is a pickle, with how to convert it."""
    if path.suffix.lower() in PICKLES:
        raise UserError(
            f"{path} is a pickle, and loading one runs its code: convert it to safetensors with"
            " torch.load(FILE, weights_only=True) and safetensors.torch.save_file"
        )


def read_header(path: Path) -> Header:
    """Raises `ValueError` with one line for what cannot be read: a file that is not there, a
    git-lfs pointer, another format, damage.
    """
    try:
        facts = path.stat()
        if stat.S_ISFIFO(facts.st_mode):  # whoever opens one waits for its other end
            raise ValueError("it is no regular file")
        size = facts.st_size
        with path.open("rb") as stream:
            first = stream.read(8)
            if first == b"version ":
                raise ValueError("it is a git-lfs pointer: run git lfs pull")
            length = int.from_bytes(first, "little")
            if not 2 <= length <= min(size - 8, LONGEST):
                raise ValueError(
                    "it has no header of a safetensors file: truncated, or another format"
                )
            content = json.loads(stream.read(length))
    except (OSError, ValueError) as error:
        raise ValueError(one_line(error, 200)) from error
    except RecursionError as error:
        raise ValueError(f"its header is damaged ({one_line(error, 100)})") from error
    if not isinstance(content, dict):
        raise ValueError("its header is no table")
    tensors = {name: about for name, about in content.items() if name != "__metadata__"}
    said = content.get("__metadata__")
    texts = {
        name: text
        for name, text in (said.items() if isinstance(said, dict) else ())
        if isinstance(text, str)
    }
    return Header(tensors, 8 + length, size, texts)


def tensors_digest(path: Path) -> str:
    """sha256 over the names, types, shapes and bytes of the tensors in the order of their names, 64
    hex digits: the same whatever the header says besides, and in whatever order they lie.

    Raises `ValueError` as `read_header` does, and for tensors that the file does not hold.
    """
    header, digest = read_header(path), hashlib.sha256()
    try:
        with path.open("rb") as stream:
            for name in sorted(header.tensors):
                about = header.tensors[name]
                first, end = about["data_offsets"]
                digest.update(f"{name}\0{about['dtype']}\0{about['shape']}\0".encode())
                if not 0 <= first <= end <= header.size - header.start:
                    raise ValueError(f"the file does not hold {name}: it is truncated")
                stream.seek(header.start + first)
                digest.update(stream.read(end - first))
    except (KeyError, TypeError) as error:
        raise ValueError(f"its header is damaged ({one_line(error, 100)})") from error
    except OSError as error:
        raise ValueError(one_line(error, 200)) from error
    return digest.hexdigest()


def with_metadata(content: bytes, said: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file with these texts in its header, sorted by name.

    The library writes such texts in an order that differs from process to process; a file that is
    made twice would then not be the same file.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    tensors = json.loads(content[8:start])
    tensors.pop("__metadata__", None)
    header = {"__metadata__": dict(sorted(said.items())), **tensors}
    written = json.dumps(header, separators=(",", ":")).encode()
    written += b" " * (-len(written) % 8)  # tensors begin at a multiple of eight bytes
    return len(written).to_bytes(8, "little") + written + content[start:]
