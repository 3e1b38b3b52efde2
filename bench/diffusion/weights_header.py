"""What the header of a safetensors file says, read without loading a weight: how many numbers of
which type, and how long the file must be.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bench.base.errors import one_line

LONGEST = 100 << 20  # bytes of a header: a longer one is damage, and would fill the memory


@dataclass(frozen=True)
class WeightsHeader:
    """`numbers` by stored type (F32, F16, ...); `size` of the file in bytes, and the `promised`
    size: another one means damage.
    """

    numbers: Counter[str]
    size: int
    promised: int


def read_weights_header(path: Path) -> WeightsHeader:
    """Raises `ValueError` with one line for what cannot be read: a file that is not there, a
    git-lfs pointer, another format, damage.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            first = stream.read(8)
            if first == b"version ":
                raise ValueError("it is a git-lfs pointer: run git lfs pull")
            length = int.from_bytes(first, "little")
            if not 2 <= length <= min(size - 8, LONGEST):
                raise ValueError(
                    "it has no header of a safetensors file: truncated, or another format"
                )
            tensors = {
                name: tensor
                for name, tensor in json.loads(stream.read(length)).items()
                if name != "__metadata__"
            }
        numbers: Counter[str] = Counter()
        for tensor in tensors.values():
            numbers[str(tensor["dtype"])] += math.prod(tensor["shape"])
        end = max((int(tensor["data_offsets"][1]) for tensor in tensors.values()), default=0)
        return WeightsHeader(numbers, size, 8 + length + end)
    except (OSError, ValueError) as error:
        raise ValueError(one_line(error, 200)) from error
    except (KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError(f"its header is damaged ({one_line(error, 100)})") from error
