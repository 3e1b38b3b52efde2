"""A part of a record made again: the same method on some of its prompts, its images by their
digests and its numbers prompt by prompt.

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
from typing import Any

import numpy as np
import torch

from bench.base.errors import Unmeasurable, UserError, one_line
from bench.base.pictures import SIDE, small_png
from bench.base.progress import Report, silent
from bench.contracts.attack import Scores
from bench.contracts.method import State
from bench.contracts.metric import Metric, PerImage
from bench.contracts.samples import SampleSet
from bench.diffusion.execution import float32_products
from bench.records.environment import environment
from bench.records.record import RunRecord
from bench.records.tolerance import TOLERANCES
from bench.registry import registry
from bench.running.evidence import holds_against
from bench.running.judging import evaluation_of, together
from bench.running.run import Run
from bench.store.folders import Root
from bench.store.store import SampleKey
from bench.submission.case import Case, scores_of, short
from bench.submission.pictures import Keyed, equal, keyed, small_picture
from bench.submission.scores import FREE, PLAIN
from bench.submission.submit import CONSISTENCY, asked, differences, other_protocol
from bench.submission.verdict import Compared, Verification
from bench.suite.prompts import Prompt
from bench.suite.settings import Role
from bench.suite.suite import Suite

# that the values of prompts may differ on average, for scores that bench/records/tolerance.py does
# not know: cosines, shares
MEAN = 0.02
RELATIVE = 0.05  # the same for other units, as a share of the recorded values
LARGEST = 5  # times that much for a single prompt
# of all that for prompts whose images are the recorded ones: then only the networks that score them
# round in their own way
SAME = 0.1
# of the tolerance: that values of many prompts may differ in one direction; rounding has none, so
# its mean falls with the root of their number
BIAS = 0.25
# mean absolute difference of the pixels, from 0 to 1, of pictures that a record keeps
PICTURES = 0.005


@dataclass(frozen=True)
class _Part(Suite):
    """A suite of which only some prompts of some roles are measured."""

    chosen: Mapping[Role, tuple[Prompt, ...]] = field(default_factory=dict)

    def prompts(self, role: Role) -> tuple[Prompt, ...]:
        return self.chosen[role] if role in self.chosen else super().prompts(role)


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
    """Make `prompts` prompts of every role again (`seed` draws which) and compare them with the
    record.

    `store`: where images go; what it holds already is not made again, so an empty one tests most.
     `method`: the Python file of a method that has no
    name here. Raises `UserError` when the record cannot be made again here: another suite, unknown
    or other code, no digests, no whole run.
    """
    if prompts < 1:
        raise UserError(f"--prompts must be at least 1, not {prompts}")
    run = _run_of(record, suite, method, store, device, report)
    drawn = _drawn(run, record, prompts, seed)
    case = Case(record, suite, run, None, None)
    findings = [finding for title, check in CONSISTENCY for finding in asked(case, title, check)]
    problems = [finding.text for finding in findings if finding.verdict == "failed"] + differences(
        record, run.method
    )
    chosen = {role: tuple(p for p in suite.prompts(role) if p.id in drawn[role]) for role in drawn}
    part = _Part(suite.settings, suite.file, suite.limit, suite.entries, chosen=chosen)
    sets = {
        role: [
            _subset(run, part, role, list(drawn[role].values()), generation)
            for generation in range(record.seeds)
        ]
        for role in drawn
    }
    run.store.prepare()
    fitted = run.fitted()
    there, dropped = len(run.store), set(run.store.dropped)
    images = [
        (role, prompt, image)
        for role, by_prompt in drawn.items()
        for prompt, images in by_prompt.items()
        for image in images
    ]
    notes = _generate(run, fitted[0], [key for _, _, (key, _) in images])
    again = len(dropped - run.store.dropped)
    made = len(run.store) - there + again
    same = equal(run.store, [image for *_, image in images], suite.settings.model.side)
    other = {
        (role, prompt) for (role, prompt, _), right in zip(images, same, strict=True) if not right
    }
    with float32_products(run.execution.tf32):  # as the record's features were made
        compared = [
            *_scores(run, record, part, sets, fitted, other, notes, problems),
            *_pictures(record, part, sets, notes),
        ]
    if (against := holds_against(run, fitted[0])) != record.holds_against:
        problems.append(
            f"holds_against is {short(record.holds_against)} in the record, and {short(against)}"
            " was measured here"
        )
    if there:
        notes.append(
            f"the store held {there} images of this method before; what it holds is not made again"
        )
    if dropped:
        notes.append(
            f"the pictures of {len(dropped)} of these were dropped (--keep-images); {again} were"
            " made again for this"
        )
    if sum(same) < len(same) / 2 and _machine(record.environment) == _machine(environment(device)):
        notes.append(
            "suspect: most images differ, and the record says that they were made on such a machine"
            " with this version of torch and as many threads"
        )
    if not compared:
        notes.append(
            "no metric gives values by prompt on these prompts, so that only images could be"
            " compared"
        )
    agrees = not problems and all(one.within for one in compared) and bool(compared or not other)
    names = {one.name for one in compared}
    scores = (
        name
        for _, name, score in scores_of(record)
        if score.value is not None and name not in names
    )
    return Verification(
        "differs" if not agrees else "agrees" if other else "identical",
        seed,
        {role: tuple(by_prompt) for role, by_prompt in drawn.items()},
        len(same),
        sum(same),
        made,
        tuple(problems),
        tuple(compared),
        (*scores, *FREE),
        tuple(notes),
    )


def _machine(environment: Mapping[str, Any]) -> tuple[Any, ...]:
    """What decides how images round, as far as records say it."""
    packages = environment.get("packages")
    return (
        environment.get("device_name"),
        packages.get("torch") if isinstance(packages, dict) else None,
        environment.get("threads"),
    )


def _run_of(
    record: RunRecord,
    suite: Suite,
    method: str | None,
    store: Root,
    device: torch.device,
    report: Report,
) -> Run:
    """The record's run, here.

    Raises `UserError` when it is not the same question, code or metrics.
    """
    if other := other_protocol(record, suite):
        raise UserError(f"this record cannot be made again: {'; '.join(other)}")
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
    run = Run.resolve(
        suite,
        method or record.method,
        record.parameters,
        Path(),
        store,
        device,
        report,
        seeds=record.seeds,
    )
    if run.method_name != record.method or run.method.version != record.method_version:
        raise UserError(
            f"the record is of {record.method} version {record.method_version}, and here is"
            f" {run.method_name} version {run.method.version}"
        )
    for name in sorted(record.sources.keys() | run.sources.keys()):
        if record.sources.get(name) != run.sources.get(name):
            theirs, ours = (
                record.sources.get(name, "a built-in"),
                run.sources.get(name, "a built-in"),
            )
            raise UserError(
                f"the code of {name} is another than the record's: {theirs} there, {ours} here"
            )
    if run.id != record.run:
        raise UserError(
            f"run is {record.run} in the record, and {run.id} here: versions of metrics or attacks,"
            " or parameters, are not the record's"
        )
    return run


def _drawn(
    run: Run, record: RunRecord, prompts: int, seed: int
) -> dict[Role, dict[str, list[Keyed]]]:
    """The images of the drawn prompts by role and prompt, in the suite's order.

    Raises `UserError` where no digests are those of the suite's images.
    """
    known = keyed(run, record)
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
    run: Run, part: _Part, role: Role, images: Sequence[list[Keyed]], generation: int
) -> SampleSet:
    """The images of some prompts with the seeds that they have among all."""
    each = run.suite.settings.prompts[role].images_per_prompt
    keys = (
        key
        for of_prompt in images
        for key, _ in of_prompt[generation * each : (generation + 1) * each]
    )
    return SampleSet(part.prompts(role), each, tuple(keys), run.store)


def _generate(run: Run, state: State, keys: list[SampleKey]) -> list[str]:
    """Make the images; where images of a batch influence each other, whole batches as a run makes
    them. Returns what a reader should know of it.
    """
    if not run.method.mixes_images():
        run.generate(state, keys)
        return []
    order = list(dict.fromkeys(key for role in run.roles for key in run.keys(role)))
    size, wanted = run.suite.settings.model.batch_size, set(keys)
    batches = [order[first : first + size] for first in range(0, len(order), size)]
    run.generate(state, [key for batch in batches if not wanted.isdisjoint(batch) for key in batch])
    return [
        "images of one batch influence each other with this method: whole batches were made, as one"
        " run makes them that is not interrupted; images of a run that was made in other batches"
        " differ, and only their numbers can agree"
    ]


def _scores(
    run: Run,
    record: RunRecord,
    part: _Part,
    sets: Mapping[Role, Sequence[SampleSet]],
    fitted: tuple[State, float, int],
    other: Set[tuple[Role, str]],
    notes: list[str],
    problems: list[str],
) -> list[Compared]:
    """Every metric that gives values by prompt, asked again on the part.

    `other`: role and id of prompts with images that are not the recorded ones.
    """
    found = []
    for name, metric in run.metrics.items():
        built_in = f"metric {name}" not in run.sources
        if metric.cost or (
            set(metric.names) <= PLAIN
            if built_in
            else not any(score in record.per_prompt for score in metric.names)
        ):
            continue
        if not all(role in sets for role in metric.roles if run.suite.prompts(role)):
            notes.append(
                f"{name} was not measured: the record has no digests of images that it reads"
            )
            continue
        run.report(f"measure {name}", 0, 1)
        try:
            generations = [
                _measured(run, metric, part, sets, fitted, generation)
                for generation in range(run.seeds)
            ]
        except Unmeasurable as why:
            notes.append(f"{name} was not measured: {one_line(why)}")
            continue
        differ = {prompt for role, prompt in other if role in metric.roles}
        for score_name in dict.fromkeys(score for scores in generations for score in scores):
            score, _ = together(
                [scores[score_name] for scores in generations if score_name in scores]
            )
            if (
                not isinstance(score, PerImage)
                or score.percentile is not None
                or score.statistic not in ("mean", "lower_median")
            ):
                continue
            if (
                built_in
                and score_name not in record.per_prompt
                and _with_references(run.suite, metric) == _with_references(part, metric)
            ):
                problems.append(f"{score_name} has no values by prompt, and can be measured here")
            found += _of_score(
                score_name, score, record.per_prompt.get(score_name, {}), differ, notes
            )
    return found


def _with_references(suite: Suite, metric: Metric) -> set[bool]:
    """Whether prompts that the metric reads have training pictures: without one of some prompt it
    may have no number for the whole, and one for a part.
    """
    return {bool(prompt.references) for role in metric.roles for prompt in suite.prompts(role)}


def _measured(
    run: Run,
    metric: Metric,
    part: _Part,
    sets: Mapping[Role, Sequence[SampleSet]],
    fitted: tuple[State, float, int],
    generation: int,
) -> Scores:
    return metric.measure(
        replace(
            evaluation_of(run, metric, *fitted, generation),
            suite=part,
            samples_of=lambda role: sets[role][generation],
        )
    )


def _of_score(
    name: str, score: PerImage, recorded: Mapping[str, float], differ: Set[str], notes: list[str]
) -> list[Compared]:
    """One comparison of the prompts whose images are the recorded ones, and a wider one of those
    that `differ`.
    """
    rows = {prompt.id: row for row, prompt in enumerate(score.prompts)}
    if missing := rows.keys() - recorded.keys():
        notes.append(f"{name}: the record has no values of {len(missing)} of the prompts")
    found = []
    for same in (True, False):
        values = {
            prompt: (recorded[prompt], float(score.table[row].mean()))
            for prompt, row in rows.items()
            if prompt in recorded and (prompt not in differ) == same
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
            one = 1 / (images * len(values))
            mean, largest, shift = max(mean, one), max(largest, 1 / images), max(shift, one)
        found.append(Compared(name, values, mean, largest, shift))
    return found


def _pictures(
    record: RunRecord, part: _Part, sets: Mapping[Role, Sequence[SampleSet]], notes: list[str]
) -> list[Compared]:
    """The first image of the memorized prompts beside the picture that the record keeps: scores of
    different pictures may agree by chance.
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
        except Exception:  # no picture, or one of another size: one of the problems
            continue
    if not values:
        notes.append("the record keeps no picture of these prompts")
        return []
    return [Compared("picture", values, PICTURES, LARGEST * PICTURES, PICTURES)]
