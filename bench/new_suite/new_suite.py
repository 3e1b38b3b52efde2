"""`bench suite new`: an auditor's own suite, from a diffusers folder, a CSV of suspicious prompts
and their training pictures.

Everything that can be read without loading weights is checked first, and all problems are listed
together. Then CSVs with the split into fit and held-out prompts and a commented TOML are written;
the TOML is loaded and compared with what was meant, and taken back when it differs.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
from bench.new_suite.prompts import PromptChecks, Row
from bench.new_suite.toml_file import suite_toml
from bench.suite.load import load_suite
from bench.suite.reach import allow
from bench.suite.schema import SuiteSettings


class CannotCreate(UserError):
    """Everything that stands in the way of a suite: numbered, on one line, and one by one in
    `problems`.
    """

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
    """What was written: the suite file and the files beside it, how many prompts each role has, how
    many training pictures were expected (`n_expected`) and found (`n_found`), and notes.
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
    outside: tuple[Path, ...] = ()  # folders of training pictures that do not lie below the suite's

    @property
    def next(self) -> str:
        allowed = "".join(f"--allow {shlex.quote(str(folder))} " for folder in self.outside)
        return f"bench {allowed}run --method none --suite {shlex.quote(str(self.suite))} --dry-run"

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "suite": str(self.suite),
            "files": [str(path) for path in self.files],
            "outside": [str(folder) for folder in self.outside],
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
    model = ModelChecks(given, problems, notes)
    draft = SuiteDraft(given, problems, notes, absolute(given.out))
    facts = model.check()
    rows, clean, expected, found = _prompts(PromptChecks(given, problems, notes), given, report)
    metrics = draft.metrics(sum(row.role == "clean" for row in clean), bool(found))
    table = draft.table(facts, rows, clean, metrics)
    settings = draft.validated(table, metrics)
    draft.check_out(force)
    files = {draft.beside("prompts.csv"): draft.csv(rows)}
    files |= {draft.beside("clean.csv"): draft.csv(clean)} if clean else {}
    if problems or settings is None:
        raise CannotCreate(list(dict.fromkeys(problems)))
    files[draft.out], left_out = suite_toml(table, given, found, expected)
    outside = _outside(rows, given, draft.out.parent)
    allow(outside)  # they were named on the command line
    with _taken_back_on_failure([*files, draft.assembled]):
        if given.parts:
            model.assemble(draft.assembled)
        for path, content in files.items():
            write_atomically(path, content.encode())
        counts = _read_back(draft.out, settings, Counter(row.role for row in (*rows, *clean)))
    written = (*([draft.assembled] if given.parts else []), *files)
    return Created(
        draft.out,
        written,
        settings.name,
        facts,
        counts,
        expected,
        found,
        tuple(metrics),
        left_out,
        tuple(notes),
        outside,
    )


def _outside(rows: Sequence[Row], given: Given, folder: Path) -> tuple[Path, ...]:
    """The folders of training pictures that a suite in `folder` does not reach by itself: the one
    that was named, or where pictures lie elsewhere, their own.
    """
    named = [given.images.resolve()] if given.images else []
    found: dict[Path, None] = {}
    for path in (path.resolve() for row in rows for path in row.references):
        if not path.is_relative_to(folder.resolve()):
            whole = [parent for parent in named if path.is_relative_to(parent)]
            found[whole[0] if whole else path.parent] = None
    return tuple(found)


def _prompts(
    lists: PromptChecks, given: Given, report: Report
) -> tuple[list[Row], list[Row], int, int]:
    """The suspicious prompts with their training pictures and the clean ones, each with its role;
    and how many pictures were expected and found.
    """
    assert given.prompts is not None
    rows = lists.read_rows(given.prompts, "p")
    clean = lists.read_rows(given.clean, "c") if given.clean else []
    expected, found = lists.find_references(rows, report)
    rows = [row for row in rows if row.references or not expected]
    lists.compare(rows, clean)
    lists.split(rows, ("fit", "memorized"))
    lists.split(clean, ("calibration", "clean"))
    return rows, clean, expected, found


def _read_back(file: Path, settings: SuiteSettings, meant: Mapping[str, int]) -> dict[str, int]:
    """The prompts by role of the suite that was written, which must be as it was meant."""
    loaded = load_suite(str(file))
    counts = {str(role): len(loaded.prompts(role)) for role in loaded.settings.prompts}
    as_meant = all(counts[role] == meant.get(role, 0) for role in counts if role != "quality")
    if loaded.settings != settings or not as_meant:
        raise UserError(
            f"the suite written to {file} does not read back as it was meant; this is a defect of"
            " `bench suite new`"
        )
    return counts


@contextmanager
def _taken_back_on_failure(paths: Sequence[Path]) -> Iterator[None]:
    """When the block fails, files are restored to what they were before, and those that were not
    there are deleted.
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
