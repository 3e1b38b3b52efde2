"""From records to tables and pages: a pure function of the records, without clock or network, so
that a check is an exact diff.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from bench.base.errors import UserError, visible
from bench.base.files import is_there, write_atomically
from bench.base.work_folder import refuse_own_files
from bench.leaderboard import detectors_page, experiments_page, index, pictures_page
from bench.leaderboard.board import Board, Row, columns_of, make_boards
from bench.leaderboard.cells import LONGEST, cell, difference_cell, heading, number, spread
from bench.leaderboard.columns import SIZED
from bench.leaderboard.detectors import make_detector_boards
from bench.leaderboard.experiments import make_experiment_boards
from bench.leaderboard.latex import latex
from bench.leaderboard.markdown import markdown, short_columns, with_tables
from bench.leaderboard.page import html, picture_of
from bench.leaderboard.published import load_published
from bench.leaderboard.published import markdown as published_markdown
from bench.leaderboard.tables import as_csv, as_json
from bench.records.detection import load_detections
from bench.records.experiment import load_experiments
from bench.records.parts import REFERENCE, protocol
from bench.records.record import RunRecord, load_records, record_schema
from bench.records.sweep import load_sweeps

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

# Beside the folder of records:
PUBLISHED = "published.csv"  # figures from papers, which have a page of their own
SWEEPS = "sweeps"  # strength curves (`bench sweep`)
DETECTIONS = "detections"  # scores of detectors (`bench detect`)
EXPERIMENTS = "experiments"  # what was trained to find something out (`bench experiment`)
REPORTED = "self-reported"  # records that others measured (`bench submit`)
DOCUMENTS = "../docs"  # beside the committed pages, as the README is
RECORD_SCHEMA = "record.schema.json"
README = "../README.md"
SHEET = re.compile(r"(training|[0-9a-f]{8,64}(-finds)?)\.svg")  # what sheets of pictures are called
SUMS = "SHA256SUMS"  # beside the pictures: those that records do not make


def no_records(folder: Path) -> UserError:
    """What to say of a folder without records: the command that makes one, and where it goes."""
    return UserError(
        f"no records below {folder}; make one with `bench run --method none --records {folder}`,"
        " or name the folder that has some"
    )


def make_pages(records: Path, readme: Path | None = None) -> tuple[dict[str, bytes], list[str]]:
    """Every file of the leaderboards by name, and `../README.md` with its tables where one is
    given; and a line for each record that cannot be used.

    A damaged record or curve costs itself only, and the page of its suite says so. Raises
    `UserError` when no record is left.
    """
    loaded, damaged = load_records(records)
    reported, damaged_reports = load_records(records.parent / REPORTED)
    unusable = [*damaged, *damaged_reports]
    sweeps, damaged_sweeps = load_sweeps(records.parent / SWEEPS)
    detections, damaged_detections = load_detections(records.parent / DETECTIONS)
    experiments, damaged_experiments = load_experiments(records.parent / EXPERIMENTS)
    problems = [
        *(found.why for found in unusable),
        *(why for _, why in (*damaged_sweeps, *damaged_detections, *damaged_experiments)),
    ]
    # Their methods learn from the very pictures that they are judged on, of somebody's own model.
    audits = [record for record in loaded if record.track == "audit"]
    loaded = [record for record in loaded if record.track != "audit"]
    problems += [
        f"the record {record.run} of {visible(record.suite)} is of an audit, which no board takes"
        for record in audits
    ]
    if not loaded:
        if damaged:
            raise UserError(
                f"none of the {len(damaged)} records below {records} can be used; the first:"
                f" {problems[0]}"
            )
        raise no_records(records)
    boards = make_boards(
        loaded,
        reported,
        [*((found.suite, found.why) for found in unusable if found.suite), *damaged_sweeps],
        sweeps,
    )
    pages = (
        {README: with_tables(readme.read_text(encoding="utf-8"), boards).encode()} if readme else {}
    )
    figures = records.parent / PUBLISHED
    if figures.is_file():
        pages["published.md"] = published_markdown(load_published(figures)).encode()
    pages[RECORD_SCHEMA] = (json.dumps(record_schema(), indent=1, sort_keys=True) + "\n").encode()
    for board in boards:
        pages[f"{board.suite}.md"] = markdown(board).encode()
        pages[f"{board.suite}.csv"] = as_csv(board).encode()
        pages[f"{board.suite}.json"] = as_json(board).encode()
        pages[f"{board.suite}.html"] = html(board).encode()
        pages |= {name: text.encode() for name, text in pictures_page.files(board).items()}
        if picture := picture_of(board):
            pages[f"pictures/{board.suite}.svg"] = picture.encode()
        columns = short_columns(board)
        pages[f"{board.suite}.tex"] = latex(
            board, columns, [heading(board, column) for column in columns]
        ).encode()
    detector_boards = make_detector_boards(detections, damaged_detections)
    for found in detector_boards:
        pages[f"{found.page}.md"] = detectors_page.markdown(found).encode()
        pages[f"{found.page}.csv"] = detectors_page.as_csv(found).encode()
        pages[f"{found.page}.html"] = detectors_page.html(found).encode()
    experiment_boards = make_experiment_boards(experiments, damaged_experiments)
    for made in experiment_boards:
        pages[f"{made.page}.md"] = experiments_page.markdown(made).encode()
        pages[f"{made.page}.csv"] = experiments_page.as_csv(made).encode()
        pages[f"{made.page}.html"] = experiments_page.html(made).encode()
    pictured = [board.suite for board in boards if f"pictures/{board.suite}.svg" in pages]
    found_there = index.entries(boards, detector_boards, experiment_boards, pictured)
    pages["index.html"] = index.html(
        found_there,
        "published.md" in pages,
        index.lead(boards, detector_boards),
        DOCUMENTS if readme and (readme.parent / "docs/reading.md").is_file() else "",
    ).encode()
    return pages, problems


def write_pages(pages: dict[str, bytes], out: Path) -> list[Path]:
    """Write the files. Sheets of pictures that belong to no record any more are removed: they bear
    the names of runs, so that a new record would leave the old one's behind.

    Raises `UserError` for a folder that holds files of these names and, having no schema of
    records, is none of ours.
    """
    if not is_there(out / RECORD_SCHEMA):
        refuse_own_files(out, pages.keys() - {README}, "bench leaderboard")
    # The schema first, by which a folder whose pages are half written is known as ours.
    for name in sorted(pages, key=lambda name: name != RECORD_SCHEMA):
        write_atomically(out / name, pages[name])
    written = [out / name for name in pages]
    for suite in {path.parent for path in written if path.parent.parent == out / "pictures"}:
        for path in set(suite.glob("*.svg")) - set(written):
            if SHEET.fullmatch(path.name):
                path.unlink()
    return written


def check_pages(pages: dict[str, bytes], out: Path) -> list[str]:
    """One line for every file that is missing, belongs to no record, or differs from what the
    records give.
    """
    problems = []
    for name, content in pages.items():
        path = out / name
        if not path.exists():
            problems.append(f"{path} is missing: run `bench leaderboard`")
        elif path.read_bytes() != content:
            found = path.read_bytes().decode(errors="replace")
            where = _first_difference(found, content.decode())
            problems.append(f"{path} differs from its records: {where}")
    known = {Path(name).suffix for name in pages}
    there = [
        path for path in sorted(out.glob("*")) if path.suffix in known and path.name != "README.md"
    ] + sorted(path for path in (out / "pictures").rglob("*") if path.is_file())
    listed, wrong = _listed_pictures(out / "pictures" / SUMS)
    expected = {out / name for name in pages} | {out / PUBLISHED, out / "pictures" / SUMS} | listed
    return (
        problems
        + wrong
        + [f"{path} belongs to no records" for path in there if path not in expected]
    )


def _listed_pictures(sums: Path) -> tuple[set[Path], list[str]]:
    """The pictures that are not made from records, as a list in the form of `sha256sum` names them,
    and a line for each that differs from the list.
    """
    listed: dict[Path, str] = {}
    for line in sums.read_text(encoding="utf-8").splitlines() if sums.exists() else ():
        digest, _, name = line.partition("  ")
        listed[sums.parent / name] = digest
    wrong = [
        path
        for path, digest in listed.items()
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest
    ]
    return set(listed), [
        f"{path} {'differs from' if path.exists() else 'is missing and stands in'} {sums}"
        for path in wrong
    ]


def _first_difference(there: str, expected: str) -> str:
    """The first place where two texts differ: the number of its line, and what stands there in
    both, with some characters around it.
    """
    for place, (mine, theirs) in enumerate(
        itertools.zip_longest(there.splitlines(), expected.splitlines()), 1
    ):
        if mine != theirs:
            pairs = enumerate(zip(mine or "", theirs or "", strict=False))
            at = next(
                (i for i, (letter, other) in pairs if letter != other),
                min(len(mine or ""), len(theirs or "")),
            )
            return f"line {place}: {_around(mine, at)} instead of {_around(theirs, at)}"
    return "line endings"


def _around(line: str | None, place: int, before: int = 40, after: int = 60) -> str:
    if line is None:
        return "nothing"
    start, end = max(place - before, 0), place + after
    return f"'{'…' if start else ''}{line[start:end]}{'…' if end < len(line) else ''}'"


def row_table(record: RunRecord, others: list[RunRecord]) -> Table:
    """A finished run as a table for the terminal, beside `none` of the same protocol and of as many
    generations.
    """
    from rich.table import Table
    from rich.text import Text

    same = [
        other
        for other in others
        if other.suite == record.suite
        and other.status == "complete"
        and other.method == REFERENCE
        and protocol(other) == protocol(record)
    ]
    reference = next((other for other in same if other.seeds == record.seeds), None)
    row = Row(record, reference)
    beside = row.reference is not None and record.method != REFERENCE
    # Text, because a table reads [red] in a string as a style
    shown = Table(title=_text(f"{row.label} on {record.suite}"), title_justify="left")
    names = [
        "",
        record.method,
        *(("none", "difference") if beside else ()),
        *(["over seeds"] if record.seeds > 1 else []),
    ]
    for name in names:
        shown.add_column(Text(name))
    for column in columns_of(Board(record.suite, (row,), ())):
        score = row.score(column)
        if score is None:
            continue
        name = f"{column.heading} (n={score.n})" if column.name in SIZED else column.heading
        cells = [cell(score, column.decimals) if score.value is not None else f"– ({score.reason})"]
        if beside and row.reference:
            cells += [
                cell(Row(row.reference, None).score(column), column.decimals),
                difference_cell(row.difference(column), column.decimals),
            ]
        cells += [spread(score, column.decimals)] if record.seeds > 1 else []
        shown.add_row(*map(_text, (name, *cells)))
    for name, mean in record.facts.get("memorized", {}).items():
        clean = record.facts.get("clean", {}).get(name)
        beside_it = "" if clean is None else f" (clean prompts: {number(clean, 3)})"
        shown.add_row(_text(f"{name} (reported)"), number(mean, 3) + beside_it)
    if not beside and record.method != REFERENCE:
        seeds = f" --seeds {record.seeds}" if record.seeds > 1 else ""
        under = f" with {record.seeds} generations" if same else " under this protocol"
        shown.caption = (
            f"no record of `none`{under} yet: bench run --method none --suite {record.suite}{seeds}"
        )
    return shown


def _text(value: str) -> Text:
    from rich.text import Text

    shown = visible(value)
    return Text(shown if len(shown) <= LONGEST else shown[:LONGEST] + "…")
