"""Which pictures a run keeps, and which features it makes while a picture is in memory.

A picture may be dropped (`--keep-images none` or `sample`) when every metric that reads its role
says beforehand which extractors it applies, so that features are all that it needs, and no attack
reads it. `sample` keeps some of each role, and those that the record's thumbnails and digests come
from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import numpy as np

from bench.base.errors import UnknownName, UserError
from bench.base.spread import evenly
from bench.contracts.metric import Metric
from bench.features.extractor import Extractor
from bench.running.experiment import Experiment
from bench.running.units import PROMPTS, shown_keys
from bench.store.store import SampleKey
from bench.suite.schema import Role

KeepImages = Literal["none", "sample", "all"]
SAMPLE = 64  # images of each role that `sample` keeps at least


@dataclass
class Keeping:
    """What a run wants of each image.

    `extractors` holds, by image, the fingerprints of the extractors whose features are needed;
    `by_fingerprint` the extractors themselves. Pictures in `droppable` may go once they have those
    features. `broken` collects extractors that failed on some picture: the pictures then stay, and
    whoever asks for these features will say what is wrong.
    """

    by_fingerprint: Mapping[str, Extractor]
    extractors: Mapping[SampleKey, tuple[str, ...]]
    droppable: frozenset[SampleKey]
    broken: set[str] = field(default_factory=set)

    def of_unit(self, keys: Iterable[SampleKey]) -> list[str]:
        """The fingerprints of the extractors that some image of a unit needs.

        Features are made of whole units, so that they are the same whenever they are made.
        """
        return [
            name
            for name in dict.fromkeys(name for key in keys for name in self.extractors.get(key, ()))
            if name not in self.broken
        ]

    def try_networks(self, sides: tuple[int, int]) -> None:
        """Give every extractor one picture of this height and width, before hours are spent on what
        it could not read.

        Raises the `UserError` of a network that is missing, cut or made of nothing. Any other
        failure is one of the code of a metric, and costs its own scores only, later.
        """
        noise = np.random.default_rng(0).integers(0, 256, (*sides, 3), dtype=np.uint8)
        for extractor in self.by_fingerprint.values():
            try:
                extractor([noise])
            except UserError:
                raise
            except Exception:  # for judging to say
                continue


def keep_images_of(text: str) -> KeepImages:
    """What `--keep-images` says. Raises `UserError` for anything that is not known."""
    if text not in get_args(KeepImages):
        raise UnknownName("--keep-images", text, get_args(KeepImages))
    return cast(KeepImages, text)


def keeping_of(
    experiment: Experiment, keep: KeepImages, device: Any, loaded: Callable[[Extractor], Extractor]
) -> Keeping:
    """What an experiment's metrics, attacks and `--keep-images` come to.

    `loaded` gives each extractor with its network, if that is loaded already.
    """
    keys = {role: experiment.keys(role) for role in experiment.roles}
    by_fingerprint: dict[str, Extractor] = {}
    extractors: dict[SampleKey, tuple[str, ...]] = {}
    read: set[SampleKey] = set()  # pictures that something reads
    for metric in experiment.metrics.values():
        declared = _declared(experiment, metric, device, loaded)
        for role in metric.roles:
            if role not in declared:
                read.update(keys.get(role, ()))
                continue
            by_fingerprint |= declared[role]
            for key in keys.get(role, ()):
                names = (*extractors.get(key, ()), *declared[role])
                extractors[key] = tuple(dict.fromkeys(names))
    if keep == "all":
        return Keeping(by_fingerprint, extractors, frozenset())
    if keep == "sample":
        read.update(key for of_role in keys.values() for key in of_role[:SAMPLE])
        read |= shown_keys(experiment)
    read |= attacked(experiment)
    every = frozenset(key for of_role in keys.values() for key in of_role)
    return Keeping(by_fingerprint, extractors, every - read)


def _declared(
    experiment: Experiment, metric: Metric, device: Any, loaded: Callable[[Extractor], Extractor]
) -> dict[Role, dict[str, Extractor]]:
    """By role, the extractors through which alone a metric reads pictures, by fingerprint."""
    try:
        given = metric.extractors(experiment.suite, device)
        return {
            role: {extractor.fingerprint: loaded(extractor) for extractor in given[role]}
            for role in metric.roles
            if role in given
        }
    except Exception:  # what is wrong with it is for judging to say; until then its pictures stay
        return {}


def droppable_by_name(
    experiment: Experiment, keep: KeepImages, of_attacks: Iterable[SampleKey]
) -> set[SampleKey]:
    """About what may be dropped, for plans of runs whose files are not here.

    It goes by the roles that metrics declare to read through extractors.
    """
    read = {
        role
        for metric in experiment.metrics.values()
        if type(metric).extractors is Metric.extractors
        for role in metric.roles
    }
    keys = {role: experiment.keys(role) for role in experiment.roles if role not in read}
    kept = SAMPLE if keep == "sample" else 0
    dropped = {key for of_role in keys.values() for key in of_role[kept:]}
    if keep == "sample":
        for role in keys:
            prompts = experiment.suite.prompts(role)
            shown = [prompts[row] for row in evenly(len(prompts), PROMPTS)]
            dropped -= set(experiment.keys_of(shown, experiment.images_per_prompt(role)))
    return dropped - set(of_attacks)


def attacked(experiment: Experiment) -> set[SampleKey]:
    """The images that attacks say they will ask for."""
    return {
        key
        for attack in experiment.attacks.values()
        for keys in experiment.keys_of_attack(attack)
        for key in keys
    }
