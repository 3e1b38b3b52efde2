"""One run's page: everything its record says, in one HTML file that asks nothing of the network.

A pure function of the record, without clock. Everything from the record is escaped by the template,
and its invisible characters are shown.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.base.errors import UserError
from bench.base.files import write_atomically
from bench.leaderboard.board import Row
from bench.leaderboard.cells import cell, group_order, number
from bench.leaderboard.columns import BY_NAME
from bench.leaderboard.comparing import REPORT_PARTS, decimals_of, ordered
from bench.leaderboard.templating import template
from bench.records.parts import flat
from bench.records.record import RunRecord, Score, load_record

STATUS = {
    "complete": "complete",
    "partial": "partial: a part of this run failed, and its numbers are missing below",
    "failed": "failed: what stands below was recorded before the failure",
    "running": "running: this record was written before the run ended",
}
ARROWS = {True: " ↑", False: " ↓", None: ""}
TUNED = {
    "†": "† Chosen on the suite's fit prompts by `bench tune`",
    "‡": (
        "‡ Chosen on the suite's fit prompts by `bench tune`; no setting met its rule, so the"
        " nearest was taken"
    ),
}
TITLES = {"scores": "Scores", "cost": "Cost", "attacks": "Attacks"}


def write_report(record: Path, out: Path | None = None) -> Path:
    """Write the page of a record file; `<record's name>.html` in the current folder by default.

    Returns the page's path.

    Raises `UserError` for an unreadable record, for `out` being the record itself, and for a place
    that cannot be written.
    """
    content = page(load_record(record)).encode()
    path = out or Path(f"{record.stem}.html")
    if path.exists() and path.samefile(record):
        raise UserError(f"--out {path} is the record itself; name another file")
    write_atomically(path, content)
    return path


def page(record: RunRecord) -> str:
    """The page as HTML."""
    row = Row(record, None)
    values = [
        (name, _shown(value), name in record.changed)
        for name, value in sorted(record.parameters.items())
    ]
    parts = [
        (
            TITLES[part],
            [_line(name, getattr(record, part)[name]) for name in ordered(getattr(record, part))],
        )
        for part in REPORT_PARTS
    ]
    content: str = template("report.html").render(
        record=record,
        title=f"{row.label} on {record.suite}",
        status=STATUS[record.status],
        words=in_words(record),
        parameters=values,
        tuning=_table(record.tuning or {}),
        tuned=TUNED.get(row.tuned.strip(), ""),
        sources=_table(record.sources),
        parts=[(title, lines) for title, lines in parts if lines],
        groups=_groups(record),
        fact_names=sorted({name for means in record.facts.values() for name in means}),
        facts={
            role: {name: f"{value:.6g}" for name, value in means.items()}
            for role, means in record.facts.items()
        },
        environment=_table(record.environment),
    )
    return content


def in_words(record: RunRecord) -> list[str]:
    """The protocol as sentences: what was sampled, with what, and measured by which versions."""
    many = (
        "every prompt of it"
        if record.limit is None
        else f"limited to {record.limit} prompts of every role"
    )
    images = (
        ", ".join(f"{count} {role}" for role, count in record.images.items()) or "none recorded"
    )
    versions = {
        score.metric: score.metric_version
        for part in REPORT_PARTS
        for score in getattr(record, part).values()
    }
    measured = (
        ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) or "nothing"
    )
    paper = f" ({record.paper})" if record.paper else ""
    against = (
        "not known" if record.holds_against is None else ", ".join(record.holds_against) or "nobody"
    )
    given = (
        f" It was given: {', '.join(record.needs)}."
        if record.needs
        else " It needs nothing besides the model."
    )
    return [
        (
            f"Suite {record.suite}, version {record.suite_version}, fingerprint"
            f" {record.suite_fingerprint}; {many}; generations of every prompt: {record.seeds}."
        ),
        f"Images by role of their prompts: {images}.",
        (
            f"Method {record.method}, version {record.method_version}{paper}; acts on:"
            f" {record.where}.{given}"
        ),
        f"Holds against: {against}. Intervals of means: {record.intervals}.",
        f"Measured by (with versions): {measured}.",
    ]


def _line(name: str, score: Score) -> dict[str, Any]:
    """One row of a table of numbers; a number that is null shows its reason."""
    column = BY_NAME.get(name)
    decimals = decimals_of(name, score)
    return {
        "heading": column.heading if column else name + ARROWS[score.higher_is_better],
        "meaning": f"{name}: {column.meaning}" if column else "",
        "text": cell(score, decimals),
        "score": score,
        "details": _table(score.details),
        "groups": [
            (group, number(score.groups[group], decimals))
            for group in sorted(score.groups, key=group_order)
        ],
    }


def _groups(record: RunRecord) -> list[dict[str, Any]]:
    """SSCD by group of prompts, with the length of its bar in percent: similarities below 0 have
    none.
    """
    score = record.scores.get("sscd")
    groups = score.groups if score else {}
    shown = [(name, groups[name]) for name in sorted(groups, key=group_order)]
    return [
        {"name": name, "text": number(value, 3), "percent": round(100 * min(max(value, 0), 1), 1)}
        for name, value in shown
    ]


def _table(values: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, _shown(value)) for name, value in sorted(flat(values).items())]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
