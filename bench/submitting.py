"""A stranger's record: what can be checked of it without running it again, and the place where the board finds it.

Nothing in a record is believed that follows from something else: the run's id from method and suite, means from the prompts' values, intervals
from means, seeds and prompts from the suite. What does not follow (the prompts' values themselves) is for `bench verify` or a sample store.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image

from bench import leaderboard, registry, reporting, stats
from bench.attack import EXHIBITS, Attack
from bench.board import protocol
from bench.errors import UserError, one_line
from bench.evidence import PROMPTS, SIDE, THUMBNAILS, evenly, small_png
from bench.method import Method
from bench.metric import Metric
from bench.parameters import configure
from bench.record import RunRecord, Score, load_record
from bench.runner import Run
from bench.store import SampleKey, SampleStore, decode_png, pixel_digest, read_picture, write_atomically
from bench.suite import Prompt, Role, Suite, load_suite

BYTES = 64 * 2**20  # of a record; one with all its pictures has some MiB
SHOWN = 5  # failures of one check that are listed; further ones are counted
NAME = 100  # characters of a method's name, which becomes a folder
VALUE, INTERVAL = 1e-5, 2e-5  # how far a number may be from what follows from the prompts' values, which have six decimals
SLACK = 1e-6  # of cosines: float32
PLAIN = {"sscd_p95", "fid", "knn_unique", "clique_unique", "clique_precision", "clique_recall", "clique_clean_flagged"}  # built-in, no mean over prompts
ONE_A_PROMPT = {"diversity", "clique_identified", "clique_extracted", "clique_extracted_sscd"}  # built-in, one value a prompt
RANGES = {"cosine": (-1.0, 1.0), "1 - cosine": (0.0, 2.0), "distance": (0.0, math.inf)}  # by unit; shares and costs have theirs too


@dataclass(frozen=True)
class Finding:
    """One thing that was checked: whether it holds, or something that a reader should know."""

    verdict: Literal["passed", "failed", "note"]
    text: str


@dataclass(frozen=True)
class Submission:
    """Where the record is now, None when something failed and nothing was written, and everything that was checked."""

    path: Path | None
    findings: tuple[Finding, ...]

    @property
    def failures(self) -> tuple[str, ...]:
        return tuple(finding.text for finding in self.findings if finding.verdict == "failed")


@dataclass
class Case:
    """A record under examination, beside what the suite says; `run` is the run that it claims to be, with an empty store."""

    record: RunRecord
    suite: Suite
    run: Run
    reference: RunRecord | None  # of our own records of the same protocol, the one without mitigation
    store: Path | None
    notes: list[str] = field(default_factory=list)


def submit(record: Path, out: Path, store: Path | None, committed: Path, suite: Suite | None = None) -> Submission:
    """Check a record and write it to `<out>/<suite>/<method>/<run>.json`; nothing is written when one check fails.

    `store`: the sample store of the run, where it was sent too. `committed`: our own records. `suite`: the suite where it is none that has a
    name here. Raises `UserError` for a file that is no record.
    """
    content, loaded = _read(record)
    findings = list(_of_itself(content, loaded))
    if suite is None:
        suite, reason = _known_suite(loaded.suite)
        findings += [] if suite else [Finding("failed", reason)]
    if suite is not None:
        findings += _protocol(loaded, suite)
    if suite is None or any(finding.verdict == "failed" for finding in findings):
        return _refused([*findings, Finding("note", "scores, images and method were not checked: first the above")])
    with tempfile.TemporaryDirectory() as empty:  # a stranger's images must not be looked up among ours
        run, of_method = _claimed_run(loaded, suite, Path(empty))
        findings += of_method
        case = Case(loaded, suite, run, _reference(loaded, committed), store)
        for title, check in CHECKS:
            if check is _store and store is None:
                case.notes.append("the images themselves were not seen: no sample store was given")
                continue
            findings += _asked(case, title, check)
    findings += [Finding("note", note) for note in case.notes]
    if any(finding.verdict == "failed" for finding in findings):
        return _refused(findings)
    path = loaded.path(out)
    if not path.resolve().is_relative_to(out.resolve()):
        return _refused([*findings, Finding("failed", f"its place {path} lies outside {out}")])
    for whose, known in (("our own", loaded.path(committed)), ("the submitted", path)):
        if not known.exists():
            continue
        if load_record(known).content_sha256 == loaded.content_sha256:
            return Submission(known, (*findings, Finding("note", f"{known} is the same record, among {whose} records already; nothing was written")))
        return _refused([*findings, Finding("failed", f"run {loaded.run} is among {whose} records already, with other content: {known}")])
    write_atomically(path, (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())
    return Submission(path, tuple(findings))


def text(submission: Submission) -> str:
    """Everything that was checked, one line each, and what came of it."""
    signs = {"passed": "ok  ", "failed": "FAIL", "note": "note"}
    lines = [f"{signs[finding.verdict]}  {finding.text}" for finding in submission.findings]
    failed = len(submission.failures)
    end = f"submitted: {submission.path}" if submission.path else f"not submitted: {failed} failure{'s' if failed > 1 else ''}; nothing was written"
    return "\n".join([*lines, end])


def _refused(findings: Sequence[Finding]) -> Submission:
    return Submission(None, tuple(findings))


def _read(path: Path) -> tuple[dict[str, Any], RunRecord]:
    """The JSON object as it is and as a record. Whatever a hostile file provokes becomes one line."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"record {path} cannot be read: {one_line(error)}") from error
    if size > BYTES:
        raise UserError(f"record {path} has {size // 2**20} MiB; records have at most {BYTES // 2**20}")
    try:
        record = load_record(path)
        content = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()  # half characters and infinities have no place in a page
    except UserError:
        raise
    except Exception as error:  # nesting beyond any stack, numbers beyond any range: there are many ways
        raise UserError(f"record {path} cannot be used: {type(error).__name__}: {one_line(error)[:160]}") from error
    return content, record


def _of_itself(content: dict[str, Any], record: RunRecord) -> Iterator[Finding]:
    """What needs no suite. A wrong digest was refused while loading."""
    yield Finding("passed", "content_sha256 is right") if content.get("content_sha256") else Finding("failed", "content_sha256 is missing: measure it again")
    yield Finding("passed", "the run is complete") if record.status == "complete" else Finding("failed", f"status is {record.status}, not complete")
    if record.errors:
        yield Finding("failed", f"a complete run has no errors, and this says: {record.errors[0][:120]}")
    if record.limit is not None:
        yield Finding("failed", f"limited to {record.limit} prompts of every role; only whole runs can be submitted")
    revision = record.environment
    if revision.get("dirty") or not revision.get("commit"):
        yield Finding("note", "made with code that is no commit of this repository, or was changed after it" if revision.get("dirty") else "commit unknown")


def _known_suite(name: str) -> tuple[Suite | None, str]:
    """A suite by name only: what a record says must not open a file."""
    if name.endswith(".toml") or not registry.knows("suite", name):
        return None, f"suite '{name[:NAME]}' is not known here; known: {', '.join(registry.suites())}"
    return load_suite(name), ""


def _protocol(record: RunRecord, suite: Suite) -> Iterator[Finding]:
    here = {"suite": suite.name, "suite_version": suite.settings.version, "suite_fingerprint": suite.fingerprint, "group_name": suite.settings.group_name}
    other = [f"{name} is {getattr(record, name)} and {value} here" for name, value in here.items() if getattr(record, name) != value]
    if other:
        yield Finding("failed", f"the protocol is another: {'; '.join(other)}; it would stand apart from every row of the table")
    else:
        yield Finding("passed", f"suite {suite.name} version {suite.settings.version}, fingerprint {suite.fingerprint}")


def _claimed_run(record: RunRecord, suite: Suite, store: Path) -> tuple[Run, list[Finding]]:
    """The run that the record says it is, and what is wrong with that; for a method that is not known here, one that only has its name."""
    device = torch.device("cpu")
    run = Run.resolve(suite, "none", {}, store, store, device, seeds=record.seeds)
    source = record.sources.get(f"method {record.method}")
    problems: list[str] = []
    theirs = {name: value for name, value in record.sources.items() if name != f"method {record.method}"}
    if theirs != run.sources:
        problems.append(f"sources of metrics and attacks are {theirs or 'none'} and {run.sources or 'none'} here")
    if len(record.method) > NAME:
        problems.append(f"the method's name has {len(record.method)} characters; at most {NAME}")
    entry = registry.find("method", record.method) if not record.method.endswith(".py") and registry.knows("method", record.method) else None
    if entry and entry.source != source and not entry.plugin:
        problems.append(f"method '{record.method}' is a built-in, and this was made by other code of that name ({source}): rename it")
        entry = None
    elif entry is None and not source:
        problems.append(f"method '{record.method}' is not known here, and the record has no digest of its code")
    notes = []
    if entry and entry.source == source:
        method: Method | None = None
        try:
            method = configure("method", entry.name, entry.load(), record.parameters)
            Run.resolve(suite, entry.name, record.parameters, store, store, device, seeds=record.seeds)  # what it needs is there
        except UserError as error:
            problems.append(one_line(error))
        problems += _differences(record, method) if method else []
    else:
        method = _stand_in(record)
        notes = [Finding("note", f"method {record.method} is not known here; digest of its code: {source}")] if source else []
    if method is not None:
        sources = run.sources | ({f"method {record.method}": source} if source else {})
        run = Run(suite, record.method, method, sources, run.metrics, run.attacks, store, store, device, seeds=record.seeds)
        if run.id != record.run:
            problems.append(f"run is {record.run}, and {run.id} follows from suite, method, parameters, seeds and metrics")
    title = f"method {record.method}, its parameters and the run's id agree"
    return run, [*(Finding("failed", problem) for problem in problems), *notes] if problems else [Finding("passed", title), *notes]


def _differences(record: RunRecord, method: Method) -> list[str]:
    here = {
        "method_version": method.version, "parameters": method.model_dump(mode="json"), "where": method.where, "needs": list(method.needed()),
        "changed": method.model_dump(mode="json", exclude_defaults=True), "paper": method.paper,
    }  # fmt: skip
    return [f"{name} is {_short(getattr(record, name))} and {_short(value)} here" for name, value in here.items() if getattr(record, name) != value]


def _stand_in(record: RunRecord) -> Method:
    """A method that does nothing and has the name, version and parameters of one that is not known here."""

    class StandIn(Method):
        version = record.method_version

        def model_dump(self, **_: Any) -> dict[str, Any]:
            return record.parameters

    return StandIn()


def _reference(record: RunRecord, committed: Path) -> RunRecord | None:
    """Our own record of no mitigation under the same protocol, where there is one."""
    for path in sorted(committed.glob(f"{record.suite}/none/*.json")):
        own = load_record(path)
        if own.status == "complete" and own.limit is None and protocol(own) == protocol(record):
            return own
    return None


def _asked(case: Case, title: str, check: Check) -> list[Finding]:
    problems: list[str] = []
    try:
        problems += check(case)
    except Exception as error:  # a record can be wrong in ways that nobody thought of; it must not pass then, nor break the command
        problems.append(f"cannot be checked: {type(error).__name__}: {one_line(error)[:160]}")
    more = [f"{len(problems) - SHOWN} more of this kind"] if len(problems) > SHOWN else []
    return [Finding("failed", f"{title}: {problem}") for problem in [*problems[:SHOWN], *more]] or [Finding("passed", title)]


def _short(value: Any) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= 120 else f"{shown[:110]} ..."


def _scores(record: RunRecord) -> Iterator[tuple[str, str, Score]]:
    """Part, name and score of everything measured or null."""
    for part in ("scores", "cost", "attacks"):
        yield from ((part, name, score) for name, score in getattr(record, part).items())


def _judge(case: Case, part: str, score: Score) -> Metric | Attack | None:
    judges: dict[str, Any] = case.run.attacks if part == "attacks" else case.run.metrics
    judge = judges.get(score.metric)
    return judge if isinstance(judge, Attack) or (judge and judge.cost == (part == "cost")) else None


def _built_in(case: Case, part: str, score: Score) -> bool:
    return f"{'attack' if part == 'attacks' else 'metric'} {score.metric}" not in case.run.sources


def _role(judge: Metric | Attack, name: str) -> Role:
    """Whose prompts a built-in's score is of: those of its first role, unless its name ends with another."""
    if isinstance(judge, Attack):
        return cast(Role, getattr(judge, "role", "memorized"))
    return next((role for role in judge.roles if name.endswith(f"_{role}")), judge.roles[0])


def _judges(case: Case) -> Iterator[str]:
    expected = {(part, name): key for key, judge in case.run.metrics.items() for part in ("cost" if judge.cost else "scores",) for name in judge.names}
    expected |= {("attacks", name): key for key, judge in case.run.attacks.items() for name in judge.names}
    recorded = {(part, name): score for part, name, score in _scores(case.record)}
    for part, name in sorted(expected.keys() - recorded.keys()):
        yield f"{part} has no {name}, which the suite's {expected[part, name]} gives"
    for (part, name), score in recorded.items():
        judge = _judge(case, part, score)
        if judge is None:
            yield f"{part}.{name} is by '{score.metric[:NAME]}', which is none of the suite's"
            continue
        if name not in judge.names and _built_in(case, part, score):
            yield f"{part}.{name} is no score of {score.metric}"
        elif (part, name) in expected and expected[part, name] != score.metric:
            yield f"{part}.{name} is by {score.metric} and not by {expected[part, name]}"
        if score.metric_version != judge.version:
            yield f"{part}.{name} is of version {score.metric_version} of {score.metric}, which is version {judge.version} here"
        if score.value is None:
            case.notes.append(f"{name} is null: {score.reason[:120]}")
            continue
        if score.threat != (judge.threat if isinstance(judge, Attack) else None):
            yield f"{part}.{name} has the threat model {score.threat}, which is not that of {score.metric}"
        if score.shown != judge.shown.get(name):
            yield f"{part}.{name} is not shown in tables as {score.metric} says"
        own = getattr(case.reference, part).get(name) if case.reference else None
        if own and own.value is not None and (own.unit, own.higher_is_better) != (score.unit, score.higher_is_better):
            yield f"{part}.{name} is '{score.unit}', better when higher: {score.higher_is_better}; our own: '{own.unit}', {own.higher_is_better}"


def _ranges(case: Case) -> Iterator[str]:
    for part, name, score in _scores(case.record):
        if score.value is None:
            if not (score.low is score.high is None and not score.groups and not score.by_seed and name not in case.record.per_prompt):
                yield f"{name} is null and has an interval, groups or values by prompt"
            continue
        if (score.low is None) != (score.high is None):
            yield f"{name} has one end of an interval"
        elif score.low is not None and score.high is not None and not score.low - SLACK <= score.value <= score.high + SLACK:
            yield f"{name} is {score.value} outside its interval [{score.low}, {score.high}]"
        low, high = (0.0, math.inf) if part == "cost" else (0.0, 1.0) if score.unit.startswith("share") else RANGES.get(score.unit, (-math.inf, math.inf))
        of_prompts = case.record.per_prompt.get(name, {}).values()
        for what, numbers in (
            ("value", [score.value]), ("interval", [end for end in (score.low, score.high) if end is not None]),
            ("value of a group", score.groups.values()), ("value of a generation", score.by_seed), ("value of a prompt", of_prompts),
        ):  # fmt: skip
            wrong = [number for number in numbers if not low - SLACK <= number <= high + SLACK]
            if wrong:
                yield f"{name} has the {what} {wrong[0]}, and '{score.unit}' is within [{low:g}, {high:g}]"
        if score.n < 1 or score.prompts < 0:
            yield f"{name} is of {score.n} images and {score.prompts} prompts"


def _means(case: Case) -> Iterator[str]:
    measured = {name: (part, score) for part, name, score in _scores(case.record) if score.value is not None}
    for name in case.record.per_prompt.keys() - measured.keys():
        yield f"per_prompt has {name[:NAME]}, which is no score"
    for name, (part, score) in measured.items():
        means, judge, built_in = case.record.per_prompt.get(name), _judge(case, part, score), _built_in(case, part, score)
        if judge is None or part == "cost":
            continue
        if means is None:
            if built_in and name not in PLAIN:
                yield f"{name} has no values by prompt"
            elif set(score.groups) - {prompt.group for role in case.suite.settings.prompts for prompt in case.suite.prompts(role)}:
                yield f"{name} has groups that the suite has not"
            continue
        prompts = _prompts_of(case, judge, name, means, built_in)
        if prompts is None:
            yield f"{name} has values of {len(means)} prompts that are not the suite's prompts of one role"
            continue
        values = [means[prompt.id] for prompt in prompts]
        if abs(float(np.mean(values)) - cast(float, score.value)) > VALUE:
            yield f"{name} is {score.value}, and the mean over its prompts is {np.mean(values):.6f}"
        each, rest = divmod(score.n, len(prompts))
        if score.prompts != len(prompts) or rest or (score.unit.startswith("share") and built_in and not _whole(np.array(values), each)):
            yield f"{name} is of {score.n} images and {score.prompts} prompts, which does not fit its values by prompt"
        groups: dict[str, list[float]] = {}
        for prompt, value in zip(prompts, values, strict=True):
            if prompt.group:
                groups.setdefault(prompt.group, []).append(value)
        if groups.keys() != score.groups.keys() or any(abs(float(np.mean(groups[group])) - score.groups[group]) > VALUE for group in groups):
            yield f"{name} has values by group that do not follow from its values by prompt"
        by_seed, seeds = score.by_seed, case.record.seeds
        if len(by_seed) > seeds or (built_in and len(by_seed) != (seeds if seeds > 1 else 0)):
            yield f"{name} has values of {len(by_seed)} generations, and there are {seeds}"
        elif by_seed and built_in and abs(float(np.mean(by_seed)) - cast(float, score.value)) > VALUE:
            yield f"{name} is {score.value}, and the mean over its generations is {np.mean(by_seed):.6f}"


def _prompts_of(case: Case, judge: Metric | Attack, name: str, means: dict[str, float], built_in: bool) -> list[Prompt] | None:
    """The prompts that the means are of, in the suite's order; None when they are not those of a role. A plug-in may leave prompts out."""
    if built_in:
        prompts = case.suite.prompts(_role(judge, name))
        once = {prompt.text: prompt for prompt in reversed(prompts)}  # some attacks take a text that stands twice once
        allowed = [list(prompts)] + ([[prompt for prompt in prompts if once[prompt.text] is prompt]] if isinstance(judge, Attack) else [])
        return next((chosen for chosen in allowed if means.keys() == {prompt.id for prompt in chosen}), None)
    roles = case.suite.settings.prompts if isinstance(judge, Attack) else judge.roles
    found = ([prompt for prompt in case.suite.prompts(role) if prompt.id in means] for role in roles)
    return next((chosen for chosen in found if chosen and len(chosen) == len(means)), None)


def _whole(shares: np.ndarray, of: int) -> bool:
    """Whether shares are whole numbers of `of` images, as far as six decimals tell."""
    return bool((np.abs(shares * of - np.round(shares * of)) <= SLACK * of).all())


def _intervals(case: Case) -> Iterator[str]:
    if case.record.intervals != stats.INTERVALS:
        case.notes.append(f"intervals were made in another way ('{case.record.intervals[:NAME]}') and cannot be made again")
        return
    unchecked = []
    for part, name, score in _scores(case.record):
        judge, means = _judge(case, part, score), case.record.per_prompt.get(name)
        if score.value is None or judge is None or part == "cost":
            continue
        prompts = _prompts_of(case, judge, name, means, _built_in(case, part, score)) if means else None
        if means is None or prompts is None:
            unchecked.append(name)
            continue
        if len(prompts) < 2:
            again: list[tuple[float | None, float | None]] = [(None, None)]
        else:
            again = list(_intervals_of(np.array([[means[prompt.id]] for prompt in prompts]), score, _built_in(case, part, score)))
        if not any(_near(score, low, high) for low, high in again):
            yield f"{name} has the interval [{score.low}, {score.high}], and [{again[0][0]}, {again[0][1]}] follows from its values by prompt"
    if unchecked:
        case.notes.append(f"no mean over prompts, so that value and interval can only be measured again: {', '.join(sorted(unchecked))}")


def _intervals_of(means: np.ndarray, score: Score, built_in: bool) -> Iterator[tuple[float, float]]:
    """Intervals that may belong to prompts' means `[prompts, 1]`. Whether a plug-in's score is a proportion does not stand in a record."""
    each = max(score.n // len(means), 1)
    if score.unit.startswith("share") and _whole(means, each):
        means = np.round(means * each) / each  # as before it was written with six decimals: the bootstrap counts ties
    # With several images a prompt the exact interval is for those that all agree.
    if (score.unit.startswith("share") or not built_in) and np.isin(means, (0.0, 1.0)).all() and (each == 1 or means.min() == means.max()):
        yield stats.proportion_interval(means)
        if built_in:
            return
    yield stats.cluster_bootstrap(means)


def _near(score: Score, low: float | None, high: float | None) -> bool:
    if score.low is None or score.high is None or low is None or high is None:
        return score.low is score.high is low is high is None
    # The sixth decimal of a prompt may move a resample across the mean, and the correction of the bias with it: by less than a thousandth of the width.
    allowed = INTERVAL + 1e-3 * (high - low)
    return abs(score.low - low) <= allowed and abs(score.high - high) <= allowed


def _counts(case: Case) -> Iterator[str]:
    seeds, settings = case.record.seeds, case.suite.settings.prompts
    wanted = {role: len(case.suite.prompts(role)) * settings[role].images_per_prompt * seeds for role in case.run.roles}
    if case.record.images != wanted:
        yield f"images are {_short(case.record.images)}, and the suite with {seeds} seed{'s' if seeds > 1 else ''} has {_short(wanted)}"
    for part, name, score in _scores(case.record):
        judge = _judge(case, part, score)
        if score.value is None or judge is None or part == "cost" or not _built_in(case, part, score):
            continue
        each = 1 if name in ONE_A_PROMPT else getattr(judge, "images", 1) if isinstance(judge, Attack) else settings[_role(judge, name)].images_per_prompt
        n = judge.images if name == "fid" else score.prompts * each * seeds  # type: ignore[union-attr]
        if (name not in PLAIN or part == "scores") and score.n != n:
            yield f"{name} is of {score.n} images, and the suite asks for {n}"
        if name in PLAIN and part == "scores" and score.prompts != len(case.suite.prompts(_role(judge, name))):
            yield f"{name} is of {score.prompts} prompts, and the suite has {len(case.suite.prompts(_role(judge, name)))}"


def _samples(case: Case) -> Iterator[str]:
    if not case.record.samples:
        yield "there are none: measure it again with this version"
    elif set(case.record.samples) != set(case.run.roles):
        yield f"of the roles {', '.join(sorted(case.record.samples))[:NAME]}, and images are of {', '.join(case.run.roles)}"
    for role in case.run.roles:
        samples, prompts = case.record.samples.get(role), case.suite.prompts(role)
        if samples is None:
            continue
        images = case.suite.settings.prompts[role].images_per_prompt * case.record.seeds
        if (samples.prompts, samples.images) != (len(prompts), images):
            yield f"{role} has {samples.prompts} prompts of {samples.images} images, and the suite {len(prompts)} of {images}"
        if samples.sha256.keys() != {prompts[row].id for row in evenly(len(prompts), PROMPTS)}:
            yield f"{role} has digests of {len(samples.sha256)} prompts that are not those of the suite whose images have digests"
        if any(len(digests) != images for digests in samples.sha256.values()):
            yield f"{role} has prompts with more or fewer than {images} digests"
        if not all(re.fullmatch("[0-9a-f]{16}", digest) for digests in samples.sha256.values() for digest in digests):
            yield f"{role} has a digest that is not 16 hex digits"
        seen: dict[tuple[str, ...], str] = {}
        for prompt, digests in samples.sha256.items():
            if (first := seen.setdefault(tuple(digests), prompt)) != prompt:
                case.notes.append(f"prompts {first} and {prompt} of the role {role} have the same images")
    digest_of: dict[SampleKey, str] = {}
    for role, prompt, key, digest in _keys(case):
        if digest_of.setdefault(key, digest) != digest:
            yield f"prompt {prompt} of the role {role} has another digest than the same prompt and seed in another role"


def _keys(case: Case) -> Iterator[tuple[Role, str, SampleKey, str]]:
    """Role, prompt id, key and digest of every image that has one. Of a role with too few or too many digests, nothing."""
    for role in case.run.roles:
        samples, prompts = case.record.samples.get(role), case.suite.prompts(role)
        each = case.suite.settings.prompts[role].images_per_prompt
        if samples is None or any(len(digests) != each * case.record.seeds for digests in samples.sha256.values()):
            continue
        sets = [case.run.samples(role, generation).keys for generation in range(case.record.seeds)] if samples.sha256 else []
        for row, prompt in enumerate(prompts):
            keys = [key for keys in sets for key in keys[row * each : (row + 1) * each]]
            for key, digest in zip(keys, samples.sha256.get(prompt.id, ()), strict=False):
                yield role, prompt.id, key, digest


def small_picture(encoded: str) -> np.ndarray:
    """A record's picture, base64 of a PNG, as uint8 `[H, W, 3]`. Raises `ValueError` for anything else and for one that is larger than allowed."""
    png = base64.b64decode(encoded, validate=True)
    image = Image.open(io.BytesIO(png))  # reads the head only: a small file can hold a picture that fills all memory
    if image.format != "PNG" or max(image.size) > SIDE:
        raise ValueError(f"{image.format} of {image.size[0]}x{image.size[1]} pixels, and a PNG of at most {SIDE} a side is allowed")
    return decode_png(png)


def _thumbnails(case: Case) -> Iterator[str]:
    if "memorized" not in case.run.roles:
        return
    prompts, samples = case.suite.prompts("memorized"), case.run.samples("memorized")
    wanted = {prompts[row].id: row for row in evenly(len(prompts), THUMBNAILS)}
    recorded, side = case.record.samples.get("memorized"), case.suite.settings.model.side
    if sorted(thumbnail.prompt_id for thumbnail in case.record.thumbnails) != sorted(wanted):
        yield f"{len(case.record.thumbnails)} thumbnails, and not one of each of {len(wanted)} memorized prompts"
    for thumbnail in case.record.thumbnails:
        row = wanted.get(thumbnail.prompt_id)
        if row is None:
            continue
        name, key = f"thumbnail of {thumbnail.prompt_id}", samples.keys[row * samples.images]
        if (thumbnail.prompt, thumbnail.group, thumbnail.seed) != (prompts[row].text, prompts[row].group, key.seed):
            yield f"{name} has another text, group or seed than the suite's prompt"
        try:
            picture = small_picture(thumbnail.png)
        except Exception as error:
            yield f"{name} is no picture: {one_line(error)[:120]}"
            continue
        digests = recorded.sha256.get(thumbnail.prompt_id, []) if recorded else []
        if picture.shape[:2] != (min(side, SIDE),) * 2:
            yield f"{name} has {picture.shape[1]}x{picture.shape[0]} pixels, and images have {side}x{side}"
        elif side <= SIDE and digests and pixel_digest(picture) != digests[0]:
            yield f"{name} is not the image of the recorded digest"
        yield from _reference_problems(case, name, thumbnail.reference, prompts[row])


def _reference_problems(case: Case, name: str, encoded: str | None, prompt: Prompt) -> Iterator[str]:
    paths = prompt.references if case.suite.settings.share_references else ()
    if encoded is None and not paths:
        return
    if encoded is None or not paths:
        yield f"{name} has {'no' if encoded is None else 'a'} training picture, and by the suite it has {'one' if paths else 'none'}"
        return
    own = read_picture(paths[0])
    try:
        theirs = small_picture(encoded)
    except Exception as error:
        yield f"{name} has a training picture that is none: {one_line(error)[:120]}"
        return
    shrunk = max(own.shape[:2]) > SIDE  # which releases of Pillow do in their own ways
    expected = small_picture(small_png(own))
    if theirs.shape != expected.shape or not (shrunk or np.array_equal(theirs, expected)):
        yield f"{name} has another training picture than the suite"


def _exhibits(case: Case) -> Iterator[str]:
    texts = {(prompt.id, prompt.text) for role in case.suite.settings.prompts for prompt in case.suite.prompts(role)}
    for exhibit in case.record.exhibits:
        if exhibit.attack not in case.run.attacks or (exhibit.prompt_id, exhibit.prompt) not in texts:
            yield f"one of '{exhibit.attack[:NAME]}' for prompt '{exhibit.prompt_id[:NAME]}' is of no attack or prompt of the suite"
        if exhibit.reference is not None and not case.suite.settings.share_references:
            yield f"that of prompt {exhibit.prompt_id[:NAME]} shows a training picture, which the suite may not share"
        try:
            for encoded in (*exhibit.pictures, *([exhibit.reference] if exhibit.reference else [])):
                small_picture(encoded)
        except Exception as error:
            yield f"that of prompt {exhibit.prompt_id[:NAME]} has a picture that is none: {one_line(error)[:120]}"
    attacks = [exhibit.attack for exhibit in case.record.exhibits]
    if any(attacks.count(attack) > EXHIBITS for attack in set(attacks)):
        yield f"more than {EXHIBITS} of one attack"


def _pages(case: Case) -> Iterator[str]:
    """Free fields can hold what no page expects; the pages of everybody would break over it."""
    reporting.page(case.record).encode()
    with tempfile.TemporaryDirectory() as folder:
        case.record.model_copy().save(Path(folder, "records"))
        leaderboard.make_pages(Path(folder, "records"))
    yield from ()


def _store(case: Case) -> Iterator[str]:
    assert case.store is not None
    wanted = list(_keys(case))
    stores = sorted(_stores_of(case, case.store), key=lambda found: len(found.missing(key for _, _, key, _ in wanted)))
    if not stores:
        yield f"{case.store} has no images of {case.record.method} with these parameters, made as the suite says"
        return
    missing = set(stores[0].missing(key for _, _, key, _ in wanted))
    if missing:
        yield f"{len(missing)} of {len(wanted)} images are not there"
    there = [item for item in wanted if item[2] not in missing]
    side, wrong = case.suite.settings.model.side, []
    for start in range(0, len(there), 256):
        part = there[start : start + 256]
        for (role, prompt, _, digest), png in zip(part, stores[0].png([key for _, _, key, _ in part]), strict=True):
            image = Image.open(io.BytesIO(png))
            if image.size != (side, side) or pixel_digest(decode_png(png)) != digest:
                wrong.append(f"{prompt} ({role})")
    if wrong:
        yield f"{len(wrong)} of {len(there)} images differ from their digests; the first is one of prompt {wrong[0]}"
    else:
        case.notes.append(f"{len(there)} images were compared with their digests, and all agree")


def _stores_of(case: Case, root: Path) -> Iterator[SampleStore]:
    """The folders whose key says that they are of this method and made as the suite says; their name follows from the key."""
    record = case.record
    own = {
        "method": record.method, "version": record.method_version, "parameters": record.parameters,
        "source": record.sources.get(f"method {record.method}"), "generation": case.suite.generation,
    }  # fmt: skip
    for folder in sorted((root / record.suite).glob(f"{record.method}-*")):
        try:
            identity = json.loads((folder / "key.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(identity, dict) and all(identity.get(key) == value for key, value in own.items()):
            found = SampleStore(root, record.suite, record.method, identity)
            if found.folder == folder:
                yield found


Check = Callable[[Case], Iterator[str]]  # gives a line for everything that is wrong
CHECKS: tuple[tuple[str, Check], ...] = (
    ("metrics and attacks are the suite's", _judges),
    ("numbers are within their ranges", _ranges),
    ("values, groups and prompts follow from the values by prompt", _means),
    ("intervals follow from the values by prompt", _intervals),
    ("images are as many as the suite asks for", _counts),
    ("digests of images are complete", _samples),
    ("thumbnails are the suite's prompts and the images of the digests", _thumbnails),
    ("exhibits are the suite's prompts", _exhibits),
    ("pages can be made from it", _pages),
    ("images in the store have the record's digests", _store),
)
