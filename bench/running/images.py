"""Which pictures a run keeps, and which features it makes while a picture is in memory.

A picture may be dropped (`--keep-images none` or `sample`) when every metric that reads its role
says beforehand which extractors it applies, so that features are all that it needs, and no attack
reads it. `sample` keeps some of each role, and those that the record's thumbnails and digests come
from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, cast, get_args

import numpy as np

from bench.base.errors import UnknownName, one_line
from bench.base.spread import evenly
from bench.contracts.metric import Metric
from bench.features.extractor import Extractor, in_whole_batches
from bench.running.demand import PROMPTS, shown_keys
from bench.store.shards import extracted
from bench.store.store import SampleKey
from bench.suite.settings import Role

if TYPE_CHECKING:
    from bench.running.run import Run

KeepImages = Literal["none", "sample", "all"]
SAMPLE = 64  # images of each role that `sample` keeps at least


@dataclass
class Keeping:
    """What a run wants of each image: the fingerprints of `extractors` by image, and the pictures
    that may be dropped once they have those features.

    `broken`: those that failed on some pictures, which are kept then; whoever asks for these
     features will say why.
    """

    by_fingerprint: Mapping[str, Extractor]
    extractors: Mapping[SampleKey, tuple[str, ...]]
    droppable: frozenset[SampleKey]
    broken: set[str] = field(default_factory=set)

    def of_unit(self, keys: Iterable[SampleKey]) -> list[str]:
        """The extractors that some image of a unit needs: features are made of whole units, as they
        are when they are made later.
        """
        return [
            name
            for name in dict.fromkeys(name for key in keys for name in self.extractors.get(key, ()))
            if name not in self.broken
        ]


def keep_images_of(text: str) -> KeepImages:
    """What `--keep-images` says. Raises `UserError` for anything that is not known."""
    if text not in get_args(KeepImages):
        raise UnknownName("--keep-images", text, get_args(KeepImages))
    return cast(KeepImages, text)


def keeping_of(run: Run) -> Keeping:
    """What the run's metrics, attacks and `--keep-images` come to."""
    keys: dict[Role, list[SampleKey]] = {role: run.keys(role) for role in run.roles}
    by_fingerprint: dict[str, Extractor] = {}
    extractors: dict[SampleKey, tuple[str, ...]] = {}
    pictures: set[SampleKey] = set()  # that something reads
    for metric in run.metrics.values():
        try:
            declared = metric.extractors(run.suite, run.device)
            of_role = {
                role: {one.fingerprint: run.loaded(one) for one in declared[role]}
                for role in metric.roles
                if role in declared
            }
        # what is wrong with it is for `measure` to say; until then its pictures stay
        except Exception:
            of_role = {}
        for role in metric.roles:
            if role not in of_role:
                pictures.update(keys.get(role, ()))
                continue
            by_fingerprint |= of_role[role]
            for key in keys.get(role, ()):
                extractors[key] = tuple(dict.fromkeys((*extractors.get(key, ()), *of_role[role])))
    if run.keep_images == "all":
        return Keeping(by_fingerprint, extractors, frozenset())
    if run.keep_images == "sample":
        pictures.update(key for of_role in keys.values() for key in of_role[:SAMPLE])
        pictures |= shown_keys(run)
    pictures |= attacked(run)
    return Keeping(
        by_fingerprint,
        extractors,
        frozenset(key for of_role in keys.values() for key in of_role) - pictures,
    )


def droppable_by_name(run: Run, of_attacks: Iterable[SampleKey]) -> set[SampleKey]:
    """About what may be dropped, for plans of runs whose files are not here: by the roles that
    metrics declare to read through extractors.
    """
    read = {
        role
        for metric in run.metrics.values()
        if type(metric).extractors is Metric.extractors
        for role in metric.roles
    }
    keys = {role: run.keys(role) for role in run.roles if role not in read}
    dropped = {
        key
        for role, of_role in keys.items()
        for key in of_role[SAMPLE if run.keep_images == "sample" else 0 :]
    }
    if run.keep_images == "sample":
        for role in keys:
            prompts, images = (
                run.suite.prompts(role),
                run.suite.settings.prompts[role].images_per_prompt,
            )
            dropped -= set(
                run.keys_of([prompts[row] for row in evenly(len(prompts), PROMPTS)], images)
            )
    return dropped - set(of_attacks)


def attacked(run: Run) -> set[SampleKey]:
    """The images that attacks say they will ask for."""
    parts = [part for attack in run.attacks.values() for part in attack.asks(run.suite)]
    return {
        key
        for part in parts
        for generation in range(run.seeds)
        for key in run.keys_of(*part, generation)
    }


def missing(
    run: Run, keys: Iterable[SampleKey], pictures: Set[SampleKey] = frozenset()
) -> list[SampleKey]:
    """Those images that must be made, each once, in the order given: not stored, or without
    something that is still needed.

    `pictures`: images whose pictures themselves will be read.
    """
    store = run.store
    lacking = set(store.missing(keys := list(dict.fromkeys(keys))))
    without = [key for key in keys if key in store.dropped]
    lacking.update(pictures & set(without))
    if without:
        wanted = run.keeping
        having = {name: store.with_features(name) for name in wanted.of_unit(without)}
        lacking.update(
            key
            for key in without
            if key not in wanted.droppable
            or not all(
                store.has_features(key, having[name])
                for name in wanted.extractors.get(key, ())
                if name in having
            )
        )
    return [key for key in keys if key in lacking]


def store_unit(
    run: Run,
    keys: Sequence[SampleKey],
    pictures: list[np.ndarray],
    facts: list[dict[str, float]],
    read: Set[SampleKey] = frozenset(),
) -> None:
    """Store one unit with its features, without the pictures that nothing reads any more.

    `read`: those that somebody will read now.

    Where an extractor breaks the pictures stay, for whoever asks for its features to say what is
    wrong.
    """
    wanted, features = run.keeping, dict[str, np.ndarray]()
    dropped = wanted.droppable.intersection(keys) - read
    try:
        for name in wanted.of_unit(keys):
            try:
                features[name] = extracted(
                    in_whole_batches(wanted.by_fingerprint[name]), name, pictures
                )
            except Exception as error:
                wanted.broken.add(name)
                run.report(f"features {name} cannot be made yet: {one_line(error)[:80]}", 0, 1)
        dropped = frozenset(
            key
            for key in dropped
            if all(name in features for name in wanted.extractors.get(key, ()))
        )
    except BaseException:  # Ctrl-C: the pictures are there, so their features can be made later
        run.store.append(keys, pictures, facts)
        raise
    run.store.append(keys, pictures, facts, features, dropped)
