"""Flagged prompts against the training pictures: what the attacker does not have and a benchmark
does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attacks._exact import normalised, squared_distances
from attacks._findings import Finding
from attacks._nearest import within
from attacks._training_set import TrainingSet
from bench import Prompt, Role, Suite, read_picture
from bench.features import Extractor

TRAINING_ROLES: tuple[Role, ...] = ("memorized", "fit")


@dataclass(frozen=True)
class Match:
    """A training picture that a representative is a copy of: its name, the plain normalised l2
    between them, and how many more there are.
    """

    name: str
    distance: float
    # training pictures within the verification distance (the k of k-eidetic memorization)
    training_copies: int


@dataclass(frozen=True)
class Verified:
    """A flagged prompt, its match among the training pictures, and the copy descriptor's similarity
    to the most similar reference picture.
    """

    finding: Finding
    match: Match | None
    similarity: float | None = None


class References:
    """The training pictures that a suite names, each file once, read at the generator's side when
    they are needed.

    These are the references of the roles memorized and fit; what stands beside other prompts (real
    pictures to compare quality with) was not trained on.
    """

    def __init__(self, suite: Suite) -> None:
        self.side = suite.settings.model.side
        self.elements = self.side * self.side * 3
        names: dict[Path, str] = {}
        for role, prompt, number, path in training_references(suite):
            plain = prompt.id if number == 0 else f"{prompt.id}/{number}"
            names.setdefault(
                path, plain if plain not in names.values() else f"{role}:{prompt.id}/{number}"
            )
        self.paths = {name: path for path, name in names.items()}
        self.training = TrainingSet(list(self.paths.items()), self.side)

    def copies(self, prompt: Prompt, pictures: np.ndarray, limit: int) -> int | None:
        """How many of a prompt's generations, uint8 `[n, H, W, 3]`, are copies of its own training
        pictures; None where it has none.
        """
        if not prompt.references:
            return None
        own = self._read([(path.name, path) for path in prompt.references])
        squared = squared_distances(pictures.reshape(len(pictures), -1), own.reshape(len(own), -1))
        return int((squared.min(1) <= limit).sum())

    def picture(self, name: str) -> np.ndarray:
        """A training picture by the name that a match in `training` has."""
        return self._read([(name, self.paths[name])])[0]

    def _read(self, files: list[tuple[str, Path]]) -> np.ndarray:
        return np.concatenate([batch for _, batch in TrainingSet(files, self.side)])

    def described(self, descriptor: Extractor) -> Described:
        """All of them by a copy descriptor, from the files as they are, some at a time."""
        files = list(self.paths.values())
        parts = [
            descriptor([read_picture(path) for path in files[start : start + 64]])
            for start in range(0, len(files), 64)
        ]
        return Described(descriptor, np.concatenate(parts))


@dataclass(frozen=True)
class Described:
    """Reference pictures by a copy descriptor, unit vectors `[m, d]`."""

    descriptor: Extractor
    references: np.ndarray

    def nearest(self, pictures: np.ndarray) -> list[float]:
        """Of each picture, the similarity to the most similar reference."""
        return [
            float(value) for value in (self.descriptor(list(pictures)) @ self.references.T).max(1)
        ]


def training_references(suite: Suite) -> Iterator[tuple[Role, Prompt, int, Path]]:
    """Role, prompt, number and file of every reference picture that is a training picture."""
    for role in TRAINING_ROLES:
        for prompt in suite.prompts(role):
            for number, path in enumerate(prompt.references):
                yield role, prompt, number, path


def verified(
    flagged: Sequence[Finding],
    training: TrainingSet | None,
    limit: int,
    described: Described | None,
    report: Callable[[str, int, int], None],
) -> list[Verified]:
    """Each flagged prompt's representative against `training`, surest prompt first: by the mean
    distance inside the clique (Carlini et al. 2023).

    A training picture within `limit` (whole picture, squared) is a match.
    """
    if not flagged:
        return []
    representatives = np.stack([finding.representative for finding in flagged])
    elements = representatives[0].size
    matches: list[Match | None] = [None] * len(flagged)
    if training:
        found = within(
            representatives,
            training,
            limit,
            lambda scanned: report("verify", scanned, training.count or scanned),
        )
        matches = [
            None if name is None else Match(name, normalised(int(squared), elements), int(count))
            for name, squared, count in zip(found.nearest, found.squared, found.count, strict=True)
        ]
    similarities = described.nearest(representatives) if described else [None] * len(flagged)
    everyone = [Verified(*parts) for parts in zip(flagged, matches, similarities, strict=True)]
    return sorted(everyone, key=lambda one: (one.finding.mean_distance, one.finding.prompt.id))


def different_pictures(pictures: np.ndarray, limit: int) -> int:
    """How many different pictures, uint8 `[n, H, W, 3]`, there are when those within the limit,
    directly or over others, count as one.
    """
    count = len(pictures)
    if not count:
        return 0
    flat = pictures.reshape(count, -1)
    parent = list(range(count))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for one, other in zip(
        *np.nonzero(np.triu(squared_distances(flat, flat) <= limit, 1)), strict=True
    ):
        parent[root(int(other))] = root(int(one))
    return len({root(node) for node in range(count)})
