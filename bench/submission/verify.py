"""`bench verify`: make a part of a record again, with the same method on some of its prompts, and
compare images by their digests and numbers prompt by prompt.

First what the record says must follow from its own values by prompt, as `bench submit` checks; then
those values are measured again. Whether images are equal bit for bit depends on the machine (kinds
of processor and library round differently), so where they are not, the values that metrics gave
each prompt are compared, and the pictures that the record keeps. Nothing that needs the whole set
is measured: no FID, no times, no attacks; what was not compared is listed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from bench.base.errors import Unmeasurable, UserError, one_line
from bench.base.pictures import SIDE, small_png
from bench.base.progress import Report, silent
from bench.contracts.attack import Scores
from bench.contracts.method import State
from bench.contracts.metric import Metric, PerImage
from bench.contracts.samples import SampleSet
from bench.records.environment import environment
from bench.records.record import RunRecord
from bench.records.tolerance import TOLERANCES
from bench.registry import registry
from bench.running.evidence import holds_against
from bench.running.experiment import Experiment
from bench.running.fitting import Fitted, fitted
from bench.running.generating import generate
from bench.running.images import Images
from bench.running.judging import evaluation_of
from bench.running.prepare import Prepared, prepare
from bench.running.scoring import together
from bench.store.folders import Root
from bench.store.store import SampleKey
from bench.submission.check_pictures import Keyed, equal, keyed, small_picture
from bench.submission.check_scores import FREE, PLAIN
from bench.submission.claim import Claim, scores_of, short
from bench.submission.submit import CONSISTENCY, differences, findings_of, other_protocol
from bench.submission.verification import Compared, Verification
from bench.suite.prompts import Prompt
from bench.suite.schema import Role
from bench.suite.suite import Suite

# How far values of prompts may differ on average, for cosines and shares that
# bench/records/tolerance.py does not know.
MEAN = 0.02
RELATIVE = 0.05  # the same for other units, as a share of the recorded values
LARGEST = 5  # times that much is allowed for a single prompt
# Of all that, the share that is allowed for prompts whose images are the recorded ones: then only
# the networks that score them round differently.
SAME = 0.1
# Of the tolerance, the share by which values of many prompts may differ in one direction: rounding
# has none, so its mean falls with the root of their number.
BIAS = 0.25
# Mean absolute difference of the pixels, from 0 to 1, of pictures that a record keeps.
PICTURES = 0.005


Drawn = dict[Role, dict[str, list[Keyed]]]  # images by role and prompt id
Sets = Mapping[Role, Sequence[SampleSet]]  # images by role and generation


@dataclass(frozen=True)
class _Part(Suite):
    """A suite of which only the chosen prompts of some roles are measured. What they are compared
    with stays the whole: a nearest training picture may be one of a prompt that was not chosen.
    """

    chosen: Mapping[Role, tuple[Prompt, ...]] = field(default_factory=dict)
    compared_with: tuple[Path, ...] = ()  # training pictures

    def prompts(self, role: Role) -> tuple[Prompt, ...]:
        return self.chosen[role] if role in self.chosen else super().prompts(role)

    @property
    def training_pictures(self) -> tuple[Path, ...]:
        return self.compared_with


def verify(
    record: RunRecord,
    suite: Suite,
    prompts: int,
    seed: int,
    store: Root,
    device: torch.device,
    report: Report = silent,
    method: str | None = None,
) -> Verification:
    """Make `prompts` prompts of every role again and compare them with the record.

    `seed` draws the prompts. `store` is where images go; what it holds already is not made again,
    so an empty one tests most. `method` is the Python file of a method that has no name here.
    Raises `UserError` when the record cannot be made again here: another suite, unknown or other
    code, no digests, no whole run.
    """
    if prompts < 1:
        raise UserError(f"--prompts must be at least 1, not {prompts}")
    run = _prepared(record, suite, method, store, device)
    drawn = _drawn(run.experiment, record, prompts, seed)
    findings = _Findings(_contradictions(record, suite, run.experiment))
    part, sets = _part_of(run.images, record, drawn)
    run.images.store.prepare()
    learned = fitted(run.experiment, run.engine, run.images.store, report)
    made, about_store = _images_made(run, learned.state, drawn, findings, report)
    equality = _equality(run.images, drawn)
    differing = {(role, prompt) for role, prompt, equal in equality if not equal}
    with run.engine.precision():  # as the record's features were made
        compared = [
            *_scores(run, record, part, sets, learned, differing, findings, report),
            *_pictures(record, part, sets, findings.notes),
        ]
    if (against := holds_against(*run, learned.state)) != record.holds_against:
        findings.problems.append(
            f"holds_against is {short(record.holds_against)} in the record, and {short(against)}"
            " was measured here"
        )
    images_equal = sum(equal for *_, equal in equality)
    findings.notes.extend(about_store)
    if images_equal < len(equality) / 2 and (
        _machine(record.environment) == _machine(environment(device))
    ):
        findings.notes.append(
            "suspect: most images differ, and the record says that they were made on such a machine"
            " with this version of torch and as many threads"
        )
    if not compared:
        findings.notes.append(
            "no metric gives values by prompt on these prompts, so that only images could be"
            " compared"
        )
    return Verification(
        verdict=_verdict(findings.problems, compared, bool(differing)),
        seed=seed,
        prompts={role: tuple(by_prompt) for role, by_prompt in drawn.items()},
        images=len(equality),
        equal=images_equal,
        made=made,
        problems=tuple(findings.problems),
        compared=tuple(compared),
        not_compared=(*_not_compared(record, compared), *FREE),
        notes=tuple(findings.notes),
    )


@dataclass(frozen=True)
class _Findings:
    """What contradicts the record, and what a reader should know besides; both grow."""

    problems: list[str]
    notes: list[str] = field(default_factory=list)


def _contradictions(record: RunRecord, suite: Suite, experiment: Experiment) -> list[str]:
    """What the record says of itself that does not follow from its values, or from its method."""
    claim = Claim(record, suite, experiment, None, None)
    findings = [
        finding for title, check in CONSISTENCY for finding in findings_of(claim, title, check)
    ]
    return [
        *(finding.text for finding in findings if finding.verdict == "failed"),
        *differences(record, experiment.method),
    ]


def _part_of(images: Images, record: RunRecord, drawn: Drawn) -> tuple[_Part, Sets]:
    """The suite with only the drawn prompts, and their images by role and generation."""
    suite = images.experiment.suite
    chosen = {
        role: tuple(prompt for prompt in suite.prompts(role) if prompt.id in by_prompt)
        for role, by_prompt in drawn.items()
    }
    part = _Part(
        suite.settings,
        suite.file,
        suite.limit,
        suite.entries,
        chosen=chosen,
        compared_with=suite.training_pictures,
    )
    sets = {
        role: [
            _subset(images, part, role, list(by_prompt.values()), generation)
            for generation in range(record.seeds)
        ]
        for role, by_prompt in drawn.items()
    }
    return part, sets


def _images_of(drawn: Drawn) -> list[tuple[Role, str, Keyed]]:
    """The drawn images with their role and prompt id."""
    return [
        (role, prompt, image)
        for role, by_prompt in drawn.items()
        for prompt, images in by_prompt.items()
        for image in images
    ]


def _images_made(
    run: Prepared, state: State, drawn: Drawn, findings: _Findings, report: Report
) -> tuple[int, list[str]]:
    """Make the drawn images; return how many were made, and notes on what the store held before."""
    store = run.images.store
    held, dropped = len(store), set(store.dropped)
    keys = [key for *_, (key, _) in _images_of(drawn)]
    findings.notes.extend(_generate(run, state, keys, report))
    made_again = len(dropped - store.dropped)
    notes = []
    if held:
        notes.append(
            f"the store held {held} images of this method before; what it holds is not made again"
        )
    if dropped:
        notes.append(
            f"the pictures of {len(dropped)} of these were dropped (--keep-images); {made_again}"
            " were made again for this"
        )
    return len(store) - held + made_again, notes


def _equality(images: Images, drawn: Drawn) -> list[tuple[Role, str, bool]]:
    """Role, prompt id, and whether it is the recorded one bit for bit, of every drawn image."""
    asked, sides = _images_of(drawn), images.experiment.suite.settings.model.sides
    same = equal(images.store, [image for *_, image in asked], sides)
    return [(role, prompt, bit) for (role, prompt, _), bit in zip(asked, same, strict=True)]


def _verdict(
    problems: Sequence[str], compared: Sequence[Compared], images_differ: bool
) -> Literal["identical", "agrees", "differs"]:
    within = all(score.within for score in compared)
    if problems or not within or (images_differ and not compared):
        return "differs"
    return "agrees" if images_differ else "identical"


def _not_compared(record: RunRecord, compared: Sequence[Compared]) -> list[str]:
    """The scores of the record that have a number and were not measured again."""
    names = {score.name for score in compared}
    return [
        name
        for _, name, score in scores_of(record)
        if score.value is not None and name not in names
    ]


def _machine(environment: Mapping[str, Any]) -> tuple[Any, ...]:
    """What the rounding of images depends on, as far as records say it."""
    packages = environment.get("packages")
    return (
        environment.get("device_name"),
        packages.get("torch") if isinstance(packages, dict) else None,
        environment.get("threads"),
    )


def _prepared(
    record: RunRecord, suite: Suite, method: str | None, store: Root, device: torch.device
) -> Prepared:
    """The record's run, as it is here.

    Raises `UserError` when suite, code or metrics are not the record's.
    """
    if differing := other_protocol(record, suite):
        raise UserError(f"this record cannot be made again: {'; '.join(differing)}")
    if record.status != "complete":
        raise UserError(f"this record cannot be made again: its status is {record.status}")
    if not any(samples.sha256 for samples in record.samples.values()):
        raise UserError(
            "this record has no digests of its images, as those of schema 1: measure it again with"
            " this version"
        )
    if method is None and (
        record.method.endswith(".py") or not registry.knows("method", record.method)
    ):
        raise UserError(
            f"method '{record.method}' is not known here; give its Python file, or install the"
            " distribution that has it"
        )
    run = prepare(
        suite, method or record.method, record.parameters, store, device, seeds=record.seeds
    )
    _refuse_another(run.experiment, record)
    return run


def _refuse_another(experiment: Experiment, record: RunRecord) -> None:
    """Raises `UserError` where method, code or id are not those of the record."""
    version = experiment.method.version
    if experiment.method_name != record.method or version != record.method_version:
        raise UserError(
            f"the record is of {record.method} version {record.method_version}, and here is"
            f" {experiment.method_name} version {version}"
        )
    for name in sorted(record.sources.keys() | experiment.sources.keys()):
        if record.sources.get(name) != experiment.sources.get(name):
            theirs, ours = (
                record.sources.get(name, "a built-in"),
                experiment.sources.get(name, "a built-in"),
            )
            raise UserError(
                f"the code of {name} is another than the record's: {theirs} there, {ours} here"
            )
    if experiment.id != record.run:
        raise UserError(
            f"run is {record.run} in the record, and {experiment.id} here: versions of metrics or"
            " attacks, or parameters, are not the record's"
        )


def _drawn(experiment: Experiment, record: RunRecord, prompts: int, seed: int) -> Drawn:
    """The images of `prompts` prompts of every role, drawn by the seed, in the suite's order.

    Raises `UserError` where no digests are those of the suite's images.
    """
    known = keyed(experiment, record)
    if not known:
        raise UserError(
            "the record has digests of no role that the suite's metrics read, or not of the suite's"
            " images; try bench submit on it"
        )
    drawn = {}
    for role, images in known.items():
        chosen = random.Random(f"{seed} {role}").sample(list(images), min(prompts, len(images)))
        drawn[role] = {prompt: images[prompt] for prompt in images if prompt in chosen}
    return drawn


def _subset(
    images: Images, part: _Part, role: Role, drawn: Sequence[list[Keyed]], generation: int
) -> SampleSet:
    """One generation of the images of the part's prompts, with the seeds of the whole run."""
    each = images.experiment.images_per_prompt(role)
    keys = (
        key
        for of_prompt in drawn
        for key, _ in of_prompt[generation * each : (generation + 1) * each]
    )
    return SampleSet(part.prompts(role), each, tuple(keys), images.store)


def _generate(run: Prepared, state: State, keys: list[SampleKey], report: Report) -> list[str]:
    """Make the images that the store lacks; return what a reader should know of it.

    Where images of one batch influence each other, whole batches are made, as in a run.
    """
    experiment, units = run.experiment, run.images.units
    if not experiment.method.mixes_images():
        generate(*run, state, units.of(keys), report=report)
        return []
    order = list(dict.fromkeys(key for role in experiment.roles for key in experiment.keys(role)))
    size, wanted = experiment.suite.settings.model.batch_size, set(keys)
    batches = [order[first : first + size] for first in range(0, len(order), size)]
    whole = [key for batch in batches if not wanted.isdisjoint(batch) for key in batch]
    generate(*run, state, units.of(whole), report=report)
    return [
        "images of one batch influence each other with this method: whole batches were made, as one"
        " run makes them that is not interrupted; images of a run that was made in other batches"
        " differ, and only their numbers can agree"
    ]


def _scores(
    run: Prepared,
    record: RunRecord,
    part: _Part,
    sets: Sets,
    learned: Fitted,
    differing: Set[tuple[Role, str]],
    findings: _Findings,
    report: Report,
) -> list[Compared]:
    """The comparison of every score that has values by prompt, measured again on the part.

    `differing` holds role and id of the prompts with images that are not the recorded ones.
    """
    compared, experiment = [], run.experiment
    for name, metric in experiment.metrics.items():
        if not _is_comparable(experiment, record, name, metric):
            continue
        if not all(role in sets for role in metric.roles if experiment.suite.prompts(role)):
            findings.notes.append(
                f"{name} was not measured: the record has no digests of images that it reads"
            )
            continue
        report(f"measure {name}", 0, 1)
        try:
            generations = [
                _measured(run, metric, part, sets, learned, generation, report)
                for generation in range(experiment.seeds)
            ]
        except Unmeasurable as why:
            findings.notes.append(f"{name} was not measured: {one_line(why)}")
            continue
        changed = {prompt for role, prompt in differing if role in metric.roles}
        for score_name, score in _by_prompt(generations).items():
            if (
                f"metric {name}" not in experiment.sources
                and score_name not in record.per_prompt
                and _with_references(experiment.suite, metric) == _with_references(part, metric)
            ):
                findings.problems.append(
                    f"{score_name} has no values by prompt, and can be measured here"
                )
            recorded = record.per_prompt.get(score_name, {})
            compared += _of_score(score_name, score, recorded, changed, findings.notes)
    return compared


def _is_comparable(experiment: Experiment, record: RunRecord, name: str, metric: Metric) -> bool:
    """Whether a metric may give values by prompt: a built-in where one of its scores does, another
    one where the record has some.
    """
    if metric.cost:
        return False
    if f"metric {name}" not in experiment.sources:
        return not set(metric.names) <= PLAIN
    return any(score in record.per_prompt for score in metric.names)


def _by_prompt(generations: Sequence[Scores]) -> dict[str, PerImage]:
    """Of the scores of several generations, those that are a mean or a median over prompts, with
    their images put together.
    """
    found = {}
    for name in dict.fromkeys(name for scores in generations for name in scores):
        score, _ = together([scores[name] for scores in generations if name in scores])
        if (
            isinstance(score, PerImage)
            and score.percentile is None
            and score.statistic in ("mean", "lower_median")
        ):
            found[name] = score
    return found


def _with_references(suite: Suite, metric: Metric) -> set[bool]:
    """Whether the prompts that the metric reads have training pictures, some, all or none.

    Where one prompt of all has none, a metric may have no number for the whole, and one for a part.
    """
    return {bool(prompt.references) for role in metric.roles for prompt in suite.prompts(role)}


def _measured(
    run: Prepared,
    metric: Metric,
    part: _Part,
    sets: Sets,
    learned: Fitted,
    generation: int,
    report: Report,
) -> Scores:
    """What a metric gives on one generation of the part."""
    return metric.measure(
        replace(
            evaluation_of(*run, metric, learned, generation, report),
            suite=part,
            samples_of=lambda role: sets[role][generation],
        )
    )


def _of_score(
    name: str, score: PerImage, recorded: Mapping[str, float], changed: Set[str], notes: list[str]
) -> list[Compared]:
    """One comparison of the prompts whose images are the recorded ones, and a wider one of the
    `changed` prompts, of which they are not.
    """
    rows = {prompt.id: row for row, prompt in enumerate(score.prompts)}
    if missing := rows.keys() - recorded.keys():
        notes.append(f"{name}: the record has no values of {len(missing)} of the prompts")
    found = []
    for same in (True, False):
        values = {
            prompt: (recorded[prompt], float(score.table[row].mean()))
            for prompt, row in rows.items()
            if prompt in recorded and (prompt not in changed) == same
        }
        if not values:
            continue
        known = TOLERANCES.get(name)
        if known and known.kind == "absolute" and known.limit:
            mean = known.limit
        elif "cosine" in score.unit or score.unit.startswith("share"):
            mean = MEAN
        else:
            mean = RELATIVE * float(np.mean([abs(value) for value, _ in values.values()]))
        mean *= SAME if same else 1
        largest, shift = LARGEST * mean, max(BIAS, len(values) ** -0.5) * mean
        if score.proportion:  # one image may cross the threshold, whatever share that is of so few
            images = score.table.shape[1]
            share = 1 / (images * len(values))
            mean, largest, shift = max(mean, share), max(largest, 1 / images), max(shift, share)
        found.append(Compared(name, values, mean, largest, shift))
    return found


def _pictures(record: RunRecord, part: _Part, sets: Sets, notes: list[str]) -> list[Compared]:
    """The first image of each memorized prompt beside the picture that the record keeps: the scores
    of different pictures may agree by chance.
    """
    kept = {thumbnail.prompt_id: thumbnail.png for thumbnail in record.thumbnails}
    values = {}
    for row, prompt in enumerate(part.prompts("memorized") if "memorized" in sets else ()):
        if prompt.id not in kept:
            continue
        try:
            recorded = small_picture(kept[prompt.id]).astype(float)
            again = small_picture(small_png(sets["memorized"][0].pictures_of(row)[0], SIDE))
            values[prompt.id] = (0.0, float(np.abs(recorded - again).mean() / 255))
        except Exception:  # no picture, or one of another size, which is a problem already
            continue
    if not values:
        notes.append("the record keeps no picture of these prompts")
        return []
    return [Compared("picture", values, PICTURES, LARGEST * PICTURES, PICTURES)]
