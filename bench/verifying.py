"""A part of a record made again: the same method on some of its prompts, its images by their digests and its numbers prompt by prompt.

Whether images are equal bit for bit depends on the machine (kinds of processor and library round differently), so where they are not, the values
that metrics gave each prompt are compared, and the pictures that the record keeps. Nothing that needs the whole set is measured: no FID, no
times, no attacks.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from bench import registry
from bench.canary import SLACK, TOLERANCES
from bench.errors import Unmeasurable, UserError, one_line, visible
from bench.evidence import SIDE, small_png
from bench.measuring import evaluation_of, together
from bench.method import State
from bench.metric import Metric, PerImage, PerSet, SampleSet
from bench.progress import Report, silent
from bench.record import RunRecord
from bench.runner import Run
from bench.store import SampleKey, pixel_digest
from bench.submitted_images import small_picture
from bench.suite import Prompt, Role, Suite

MEAN = 0.02  # that the values of prompts may differ on average, for scores that bench/canary.py does not know: cosines, shares
RELATIVE = 0.05  # the same for other units, as a share of the recorded values
LARGEST = 5  # times that much for a single prompt
SAME = 0.1  # of all that where every image is the recorded one: then only the networks that score it round in their own way
PICTURES = 0.005  # mean absolute difference of the pixels, from 0 to 1, of pictures that a record keeps
WORST = 3  # prompts of a score that are named


@dataclass(frozen=True)
class Compared:
    """One score, or the pixels of the kept pictures, on the prompts that were made again: absolute differences by prompt and what they may be."""

    name: str
    values: Mapping[str, tuple[float, float]]  # by prompt id: recorded, measured
    mean_allowed: float
    largest_allowed: float

    @property
    def differences(self) -> dict[str, float]:
        return {prompt: abs(measured - recorded) for prompt, (recorded, measured) in self.values.items()}

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.differences.values())))

    @property
    def largest(self) -> float:
        return max(self.differences.values())

    @property
    def within(self) -> bool:
        return self.mean <= self.mean_allowed + SLACK and self.largest <= self.largest_allowed + SLACK

    @property
    def worst(self) -> list[str]:
        """The prompts that differ most, first the worst; those without any difference are left out."""
        found = self.differences
        return [prompt for prompt in sorted(found, key=lambda prompt: (-found[prompt], prompt)) if found[prompt] > 0][:WORST]


@dataclass(frozen=True)
class Verification:
    """What came of it. `identical`: every image is the recorded one, bit for bit; `agrees`: images differ, numbers do not; `differs`: numbers do."""

    verdict: Literal["identical", "agrees", "differs"]
    prompts: Mapping[str, tuple[str, ...]]  # by role: the ids of those that were made again
    images: int  # compared
    equal: int  # of them, those with the recorded digest
    made: int  # images that were made for this; the others were in the store
    compared: tuple[Compared, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Part(Suite):
    """A suite of which only some prompts of some roles are measured."""

    chosen: Mapping[str, tuple[Prompt, ...]] = field(default_factory=dict)

    def prompts(self, role: Role) -> tuple[Prompt, ...]:
        return self.chosen[role] if role in self.chosen else super().prompts(role)


def verify(
    record: RunRecord, suite: Suite, prompts: int, seed: int, store: Path, device: torch.device, report: Report = silent, method: str | None = None
) -> Verification:
    """Make `prompts` prompts of every role again (`seed` draws which) and compare them with the record.

    `store`: where images go; what it holds already is not made again, so an empty one tests most. `method`: the Python file of a method that has no
    name here. Raises `UserError` when the record cannot be made again here: another suite, unknown or other code, no digests, no whole run.
    """
    if prompts < 1:
        raise UserError(f"--prompts must be at least 1, not {prompts}")
    run = _run_of(record, suite, method, store, device, report)
    rows = _drawn(run, record, prompts, seed)
    part = _Part(suite.settings, suite.file, suite.limit, {role: tuple(suite.prompts(role)[row] for row in rows[role]) for role in rows})
    sets = {role: [_subset(run, part, role, rows[role], generation) for generation in range(record.seeds)] for role in rows}
    run.store.prepare()
    state, fit_seconds, fit_rows = run.fitted()
    there = len(run.store)
    notes = _generate(run, state, [key for generations in sets.values() for samples in generations for key in samples.keys])
    made = len(run.store) - there
    digests, equal = 0, 0
    for role, generations in sets.items():
        for row, prompt in enumerate(part.prompts(role)):
            again = [pixel_digest(picture) for samples in generations for picture in samples.pictures_of(row)]
            recorded = record.samples[role].sha256[prompt.id]
            digests, equal = digests + len(recorded), equal + sum(one == other for one, other in zip(again, recorded, strict=True))
    same = equal == digests
    compared = [*_scores(run, record, part, sets, (state, fit_seconds, fit_rows), same, notes), *_pictures(record, part, sets, notes)]
    if there:
        notes.append(f"the store held {there} images of this method before; what it holds is not made again")
    if not compared:
        notes.append("no metric gives values by prompt on these prompts, so that only images could be compared")
    agrees = all(one.within for one in compared) and (same or bool(compared))
    ids: dict[str, tuple[str, ...]] = {role: tuple(prompt.id for prompt in part.prompts(role)) for role in rows}
    return Verification("differs" if not agrees else "identical" if same else "agrees", ids, digests, equal, made, tuple(compared), tuple(notes))


def text(verification: Verification) -> str:
    """The verdict with what it rests on, some lines."""
    told = ", ".join(f"{len(ids)} {role}" for role, ids in verification.prompts.items())
    lines = [f"prompts made again: {told}; {verification.made} images were made", f"images: {verification.equal} of {verification.images} are bit-identical"]
    for one in verification.compared:
        allowed = f"mean difference {one.mean:.5f} (allowed {one.mean_allowed:g}), largest {one.largest:.5f} (allowed {one.largest_allowed:g})"
        lines.append(f"{one.name:<18} {len(one.values)} prompts  {allowed}  {'within' if one.within else 'BEYOND'}")
        if not one.within:
            lines += [f"    {prompt}: recorded {one.values[prompt][0]:.6f}, measured {one.values[prompt][1]:.6f}" for prompt in one.worst]
    lines += [f"note: {note}" for note in verification.notes]
    beyond = [one.name for one in verification.compared if not one.within]
    meaning = {
        "identical": "every image is the recorded one",
        "agrees": "images differ as they do between machines or sizes of batches, and numbers agree",
        "differs": f"beyond tolerance: {', '.join(beyond)}" if beyond else "images differ, and nothing else could be compared",
    }
    return "\n".join([*map(visible, lines), f"{verification.verdict}: {meaning[verification.verdict]}"])


def _run_of(record: RunRecord, suite: Suite, method: str | None, store: Path, device: torch.device, report: Report) -> Run:
    """The record's run, here. Raises `UserError` when it is not the same question, code or metrics."""
    here = {"suite": suite.name, "suite_version": suite.settings.version, "suite_fingerprint": suite.fingerprint}
    other = [f"{name} is {getattr(record, name)} in the record and {value} here" for name, value in here.items() if getattr(record, name) != value]
    if other:
        raise UserError(f"this record cannot be made again: {'; '.join(other)}")
    if record.status != "complete":
        raise UserError(f"this record cannot be made again: its status is {record.status}")
    if not any(samples.sha256 for samples in record.samples.values()):
        raise UserError("this record has no digests of its images, as those of schema 1: measure it again with this version")
    if method is None and (record.method.endswith(".py") or not registry.knows("method", record.method)):
        raise UserError(f"method '{record.method}' is not known here; give its Python file, or install the distribution that has it")
    run = Run.resolve(suite, method or record.method, record.parameters, store / "records", store, device, report, seeds=record.seeds)
    if run.method_name != record.method or run.method.version != record.method_version:
        raise UserError(f"the record is of {record.method} version {record.method_version}, and here is {run.method_name} version {run.method.version}")
    for name in sorted(record.sources.keys() | run.sources.keys()):
        if record.sources.get(name) != run.sources.get(name):
            theirs, ours = record.sources.get(name, "a built-in"), run.sources.get(name, "a built-in")
            raise UserError(f"the code of {name} is another than the record's: {theirs} there, {ours} here")
    if run.id != record.run:
        raise UserError(f"run is {record.run} in the record, and {run.id} here: versions of metrics or attacks, or parameters, are not the record's")
    return run


def _drawn(run: Run, record: RunRecord, prompts: int, seed: int) -> dict[Role, list[int]]:
    """Rows of the drawn prompts by role, in the suite's order. Raises `UserError` for digests that are not of the suite's images."""
    rows: dict[Role, list[int]] = {}
    for role in run.roles:
        samples, all_prompts = record.samples.get(role), run.suite.prompts(role)
        images = run.suite.settings.prompts[role].images_per_prompt * record.seeds
        known = [row for row, prompt in enumerate(all_prompts) if samples and prompt.id in samples.sha256]
        if samples is None or not known:
            continue
        if len(known) != len(samples.sha256) or any(len(digests) != images for digests in samples.sha256.values()):
            raise UserError(f"the record's digests of the role {role} are not those of the suite's prompts with {images} images each; try bench submit on it")
        rows[role] = sorted(random.Random(f"{seed} {role}").sample(known, min(prompts, len(known))))
    if not rows:
        raise UserError("the record has digests of no role that the suite's metrics read")
    return rows


def _subset(run: Run, part: _Part, role: Role, rows: Sequence[int], generation: int) -> SampleSet:
    """The images of some prompts with the seeds that they have among all."""
    whole = run.samples(role, generation)
    keys = tuple(key for row in rows for key in whole.keys[row * whole.images : (row + 1) * whole.images])
    return SampleSet(part.prompts(role), whole.images, keys, run.store)


def _generate(run: Run, state: State, keys: list[SampleKey]) -> list[str]:
    """Make the images; where images of a batch influence each other, whole batches as a run makes them. Returns what a reader should know of it."""
    if not run.method.mixes_images():
        run.generate(state, keys)
        return []
    order = list(dict.fromkeys(key for role in run.roles for key in run.keys(role)))
    size, wanted = run.suite.settings.model.batch_size, set(keys)
    batches = [order[first : first + size] for first in range(0, len(order), size)]
    run.generate(state, [key for batch in batches if not wanted.isdisjoint(batch) for key in batch])
    return [
        "images of one batch influence each other with this method: whole batches were made, as one run makes them that is not interrupted; "
        "images of a run that was made in other batches differ, and only their numbers can agree"
    ]


def _scores(
    run: Run, record: RunRecord, part: _Part, sets: Mapping[Role, Sequence[SampleSet]], fitted: tuple[State, float, int], same: bool, notes: list[str]
) -> list[Compared]:
    """Every metric that gave values by prompt, asked again on the part."""
    found = []
    for name, metric in run.metrics.items():
        if metric.cost or not any(score in record.per_prompt for score in metric.names):
            continue
        if not all(role in sets for role in metric.roles if run.suite.prompts(role)):
            notes.append(f"{name} was not measured: the record has no digests of images that it reads")
            continue
        run.report(f"measure {name}", 0, 1)
        try:
            generations = [_measured(run, metric, part, sets, fitted, generation) for generation in range(run.seeds)]
        except Unmeasurable as why:
            notes.append(f"{name} was not measured: {one_line(why)}")
            continue
        for score_name in dict.fromkeys(score for scores in generations for score in scores):
            score, _ = together([scores[score_name] for scores in generations if score_name in scores])
            if isinstance(score, PerImage) and score.percentile is None:
                found += _of_score(score_name, score, record.per_prompt.get(score_name, {}), same, notes)
    return found


def _measured(
    run: Run, metric: Metric, part: _Part, sets: Mapping[Role, Sequence[SampleSet]], fitted: tuple[State, float, int], generation: int
) -> dict[str, PerImage | PerSet]:
    return metric.measure(replace(evaluation_of(run, metric, *fitted, generation), suite=part, samples_of=lambda role: sets[role][generation]))


def _of_score(name: str, score: PerImage, recorded: Mapping[str, float], same: bool, notes: list[str]) -> list[Compared]:
    measured = {prompt.id: round(float(mean), 12) for prompt, mean in zip(score.prompts, score.table.mean(1), strict=True)}
    values = {prompt: (recorded[prompt], measured[prompt]) for prompt in measured if prompt in recorded}
    if len(values) < len(measured):
        notes.append(f"{name}: the record has no values of {len(measured) - len(values)} of the prompts")
    if not values:
        return []
    known = TOLERANCES.get(name)
    if known and known.kind == "absolute" and known.limit:
        mean = known.limit
    elif "cosine" in score.unit or score.unit.startswith("share"):
        mean = MEAN
    else:
        mean = RELATIVE * float(np.mean([abs(value) for value, _ in values.values()]))
    mean *= SAME if same else 1
    largest = LARGEST * mean
    if score.proportion:  # one image may cross the threshold, whatever share that is of so few
        mean, largest = max(mean, 1 / score.table.size), max(largest, 1 / score.table.shape[1])
    return [Compared(name, values, mean, largest)]


def _pictures(record: RunRecord, part: _Part, sets: Mapping[Role, Sequence[SampleSet]], notes: list[str]) -> list[Compared]:
    """The first image of the memorized prompts beside the picture that the record keeps: scores of different pictures may agree by chance."""
    kept = {thumbnail.prompt_id: thumbnail.png for thumbnail in record.thumbnails}
    values = {}
    for row, prompt in enumerate(part.prompts("memorized") if "memorized" in sets else ()):
        if prompt.id not in kept:
            continue
        again = small_picture(small_png(sets["memorized"][0].pictures_of(row)[0], SIDE))
        try:
            recorded = small_picture(kept[prompt.id])
        except Exception as error:  # a stranger's file
            raise UserError(f"the record's picture of prompt {prompt.id} cannot be read: {one_line(error)[:120]}") from error
        if recorded.shape != again.shape:
            raise UserError(f"the record's picture of prompt {prompt.id} has another size than its images; try bench submit on it")
        values[prompt.id] = (0.0, round(float(np.abs(recorded.astype(float) - again).mean() / 255), 6))
    if not values:
        notes.append("the record keeps no picture of these prompts")
        return []
    return [Compared("picture", values, PICTURES, LARGEST * PICTURES)]
