"""Flagged prompts against the training pictures: what the attacker does not have and a benchmark does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attacks._exact import normalised, squared_distances
from attacks._findings import Finding
from attacks._nearest import within
from attacks._training_set import TrainingSet
from bench.metric import Extractor
from bench.store import read_picture
from bench.suite import ROLES, Prompt, Suite


@dataclass(frozen=True)
class Match:
    """A training picture that a representative is a copy of: its name, the plain normalised l2 between them, and how many more there are."""

    name: str
    distance: float
    training_copies: int  # training pictures within the verification distance (the k of k-eidetic memorization)


@dataclass(frozen=True)
class Verified:
    """A flagged prompt, its match among the training pictures, and the copy descriptor's similarity to the most similar reference picture."""

    finding: Finding
    match: Match | None
    similarity: float | None = None


class References:
    """The training pictures that a suite names, each file once, brought to the generator's side."""

    def __init__(self, suite: Suite) -> None:
        side = suite.settings.model.side
        prompts = {prompt.id: prompt for role in ROLES for prompt in suite.prompts(role) if prompt.references}  # type: ignore[arg-type]
        names: dict[Path, str] = {}
        for prompt in prompts.values():
            for number, path in enumerate(prompt.references):
                names.setdefault(path, prompt.id if number == 0 else f"{prompt.id}/{number}")
        self.paths = tuple(names)
        self.training = TrainingSet([(name, path) for path, name in names.items()], side)
        self.elements = side * side * 3
        self.rows = {name: row for row, name in enumerate(names.values())}
        self.of_path = {path: row for row, path in enumerate(names)}
        self.pictures = np.concatenate([batch for _, batch in self.training]) if names else np.zeros((0, side, side, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.paths)

    def copies(self, prompt: Prompt, pictures: np.ndarray, limit: int) -> int | None:
        """How many of a prompt's generations, uint8 `[n, H, W, 3]`, are copies of its own training pictures; None where it has none."""
        if not prompt.references:
            return None
        own = self.pictures[[self.of_path[path] for path in prompt.references]]
        squared = squared_distances(pictures.reshape(len(pictures), -1), own.reshape(len(own), -1))
        return int((squared.min(1) <= limit).sum())

    def picture(self, name: str) -> np.ndarray | None:
        """A training picture by the name that a match has; None when it is not one of the suite's."""
        return self.pictures[self.rows[name]] if name in self.rows else None


def verified(
    flagged: Sequence[Finding],
    references: References,
    training: TrainingSet | None,
    limit: int,
    descriptor: Extractor | None,
    report: Callable[[str, int, int], None],
) -> list[Verified]:
    """Each flagged prompt's representative against `training`, surest prompt first: by the mean distance inside the clique (Carlini et al. 2023)."""
    if not flagged:
        return []
    representatives = np.stack([finding.shown[0] for finding in flagged])
    matches: list[Match | None] = [None] * len(flagged)
    if training:
        found = within(representatives, training, limit, lambda scanned: report("verify", scanned, training.count or scanned))
        matches = [
            None if name is None else Match(name, normalised(int(squared), references.elements), int(count))
            for name, squared, count in zip(found.nearest, found.squared, found.count, strict=True)
        ]
    similarities: list[float | None] = [None] * len(flagged)
    if descriptor and len(references):
        known = descriptor([read_picture(path) for path in references.paths])
        similarities = [float(value) for value in (descriptor(list(representatives)) @ known.T).max(1)]
    everyone = [Verified(*parts) for parts in zip(flagged, matches, similarities, strict=True)]
    return sorted(everyone, key=lambda one: (one.finding.mean_distance, one.finding.prompt.id))


def different_pictures(pictures: np.ndarray, limit: int) -> int:
    """How many different pictures, uint8 `[n, H, W, 3]`, there are when those within the limit, directly or over others, count as one."""
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

    for one, other in zip(*np.nonzero(np.triu(squared_distances(flat, flat) <= limit, 1)), strict=True):
        parent[root(int(other))] = root(int(one))
    return len({root(node) for node in range(count)})
