"""Which prompts of a suite hang together: captions of one training picture, and near-duplicates."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.base.digests import path_digest
from bench.statistics.units import Design
from bench.suite.near import components, near_pairs
from bench.suite.prompts import Prompt
from bench.suite.schema import Role
from bench.suite.suite import Suite


def design_of(suite: Suite, role: Role) -> Design:
    """Of the prompts of a role. Clusters are those of memorized prompts, named or not: clean ones
    are drawn independently, and short captions of different things have most words in common.
    """
    return design_among(suite, suite.prompts(role), role in ("memorized", "unnamed"))


def design_among(suite: Suite, prompts: tuple[Prompt, ...], memorized: bool) -> Design:
    """Of some prompts, which are memorized ones or others."""
    strata = {prompt.id: prompt.group for prompt in prompts} if suite.settings.stratified else {}
    return Design(clusters_of(prompts) if memorized else {}, strata)


def clusters_of(prompts: tuple[Prompt, ...]) -> dict[str, int]:
    """The number of the cluster of each prompt that shares one: prompts with a training picture in
    common, by its content, or with half of their words in common, directly or through others.
    """
    count = len(prompts)
    pairs = _sharing([{_content(path) for path in prompt.references} for prompt in prompts])
    pairs |= near_pairs([prompt.text for prompt in prompts])
    if not pairs:
        return {}
    labels = components(count, pairs)
    sizes = np.bincount(labels)
    together = [number for number in range(count) if sizes[labels[number]] > 1]
    numbers = {label: place for place, label in enumerate(dict.fromkeys(labels[together]))}
    return {prompts[number].id: numbers[labels[number]] for number in together}


_DIGESTS: dict[tuple[str, int, int], str] = {}


def _content(file: Path) -> str:
    """A digest of a picture's file, or its path where the file is missing."""
    try:
        about = file.stat()
    except OSError:
        return str(file)
    key = (str(file), about.st_size, about.st_mtime_ns)
    if key not in _DIGESTS:
        _DIGESTS[key] = path_digest(file)
    return _DIGESTS[key]


def _sharing(sets: list[set[str]]) -> set[tuple[int, int]]:
    """Pairs of neighbours among those that have an element in common."""
    last: dict[str, int] = {}
    pairs = set()
    for number, elements in enumerate(sets):
        for element in elements:
            if element in last:
                pairs.add((last[element], number))
            last[element] = number
    return pairs
