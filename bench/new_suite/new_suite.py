"""`bench suite new`: an auditor's own suite, from a diffusers folder, a CSV of suspicious prompts
and their training pictures.

All that can be read without loading weights is checked first, and everything wrong is said
together. Then CSVs with the split into fit and held-out prompts and a commented TOML are written;
the TOML is loaded and compared with what was meant, and taken back when it differs.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.base.errors import UserError, visible
from bench.base.files import write_atomically
from bench.base.progress import Report, silent
from bench.new_suite.draft import SuiteDraft
from bench.new_suite.given import Given, absolute
from bench.new_suite.model import ModelChecks
from bench.new_suite.prompts import PromptChecks
from bench.new_suite.toml_file import suite_toml
from bench.suite.load import load_suite


class CannotCreate(UserError):
    """All that stands in the way of a suite, numbered on one line and one by one in `problems`."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        listed = (
            "; ".join(f"({number}) {problem}" for number, problem in enumerate(problems, 1))
            if len(problems) > 1
            else problems[0]
        )
        super().__init__(f"no suite was written: {listed}")


@dataclass(frozen=True)
class Created:
    """What was written: the suite file and those beside it, prompts by role, references asked for
    and found, and what to know about it.
    """

    suite: Path
    files: tuple[Path, ...]
    name: str
    model: dict[str, Any]
    prompts: dict[str, int]
    n_expected: int
    n_found: int
    metrics: tuple[str, ...]
    left_out: tuple[str, ...]  # sections that stand in the file as comments
    notes: tuple[str, ...]

    @property
    def next(self) -> str:
        return f"bench run --method none --suite {shlex.quote(str(self.suite))} --dry-run"

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "suite": str(self.suite),
            "files": [str(path) for path in self.files],
            "next": self.next,
        }


def text(created: Created) -> str:
    """What was written, for a terminal, ending with the command that comes next."""
    model = created.model
    lines = [
        f"wrote: {', '.join(visible(str(path)) for path in created.files)}",
        (
            f"model: {model['side']}x{model['side']} pixels, predicts {model['prediction_type']},"
            f" {model['scheduler']}, {model['parameters']:,} parameters"
            f" ({', '.join(model['stored'])} on disk)"
        ),
        "prompts: " + ", ".join(f"{count} {role}" for role, count in created.prompts.items()),
        (
            f"references: {created.n_found} of {created.n_expected} found"
            if created.n_expected
            else "references: none asked for"
        ),
        f"metrics: {', '.join(created.metrics)}",
        *([f"as comments, to fill in: {', '.join(created.left_out)}"] if created.left_out else []),
        *(f"note: {visible(note)}" for note in created.notes),
        f"next: {created.next}",
    ]
    return "\n".join(lines)


def new_suite(given: Given, force: bool = False, report: Report = silent) -> Created:
    """Check, split, write, and load what was written.

    Files that are there already are replaced only with `force`.

    Raises `CannotCreate` with every problem that was found; then nothing has been written or
    changed.
    """
    if missing := given.unanswered():
        raise CannotCreate([f"missing: {', '.join(missing)}"])
    assert given.prompts is not None and given.out is not None
    problems: list[str] = []
    notes: list[str] = []
    model, lists, suite = (
        ModelChecks(given, problems, notes),
        PromptChecks(given, problems, notes),
        SuiteDraft(given, problems, notes, absolute(given.out)),
    )
    facts = model.check()
    rows, clean = (
        lists.read_rows(given.prompts, "p"),
        (lists.read_rows(given.clean, "c") if given.clean else []),
    )
    expected, found = lists.find_references(rows, report)
    rows = [row for row in rows if row.references or not expected]
    lists.compare(rows, clean)
    lists.split(rows, ("fit", "memorized"))
    lists.split(clean, ("calibration", "clean"))
    metrics = suite.metrics(sum(row.role == "clean" for row in clean), bool(found))
    table = suite.table(facts, rows, clean, metrics)
    settings = suite.validated(table, metrics)
    suite.check_out(force)
    files = {suite.beside("prompts.csv"): suite.csv(rows)} | (
        {suite.beside("clean.csv"): suite.csv(clean)} if clean else {}
    )
    if problems or settings is None:
        raise CannotCreate(list(dict.fromkeys(problems)))
    files[suite.out], left_out = suite_toml(table, given, found, expected)
    with _taken_back_on_failure([*files, suite.assembled]):
        if given.parts:
            model.assemble(suite.assembled)
        for path, content in files.items():
            write_atomically(path, content.encode())
        loaded = load_suite(str(suite.out))
        counts = {str(role): len(loaded.prompts(role)) for role in loaded.settings.prompts}
        meant = Counter(row.role for row in (*rows, *clean))
        if loaded.settings != settings or any(
            counts[role] != meant[role] for role in counts if role != "quality"
        ):
            raise UserError(
                f"the suite written to {suite.out} does not read back as it was meant; this is a"
                " defect of `bench suite new`"
            )
    written = (*([suite.assembled] if given.parts else []), *files)
    return Created(
        suite.out,
        written,
        settings.name,
        facts,
        counts,
        expected,
        found,
        tuple(metrics),
        left_out,
        tuple(notes),
    )


@contextmanager
def _taken_back_on_failure(paths: Sequence[Path]) -> Iterator[None]:
    """Should anything fail inside, files are as they were before; folders that were not there are
    gone.
    """
    before = {path: path.read_bytes() if path.is_file() else None for path in paths}
    existed = {path for path in paths if os.path.lexists(path)}
    try:
        yield
    except BaseException:
        for path, content in before.items():
            if content is not None:
                write_atomically(path, content)
            elif path not in existed:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        raise
