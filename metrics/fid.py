"""Picture quality: the Frechet distance to real pictures, with clean-fid's resizing and features and our own, exact distance.

FID falls with the number of images, so the number is the suite's and part of the score; fewer are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from zipfile import BadZipFile

import numpy as np
from pydantic import Field

from bench.errors import Unmeasurable, UserError, one_line
from bench.extractors import CleanFeatures
from bench.metric import Evaluation, Extractor, Metric, PerImage, PerSet
from bench.suite import Role, Suite


class Fid(Metric):
    """Frechet distance between features of generations and of real pictures, clean-fid semantics."""

    names: ClassVar[tuple[str, ...]] = ("fid",)
    roles: ClassVar[tuple[Role, ...]] = ("quality",)
    files: ClassVar[tuple[str, ...]] = ("weights", "statistics")

    weights: str = Field(description="TorchScript with `.layers`, as clean-fid's Inception file, relative to the suite file")
    statistics: str = Field(description="`.npz` with `mu`, `sigma`, `n` of the real pictures' features")
    images: int = Field(ge=2, description="the number of images; fewer are refused")
    size: int = Field(299, ge=8, description="side that pictures are resized to; 299 for Inception")

    def extractors(self, suite: Suite, device: Any) -> Mapping[Role, Sequence[Extractor]]:
        return {"quality": [CleanFeatures(suite.path(self.weights), self.size, device)]}

    def measure(self, evaluation: Evaluation) -> dict[str, PerImage | PerSet]:
        samples = evaluation.samples("quality")
        if len(samples) < self.images:
            raise Unmeasurable(f"FID of {self.images} images asked for and only {len(samples)} are there")
        extractor = evaluation.loaded(CleanFeatures(evaluation.path(self.weights), self.size, evaluation.device))
        features = samples.features(extractor).reshape(len(samples), -1)[: self.images].astype(np.float64)
        real = read_statistics(evaluation.path(self.statistics), features.shape[1])
        if real.fingerprint not in ("", extractor.fingerprint):
            raise UserError(f"reference statistics {self.statistics} were made with {real.fingerprint} and not with {extractor.fingerprint}")
        value = frechet_distance(*moments(features), real.mu, real.sigma)
        details = {"mode": "clean", "size": self.size, "weights_sha256": extractor.digest, "real_images": real.n, "dims": features.shape[1]}
        return {"fid": PerSet(value, self.images, "distance", False, prompts=len(samples.prompts), details=details)}


@dataclass(frozen=True)
class Statistics:
    """Mean `[d]` and covariance `[d, d]` of the features of `n` pictures."""

    mu: np.ndarray
    sigma: np.ndarray
    n: int
    fingerprint: str = ""  # of the network and the resizing, where the file says it


def read_statistics(path: Path, dims: int) -> Statistics:
    """Read reference statistics. Raises `UserError` when the file is unreadable or belongs to features of another length."""
    try:
        with np.load(path, allow_pickle=False) as content:
            statistics = Statistics(content["mu"], content["sigma"], int(content["n"]) if "n" in content else 0, str(content.get("fingerprint", "")))
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise UserError(f"reference statistics {path} cannot be read: {one_line(error)}") from error
    if statistics.mu.shape != (dims,) or statistics.sigma.shape != (dims, dims):
        raise UserError(f"reference statistics {path} are of {statistics.mu.shape[0]} features and the network gives {dims}")
    return statistics


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased covariance of features `[n, d]` in float64."""
    features = np.asarray(features, dtype=np.float64)
    return features.mean(0), np.atleast_2d(np.cov(features, rowvar=False))


def frechet_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """`|mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))` in float64 (Heusel et al. 2017, eq. 6).

    The trace of the root is the sum of the singular values of `S2^(1/2) S1^(1/2)`: both roots come from symmetric
    eigendecompositions, so the result is real, and never NaN where covariances are singular.
    """
    root1, root2 = _symmetric_root(sigma1), _symmetric_root(sigma2)
    shared = np.linalg.svd(root2 @ root1, compute_uv=False).sum()
    difference = np.asarray(mu1, dtype=np.float64) - mu2
    return max(float(difference @ difference + np.trace(sigma1) + np.trace(sigma2) - 2 * shared), 0.0)


def _symmetric_root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(np.asarray(matrix, dtype=np.float64))
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
