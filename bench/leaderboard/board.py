"""Which records stand in one table: rows that share a protocol, beside their reference, in the
order of replication.

Rows of one table share the suite's fingerprint and the versions of metrics and attacks. Rows that
do not are listed apart and never ranked. There is no composite score.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

from bench.leaderboard.columns import BY_NAME, COLUMNS, NAMED, TUNING, Column
from bench.leaderboard.family import adjusted
from bench.leaderboard.front import REPLICATION, front, ranks, replication_of
from bench.records.parts import PARTS, REFERENCE, Protocol, design_for, protocol
from bench.records.record import RunRecord, Score
from bench.records.sweep import Sweep
from bench.statistics import intervals as stats

Interval = tuple[float, float, float]  # value, low, high
Apart = tuple[RunRecord, str]  # a record that is not ranked, and why
TUNED_MEANS = (
    "† parameters chosen on the suite's `fit` prompts by `bench tune`; the record has the rule and"
    " how many settings met it (‡ none did: the nearest was taken)"
)


@dataclass(frozen=True)
class Row:
    """A record beside the reference row of its protocol."""

    record: RunRecord
    reference: RunRecord | None
    pareto: bool = False
    twin: str = ""  # what tells it from another row of the same name
    # the least and the greatest rank that its prompts allow; None where it has no values by prompt
    ranks: tuple[int, int] | None = None
    # of its headline columns: p-values of the difference, corrected over the whole board
    adjusted: Mapping[str, float] = field(default_factory=dict)
    # paired ones by score; made when asked for where none are given
    differences: dict[str, Interval] | None = field(default=None, compare=False)

    @cached_property
    def label(self) -> str:
        """The method, with the parameters that are not its defaults."""
        shown = {
            key: f"{value:g}" if isinstance(value, float) else value
            for key, value in self.record.changed.items()
        }
        given = ", ".join(f"{key}={value}" for key, value in sorted(shown.items()))
        return (
            self.record.method
            + (f" ({given})" if given else "")
            + self.tuned
            + (f" [{self.twin}]" if self.twin else "")
        )

    @property
    def rank(self) -> str:
        """The ranks that the row may have, in words."""
        if self.ranks is None:
            return "–"
        low, high = self.ranks
        return str(low) if low == high else f"{low} to {high}"

    @property
    def tuned(self) -> str:
        tuning = self.record.tuning
        return "" if tuning is None else " †" if tuning.get("kept") else " ‡"

    @cached_property
    def _paired(self) -> dict[str, Interval]:
        if self.differences is not None or self.reference is None:
            return self.differences or {}
        means = means_of(self.record)
        return stats.paired_differences(
            means,
            self.reference.per_prompt,
            shares=shares_of(self.record),
            designs={name: design_for(self.record, name) for name in means},
            of_shares=differences_of_shares_in(self.record),
        )

    def score(self, column: Column) -> Score | None:
        return _part(self.record, column).get(column.name)

    def paired(self, column: Column) -> int | None:
        """The number of prompts that the difference is over; None where it is not a paired one."""
        if self.reference is None or column.name not in self._paired:
            return None
        return len(
            self.record.per_prompt[column.name].keys()
            & self.reference.per_prompt[column.name].keys()
        )

    def difference(self, column: Column) -> tuple[float, float | None, float | None] | None:
        """Difference to the reference row: paired by prompt with an interval where prompts have
        values, else the plain difference.
        """
        score = self.score(column)
        if (
            self.reference is None
            or self.record.method == REFERENCE
            or column.part == "cost"
            or score is None
            or score.value is None
        ):
            return None
        if column.name in self._paired:
            return self._paired[column.name]
        base = _part(self.reference, column).get(column.name)
        return (score.value - base.value, None, None) if base and base.value is not None else None


def means_of(record: RunRecord) -> dict[str, dict[str, float]]:
    """Values by prompt of the scores that are means over prompts. Others have no paired difference:
    a difference of medians is not the median of the differences.
    """
    others = {
        name for part in PARTS for name, score in getattr(record, part).items() if score.statistic
    }
    return {name: values for name, values in record.per_prompt.items() if name not in others}


def shares_of(record: RunRecord) -> set[str]:
    """The scores that are proportions."""
    return {
        name
        for part in PARTS
        for name, score in getattr(record, part).items()
        if score.unit.startswith("share")
    }


def differences_of_shares_in(record: RunRecord) -> set[str]:
    """The scores that are differences of two proportions."""
    return {
        name
        for part in PARTS
        for name, score in getattr(record, part).items()
        if score.unit == stats.OF_SHARES
    }


def _part(record: RunRecord, column: Column) -> dict[str, Score]:
    if column.name == TUNING:
        return _of_tuning(record)
    return {"scores": record.scores, "cost": record.cost, "attacks": record.attacks}[column.part]


def _of_tuning(record: RunRecord) -> dict[str, Score]:
    """What choosing the parameters took, where the record says it; strangers' records may say
    anything.
    """
    evaluations = (record.tuning or {}).get("evaluations")
    if type(evaluations) is not int or not 0 <= evaluations < 2**53:
        return {}
    score = Score(
        value=evaluations,
        n=1,
        unit="row evaluations",
        higher_is_better=False,
        metric="tuning",
        metric_version=1,
    )
    return {TUNING: score}


@dataclass(frozen=True)
class Board:
    """The table of one suite; the records that cannot stand in it, each with the reason; and rows
    that others measured and reported.
    """

    suite: str
    rows: tuple[Row, ...]
    apart: tuple[Apart, ...]
    # submitted by others, of the same protocol; beside our reference, never in `rows`
    reported: tuple[Row, ...] = ()
    damaged: tuple[str, ...] = ()  # one line for each record file that cannot be used
    sweeps: tuple[Sweep, ...] = ()  # strength curves of the same protocol, by method

    @property
    def removes(self) -> bool:
        """Whether it is of the track `removal`; all its rows are of one track."""
        return any(row.record.track == "removal" for row in (*self.rows, *self.reported))

    def meaning(self, column: Column) -> Column:
        """A built-in column with the meaning that it has on this board."""
        return (
            replace(column, meaning=NAMED[column.name])
            if self.removes and column.name in NAMED
            else column
        )


def columns_of(board: Board) -> list[Column]:
    """The columns that some row of a board has a score for: the built-in ones, and after those of
    each part what plug-ins declare.
    """
    rows = (*board.rows, *board.reported)
    declared: dict[str, Column] = {}
    built_in = {column.name for column in COLUMNS}
    for row in rows:
        for part in PARTS:
            for name, score in getattr(row.record, part).items():
                if score.shown and name not in built_in:
                    arrow = {True: " ↑", False: " ↓", None: ""}[score.higher_is_better]
                    column = Column(
                        name,
                        score.shown.heading + arrow,
                        score.shown.decimals,
                        score.shown.meaning,
                        part,
                        score.higher_is_better,
                        score.threat or "",
                    )
                    declared.setdefault(name, column)
    columns = []
    for part in PARTS:
        columns += [
            board.meaning(column)
            for column in COLUMNS
            if column.part == part and any(row.score(column) for row in rows)
        ]
        columns += [declared[name] for name in sorted(declared) if declared[name].part == part]
    return columns


def order_column(board: Board) -> Column:
    """The column that the rows are ordered by: the first of replication that some row has."""
    there = {name for row in (*board.rows, *board.reported) for name in row.record.scores}
    name = next((name for name in REPLICATION if name in there), REPLICATION[-1])
    return board.meaning(BY_NAME[name])


def make_boards(
    records: Sequence[RunRecord],
    reported: Sequence[RunRecord] = (),
    damaged: Sequence[tuple[str, str]] = (),
    sweeps: Sequence[Sweep] = (),
) -> list[Board]:
    """One board for every suite that has records, rows by replication.

    `reported`: records that others measured. `damaged`: (suite, what is wrong) for each file that
    cannot be used. `sweeps`: strength curves, of which those of a board's own protocol stand on it.
    """
    suites = sorted(
        {record.suite for record in (*records, *reported)} | {suite for suite, _ in damaged}
    )
    return [
        _board(
            suite,
            [record for record in records if record.suite == suite],
            [record for record in reported if record.suite == suite],
            tuple(what for place, what in damaged if place == suite),
            [sweep for sweep in sweeps if sweep.suite == suite],
        )
        for suite in suites
    ]


def _board(
    suite: str,
    records: list[RunRecord],
    reported: list[RunRecord],
    damaged: tuple[str, ...],
    sweeps: list[Sweep],
) -> Board:
    """The board of one suite, from our records and those that others reported."""
    unfit = _unfitness(records)
    ours, apart = _split(records, unfit)
    theirs, unfit_reports = _split(reported, unfit)
    apart += [(record, f"self-reported; {reason}") for record, reason in unfit_reports]
    if not ours and not theirs:
        return Board(suite, (), tuple(apart), damaged=damaged)
    current = _current_protocol(ours or theirs)
    ours, foreign = _split(ours, lambda record: _foreignness(record, current))
    theirs, foreign_reports = _split(theirs, lambda record: _foreignness(record, current))
    apart += [*foreign, *foreign_reports]
    effort = _effort_of(ours or theirs)
    ours, unequal = _split(ours, lambda record: _unequal(record, effort))
    theirs, unequal_reports = _split(theirs, lambda record: _unequal(record, effort))
    apart += [*unequal, *unequal_reports]
    reference = next((record for record in ours if record.method == REFERENCE), None)
    on_front, twins = front(ours), _twins([*ours, *theirs])
    return Board(
        suite,
        _rows(ours, reference, twins, on_front, ranks(ours), adjusted(ours, reference)),
        tuple(apart),
        _rows(theirs, reference, twins),
        damaged,
        _current_sweeps(sweeps, current, _newest_versions(records)),
    )


def _current_sweeps(
    sweeps: Sequence[Sweep], current: Protocol, versions: dict[str, int]
) -> tuple[Sweep, ...]:
    """Those of the suite as it is now, and of no older version of their method than its records."""
    version, _, fingerprint, _ = current
    return tuple(
        sweep
        for sweep in sorted(sweeps, key=lambda sweep: sweep.label)
        if (sweep.suite_version, sweep.suite_fingerprint) == (version, fingerprint)
        and sweep.method_version >= versions.get(sweep.method, 0)
    )


def _newest_versions(records: Sequence[RunRecord]) -> dict[str, int]:
    newest: dict[str, int] = {}
    for record in records:
        newest[record.method] = max(record.method_version, newest.get(record.method, 0))
    return newest


def _split(
    records: Sequence[RunRecord], reason_of: Callable[[RunRecord], str]
) -> tuple[list[RunRecord], list[Apart]]:
    """The records that may stand in a table, and those with a reason why they may not."""
    judged = [(record, reason_of(record)) for record in records]
    return (
        [record for record, reason in judged if not reason],
        [(record, reason) for record, reason in judged if reason],
    )


def _unfitness(records: Sequence[RunRecord]) -> Callable[[RunRecord], str]:
    """Why a record can stand in no table beside ours: it is unfinished, limited, or of an older
    version of its method; empty where it can.
    """
    newest = _newest_versions(records)
    expected = sorted(
        {name for record in records for part in PARTS for name in getattr(record, part)}
    )

    def reason_of(record: RunRecord) -> str:
        if record.status != "complete":
            return _unfinished(record, expected)
        if record.limit is not None:
            return f"limited to {record.limit} prompts of every role"
        version = newest.get(record.method, record.method_version)
        if record.method_version < version:
            return f"version {record.method_version} of the method; {version} is the newest"
        return ""

    return reason_of


def _current_protocol(records: Sequence[RunRecord]) -> Protocol:
    """The protocol of the table: of the newest version of the suite; of these the one that measures
    more, which is the newer one whatever the names of what was added to it; then the one with most
    records.
    """
    sizes = Counter(protocol(record) for record in records)
    return max(sizes, key=lambda key: (key[0], len(key[1]), key[1], sizes[key], key[2]))


def _foreignness(record: RunRecord, current: Protocol) -> str:
    own = protocol(record)
    return "" if own == current else f"another protocol: {_differing(own, current)}"


def _effort_of(records: Sequence[RunRecord]) -> int:
    """The number of generations that rows of one table have: of those with a reference, the one
    that most rows were measured with; the larger one where two are as frequent.
    """
    rows = {(_asked(record), record.seeds) for record in records}
    referenced = {record.seeds for record in records if record.method == REFERENCE}
    counts = Counter(seeds for _, seeds in rows if seeds in referenced or not referenced)
    return max(counts, key=lambda seeds: (counts[seeds], seeds))


def _unequal(record: RunRecord, effort: int) -> str:
    """Why a record of another effort stands apart; empty for one of the table's own: more images
    make intervals narrower and attackers stronger, so such rows are not compared.
    """
    return (
        f"generated {_times(record.seeds)}; the rows of this table {_times(effort)}"
        if record.seeds != effort
        else ""
    )


def _times(seeds: int) -> str:
    return "once" if seeds == 1 else f"{seeds} times"


def _rows(
    records: Sequence[RunRecord],
    reference: RunRecord | None,
    twins: Mapping[str, str],
    on_front: Set[str] = frozenset(),
    possible: Mapping[str, tuple[int, int]] = MappingProxyType({}),
    corrected: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
) -> tuple[Row, ...]:
    """The rows by replication, each beside the reference; `on_front`: the runs that no other
    beats; `possible`: the ranks that each may have; `corrected`: p-values by run and score.
    """
    ordered = sorted(records, key=lambda record: (_sort_value(record), record.method, record.run))
    differences = _differences(ordered, reference)
    return tuple(
        Row(
            record,
            reference,
            record.run in on_front,
            twins.get(record.run, ""),
            possible.get(record.run),
            corrected.get(record.run, {}),
            paired,
        )
        for record, paired in zip(ordered, differences, strict=True)
    )


def _twins(records: Sequence[RunRecord]) -> dict[str, str]:
    """What tells rows of the same name apart, by run."""
    by_label: dict[str, list[RunRecord]] = {}
    for record in records:
        by_label.setdefault(Row(record, None).label, []).append(record)
    return {
        record.run: f"run {record.run}"
        for same in by_label.values()
        for record in (same if len(same) > 1 else ())
    }


def _differences(
    records: Sequence[RunRecord], reference: RunRecord | None
) -> list[dict[str, Interval]]:
    """The paired differences of every record to the reference, for the scores that have a column;
    computed together, which is much faster.
    """
    if reference is None:
        return [{} for _ in records]
    shown = {column.name for column in COLUMNS}
    values, baseline, shares, of_shares, designs = {}, {}, set(), set(), {}
    for place, record in enumerate(records):
        for name, means in means_of(record).items():
            if name in shown or any(
                score.shown for part in PARTS if (score := getattr(record, part).get(name))
            ):
                key = f"{place:06d} {name}"
                values[key], baseline[key] = means, reference.per_prompt.get(name, {})
                designs[key] = design_for(record, name)
        shares |= {f"{place:06d} {name}" for name in shares_of(record)}
        of_shares |= {f"{place:06d} {name}" for name in differences_of_shares_in(record)}
    by_record: list[dict[str, Interval]] = [{} for _ in records]
    for key, difference in stats.paired_differences(
        values, baseline, shares=shares, designs=designs, of_shares=of_shares
    ).items():
        by_record[int(key[:6])][key[7:]] = difference
    return by_record


def _asked(record: RunRecord) -> str:
    """A key of what a row stands for, apart from the number of seeds."""
    return json.dumps([record.method, record.parameters, record.sources], sort_keys=True)


def _unfinished(record: RunRecord, expected: Sequence[str]) -> str:
    """Why a run is not complete, and which scores of the board it lacks."""
    known = {
        name
        for part in PARTS
        for name, score in getattr(record, part).items()
        if score.value is not None
    }
    missing = [name for name in expected if name not in known]
    why = f" ({record.errors[-1]})" if record.errors else ""
    return f"status {record.status}{why}" + (
        f"; missing: {', '.join(missing) if known else 'every score'}" if missing else ""
    )


def _differing(mine: Protocol, current: Protocol) -> str:
    """Where two protocols differ, as words."""
    if mine[3] != current[3]:
        return f"track {mine[3]}; the table is of the track {current[3]}"
    if mine[0] != current[0]:
        return f"version {mine[0]} of the suite; the table has {current[0]}"
    versions, others = dict(mine[1]), dict(current[1])
    if versions != others:
        differ = sorted(
            name
            for name in versions.keys() | others.keys()
            if versions.get(name) != others.get(name)
        )
        return ", ".join(
            f"{name} {versions.get(name, 'not measured')} instead of"
            f" {others.get(name, 'not measured')}"
            for name in differ
        )
    return "another fingerprint: a file or a setting of the suite differs"


def _sort_value(record: RunRecord) -> float:
    score = replication_of(record)
    return score.value if score and score.value is not None else float("inf")
