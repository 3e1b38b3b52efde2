"""What a record keeps besides numbers: pictures to look at, digests of the images that were
measured, facts that the method reported, and whom the mitigation meets.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

from bench.assets.catalogue import PicturesEntry
from bench.base.pictures import decode_png, read_picture, small_png
from bench.base.spread import evenly
from bench.contracts.method import State
from bench.records.parts import REFERENCE
from bench.records.record import (
    RecordedDesign,
    RecordedMaker,
    RecordedReferences,
    RecordedSamples,
    Thumbnail,
)
from bench.running.engine import Engine
from bench.running.experiment import Experiment
from bench.running.images import Images
from bench.running.units import PROMPTS, THUMBNAILS
from bench.running.weights_changed import weights_changed
from bench.suite.design import design_of
from bench.suite.schema import Role
from bench.suite.suite import Suite


def thumbnails(images: Images) -> list[Thumbnail]:
    """The first image of memorized prompts, evenly spread where there are very many, so that a
    reader can look instead of believing.

    Prompts whose picture was dropped have none.
    """
    samples, suite = images.samples("memorized"), images.experiment.suite
    there = [
        row
        for row in evenly(len(samples.prompts), THUMBNAILS)
        if samples.keys[row * samples.images] not in images.store.dropped
    ]
    prompts = [samples.prompts[row] for row in there]
    keys = [samples.keys[row * samples.images] for row in there]
    shared = suite.settings.share_references
    return [
        Thumbnail(
            prompt_id=prompt.id,
            prompt=prompt.text,
            group=prompt.group,
            seed=key.seed,
            png=small_png(decode_png(png)),
            reference=(
                small_png(read_picture(prompt.references[0]))
                if shared and prompt.references
                else None
            ),
        )
        for prompt, key, png in zip(prompts, keys, images.store.png(keys), strict=True)
    ]


def recorded_samples(images: Images) -> dict[str, RecordedSamples]:
    """By role, how many images there are, and the digests of those of some prompts.

    Whoever makes these images again can tell that they are the same.
    """
    return {role: _samples_of(images, role) for role in images.experiment.roles}


def _samples_of(images: Images, role: Role) -> RecordedSamples:
    seeds = images.experiment.seeds
    sets = [images.samples(role, generation) for generation in range(seeds)]
    prompts, count = sets[0].prompts, sets[0].images
    rows = evenly(len(prompts), PROMPTS)
    digests = images.store.pixel_digests(
        [
            key
            for row in rows
            for samples in sets
            for key in samples.keys[row * count : (row + 1) * count]
        ]
    )
    each = count * seeds
    of_prompt = {
        prompts[row].id: digests[number * each : (number + 1) * each]
        for number, row in enumerate(rows)
    }
    return RecordedSamples(prompts=len(prompts), images=each, sha256=of_prompt)


def makers(images: Images) -> list[RecordedMaker]:
    """What made the images of the roles, in all generations, and those of attacks."""
    experiment = images.experiment
    keys = dict.fromkeys(key for part in experiment.asked() for key in part)
    return [
        RecordedMaker(images=count, **maker)
        for maker, count in images.store.made_by(key for key in keys if key in images.store)
    ]


def other_makers(made_by: Sequence[RecordedMaker], engine: Engine) -> list[str]:
    """A line for the images that were not made as this run makes them, of which its environment
    says nothing: on another device, by other versions, or otherwise executed. What only the loaded
    model tells (number type, batch size) is compared among the images. Another version of this
    harness is no difference: where one makes other pixels, the sampler's version or the digest of a
    method's code makes another key of them.
    """
    here, total = engine.known_of_makers, sum(maker.images for maker in made_by)
    words = []
    for maker in made_by:
        usual = made_by[0].model_dump(exclude={"images"}) | here
        differs = [
            f"{name} {value} and not {usual[name]}"
            for name, value in maker.model_dump(exclude={"images"}).items()
            if name != "bench" and value != usual[name]
        ]
        if differs:
            words.append(f"{maker.images} with {', '.join(differs)}")
    if not words:
        return []
    return [f"not all {total} images were made as this run makes them: {'; '.join(words)}"]


def reported_facts(images: Images) -> dict[str, dict[str, float]]:
    """By role, means over its images of what the method reported of each.

    The mean of truth values is their share. Roles without any such fact are left out.
    """
    found = {}
    for role in images.experiment.roles:
        reported = images.store.facts(images.experiment.keys(role))
        names = dict.fromkeys(name for facts in reported for name in facts)
        found[role] = {
            name: round(statistics.fmean(facts[name] for facts in reported if name in facts), 6)
            for name in names
        }
    return {role: facts for role, facts in found.items() if facts}


def recorded_design(experiment: Experiment) -> dict[str, RecordedDesign]:
    """By role, which prompts hang together, where any do."""
    found = {role: design_of(experiment.suite, role) for role in experiment.roles}
    return {
        role: RecordedDesign(clusters=dict(design.clusters), strata=dict(design.strata))
        for role, design in found.items()
        if design.clusters or any(design.strata.values())
    }


def recorded_references(suite: Suite) -> dict[str, RecordedReferences]:
    """By role, how many prompts ought to have a training picture, and how many have one."""
    counted = {role: suite.references(role) for role in suite.settings.prompts}
    return {
        role: RecordedReferences(expected=expected, found=found)
        for role, (expected, found) in counted.items()
        if expected
    }


def failed_links(suite: Suite) -> list[str]:
    """A line for each list of links of which some failed for now, without being dead."""
    failed = {
        name: suite.assets.failed_links(name)
        for name in suite.wanted()
        if isinstance(suite.assets.entry(name), PicturesEntry)
    }
    return [
        f"{count} links of {name} failed for now and were not dead when they were asked"
        for name, count in failed.items()
        if count
    ]


def holds_against(
    experiment: Experiment, engine: Engine, images: Images, state: State
) -> list[Literal["api", "weights"]]:
    """Which attackers meet the mitigation: measured, never declared.

    One who holds the weights meets it only when the method changed them. The answer is kept in the
    store, so that a run whose images are there opens no model.
    """
    if experiment.method_name == REFERENCE:
        return []
    changed = weights_changed(experiment, engine, images, state)
    return ["api", "weights"] if changed else ["api"]
