"""The report of `bench doctor` as text: one screen, the verdict of every suite first, and details
as far as there is room.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from pathlib import Path

from bench.base.errors import visible
from bench.doctor.report import Fact, FileFact, Report, SuiteFact, gib

LINES, COLUMNS = 40, 100


def text(report: Report) -> str:
    """The report in one screen: at most 40 lines of 100 columns, unless the facts of the machine
    alone need more.
    """
    lines = [line for fact in report.facts for line in _fact_lines(fact)]
    room = max(LINES - len(lines) - 2, 6)
    marks = ("ok", "warn", "missing")
    # what can run comes first
    blocks = [
        _suite_lines(suite)
        for suite in sorted(report.suites, key=lambda suite: marks.index(suite.mark))
    ]
    if len(blocks) > room:
        blocks, rest = [block[:1] for block in blocks[: room - 1]], len(blocks) - room + 1
        blocks.append([f"... and {rest} more suites: bench doctor --json"])
    given = [1] * len(blocks)
    for depth in range(1, max(map(len, blocks), default=1)):
        for number, block in enumerate(blocks):
            given[number] += len(block) > depth and sum(given) < room
    lines += [
        "",
        "suites:" if blocks else "suites: none",
        *(line for block, count in zip(blocks, given, strict=True) for line in block[:count]),
    ]
    return "\n".join(
        line if len(line) <= COLUMNS else f"{line[: COLUMNS - 1]}…" for line in map(visible, lines)
    )


def _fact_lines(fact: Fact) -> list[str]:
    shown = textwrap.wrap(
        f"{fact.mark:<8}{fact.name:<11}{fact.text}",
        COLUMNS,
        subsequent_indent=" " * 19,
        max_lines=3,
        placeholder=" …",
    )
    return shown + textwrap.wrap(
        fact.get, COLUMNS, initial_indent=" " * 19 + "-> ", subsequent_indent=" " * 22
    )


def _suite_lines(suite: SuiteFact) -> list[str]:
    """The verdict first, then what is most useful, so that lines can be left out from the end."""
    called = Path(suite.name).name if suite.name.endswith(".toml") else suite.name
    name = f"{suite.mark:<8}{called:<14}"
    lacking = [file for file in suite.files if file.problem]
    numbers = []
    if suite.images is not None and suite.row_evaluations is not None:
        numbers.append(
            f"none: {'' if suite.images_exact else 'about '}{suite.images:,} images,"
            f" {suite.row_evaluations:,} evaluations"
        )
    numbers += [f"memory {gib(suite.memory_bytes)}"] if suite.memory_bytes is not None else []
    numbers += [f"disk {gib(suite.disk_bytes)}"] if suite.disk_bytes is not None else []
    numbers += [_duration(suite.hours)] if suite.hours is not None else []
    lines = [f"{name} {suite.verdict}" + (f" -> {suite.get}" if suite.get else "")]
    if len(lines[0]) > COLUMNS and suite.get:
        lines = [f"{name} {suite.verdict}", f"{'':<8}-> {suite.get}"]
    if len(lines[0]) > COLUMNS:
        lines[:1] = textwrap.wrap(
            lines[0], COLUMNS, subsequent_indent=" " * 23, max_lines=2, placeholder=" …"
        )
    if len(lacking) > 1:
        kinds = Counter(file.what for file in lacking)
        counted = ", ".join(
            what if count == 1 else f"{count} of {what}" for what, count in kinds.items()
        )
        lines.append(
            " " * 8 + textwrap.shorten(f"lacking: {counted}", COLUMNS - 8, placeholder=" …")
        )
    lines += (
        textwrap.wrap(
            f"{', '.join(numbers)} (estimates)",
            COLUMNS,
            initial_indent=" " * 8,
            subsequent_indent=" " * 14,
        )
        if numbers
        else []
    )
    if suite.detectors:
        lines += textwrap.wrap(
            f"detectors: {suite.detectors}",
            COLUMNS,
            initial_indent=" " * 8,
            subsequent_indent=" " * 14,
            max_lines=2,
            placeholder=" …",
        )
    shown = lacking if len(lacking) <= 3 else lacking[:2]
    lines += [_missing_line(file) for file in shown]
    lines += (
        [f"{'':<8}and {len(lacking) - len(shown)} more: bench doctor --json"]
        if len(lacking) > len(shown)
        else []
    )
    return lines


def _missing_line(file: FileFact) -> str:
    head = f"{'':<8}{file.what}: {file.problem}: "
    space = max(COLUMNS - len(head), 30)
    return head + (file.path if len(file.path) <= space else f"…{file.path[-(space - 1) :]}")


def _duration(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{max(hours * 60, 0.1):.1f} min"
