"""`bench submit`: check what can be checked of a stranger's record without running it again, and
put it where the board finds it.

Whatever follows from something else is made again and compared, not believed: the run's id from
method and suite, means from the prompts' values, intervals from means, seeds and prompts from the
suite. What does not follow, the prompts' values themselves, is for `bench verify` or a sample
store.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from bench.base.errors import UserError, one_line, visible
from bench.base.files import read_regular_file, write_atomically
from bench.base.parameters import configure
from bench.contracts.method import Method
from bench.leaderboard import leaderboard
from bench.leaderboard import report as reporting
from bench.records.parts import REFERENCE, protocol
from bench.records.record import RunRecord, load_record
from bench.registry import registry
from bench.registry.registry import Entry
from bench.running.experiment import Experiment
from bench.store.folders import Root
from bench.submission import check_pictures, check_scores
from bench.submission.claim import NAME, Check, Claim, short
from bench.suite.load import load_suite
from bench.suite.suite import Suite

BYTES = 64 * 2**20  # of a record; one with all its pictures has some MiB
# What is believed of a method that is not known here.
STRANGERS = (
    "what a method that is not known here says of itself: changed, where, needs, paper,"
    " holds_against",
)
SHOWN = 5  # failures of one check that are listed; further ones are counted


@dataclass(frozen=True)
class Finding:
    """One thing that was checked, whether it holds; or a note that a reader should know."""

    verdict: Literal["passed", "failed", "note"]
    text: str


@dataclass(frozen=True)
class Submission:
    """What came of a submission.

    `path` is where the record is now; it is None when a check failed, and then nothing was written.
    `already_there` says that it was there before.
    """

    path: Path | None
    findings: tuple[Finding, ...]
    already_there: bool = False

    @property
    def failures(self) -> tuple[str, ...]:
        """The texts of the findings that failed."""
        return tuple(finding.text for finding in self.findings if finding.verdict == "failed")


def submit(
    record: Path, out: Path, store: Root | None, committed: Path, suite: Suite | None = None
) -> Submission:
    """Check a record and write it to `<out>/<suite>/<method>/<run>.json`.

    Nothing is written when one check fails. `store` is the sample store of the run, where that was
    sent too. `committed` is the folder of our own records. `suite` is the record's suite, where it
    is none that has a name here. Raises `UserError` for a file that is no record.
    """
    content, loaded = _read(record)
    findings = list(_of_itself(content, loaded))
    if suite is None:
        try:
            suite = known_suite(loaded.suite)
        except UserError as error:
            findings.append(Finding("failed", one_line(error)))
    if suite is not None:
        findings.append(_of_protocol(loaded, suite))
    if suite is None or _any_failed(findings):
        unchecked = "scores, images and method were not checked: first the above"
        return Submission(None, (*findings, Finding("note", unchecked)))
    findings += _of_everything(loaded, suite, committed, store)
    if _any_failed(findings):
        return Submission(None, tuple(findings))
    return _filed(content, loaded, out, committed, findings)


def _any_failed(findings: Sequence[Finding]) -> bool:
    return any(finding.verdict == "failed" for finding in findings)


def _of_protocol(record: RunRecord, suite: Suite) -> Finding:
    """Whether the record is of the suite as it is here."""
    if differing := other_protocol(record, suite):
        return Finding(
            "failed",
            f"the protocol is another: {'; '.join(differing)}; it would stand apart from every row"
            " of the table",
        )
    return Finding(
        "passed",
        f"suite {suite.name} version {suite.settings.version}, fingerprint {suite.fingerprint}",
    )


def _of_everything(
    record: RunRecord, suite: Suite, committed: Path, store: Root | None
) -> list[Finding]:
    """What is checked of a record whose protocol is ours: method, numbers, images and pages."""
    experiment, findings = _claimed_experiment(record, suite)
    claim = Claim(record, suite, experiment, _reference(record, committed), store)
    for title, check in CHECKS:
        if check is check_pictures.store and store is None:
            claim.notes.append("the images themselves were not seen: no sample store was given")
            continue
        findings += findings_of(claim, title, check)
    believed = [
        *check_scores.unchecked(record),
        *(STRANGERS if isinstance(experiment.method, _Stranger) else ()),
    ]
    claim.notes.append(
        "believed, not checked: values by prompt (`bench verify` measures some again),"
        f" {', '.join(believed)}"
    )
    return [*findings, *(Finding("note", note) for note in claim.notes)]


def _filed(
    content: dict[str, Any],
    record: RunRecord,
    out: Path,
    committed: Path,
    findings: Sequence[Finding],
) -> Submission:
    """The record that passed, written to its place; refused where another one has that place."""

    def refused(reason: str) -> Submission:
        return Submission(None, (*findings, Finding("failed", reason)))

    path = record.path(out)
    if not path.resolve().is_relative_to(out.resolve()):
        return refused(f"its place {path} lies outside {out}")
    for whose, known in (("our own", record.path(committed)), ("the submitted", path)):
        if not known.exists():
            continue
        # The digest may differ where the numbers are the same and only written otherwise.
        twin = load_record(known).model_copy(update={"content_sha256": record.content_sha256})
        if twin != record:
            return refused(
                f"run {record.run} is among {whose} records already, with other content: {known}"
            )
        note = f"{known} is the same record, among {whose} records already; nothing was written"
        return Submission(known, (*findings, Finding("note", note)), already_there=True)
    write_atomically(
        path, (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
    )
    return Submission(path, tuple(findings))


def text(submission: Submission) -> str:
    """Everything that was checked, one line each, and what came of it; for people."""
    signs = {"passed": "ok  ", "failed": "FAIL", "note": "note"}
    lines = [
        f"{signs[finding.verdict]}  {visible(finding.text)}" for finding in submission.findings
    ]
    failed = len(submission.failures)
    written = "there already" if submission.already_there else "submitted"
    end = (
        f"{written}: {submission.path}"
        if submission.path
        else f"not submitted: {failed} failure{'s' if failed > 1 else ''}; nothing was written"
    )
    return "\n".join([*lines, end])


def _read(path: Path) -> tuple[dict[str, Any], RunRecord]:
    """The JSON object of a file as it is, and as a record.

    Raises `UserError` for a file that cannot be read, is too large or is no record; whatever a
    hostile file provokes becomes one line.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"record {path} cannot be read: {one_line(error)}") from error
    if size > BYTES:
        raise UserError(
            f"record {path} has {size // 2**20} MiB; records have at most {BYTES // 2**20}"
        )
    try:
        record = load_record(path)
        content = json.loads(read_regular_file(path, BYTES))
        # Half characters and infinities have no place in a page.
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except UserError:
        raise
    # Nesting beyond any stack, numbers beyond any range: there are many ways.
    except Exception as error:
        raise UserError(
            f"record {path} cannot be used: {type(error).__name__}: {one_line(error)[:160]}"
        ) from error
    return content, record


def _of_itself(content: dict[str, Any], record: RunRecord) -> Iterator[Finding]:
    """What is checked without a suite; a wrong digest was refused while loading."""
    yield (
        Finding("passed", "content_sha256 is right")
        if content.get("content_sha256")
        else Finding("failed", "content_sha256 is missing: measure it again")
    )
    yield (
        Finding("passed", "the run is complete")
        if record.status == "complete"
        else Finding("failed", f"status is {record.status}, not complete")
    )
    if record.errors:
        yield Finding(
            "failed", f"a complete run has no errors, and this says: {record.errors[0][:120]}"
        )
    if record.track == "audit":
        yield Finding("failed", "it is of an audit of somebody's own model, which no board takes")
    if record.limit is not None:
        yield Finding(
            "failed",
            f"limited to {record.limit} prompts of every role; only whole runs can be submitted",
        )
    revision = record.environment
    if revision.get("dirty") or not revision.get("commit"):
        yield Finding(
            "note",
            (
                "made with code that is no commit of this repository, or was changed after it"
                if revision.get("dirty")
                else "commit unknown"
            ),
        )


def known_suite(name: str, limit: int | None = None) -> Suite:
    """The suite that a record names, only by a name that is known here: what a record says must not
    open a file.

    Raises `UserError` for any other.
    """
    if name.endswith(".toml") or not registry.knows("suite", name):
        raise UserError(
            f"suite '{name[:NAME]}' is not known here; known: {', '.join(registry.suites())}"
        )
    return load_suite(name, limit)


def other_protocol(record: RunRecord, suite: Suite) -> list[str]:
    """Where the record's protocol differs from the suite as it is here, one text for each."""
    here = {
        "suite": suite.name,
        "suite_version": suite.settings.version,
        "suite_fingerprint": suite.fingerprint,
        "track": suite.settings.track,
        "group_name": suite.settings.group_name,
    }
    return [
        f"{name} is {getattr(record, name)} and {value} here"
        for name, value in here.items()
        if getattr(record, name) != value
    ]


def _claimed_experiment(record: RunRecord, suite: Suite) -> tuple[Experiment, list[Finding]]:
    """The experiment that the record says it is of, and what is right or wrong with that.

    For a method that is not known here it has a stand-in, which only has the method's name.
    """
    experiment = Experiment.resolve(suite, "none", {}, seeds=record.seeds)
    source = record.sources.get(f"method {record.method}")
    entry, problems = _known_method(record, experiment, source)
    notes = []
    method: Method | None = None
    if entry is None:
        method = _stand_in(record)
        if source:
            note = f"method {record.method} is not known here; digest of its code: {source}"
            notes.append(Finding("note", note))
    else:
        try:
            method = configure("method", entry.name, entry.load(), record.parameters)
            # Resolved once with the method itself, to see that the suite has what it needs.
            Experiment.resolve(suite, entry, record.parameters, seeds=record.seeds)
        except UserError as error:
            problems.append(one_line(error))
        problems += differences(record, method) if method else []
    if method is not None:
        of_method = {f"method {record.method}": source} if source else {}
        experiment = replace(
            experiment,
            method_name=record.method,
            method=method,
            sources={**experiment.sources, **of_method},
        )
        if experiment.id != record.run:
            problems.append(
                f"run is {record.run}, and {experiment.id} follows from suite, method, parameters,"
                " seeds and metrics"
            )
    if problems:
        return experiment, [*(Finding("failed", problem) for problem in problems), *notes]
    title = f"method {record.method}, its parameters and the run's id agree"
    return experiment, [Finding("passed", title), *notes]


def _known_method(
    record: RunRecord, experiment: Experiment, source: str | None
) -> tuple[Entry | None, list[str]]:
    """The record's method, where it is known here with the same code, and what is wrong with the
    record's sources. `source` is the record's digest of the method's code.
    """
    problems: list[str] = []
    judges_sources = {
        name: value for name, value in record.sources.items() if name != f"method {record.method}"
    }
    if judges_sources != experiment.sources:
        problems.append(
            f"sources of metrics and attacks are {judges_sources or 'none'} and"
            f" {experiment.sources or 'none'} here"
        )
    if len(record.method) > NAME:
        problems.append(f"the method's name has {len(record.method)} characters; at most {NAME}")
    if record.method.endswith(".py") or not registry.knows("method", record.method):
        entry = None
    else:
        entry = registry.find("method", record.method)
    if entry and entry.source != source and not entry.plugin:
        problems.append(
            f"method '{record.method}' is a built-in, and this was made by other code of that name"
            f" ({source}): rename it"
        )
    elif entry is None and not source:
        problems.append(
            f"method '{record.method}' is not known here, and the record has no digest of its code"
        )
    return entry if entry and entry.source == source else None, problems


def differences(record: RunRecord, method: Method) -> list[str]:
    """Where the record and the method, as it is here with the record's parameters, say different
    things of the method; one text for each.
    """
    here = {
        "method_version": method.version,
        "parameters": method.model_dump(mode="json"),
        "where": method.where,
        "needs": list(method.needed()),
        "changed": method.model_dump(mode="json", exclude_defaults=True),
        "paper": method.paper,
    }
    found = [
        f"{name} is {short(getattr(record, name))} and {short(value)} here"
        for name, value in here.items()
        if getattr(record, name) != value
    ]
    possible = [["api"], ["api", "weights"]]
    if record.method == REFERENCE:
        possible = [[]]
    elif type(method).attach is Method.attach:  # only `attach` can change weights
        possible = [["api"]]
    if record.holds_against not in possible:
        found.append(
            f"holds_against is {short(record.holds_against)} and"
            f" {' or '.join(map(short, possible))} by the method's code"
        )
    return found


class _Stranger(Method):
    """A method that is not known here."""


def _stand_in(record: RunRecord) -> Method:
    """A method that does nothing, with the version and parameters of one that is not known here."""

    class StandIn(_Stranger):
        version = record.method_version

        def model_dump(self, **_: Any) -> dict[str, Any]:
            return record.parameters

    return StandIn()


def _reference(record: RunRecord, committed: Path) -> RunRecord | None:
    """Our own record of the method `none` under the same protocol, where there is one."""
    for path in sorted(committed.glob(f"{record.suite}/none/*.json")):
        own = load_record(path)
        if own.status == "complete" and own.limit is None and protocol(own) == protocol(record):
            return own
    return None


def findings_of(claim: Claim, title: str, check: Check) -> list[Finding]:
    """What one check found: its failures, at most `SHOWN` of them, or that it passed."""
    problems: list[str] = []
    try:
        problems += check(claim)
    # A record can be wrong in ways that nobody thought of. Then it must not pass, nor break the
    # command.
    except Exception as error:
        problems.append(f"cannot be checked: {type(error).__name__}: {one_line(error)[:160]}")
    more = [f"{len(problems) - SHOWN} more of this kind"] if len(problems) > SHOWN else []
    return [Finding("failed", f"{title}: {problem}") for problem in [*problems[:SHOWN], *more]] or [
        Finding("passed", title)
    ]


def _pages(claim: Claim) -> Iterator[str]:
    """Pages can be made: free fields can hold what no page expects, and would then break the pages
    of everybody.
    """
    reporting.page(claim.record).encode()
    with tempfile.TemporaryDirectory() as folder:
        claim.record.model_copy().save(Path(folder, "records"))
        leaderboard.make_pages(Path(folder, "records"))
    yield from ()


CONSISTENCY: tuple[tuple[str, Check], ...] = (  # what needs neither images nor pages
    ("metrics and attacks are the suite's", check_scores.judges),
    ("numbers are within their ranges", check_scores.ranges),
    ("values, groups and prompts follow from the values by prompt", check_scores.means),
    ("intervals follow from the values by prompt", check_scores.intervals),
    ("images are as many as the suite asks for", check_scores.counts),
    ("costs are possible", check_scores.costs),
    ("digests of images are complete", check_pictures.samples),
    ("thumbnails are the suite's prompts and the images of the digests", check_pictures.thumbnails),
    ("exhibits are the suite's prompts", check_pictures.exhibits),
)
CHECKS: tuple[tuple[str, Check], ...] = (
    *CONSISTENCY,
    ("pages can be made from it", _pages),
    ("images in the store have the record's digests", check_pictures.store),
)
