"""What differs between two run records: their protocol, the environment they were made in, and
their numbers.

A pure function of the two records. Two runs may be compared when they share a suite and a protocol
(`bench.leaderboard.board.protocol`), as rows of one leaderboard do. A difference between two
numbers is B - A; where both records keep the score by prompt it is paired by prompt and has a
bootstrap interval over prompts (`bench.statistics.intervals.paired_difference`). A difference that
would mean nothing is left out with its reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.base.errors import visible
from bench.leaderboard.board import Row
from bench.leaderboard.columns import BY_NAME
from bench.records.parts import design_for, flat, protocol
from bench.records.record import RunRecord, Score, load_record
from bench.statistics import intervals as stats

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

# of a record, in the order of reports and comparisons; in tables of many rows costs come last
REPORT_PARTS = ("scores", "cost", "attacks")
ABSENT = object()  # a field that one of the records does not have; null is a value
LONGEST = 160  # characters of a value in the terminal; the JSON has all of it
_ORDER = {name: position for position, name in enumerate(BY_NAME)}


@dataclass(frozen=True)
class Field:
    """One field whose values differ; `ABSENT` where a record lacks it."""

    name: str
    a: Any
    b: Any

    def as_json(self) -> dict[str, Any]:
        """`name`, `a` and `b`; a side that lacks the field has no key."""
        return {"name": self.name} | {
            side: value for side, value in (("a", self.a), ("b", self.b)) if value is not ABSENT
        }


@dataclass(frozen=True)
class Pair:
    """One number in both records.

    `difference` is (B - A, low, high); without interval where it is not paired, None with a reason
    where it means nothing.
    """

    part: str
    name: str
    a: Score | None
    b: Score | None
    difference: tuple[float, float | None, float | None] | None
    prompts: int = 0  # that the difference is paired over; 0 for a plain difference
    reason: str = ""  # why there is no difference

    def as_json(self) -> dict[str, Any]:
        kept = {"value", "low", "high", "n", "prompts", "unit", "reason"}
        sides = {
            side: score.model_dump(include=kept) if score else None
            for side, score in (("a", self.a), ("b", self.b))
        }
        change = (
            dict(zip(("value", "low", "high"), self.difference, strict=True))
            | {"paired_prompts": self.prompts}
            if self.difference
            else None
        )
        return {
            "part": self.part,
            "name": self.name,
            **sides,
            "difference": change,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Comparison:
    """Two records beside each other; `forbids` says what keeps them out of one table, one short
    phrase a cause.
    """

    a: RunRecord
    b: RunRecord
    identical: bool
    forbids: tuple[str, ...]
    protocol: tuple[Field, ...]
    environment: tuple[Field, ...]
    numbers: tuple[Pair, ...]

    @property
    def verdict(self) -> str:
        """One line: whether the two may be compared, and what stands in the way."""
        unfinished = [
            f"{side} is {record.status}"
            for side, record in (("A", self.a), ("B", self.b))
            if record.status != "complete"
        ]
        but = f" (but {' and '.join(unfinished)})" if unfinished else ""
        if self.identical:
            return f"identical: the two records agree in every field{but}"
        if self.forbids:
            return f"not to be compared: {'; '.join(self.forbids)}{but}"
        return (
            f"may be compared: same protocol, {self.a.suite} version {self.a.suite_version}"
            f" ({self.a.suite_fingerprint}){but}"
        )

    def as_json(self) -> dict[str, Any]:
        said = ("suite", "method", "run", "status", "errors", "warnings")
        return {
            "verdict": self.verdict,
            "identical": self.identical,
            "comparable": not self.forbids,
            "forbids": list(self.forbids),
            **{
                side: {key: getattr(record, key) for key in said}
                for side, record in (("a", self.a), ("b", self.b))
            },
            "protocol": [field.as_json() for field in self.protocol],
            "environment": [field.as_json() for field in self.environment],
            "numbers": [pair.as_json() for pair in self.numbers],
        }


def compare_files(a: Path, b: Path) -> Comparison:
    """Compare two record files.

    Raises `UserError` naming the one that is missing, truncated or no record.
    """
    return compare(load_record(a), load_record(b))


def compare(a: RunRecord, b: RunRecord) -> Comparison:
    """What differs between two records: protocol, environment and numbers."""
    # By their text, so that 1 and true differ; without the digest of all else, which older records
    # lack.
    identical = (
        len({_text(record.model_dump(exclude={"content_sha256"})) for record in (a, b)}) == 1
    )
    forbids = _forbids(a, b)
    names = [
        (part, name)
        for part in REPORT_PARTS
        for name in ordered({*getattr(a, part), *getattr(b, part)})
    ]
    return Comparison(
        a,
        b,
        identical,
        tuple(forbids),
        protocol=(*_different(_settings(a), _settings(b)), *_details(a, b)),
        environment=tuple(_different(flat(a.environment), flat(b.environment))),
        numbers=tuple(_pair(part, name, a, b) for part, name in names),
    )


def ordered(names: Iterable[str]) -> list[str]:
    """Names of scores as the leaderboard orders them, then the others by name."""
    return sorted(names, key=lambda name: (_ORDER.get(name, len(_ORDER)), name))


def decimals_of(name: str, *scores: Score | None) -> int:
    """How many decimals to show: the leaderboard's where it knows the name, none for plain counts,
    else 3 or what small numbers need.
    """
    if name in BY_NAME:
        return BY_NAME[name].decimals
    values = [score.value for score in scores if score and score.value is not None]
    if all(value.is_integer() for value in values) and not any(
        score and score.low is not None for score in scores
    ):
        return 0
    largest = max((abs(value) for value in values if value), default=1.0)
    return max(3, 1 - math.floor(math.log10(largest)))


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _same(a: Any, b: Any) -> bool:
    """Whether two settings are the same: 1 and 1.0 are, 1 and true are not."""
    if (
        isinstance(a, bool)
        or isinstance(b, bool)
        or not (isinstance(a, int | float) and isinstance(b, int | float))
    ):
        return a is b or (ABSENT not in (a, b) and _text(a) == _text(b))
    return a == b or (a != a and b != b)


def _different(a: dict[str, Any], b: dict[str, Any]) -> list[Field]:
    """The fields of two flat tables that differ, in the order of the first."""
    both = [(name, a.get(name, ABSENT), b.get(name, ABSENT)) for name in dict.fromkeys([*a, *b])]
    return [Field(*field) for field in both if not _same(field[1], field[2])]


def _forbids(a: RunRecord, b: RunRecord) -> list[str]:
    """What differs of the suite and of `bench.leaderboard.board.protocol`; empty exactly when the
    two could be rows of one table.
    """
    versions_a, versions_b = dict(protocol(a)[1]), dict(protocol(b)[1])
    found = [f"suite {a.suite} and {b.suite}"] if a.suite != b.suite else []
    found += [f"track {a.track} and {b.track}"] if a.track != b.track else []
    if a.suite_version != b.suite_version:
        found.append(f"suite version {a.suite_version} and {b.suite_version}")
    if a.suite_fingerprint != b.suite_fingerprint:
        limits = (
            f", limit {a.limit or 'none'} and {b.limit or 'none'}" if a.limit != b.limit else ""
        )
        found.append(f"fingerprint {a.suite_fingerprint} and {b.suite_fingerprint}{limits}")
    for side, mine, others in (("A", versions_a, versions_b), ("B", versions_b, versions_a)):
        alone = sorted(mine.keys() - others.keys())
        found += [f"only {side} has {', '.join(alone)}"] if alone else []
    shared = sorted(versions_a.keys() & versions_b.keys())
    return found + [
        f"{name} version {versions_a[name]} and {versions_b[name]}"
        for name in shared
        if versions_a[name] != versions_b[name]
    ]


def _settings(record: RunRecord) -> dict[str, Any]:
    """What was asked for, flat: suite, method, parameters, tuning, sources, images, and the version
    of every metric and attack.
    """
    names = (
        "suite",
        "suite_version",
        "suite_fingerprint",
        "limit",
        "seeds",
        "intervals",
        "track",
        "group_name",
        "method",
        "method_version",
        "where",
        "needs",
        "holds_against",
        "status",
    )
    tables = {
        name: getattr(record, name)
        for name in ("parameters", "tuning", "sources", "images")
        if getattr(record, name)
    }
    return (
        {name: getattr(record, name) for name in names}
        | flat(tables)
        | {f"version.{name}": version for name, version in protocol(record)[1]}
    )


def _details(a: RunRecord, b: RunRecord) -> list[Field]:
    """Details of scores that differ, written once for a metric where all of its scores agree on
    them. Lists of tables are left out, because they are findings and no settings.
    """
    by_key: dict[tuple[str, str], list[tuple[str, Field]]] = {}
    for part in REPORT_PARTS:
        mine, theirs = getattr(a, part), getattr(b, part)
        for name in ordered(mine.keys() & theirs.keys()):
            for field in _different(flat(mine[name].details), flat(theirs[name].details)):
                if not any(
                    isinstance(value, list) and any(isinstance(item, dict) for item in value)
                    for value in (field.a, field.b)
                ):
                    by_key.setdefault((mine[name].metric, field.name), []).append((name, field))
    fields = []
    for (metric, key), found in by_key.items():
        if all(
            _same(field.a, found[0][1].a) and _same(field.b, found[0][1].b) for _, field in found
        ):
            fields.append(Field(f"{metric}: {key}", found[0][1].a, found[0][1].b))
        else:
            fields += [Field(f"{metric}: {name}.{key}", field.a, field.b) for name, field in found]
    return fields


def _pair(part: str, name: str, a: RunRecord, b: RunRecord) -> Pair:
    mine, theirs = getattr(a, part).get(name), getattr(b, part).get(name)
    reason = _no_difference(mine, theirs, a, b)
    if reason:
        return Pair(part, name, mine, theirs, None, reason=reason)
    values_a, values_b = _finite(a.per_prompt.get(name)), _finite(b.per_prompt.get(name))
    share = bool(mine and mine.unit.startswith("share"))
    # a difference of medians is no mean of differences
    of_means = part != "cost" and not (mine and mine.statistic)
    paired = (
        stats.paired_difference(values_b, values_a, share=share, design=design_for(a, name))
        if of_means
        else None
    )
    if paired:
        return Pair(part, name, mine, theirs, paired, len(values_a.keys() & values_b.keys()))
    # without a reason, both have values
    return Pair(part, name, mine, theirs, (theirs.value - mine.value, None, None))


def _finite(values: dict[str, float] | None) -> dict[str, float]:
    return {prompt: value for prompt, value in (values or {}).items() if math.isfinite(value)}


def _no_difference(mine: Score | None, theirs: Score | None, a: RunRecord, b: RunRecord) -> str:
    """Why B - A would mean nothing; empty where it has a meaning."""
    if mine is None or theirs is None:
        return "not in A" if mine is None else "not in B"
    missing = [
        f"{side}: {score.reason}"
        for side, score in (("A", mine), ("B", theirs))
        if score.value is None
    ]
    if missing:
        return "; ".join(missing)
    if (a.suite, a.suite_version, a.suite_fingerprint) != (
        b.suite,
        b.suite_version,
        b.suite_fingerprint,
    ):
        return "the suites differ"
    if (mine.metric, mine.metric_version) != (theirs.metric, theirs.metric_version):
        return (
            f"{mine.metric} version {mine.metric_version} and {theirs.metric} version"
            f" {theirs.metric_version}"
        )
    if mine.unit != theirs.unit:
        return f"units {mine.unit} and {theirs.unit}"
    if mine.metric == "fid" and mine.n != theirs.n:  # its bias depends on the number of images
        return f"at {mine.n} and {theirs.n} images"
    machines = [
        tuple(record.environment.get(key) for key in ("device", "device_name", "threads"))
        for record in (a, b)
    ]
    if mine.unit == "s" and machines[0] != machines[1]:
        return "seconds of different machines or threads"
    return ""


def _cut(text: str, longest: int = LONGEST) -> str:
    text = visible(text)
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text)} characters)"


def shown(comparison: Comparison) -> list[str | Table]:
    """The comparison for the terminal: the verdict and who A and B are, a line each, and a table
    for each part that has something to show.
    """
    parts: list[str | Table] = [_cut(comparison.verdict, 4 * LONGEST)]
    for side, record in (("A", comparison.a), ("B", comparison.b)):
        messages = "".join(f"; {_cut(line)}" for line in (*record.errors, *record.warnings))
        parts.append(
            f"{side}: {_cut(Row(record, None).label)} on {record.suite}, run {record.run},"
            f" {record.status}{messages}"
        )
    if comparison.identical:
        return parts
    return [
        *parts,
        _fields_table("Protocol", comparison.protocol),
        _fields_table("Environment", comparison.environment),
        _numbers_table(comparison.numbers),
    ]


def _fields_table(title: str, fields: Sequence[Field]) -> str | Table:
    if not fields:
        return f"{title}: the same"
    table = _empty_table(f"{title}: what differs", "", "A", "B")
    for field in fields:
        table.add_row(_cell_text(field.name), _cell_text(field.a), _cell_text(field.b))
    return table


def _numbers_table(numbers: Sequence[Pair]) -> Table:
    from rich.text import Text

    from bench.leaderboard.cells import cell, difference_cell

    title = "Scores, cost, attacks (95 % intervals; * paired by prompt)"
    table = _empty_table(title, "", "A", "B", "B - A")
    for pair in numbers:
        decimals = decimals_of(pair.name, pair.a, pair.b)
        change = (
            difference_cell(pair.difference, decimals) + (" *" if pair.prompts else "")
            if pair.difference
            else f"– ({pair.reason})"
        )
        heading = BY_NAME[pair.name].heading if pair.name in BY_NAME else pair.name
        values = [Text(cell(score, decimals)) for score in (pair.a, pair.b)]
        table.add_row(_cell_text(heading), *values, _cell_text(change))
    return table


def _empty_table(title: str, *headings: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _cell_text(value: Any) -> Text:
    """A value for a cell: as `Text`, because a table would read [red] in a string as a style."""
    from rich.text import Text

    if value is ABSENT:
        return Text("absent")
    return Text(_cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
