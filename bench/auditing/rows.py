"""Weights, epochs and remedies: each with its images of the same prompts and seeds, and held
against the weights between the base and the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.auditing.asked import Lora
from bench.auditing.commands import are_sayable, filter_command
from bench.auditing.curve import Point, against_curve, has_between, use
from bench.auditing.filtered import FILTER
from bench.auditing.prompts import Asking
from bench.auditing.ready import Audit
from bench.auditing.result import Row
from bench.auditing.sampling import Column, Generated, Studio
from bench.auditing.suites import FEW
from bench.auditing.verdicts import hits
from bench.base.errors import UserError
from bench.diffusion.lora.merge import Strength
from bench.records.record import Score
from bench.registry import registry

NO_WEIGHTS = "not compared: no weight between base and model was tried"
TRAVELS = {"weights": "as a checkpoint", "file": "yes", "served": "only where you serve the model"}


def rows_of(audit: Audit, studio: Studio) -> tuple[Row, ...]:
    """Weights, epochs and remedies, each against the curve."""
    asking = compared(audit.askings)

    def point(column: Column, kind: str, weight: float | None, travels: str) -> Point:
        made = studio.made(column, asking, FEW)
        seen = audit.comparison.seen_of(made)
        hit = hits(seen.similarity, audit.judges.threshold, seen.held_out)
        novel = audit.comparison.novel(made)
        return Point(
            column.name,
            _copies(hit, made, len(audit.training)),
            novel[0] if novel else None,
            novel[1] if novel else None,
            weight,
            travels,
            kind,
            audit.groups,
        )

    points = [point(audit.yours, "weight", 1.0, travels_as(audit.yours))]
    if base := audit.base_with_embeddings:
        points.insert(0, point(base, "weight", 0.0, TRAVELS["file"]))
    elif audit.base:
        points.insert(0, point(audit.base, "weight", 0.0, "it is the base"))
    for column, kind, weight in audit.settings():
        # What lies between two whole models is a whole model.
        travels = TRAVELS["weights"] if audit.asked.base else travels_as(column)
        points.append(point(column, kind, weight, travels))
    commands = {
        column.name: column.command
        for column in (audit.yours, *(one for one, _, _ in audit.settings()))
    }
    # A record times squares, and would make every caption once more as one.
    timed = not any(one.size for one in audit.askings)
    seconds: dict[str, float | None] = {}
    for column in remedy_columns(audit):
        where = registry.find("method", column.method).load().where
        travels = TRAVELS["weights"] if where == "weights" else TRAVELS["served"]
        if column.method == FILTER:  # what is left of the update is a file as before
            travels = TRAVELS["file"]
        commands[column.name] = column.command
        if timed:
            seconds[column.name] = _seconds(studio.record(column).cost)
        points.append(point(column, "remedy", None, travels))
    if seconds:
        seconds["yours"] = _seconds(studio.record(audit.yours).cost)
    return tuple(
        replace(_row(one, points, seconds.get(one.name)), command=commands.get(one.name, ""))
        for one in _ordered(points)
    )


def travels_as(column: Column) -> str:
    """How LoRA files at the strengths of a column travel: as files, where files can say these."""
    loras = column.suite.settings.model.loras
    files = [Lora(Path(one.file), Strength(*one.strengths)) for one in loras]
    return TRAVELS["file" if are_sayable(files) else "weights"]


def _ordered(points: Sequence[Point]) -> list[Point]:
    """Weights in their order, then epochs, then remedies."""
    weights = sorted((one for one in points if one.weight is not None), key=lambda p: p.weight or 0)
    others = [one for one in points if one.weight is None]
    return [
        *weights,
        *(one for one in others if one.kind == "epoch"),
        *(one for one in others if one.kind == "remedy"),
    ]


def _row(one: Point, points: Sequence[Point], seconds: float | None) -> Row:
    by_weight = {point.weight: point for point in points if point.weight is not None}
    base, yours = by_weight.get(0.0), by_weight[1.0]
    curve = list(by_weight.values())
    against = against_curve(one, curve) if one.weight is None else None
    return Row(
        name=one.name,
        kind=one.kind,
        weight=one.weight,
        copies=one.share,
        interval=one.interval,
        use=use(one, base, yours) if base else None,
        alignment=None if one.alignment is None else float(one.alignment.mean()),
        seconds=seconds,
        travels=one.travels,
        against=against.words if against else "",
        not_against=NO_WEIGHTS if one.weight is None and base and not has_between(curve) else "",
    )


def _seconds(cost: Mapping[str, Score | None]) -> float | None:
    """Seconds an image of a run's own timing, where it has one."""
    for name in ("seconds_per_image", "seconds_per_image_clean"):
        score = cost.get(name)
        value = getattr(score, "value", None)
        if value is not None:
            return float(value)
    return None


def _copies(hit: np.ndarray, made: Generated, pictures: int) -> np.ndarray:
    """By picture, whether each of the first images of its own caption copies it, float `[N, n]`."""
    table = np.full((pictures, FEW), np.nan)
    for number, one in enumerate(made.askings):
        if one.kind != "caption":
            continue
        rows = np.flatnonzero(made.prompt == number)
        each = min(FEW, len(rows) // len(one.own))
        for place, picture in enumerate(one.own):
            # Pictures that share a caption share its images: each gets its part of them.
            mine = rows[place * each : (place + 1) * each]
            found = np.asarray(hit[mine][:, np.array(one.own)].any(1))
            table[picture, : len(found)] = found
    return table[:, ~np.isnan(table).any(0)]


def remedy_columns(audit: Audit) -> list[Column]:
    """A column for each method to try. Those that need what the audit lacks are named in the notes
    and left out.
    """
    found = []
    for remedy in audit.remedies():
        given = ", ".join(f"{name} {value}" for name, value in remedy.parameters.items())
        name = f"{remedy.method} ({given})" if given else remedy.method
        parameters = dict(remedy.parameters)
        column = Column(name, audit.suite, remedy.method, parameters)
        column = replace(column, command=filter_command(audit.asked, column))
        try:
            audit.studio.planned(column, compared(audit.askings), FEW)  # in every size
        except UserError as error:
            if audit.asked.remedies is not None:
                raise
            audit.note(f"{remedy.method} was not tried: {error}")
            continue
        found.append(column)
    return found


def compared(asking: Sequence[Asking]) -> list[Asking]:
    """The prompts that weights and remedies are compared on: captions and novel scenes."""
    return [one for one in asking if one.kind in ("caption", "novel")]
