"""The board of detectors in Markdown, as CSV and as a page with pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.base.csv_cells import csv_cell
from bench.leaderboard import charts
from bench.leaderboard.cells import escape
from bench.leaderboard.detectors import CLEAN, MEMORIZED, RATE, Area, DetectorBoard, DetectorRow
from bench.leaderboard.measured import measured, model_of
from bench.leaderboard.templating import template
from bench.records.detection import COPIED, Detection

DASH = "–"
MEANINGS = (
    (
        "AUC",
        "the chance that a memorized prompt scores above one that is not, ties counted half; 0.5 is"
        " no better than chance, and below that the score points the other way here. Brackets: 95 %"
        " intervals over prompts (DeLong on the logit scale; Newcombe's method 5 where prompts are"
        " as good as separated)",
    ),
    (
        "found at 1 %",
        "share of memorized prompts above the threshold that at most so many clean prompts exceed"
        " (in brackets: false alarms allowed)",
    ),
    (
        "found, alarms as set up",
        "share of memorized prompts, and of others, above the threshold that 1 % of the calibration"
        " prompts exceed, which are judged by nobody: what a user gets",
    ),
    (
        "evaluations",
        "of the model for one image: on top of generation, and alone where nothing else needs the"
        " image",
    ),
    ("floor", "a score of the caption alone; whatever cannot beat it has seen no model"),
)


def question(board: DetectorBoard) -> list[str]:
    """What was asked, in sentences."""
    row = board.rows[0]
    record = row.record
    memorized = len(row.record.of_prompt.get(MEMORIZED, {}))
    if record.copied is None:
        positives = f"Positives are all {memorized} listed prompts."
    else:
        positives = (
            f"Positives are the {len(row.positives())} of {memorized} listed prompts of which at"
            f" least {COPIED:.0%} of the images are copies without a mitigation (labels from seeds"
            " that nothing is scored on)."
        )
    kinds = ", ".join(f"{len(row.others(kind))} {kind}" for kind in row.kinds)
    many = f"{board.images} images" if board.images > 1 else "one image"
    suite = measured(board.suite, record.suite_version)
    return [
        *([model_of(suite.side)] if suite and suite.embedded else []),
        f"{positives} Negatives, each kind a column of its own: {kinds}.",
        f"A prompt's score is of {many}; {CLEAN} prompts are other captions, kinds beside them are"
        " hard negatives of the same style. Higher means memorized, as each detector declares; no"
        " sign was turned round.",
    ]


def _headings(board: DetectorBoard) -> list[str]:
    many = f"n={board.images}"
    return [
        "detector",
        "needs",
        *(f"AUC against {kind} ({many})" for kind in board.kinds),
        "found at 1 %",
        "found, alarms as set up",
        "evaluations on top / alone",
    ]


def _cells(board: DetectorBoard, row: DetectorRow) -> list[str]:
    record = row.record
    return [
        row.label + (" (floor)" if row.is_floor else ""),
        record.needs,
        *(_text(row.area(kind)) for kind in board.kinds),
        f"{row.at_rate.found:.2f} ({row.at_rate.allowed})" if row.at_rate else DASH,
        _set_up(board, row),
        f"{record.rows_on_top:g} / {record.rows_alone:g}",
    ]


def _set_up(board: DetectorBoard, row: DetectorRow) -> str:
    if row.calibrated is None:
        return DASH
    alarms = ", ".join(
        f"{kind} {share:.2f}" for kind in board.kinds if (share := row.alarms(kind)) is not None
    )
    return f"{row.calibrated.found:.2f}; {alarms}"


def _text(found: Area | None) -> str:
    return found.text if found else DASH


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(escape(cell) for cell in cells) + " |"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_pipes(headings), "|" + "---|" * len(headings), *(_pipes(row) for row in rows)]


@dataclass(frozen=True)
class _Other:
    """A further table of areas: its title, what its positives are, and a row a detector."""

    title: str
    means: str
    rows: list[list[str]]


def _others(board: DetectorBoard) -> list[_Other]:
    """The same areas asked in other ways; a table that no detector has is left out."""

    def table(of: Callable[[DetectorRow, str], Area | None]) -> list[list[str]]:
        found = []
        for row in board.rows:
            areas = [of(row, kind) for kind in board.kinds]
            if any(areas):
                found.append([row.label, *map(_text, areas)])
        return found

    tables = [
        _Other(
            "One image a prompt",
            "The same of each prompt's first image alone, for detectors that need no more.",
            table(lambda row, kind: row.area(kind, first=True)) if board.images > 1 else [],
        ),
        _Other(
            "All listed prompts as positives",
            "Whether the model copies them or not.",
            table(lambda row, kind: row.area(kind, listed=True)),
        ),
        _Other(
            "Image by image",
            "Images that copy some training picture against all images of the other prompts, for"
            " detectors with a score an image; intervals as for so many prompts.",
            table(lambda row, kind: row.area_of_images(kind)),
        ),
    ]
    return [table_ for table_ in tables if table_.rows]


def markdown(board: DetectorBoard) -> str:
    """The board with what its columns mean, and two more tables: positives by list, and images."""
    lines = [f"# Detectors on {escape(board.suite)}", "", *question(board), ""]
    lines += _table(_headings(board), [_cells(board, row) for row in board.rows])
    lines += ["", f"Rows by AUC against {escape(board.hardest)}.", ""]
    lines += [f"- **{name}**: {meaning}." for name, meaning in MEANINGS]
    kinds = [f"against {kind}" for kind in board.kinds]
    for other in _others(board):
        lines += ["", f"## {other.title}", "", other.means, ""]
        lines += _table(["detector", *kinds], other.rows)
    if board.apart or board.damaged:
        lines += ["", "Not ranked:", ""]
        lines += [f"- {escape(record.label)}: {escape(why)}" for record, why in board.apart]
        lines += [f"- {escape(why)}" for why in board.damaged]
    return "\n".join(lines) + "\n"


def as_csv(board: DetectorBoard) -> str:
    """One row a detector: every area with its bounds and counts, rates, costs."""
    rows = [_numbers(board, row) for row in board.rows]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    return stream.getvalue()


def _numbers(board: DetectorBoard, row: DetectorRow) -> dict[str, Any]:
    record = row.record
    cells: dict[str, Any] = {
        "detector": record.detector,
        "parameters": ", ".join(f"{name}={value}" for name, value in record.parameters.items()),
        "version": record.detector_version,
        "needs": record.needs,
        "images": record.images,
    }
    for kind in board.kinds:
        for name, found in (
            (f"auc_{kind}", row.area(kind)),
            (f"auc_{kind}_first", row.area(kind, first=True)),
            (f"auc_{kind}_listed", row.area(kind, listed=True)),
            (f"auc_{kind}_images", row.area_of_images(kind)),
        ):
            cells |= {
                name: _rounded(found.value if found else None),
                f"{name}_low": _rounded(found.low if found else None),
                f"{name}_high": _rounded(found.high if found else None),
                f"{name}_positives": found.positives if found else 0,
                f"{name}_negatives": found.negatives if found else 0,
            }
        cells[f"alarms_{kind}"] = _rounded(row.alarms(kind))
    cells |= {
        "found_at_rate": _rounded(row.at_rate.found if row.at_rate else None),
        "rate": RATE,
        "alarms_allowed": row.at_rate.allowed if row.at_rate else 0,
        "threshold": row.calibrated.threshold if row.calibrated else None,
        "found_as_set_up": _rounded(row.calibrated.found if row.calibrated else None),
        "rows_on_top": record.rows_on_top,
        "rows_alone": record.rows_alone,
        "seconds": record.seconds,
        "kept_bytes": record.kept_bytes,
    }
    return cells


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


# ---- pictures: places of marks in view boxes, which the template draws

SIDE = 200  # of a picture's frame
BINS = 24
GROUPS = ("copied", "sometimes", "never")


def html(board: DetectorBoard) -> str:
    """The page: the table, then for each detector its ROC curves, its scores by kind of prompt, and
    its reading over the steps where it follows them. It asks nothing of the network.
    """
    content: str = template("detectors.html").render(
        board=board,
        question=question(board),
        headings=_headings(board),
        rows=[_cells(board, row) for row in board.rows],
        floors=[row.is_floor for row in board.rows],
        meanings=MEANINGS,
        kinds=board.kinds,
        others=_others(board),
        cards=[_card(board, row) for row in board.rows],
        side=SIDE,
    )
    return content + "\n"


def _card(board: DetectorBoard, row: DetectorRow) -> dict[str, Any]:
    record = row.record
    return {
        "label": row.label,
        "paper": record.paper,
        "roc": [(kind, _path(_thinned(row.curve(kind)))) for kind in board.kinds if row.area(kind)],
        "histogram": _histogram(board, row),
        "steps": _steps(board, record),
    }


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Without points in the middle of a straight step, which draw nothing."""
    kept = [points[0]]
    for before, point, after in zip(points, points[1:], points[2:], strict=False):
        flat = before[0] == point[0] == after[0] or before[1] == point[1] == after[1]
        if not flat:
            kept.append(point)
    return [*kept, points[-1]]


def _path(points: Sequence[tuple[float, float]]) -> str:
    """Shares in [0, 1], across and upwards, as places of the frame."""
    return " ".join(f"{SIDE * x:.1f},{SIDE * (1 - y):.1f}" for x, y in points)


def _strata(record: Detection) -> Mapping[str, list[float]]:
    """Scores of memorized prompts by how often they are copied."""
    scores = record.of_prompt.get(MEMORIZED, {})
    if record.copied is None:
        return {"listed": list(scores.values())}
    found: dict[str, list[float]] = {name: [] for name in GROUPS}
    for prompt, score in scores.items():
        share = record.copied[prompt]
        found["copied" if share >= COPIED else "sometimes" if share > 0 else "never"].append(score)
    return {name: values for name, values in found.items() if values}


def _histogram(board: DetectorBoard, row: DetectorRow) -> dict[str, Any]:
    """Shares of prompts by score, a band for each kind; scores beyond the 1st and 99th percentile
    of all are in the outermost bins.
    """
    bands = {name: np.array(values) for name, values in _strata(row.record).items()}
    bands |= {kind: row.others(kind) for kind in board.kinds if len(row.others(kind))}
    everything = np.concatenate(list(bands.values()))
    low, high = np.quantile(everything, (0.01, 0.99))
    if high <= low:
        low, high = low - 0.5, low + 0.5
    edges = np.linspace(low, high, BINS + 1)
    height = SIDE / len(bands)
    shown = []
    for place, (name, values) in enumerate(bands.items()):
        counts = np.histogram(np.clip(values, low, high), edges)[0] / len(values)
        top = (place + 1) * height
        scale = 0.8 * height / max(float(counts.max()), 1e-9)
        bars = [
            (round(bin_ * SIDE / BINS, 1), round(top - share * scale, 1), round(share * scale, 1))
            for bin_, share in enumerate(counts)
            if share > 0
        ]
        shown.append({"name": name, "top": round(top, 1), "bars": bars})
    threshold = row.calibrated.threshold if row.calibrated else None
    inside = threshold is not None and low <= threshold <= high
    return {
        "bands": shown,
        "width": round(SIDE / BINS - 0.6, 1),
        "low": f"{low:.3g}",
        "high": f"{high:.3g}",
        "threshold": (
            round(SIDE * (threshold - low) / (high - low), 1)
            if inside and threshold is not None
            else None
        ),
    }


def _steps(board: DetectorBoard, record: Detection) -> dict[str, Any]:
    """The median of each kind over the steps with the middle four fifths, empty where it does not
    follow them.
    """
    order = (MEMORIZED, *board.kinds)
    lines = [(kind, record.over_steps[kind]) for kind in order if kind in record.over_steps]
    if not lines or len(lines[0][1].middle) < 2:
        return {}
    least = min(min(line.low) for _, line in lines)
    most = max(max(line.high) for _, line in lines)
    ticks = charts.ticks(least, most, 4)
    up = charts.Axis(SIDE, 0, ticks)
    count = len(lines[0][1].middle)

    def at(values: Sequence[float]) -> list[tuple[float, float]]:
        return [(round(SIDE * i / (count - 1), 1), up(value)) for i, value in enumerate(values)]

    def text(points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{x},{y}" for x, y in points)

    return {
        "count": count,
        "ticks": up.marks(),
        "lines": [
            {
                "name": kind,
                "band": text([*at(line.low), *reversed(at(line.high))]),
                "middle": text(at(line.middle)),
            }
            for kind, line in lines
        ],
    }
