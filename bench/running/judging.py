"""The numbers of a record: every metric and every attack is asked in turn."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from bench.base.errors import Unmeasurable, UserError, one_line
from bench.base.pictures import small_png
from bench.base.progress import Report, silent
from bench.contracts.attack import Attack, Scores, edited_weights
from bench.contracts.held import Known
from bench.contracts.method import State
from bench.contracts.metric import Evaluation, Metric, PerImage, PerSet
from bench.contracts.samples import SampleSet, Timing
from bench.contracts.target import EXHIBITS, Exhibit, Target
from bench.diffusion.denoiser import Denoiser
from bench.records.record import RecordedExhibit, RunRecord, Score
from bench.running.engine import Engine
from bench.running.executors import Executor, Local
from bench.running.experiment import Experiment
from bench.running.findings import Searches, known
from bench.running.fitting import Fitted
from bench.running.images import Images
from bench.running.pieces import pieces_of
from bench.running.process_state import process_kept
from bench.running.scoring import as_score, together
from bench.running.timing import time_against_none
from bench.statistics.units import Design
from bench.suite.prompts import Prompt
from bench.suite.schema import Role

PICTURES = 4  # of one exhibit


def measure(
    experiment: Experiment,
    engine: Engine,
    images: Images,
    record: RunRecord,
    fitted: Fitted,
    executor: Executor,
    report: Report = silent,
) -> BaseException | None:
    """Fill the record's scores, cost and attacks.

    A metric or attack that breaks must not cost the others their numbers: the first error is
    returned. With several seeds every one is asked once for each generation; costs are measured
    once, over the images of all of them.
    """
    failure: BaseException | None = None
    total, seeds = len(experiment.metrics) + len(experiment.attacks), experiment.seeds
    for number, (name, metric) in enumerate(experiment.metrics.items()):
        report(f"measure {name}", number, total)

        def scores_of(generation: int, metric: Metric = metric) -> Scores:
            return metric.measure(
                evaluation_of(experiment, engine, images, metric, fitted, generation, report)
            )

        into = record.cost if metric.cost else record.scores
        error = _ask(record, into, name, metric, scores_of, 1 if metric.cost else seeds)
        failure = failure or error
    shared = experiment.suite.settings.share_references
    for number, (name, attack) in enumerate(experiment.attacks.items(), len(experiment.metrics)):
        report(f"attack {name}", number, total)
        asked = seeds if attack.anew else 1
        targets = [
            target_of(
                experiment, engine, images, attack, fitted.state, generation, executor, report
            )
            for generation in range(asked)
        ]

        def finds_of(
            generation: int, attack: Attack = attack, targets: Sequence[Target] = targets
        ) -> Scores:
            return attack.run(targets[generation])

        pieces = [piece for piece in pieces_of(experiment) if piece.attack == name]
        try:
            executor.search(experiment, engine, images, fitted.state, pieces, report)
        except Exception as error:  # the attack meets it again and says so
            failure = failure or error
        failure = _ask(record, record.attacks, name, attack, finds_of, asked) or failure
        record.exhibits += [
            recorded_exhibit(name, exhibit, shared) for exhibit in targets[0].exhibits[:EXHIBITS]
        ]
    report("measure", total, total)
    return failure


def evaluation_of(
    experiment: Experiment,
    engine: Engine,
    images: Images,
    metric: Metric,
    fitted: Fitted,
    generation: int = 0,
    report: Report = silent,
) -> Evaluation:
    """What a metric may read of one generation, and one of costs of all of them; other roles than
    it declares are refused.
    """

    def samples(role: Role) -> SampleSet:
        if role not in metric.roles:
            raise UserError(
                f"metric {type(metric).__name__} reads prompts of the role {role} without declaring"
                " it in `roles`"
            )
        return images.of_all_generations(role) if metric.cost else images.samples(role, generation)

    def time(role: Role, rounds: int, images_per_round: int) -> Timing:
        return time_against_none(
            experiment, engine, images, fitted.state, role, rounds, images_per_round, report
        )

    return Evaluation(
        experiment.suite,
        engine.device,
        samples,
        time,
        fitted.seconds,
        fitted.rows,
        report,
        images.cache,
        engine.kept,
    )


def target_of(
    experiment: Experiment,
    engine: Engine,
    images: Images,
    attack: Attack,
    state: State,
    generation: int = 0,
    executor: Executor | None = None,
    report: Report = silent,
    look: bool = False,
) -> Target:
    """What an attack meets: generations, and the model where it may hold it. With `look`, what it
    finds about known pictures is only read from the store.
    """
    executor, lent = executor or Local(), False

    @contextmanager
    def weights() -> Iterator[Denoiser]:
        nonlocal lent
        with edited_weights(engine.denoiser, experiment.method, state) as denoiser:
            lent = True
            try:
                yield denoiser
            finally:
                lent = False

    def generate(prompts: Sequence[Prompt], count: int) -> SampleSet:
        if lent:  # the store must not get images of weights that an attacker may have changed
            raise UserError(
                "an attack asked for generations while it held the weights; generate before or"
                " after, or sample with the denoiser"
            )
        samples = images.sample_set(prompts, count, generation)
        units, read = images.units.of(samples.keys), frozenset(samples.keys)
        executor.make(experiment, engine, images, state, units, read, report)
        return samples

    suite, device = experiment.suite, engine.device
    name = next((name for name, given in experiment.attacks.items() if given is attack), "attack")
    searches = Searches(experiment, engine, images, state, attack, name, report, look)

    def known_pictures(prompts: Sequence[Prompt], count: int, memorized: bool) -> list[Known]:
        return known(experiment, prompts, count, memorized, generation)

    return Target(
        suite,
        device,
        attack.threat,
        generate,
        weights,
        report,
        map_=executor.map,
        find_=searches.find,
        known_=known_pictures,
        base_=lambda: engine.base,
    )


def recorded_exhibit(attack: str, exhibit: Exhibit, with_reference: bool) -> RecordedExhibit:
    """An exhibit as a record keeps it: small pictures, and training pictures only where the suite
    may share them.
    """
    return RecordedExhibit(
        attack=attack,
        prompt_id=exhibit.prompt.id,
        prompt=exhibit.prompt.text,
        group=exhibit.prompt.group,
        caption=exhibit.caption,
        pictures=[small_png(picture) for picture in exhibit.pictures[:PICTURES]],
        reference=(
            small_png(exhibit.reference)
            if with_reference and exhibit.reference is not None
            else None
        ),
    )


def _ask(
    record: RunRecord,
    into: dict[str, Score],
    name: str,
    judge: Metric | Attack,
    scores_of: Callable[[int], Scores],
    generations: int,
) -> BaseException | None:
    measured: dict[str, Score] = {}
    reasons: dict[str, str] = {}
    reason = "the suite's prompts do not allow it"
    failure: BaseException | None = None
    try:
        by_generation = _every_generation(judge, scores_of, generations)
        _refuse_undeclared(judge, by_generation)
        for score_name in dict.fromkeys(name for scores in by_generation for name in scores):
            score, by_seed = together(
                [scores[score_name] for scores in by_generation if score_name in scores]
            )
            if isinstance(score, Unmeasurable):
                reasons[score_name] = one_line(score)
                continue
            described = {
                "threat": judge.threat if isinstance(judge, Attack) else None,
                "shown": judge.shown.get(score_name),
                "by_seed": by_seed,
            }
            measured[score_name] = _recorded(name, judge, score_name, score, described, record)
            if without := by_seed.count(None):
                record.warnings.append(
                    f"{score_name}: {without} of {len(by_seed)} generations have no number"
                )
            _warn_of_lost_pictures(record, score.details)
            if (
                isinstance(score, PerImage)
                and score.percentile is None
                and score.statistic in ("mean", "lower_median")
            ):
                means = score.table.mean(1)
                record.per_prompt[score_name] = {
                    prompt.id: round(float(m), 12)
                    for prompt, m in zip(score.prompts, means, strict=True)
                }
    except Unmeasurable as why:
        reason = one_line(why)
        record.warnings.append(f"{name}: {reason}")
    except (Exception, SystemExit) as error:  # a plug-in may even try to end the process
        reason, failure = f"{type(error).__name__}: {one_line(error)}", error
    for score_name in judge.names:
        if score_name not in measured:
            why_not = reasons.get(score_name, reason)
            into[score_name] = Score(
                value=None,
                unit="",
                higher_is_better=None,
                metric=name,
                metric_version=judge.version,
                reason=why_not,
            )
    into |= measured
    return failure


def _refuse_undeclared(judge: Metric | Attack, by_generation: Sequence[Scores]) -> None:
    """A name that nobody expects would take the place of another judge's score."""
    given = dict.fromkeys(name for scores in by_generation for name in scores)
    if extra := [str(name) for name in given if name not in judge.names]:
        raise UserError(
            f"it gave the score '{extra[0][:80]}' without declaring it in `names`"
            f" ({', '.join(judge.names)})"
        )


def _recorded(
    name: str,
    judge: Metric | Attack,
    score_name: str,
    score: PerImage | PerSet,
    described: dict[str, Any],
    record: RunRecord,
) -> Score:
    """A score as a record holds it, if a record that holds it can be written and read again."""
    reads_none = isinstance(judge, Metric) and not judge.roles
    role = None if reads_none else judge.role_of(score_name)
    known = record.design.get(role or "")
    design = Design(known.clusters, known.strata) if known else None
    try:
        recorded = as_score(name, judge.version, score, role, design).model_copy(update=described)
        plain = json.loads(json.dumps(recorded.model_dump(), allow_nan=False))
        Score.model_validate(plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"its score {score_name} holds what a record cannot: {one_line(error)[:200]}"
        ) from error
    return recorded


def _warn_of_lost_pictures(record: RunRecord, details: Mapping[str, Any]) -> None:
    """Links rot: a number over some of the prompts is no worse, but a reader must know of which."""
    expected, found = details.get("n_expected"), details.get("n_found")
    if isinstance(expected, int) and isinstance(found, int) and found < expected:
        warning = f"{expected - found} of {expected} memorized prompts have no training picture"
        if warning not in record.warnings:
            record.warnings.append(warning)


def _every_generation(
    judge: Metric | Attack, scores_of: Callable[[int], Scores], generations: int
) -> list[Scores]:
    """What it gives for each generation; one that cannot be measured at all costs the others
    nothing. Raises `Unmeasurable` when none can.
    """
    given: list[Scores] = []
    reasons: list[Unmeasurable] = []
    for generation in range(generations):
        try:
            with process_kept("it"):
                scores = scores_of(generation)
            given.append(_as_scores(scores))
        except Unmeasurable as why:
            reasons.append(why)
            given.append(dict.fromkeys(judge.names, why))
    if len(reasons) == generations:
        raise reasons[0]
    return given


def _as_scores(returned: Any) -> Scores:
    if not isinstance(returned, Mapping):
        raise UserError(f"it gave {type(returned).__name__} instead of its scores by name")
    return returned
