"""The numbers of a record: every metric and every attack asked in turn, and what each score carries besides its value."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from bench import stats
from bench.attack import EXHIBITS, Attack, Exhibit, Scores, Target, edited_weights
from bench.errors import Unmeasurable, UserError, one_line
from bench.method import State
from bench.metric import Evaluation, Metric, PerImage, PerSet, SampleSet
from bench.record import RecordedExhibit, RunRecord, Score
from bench.store import encode_png
from bench.suite import Prompt, Role

if TYPE_CHECKING:
    from bench.runner import Run
    from bench.sampler import Denoiser

PICTURES, EXHIBIT_SIDE = 4, 128  # of one exhibit; pixels


def measure(run: Run, record: RunRecord, state: State, fit_seconds: float, fit_rows: int) -> Exception | None:
    """Fill the record's scores, cost and attacks. One that breaks must not cost the others their numbers: its error is returned."""
    failure: Exception | None = None
    total = len(run.metrics) + len(run.attacks)
    for number, (name, metric) in enumerate(run.metrics.items()):
        run.report(f"measure {name}", number, total)
        evaluation = evaluation_of(run, metric, state, fit_seconds, fit_rows)
        error = _ask(record, record.cost if metric.cost else record.scores, name, metric, partial(metric.measure, evaluation))
        failure = failure or error
    for number, (name, attack) in enumerate(run.attacks.items(), len(run.metrics)):
        run.report(f"attack {name}", number, total)
        target = target_of(run, attack, state)
        failure = _ask(record, record.attacks, name, attack, partial(attack.run, target)) or failure
        record.exhibits += [kept(name, exhibit, run.suite.settings.share_references) for exhibit in target.exhibits[:EXHIBITS]]
    run.report("measure", total, total)
    return failure


def _ask(record: RunRecord, into: dict[str, Score], name: str, judge: Metric | Attack, scores: Callable[[], Scores]) -> Exception | None:
    measured: dict[str, Score] = {}
    reasons: dict[str, str] = {}
    reason, failure = "the suite's prompts do not allow it", None
    try:
        for score_name, score in scores().items():
            if isinstance(score, Unmeasurable):
                reasons[score_name] = one_line(score)
                continue
            measured[score_name] = as_score(name, judge.version, score)
            if isinstance(score, PerImage) and score.percentile is None:
                means = score.table.mean(1)
                record.per_prompt[score_name] = {prompt.id: round(float(m), 6) for prompt, m in zip(score.prompts, means, strict=True)}
    except Unmeasurable as why:
        reason = one_line(why)
        record.warnings.append(f"{name}: {reason}")
    except Exception as error:
        reason, failure = f"{type(error).__name__}: {one_line(error)}", error
    for score_name in judge.names:
        if score_name not in measured:
            why_not = reasons.get(score_name, reason)
            into[score_name] = Score(value=None, unit="", higher_is_better=None, metric=name, metric_version=judge.version, reason=why_not)
    into |= measured
    return failure


def evaluation_of(run: Run, metric: Metric, state: State, fit_seconds: float, fit_rows: int) -> Evaluation:
    def samples(role: Role) -> SampleSet:
        if role not in metric.roles:
            raise UserError(f"metric {type(metric).__name__} reads prompts of the role {role} without declaring it in `roles`")
        return run.samples(role)

    return Evaluation(run.suite, run.device, samples, lambda rounds, images: run.time(state, rounds, images), fit_seconds, fit_rows)


def target_of(run: Run, attack: Attack, state: State) -> Target:
    lent = False

    @contextmanager
    def weights() -> Iterator[Denoiser]:
        nonlocal lent
        with edited_weights(run.denoiser, run.method, state) as denoiser:
            lent = True
            try:
                yield denoiser
            finally:
                lent = False

    def generate(prompts: Sequence[Prompt], images: int) -> SampleSet:
        if lent:  # the store must not get images of weights that an attacker may have changed
            raise UserError("an attack asked for generations while it held the weights; generate before or after, or sample with the denoiser")
        samples = run.sample_set(prompts, images)
        run.generate(state, samples.keys)
        return samples

    return Target(run.suite, run.device, attack.threat, generate, weights, run.report)


def kept(attack: str, exhibit: Exhibit, with_reference: bool) -> RecordedExhibit:
    """An exhibit as a record keeps it: small pictures, and training pictures only where the suite may share them."""
    return RecordedExhibit(
        attack=attack, prompt_id=exhibit.prompt.id, prompt=exhibit.prompt.text, group=exhibit.prompt.group, caption=exhibit.caption,
        pictures=[small_png(picture) for picture in exhibit.pictures[:PICTURES]],
        reference=small_png(exhibit.reference) if with_reference and exhibit.reference is not None else None,
    )  # fmt: skip


def small_png(picture: np.ndarray) -> str:
    """A picture of at most `EXHIBIT_SIDE` pixels a side, as base64 of a PNG."""
    image = Image.fromarray(picture)
    image.thumbnail((EXHIBIT_SIDE, EXHIBIT_SIDE))
    return base64.b64encode(encode_png(np.asarray(image))).decode()


def as_score(name: str, version: int, score: PerImage | PerSet) -> Score:
    """Add to the numbers of a metric or attack what every score carries: interval, counts, groups, versions."""
    common: dict[str, Any] = {
        "unit": score.unit,
        "higher_is_better": score.higher_is_better,
        "metric": name,
        "metric_version": version,
        "details": score.details,
    }
    if isinstance(score, PerSet):
        low, high = score.interval or (None, None)
        return Score(value=score.value, low=low, high=high, n=score.n, prompts=score.prompts, **common)
    statistic = stats.mean if score.percentile is None else lambda v: np.percentile(v, score.percentile, axis=-1)
    if len(score.table) < 2:
        low, high = None, None
    else:
        low, high = stats.proportion_interval(score.table) if score.proportion else stats.cluster_bootstrap(score.table, statistic)
    groups: dict[str, list[np.ndarray]] = {}
    for prompt, row in zip(score.prompts, score.table, strict=True):
        if prompt.group:
            groups.setdefault(prompt.group, []).append(row)
    return Score(
        value=float(statistic(score.table.reshape(-1))), low=low, high=high, n=score.table.size, prompts=len(score.table),
        groups={group: round(float(statistic(np.concatenate(rows))), 6) for group, rows in groups.items()}, **common,
    )  # fmt: skip
