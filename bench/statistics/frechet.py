"""The Frechet distance between two sets of features, from moments that are gathered block by block,
so that memory does not grow with the sets.

Means and covariances are float64 and do not depend on how the features were cut on their way here:
they are cut again, in order.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from scipy.linalg import svdvals
from scipy.linalg.blas import dsyrk
from scipy.linalg.lapack import dpstrf

from bench.base.arrays import open_arrays
from bench.base.errors import UserError, one_line
from bench.base.files import write_atomically

BLOCK = 512  # rows that are merged at a time


@dataclass(frozen=True)
class Statistics:
    """Mean `[d]` and covariance `[d, d]` of the features of `n` pictures, and what is known of
    these.
    """

    mu: np.ndarray
    sigma: np.ndarray
    n: int
    fingerprint: str = ""  # of the network and the resizing, where the file says it
    pictures: str = ""  # the name of their folder
    digest: str = ""  # of their contents
    crop: str = ""  # what was cut from each


# what numpy raises for a file that is damaged, or asks for more than there is memory
_UNREADABLE = (
    OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile, MemoryError, zlib.error
)  # fmt: skip


def read_statistics(path: Path, dims: int | None = None) -> Statistics:
    """Read reference statistics, of `dims` features where that is known.

    Raises `UserError` when the file is unreadable, holds NaN or infinity, or belongs to features of
    another length.
    """
    try:
        with open_arrays(path) as content:
            mu, sigma = (_real(path, content, name, np.float64) for name in ("mu", "sigma"))
            said = {
                name: str(content.get(name, ""))
                for name in ("fingerprint", "pictures", "digest", "crop")
            }
            statistics = Statistics(mu, sigma, int(content["n"]) if "n" in content else 0, **said)
    except _UNREADABLE as error:
        raise UserError(
            f"reference statistics {path} cannot be read: {one_line(error)}; make the file again"
        ) from error
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise UserError(
            f"reference statistics {path} have a mean {list(mu.shape)} and a covariance"
            f" {list(sigma.shape)}; make the file again"
        )
    if dims is not None and len(mu) != dims:
        raise UserError(
            f"reference statistics {path} are of {len(mu)} features and the network gives {dims}"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"reference statistics {path} hold NaN or infinity; make the file again")
    scale = float(np.trace(sigma)) / max(len(mu), 1)
    if not np.allclose(sigma, sigma.T, rtol=1e-6, atol=1e-6 * max(scale, 1e-12)):
        raise UserError(
            f"reference statistics {path}: the covariance is not symmetric; make the file again"
        )
    if len(mu) and float(np.linalg.eigvalsh(sigma)[0]) < -1e-3 * max(scale, 1e-12):
        raise UserError(
            f"reference statistics {path}: the covariance has a negative variance; make the file"
            " again"
        )
    return statistics


def write_statistics(
    statistics: Statistics, path: Path, features: np.ndarray | None = None
) -> None:
    """Write an `.npz` that `read_statistics` reads; whole or not at all. With `features` `[n, d]`
    it also holds what the statistics are of, for `read_features`.
    """
    buffer = io.BytesIO()
    content: dict[str, Any] = vars(statistics) | (
        {} if features is None else {"features": features}
    )
    np.savez(buffer, **content)
    write_atomically(path, buffer.getvalue())


def _real(
    path: Path, content: Mapping[str, np.ndarray], name: str, dtype: type[np.floating[Any]]
) -> np.ndarray:
    """An array of a file, as `dtype`. Raises `UserError` where it holds no real numbers: of complex
    ones a part would be dropped without a word.
    """
    array = content[name]
    if array.dtype.kind not in "fiu":
        raise UserError(
            f"reference statistics {path}: {name} holds {array.dtype}, no real numbers; make the"
            " file again"
        )
    return array.astype(dtype)


def read_features(path: Path) -> tuple[Statistics, np.ndarray]:
    """Reference statistics, and the features `[n, d]` that their file keeps, float32.

    Raises `UserError` where it keeps none, or where its statistics are those of other features.
    """
    statistics = read_statistics(path)
    with open_arrays(path) as content:
        if "features" not in content:
            raise UserError(
                f"reference statistics {path} keep no features, which kernel distances, precision"
                " and recall need: make the file again with bench statistics --features"
            )
        features = _real(path, content, "features", np.float32)
    if features.ndim != 2 or features.shape[1] != len(statistics.mu) or len(features) < 2:
        raise UserError(
            f"reference statistics {path} keep features {list(features.shape)} beside a mean of"
            f" {len(statistics.mu)}; make the file again"
        )
    scale = float(np.sqrt(np.trace(statistics.sigma) / len(statistics.mu))) + 1e-6
    # NaN fails here too.
    if not np.abs(features.mean(0, dtype=np.float64) - statistics.mu).max() <= 1e-3 * scale:
        raise UserError(
            f"reference statistics {path}: the mean is not that of the features beside it; make"
            " the file again"
        )
    return statistics, features


def moments(blocks: Iterable[np.ndarray]) -> Statistics:
    """Mean and unbiased covariance of features that come as blocks `[n, d]`, in float64;
    `UserError` for fewer than two rows, NaN or infinity.

    A block is merged into what came before by the update of Chan, Golub and LeVeque (1983), exact
    but for rounding. The shift of the mean is one more row of the centred block, so that a block is
    one symmetric update in place.
    """
    mean, scatter, count = np.zeros(0), np.zeros((0, 0)), 0
    for rows in _blocks_of(blocks, BLOCK):
        if not count:
            mean, scatter = np.zeros(rows.shape[1]), np.zeros((rows.shape[1],) * 2, order="F")
        size = len(rows)
        own = rows.mean(0)
        if not np.isfinite(own).all():
            raise UserError(
                "the network gives NaN or infinity as features of a picture: its weights are"
                " damaged, or overflow in half precision"
            )
        shift = own - mean
        centred = np.concatenate([rows - own, np.sqrt(count * size / (count + size)) * shift[None]])
        scatter = dsyrk(1.0, centred.T, beta=1.0, c=scatter, lower=1, overwrite_c=1)
        mean += shift * (size / (count + size))
        count += size
    if count < 2:
        raise UserError(f"moments need the features of two pictures or more, not of {count}")
    scatter /= count - 1
    for row in range(len(scatter)):  # the update fills the lower half only
        scatter[row, row + 1 :] = scatter[row + 1 :, row]
    return Statistics(mean, scatter, count)


def _blocks_of(blocks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same rows in the same order as float64 blocks of `size` rows, of which the last may have
    fewer.
    """
    buffer, filled = np.zeros((0, 0)), 0
    for block in blocks:
        if buffer.shape[1] != block.shape[1]:
            buffer = np.empty((size, block.shape[1]))
        while len(block):
            taken = min(size - filled, len(block))
            buffer[filled : filled + taken] = block[:taken]
            block, filled = block[taken:], filled + taken
            if filled == size:
                yield buffer
                filled = 0
    if filled:
        yield buffer[:filled]


def first_rows(blocks: Iterable[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """The first `count` rows of features that are given as blocks `[n, d]`. Blocks after these are
    not computed.
    """
    for block in blocks:
        yield block[:count]
        count -= len(block)
        if count <= 0:
            return


def frechet_distance(
    mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray
) -> float:
    """`|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))` in float64 (Heusel et al. 2017, eq. 6).

    The trace of the root is the sum of the singular values of `L1' L2` for any factors `S = L L'`.
    Those of a pivoted Cholesky decomposition have as many columns as the covariance has rank: the
    result is real, and never NaN where covariances are singular.
    """
    shared = svdvals(_factor(sigma1).T @ _factor(sigma2), check_finite=False).sum()
    difference = np.asarray(mu1, dtype=np.float64) - mu2
    return max(
        float(difference @ difference + np.trace(sigma1) + np.trace(sigma2) - 2 * shared), 0.0
    )


def _factor(matrix: np.ndarray) -> np.ndarray:
    """`L` `[d, rank]` with `L L'` the symmetric, positive semidefinite matrix `[d, d]`."""
    triangle, order, rank, _ = dpstrf(np.asarray(matrix, dtype=np.float64), lower=1)
    factor = np.zeros((len(matrix), rank))
    factor[order - 1] = np.tril(triangle)[:, :rank]
    return factor
