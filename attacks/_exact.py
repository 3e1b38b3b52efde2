"""Exact arithmetic on 8-bit pictures: squared distances as integers, thresholds as rationals.

A decision "is this distance at most t" is then the same on every machine, for every block size and
number of threads. Distances are normalised as in Carlini et al. (2023): pixels in [0, 1], the root
of the mean squared difference, so within [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cache

import numpy as np
import torch

from bench import UserError

WHITE = 255
# of columns for int8 products: 16384 * 128**2 = 2**28 fits int32, and a few hundred rows fit the
# cache
CHUNK = 16384
# of columns for float32 products: 1024 * 128**2 = 2**24, up to where float32 holds every integer
FLOAT_CHUNK = 1024


def squared_limit(threshold: float, elements: int) -> int:
    """The largest sum of squared differences of `elements` 8-bit numbers whose normalised distance
    is at most `threshold`.

    `floor(threshold^2 * 255^2 * elements)`, the threshold taken as the decimal that it is written
    as. Raises `UserError` outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise UserError(f"a distance threshold must be above 0 and at most 1, not {threshold}")
    return int(Fraction(str(threshold)) ** 2 * WHITE**2 * elements)


def normalised(squared: int | float, elements: int) -> float:
    """A sum of squared differences as a distance within [0, 1]."""
    return float(np.sqrt(squared / elements) / WHITE)


def stacked(pictures: Sequence[np.ndarray], at_least: int = 1) -> np.ndarray:
    """Pictures, uint8 `[H, W, 3]` each, as one array `[n, H, W, 3]`.

    Raises `UserError` for too few, unequal sizes or other types.
    """
    if len(pictures) < at_least:
        raise UserError(
            f"at least {at_least} pictures are needed to compare them, not {len(pictures)}"
        )
    for index, picture in enumerate(pictures):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise UserError(
                f"picture {index} is {picture.dtype} {list(picture.shape)} and not uint8 [H, W, 3]"
            )
        if picture.shape != pictures[0].shape:
            raise UserError(
                f"pictures of unequal size: picture 0 is {_size(pictures[0])} and picture {index}"
                f" is {_size(picture)}"
            )
    return np.stack(list(pictures))


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sums of squared differences between the rows of two uint8 arrays `[n, d]` and `[m, d]`: int64
    `[n, m]`, exact.
    """
    total = np.zeros((len(a), len(b)), dtype=np.int64)
    for start in range(0, a.shape[1], CHUNK):
        left = centred(a[:, start : start + CHUNK])
        right = left if b is a else centred(b[:, start : start + CHUNK])
        norms = _squares(left)
        total += (
            norms[:, None]
            + (norms if b is a else _squares(right))[None, :]
            - 2 * products(left, right)
        )
    return total


def centred(values: np.ndarray) -> torch.Tensor:
    """uint8 minus 128, as int8: flipping the highest bit is that subtraction.

    Small numbers keep products small.
    """
    return torch.from_numpy(np.ascontiguousarray(values) ^ np.uint8(128)).view(torch.int8)


def products(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """Inner products of the rows of two int8 tensors `[n, d]` and `[m, d]`: int64 `[n, m]`,
    exact.
    """
    if not int8_is_exact():
        return float_products(a, b)
    total = np.zeros((len(a), len(b)), dtype=np.int64)
    for start in range(0, a.shape[1], CHUNK):
        total += _int8_products(a[:, start : start + CHUNK], b[:, start : start + CHUNK])
    return total


def _squares(values: torch.Tensor) -> np.ndarray:
    total = np.zeros(len(values), dtype=np.int64)
    for start in range(0, values.shape[1], FLOAT_CHUNK):
        chunk = values[:, start : start + FLOAT_CHUNK].float()
        total += torch.linalg.vecdot(chunk, chunk).numpy().astype(np.int64)
    return total


def _int8_products(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    return torch._int_mm(a, b.t()).numpy()  # type: ignore[no-any-return]


def float_products(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """The same by float32: every partial sum of a chunk is an integer that float32 holds, so the
    order of summing changes nothing.
    """
    total = np.zeros((len(a), len(b)), dtype=np.int64)
    for start in range(0, a.shape[1], FLOAT_CHUNK):
        left, right = (
            a[:, start : start + FLOAT_CHUNK].float(),
            b[:, start : start + FLOAT_CHUNK].float(),
        )
        total += (left @ right.t()).numpy().astype(np.int64)
    return total


@cache
def int8_is_exact() -> bool:
    """Whether this machine multiplies int8 without loss: processors without the right instructions
    saturate sums of two products.
    """
    if not hasattr(torch, "_int_mm"):
        return False
    extremes = torch.tensor([-128, 127], dtype=torch.int8)
    a = extremes[torch.arange(64 * 256).reshape(64, 256) // torch.arange(1, 65)[:, None] % 2]
    try:
        return bool(torch.equal(torch._int_mm(a, a.t()).long(), a.long() @ a.long().t()))
    except RuntimeError:
        return False
