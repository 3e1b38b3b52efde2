"""A stranger's record: what can be checked of it without running it again, and the place where the
board finds it.

Nothing in a record is believed that follows from something else: the run's id from method and
suite, means from the prompts' values, intervals from means, seeds and prompts from the suite. What
does not follow (the prompts' values themselves) is for `bench verify` or a sample store.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from bench.base.errors import UserError, one_line, visible
from bench.base.files import write_atomically
from bench.base.parameters import configure
from bench.contracts.method import Method
from bench.leaderboard import leaderboard
from bench.leaderboard import report as reporting
from bench.records.parts import REFERENCE, protocol
from bench.records.record import RunRecord, load_record
from bench.registry import registry
from bench.running.run import Run
from bench.store.folders import Root
from bench.submission import pictures as submitted_images
from bench.submission import scores as submitted_scores
from bench.submission.case import NAME, Case, Check, short
from bench.suite.load import load_suite
from bench.suite.suite import Suite

BYTES = 64 * 2**20  # of a record; one with all its pictures has some MiB
STRANGERS = (
    (
        "what a method that is not known here says of itself: changed, where, needs, paper,"
        " holds_against"
    ),
)
SHOWN = 5  # failures of one check that are listed; further ones are counted


@dataclass(frozen=True)
class Finding:
    """One thing that was checked: whether it holds, or something that a reader should know."""

    verdict: Literal["passed", "failed", "note"]
    text: str


@dataclass(frozen=True)
class Submission:
    """Where the record is now, None when something failed and nothing was written, and everything
    that was checked.
    """

    path: Path | None
    findings: tuple[Finding, ...]
    already_there: bool = False

    @property
    def failures(self) -> tuple[str, ...]:
        return tuple(finding.text for finding in self.findings if finding.verdict == "failed")


def submit(
    record: Path, out: Path, store: Root | None, committed: Path, suite: Suite | None = None
) -> Submission:
    """Check a record and write it to `<out>/<suite>/<method>/<run>.json`; nothing is written when
    one check fails.

    `store`: the sample store of the run, where it was sent too. `committed`: our own records.
     `suite`: the suite where it is none that has a
    name here. Raises `UserError` for a file that is no record.
    """
    content, loaded = _read(record)
    findings = list(_of_itself(content, loaded))
    if suite is None:
        try:
            suite = known_suite(loaded.suite)
        except UserError as error:
            findings.append(Finding("failed", one_line(error)))
    if suite is not None:
        other = other_protocol(loaded, suite)
        findings.append(
            Finding(
                "failed",
                f"the protocol is another: {'; '.join(other)}; it would stand apart from every row"
                " of the table",
            )
            if other
            else Finding(
                "passed",
                f"suite {suite.name} version {suite.settings.version}, fingerprint"
                f" {suite.fingerprint}",
            )
        )
    if suite is None or any(finding.verdict == "failed" for finding in findings):
        return _refused(
            [
                *findings,
                Finding("note", "scores, images and method were not checked: first the above"),
            ]
        )
    # a stranger's images must not be looked up among ours
    with tempfile.TemporaryDirectory() as empty:
        run, of_method = _claimed_run(loaded, suite, Path(empty))
        findings += of_method
        case = Case(loaded, suite, run, _reference(loaded, committed), store)
        for title, check in CHECKS:
            if check is submitted_images.store and store is None:
                case.notes.append("the images themselves were not seen: no sample store was given")
                continue
            findings += asked(case, title, check)
    believed = [
        *submitted_scores.unchecked(loaded),
        *(STRANGERS if isinstance(run.method, _Stranger) else ()),
    ]
    case.notes.append(
        "believed, not checked: values by prompt (`bench verify` measures some again),"
        f" {', '.join(believed)}"
    )
    findings += [Finding("note", note) for note in case.notes]
    if any(finding.verdict == "failed" for finding in findings):
        return _refused(findings)
    path = loaded.path(out)
    if not path.resolve().is_relative_to(out.resolve()):
        return _refused([*findings, Finding("failed", f"its place {path} lies outside {out}")])
    for whose, known in (("our own", loaded.path(committed)), ("the submitted", path)):
        if not known.exists():
            continue
        # the same numbers, however they are written
        if (
            load_record(known).model_copy(update={"content_sha256": loaded.content_sha256})
            == loaded
        ):
            return Submission(
                known,
                (
                    *findings,
                    Finding(
                        "note",
                        f"{known} is the same record, among {whose} records already; nothing was"
                        " written",
                    ),
                ),
                already_there=True,
            )
        return _refused(
            [
                *findings,
                Finding(
                    "failed",
                    f"run {loaded.run} is among {whose} records already, with other content:"
                    f" {known}",
                ),
            ]
        )
    write_atomically(
        path, (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
    )
    return Submission(path, tuple(findings))


def text(submission: Submission) -> str:
    """Everything that was checked, one line each, and what came of it."""
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


def _refused(findings: Sequence[Finding]) -> Submission:
    return Submission(None, tuple(findings))


def _read(path: Path) -> tuple[dict[str, Any], RunRecord]:
    """The JSON object as it is and as a record.

    Whatever a hostile file provokes becomes one line.
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
        content = json.loads(path.read_text(encoding="utf-8"))
        # half characters and infinities have no place in a page
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    except UserError:
        raise
    # nesting beyond any stack, numbers beyond any range: there are many ways
    except Exception as error:
        raise UserError(
            f"record {path} cannot be used: {type(error).__name__}: {one_line(error)[:160]}"
        ) from error
    return content, record


def _of_itself(content: dict[str, Any], record: RunRecord) -> Iterator[Finding]:
    """What needs no suite. A wrong digest was refused while loading."""
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
    """The suite of a record, by name only: what a record says must not open a file.

    Raises `UserError` for one that has no name here.
    """
    if name.endswith(".toml") or not registry.knows("suite", name):
        raise UserError(
            f"suite '{name[:NAME]}' is not known here; known: {', '.join(registry.suites())}"
        )
    return load_suite(name, limit)


def other_protocol(record: RunRecord, suite: Suite) -> list[str]:
    """Where the record's protocol differs from the suite as it is here."""
    here = {
        "suite": suite.name,
        "suite_version": suite.settings.version,
        "suite_fingerprint": suite.fingerprint,
        "group_name": suite.settings.group_name,
    }
    return [
        f"{name} is {getattr(record, name)} and {value} here"
        for name, value in here.items()
        if getattr(record, name) != value
    ]


def _claimed_run(record: RunRecord, suite: Suite, store: Path) -> tuple[Run, list[Finding]]:
    """The run that the record says it is, and what is wrong with that; for a method that is not
    known here, one that only has its name.
    """
    device = torch.device("cpu")
    run = Run.resolve(suite, "none", {}, store, store, device, seeds=record.seeds)
    source = record.sources.get(f"method {record.method}")
    problems: list[str] = []
    theirs = {
        name: value for name, value in record.sources.items() if name != f"method {record.method}"
    }
    if theirs != run.sources:
        problems.append(
            f"sources of metrics and attacks are {theirs or 'none'} and {run.sources or 'none'}"
            " here"
        )
    if len(record.method) > NAME:
        problems.append(f"the method's name has {len(record.method)} characters; at most {NAME}")
    entry = (
        registry.find("method", record.method)
        if not record.method.endswith(".py") and registry.knows("method", record.method)
        else None
    )
    if entry and entry.source != source and not entry.plugin:
        problems.append(
            f"method '{record.method}' is a built-in, and this was made by other code of that name"
            f" ({source}): rename it"
        )
        entry = None
    elif entry is None and not source:
        problems.append(
            f"method '{record.method}' is not known here, and the record has no digest of its code"
        )
    notes = []
    if entry and entry.source == source:
        method: Method | None = None
        try:
            method = configure("method", entry.name, entry.load(), record.parameters)
            # what it needs is there
            Run.resolve(
                suite, entry.name, record.parameters, store, store, device, seeds=record.seeds
            )
        except UserError as error:
            problems.append(one_line(error))
        problems += differences(record, method) if method else []
    else:
        method = _stand_in(record)
        notes = (
            [
                Finding(
                    "note",
                    f"method {record.method} is not known here; digest of its code: {source}",
                )
            ]
            if source
            else []
        )
    if method is not None:
        sources = run.sources | ({f"method {record.method}": source} if source else {})
        run = Run(
            suite,
            record.method,
            method,
            sources,
            run.metrics,
            run.attacks,
            store,
            store,
            device,
            seeds=record.seeds,
        )
        if run.id != record.run:
            problems.append(
                f"run is {record.run}, and {run.id} follows from suite, method, parameters, seeds"
                " and metrics"
            )
    title = f"method {record.method}, its parameters and the run's id agree"
    return run, (
        [*(Finding("failed", problem) for problem in problems), *notes]
        if problems
        else [Finding("passed", title), *notes]
    )


def differences(record: RunRecord, method: Method) -> list[str]:
    """Where the record says otherwise than the method, as it is here with the record's parameters,
    of the method itself.
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
    # Only `attach` can change weights; whether it does is measured.
    possible = (
        [[]]
        if record.method == REFERENCE
        else [["api"]]
        if type(method).attach is Method.attach
        else [["api"], ["api", "weights"]]
    )
    if record.holds_against not in possible:
        found.append(
            f"holds_against is {short(record.holds_against)} and"
            f" {' or '.join(map(short, possible))} by the method's code"
        )
    return found


class _Stranger(Method):
    """A method that is not known here."""


def _stand_in(record: RunRecord) -> Method:
    """A method that does nothing and has the name, version and parameters of one that is not known
    here.
    """

    class StandIn(_Stranger):
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


def asked(case: Case, title: str, check: Check) -> list[Finding]:
    """What one check found: its failures, at most some of them, or that it passed."""
    problems: list[str] = []
    try:
        problems += check(case)
    # a record can be wrong in ways that nobody thought of; it must not pass then, nor break the
    # command
    except Exception as error:
        problems.append(f"cannot be checked: {type(error).__name__}: {one_line(error)[:160]}")
    more = [f"{len(problems) - SHOWN} more of this kind"] if len(problems) > SHOWN else []
    return [Finding("failed", f"{title}: {problem}") for problem in [*problems[:SHOWN], *more]] or [
        Finding("passed", title)
    ]


def _pages(case: Case) -> Iterator[str]:
    """Free fields can hold what no page expects; the pages of everybody would break over it."""
    reporting.page(case.record).encode()
    with tempfile.TemporaryDirectory() as folder:
        case.record.model_copy().save(Path(folder, "records"))
        leaderboard.make_pages(Path(folder, "records"))
    yield from ()


CONSISTENCY: tuple[tuple[str, Check], ...] = (  # what needs neither images nor pages
    ("metrics and attacks are the suite's", submitted_scores.judges),
    ("numbers are within their ranges", submitted_scores.ranges),
    ("values, groups and prompts follow from the values by prompt", submitted_scores.means),
    ("intervals follow from the values by prompt", submitted_scores.intervals),
    ("images are as many as the suite asks for", submitted_scores.counts),
    ("costs are possible", submitted_scores.costs),
    ("digests of images are complete", submitted_images.samples),
    (
        "thumbnails are the suite's prompts and the images of the digests",
        submitted_images.thumbnails,
    ),
    ("exhibits are the suite's prompts", submitted_images.exhibits),
)
CHECKS: tuple[tuple[str, Check], ...] = (
    *CONSISTENCY,
    ("pages can be made from it", _pages),
    ("images in the store have the record's digests", submitted_images.store),
)
