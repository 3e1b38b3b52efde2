"""What the header of a safetensors file says, read without loading a weight: how many numbers of
which type, and how long the file must be.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from bench.base.errors import one_line
from bench.base.safetensors_header import read_header


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
    header = read_header(path)
    try:
        numbers: Counter[str] = Counter()
        for tensor in header.tensors.values():
            numbers[str(tensor["dtype"])] += math.prod(tensor["shape"])
        end = max((int(tensor["data_offsets"][1]) for tensor in header.tensors.values()), default=0)
        return WeightsHeader(numbers, header.size, header.start + end)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(f"its header is damaged ({one_line(error, 100)})") from error
