"""What an audit would make, before it makes it."""

from __future__ import annotations

from typing import Any

from bench.auditing.ready import Audit
from bench.auditing.rows import compared, remedy_columns
from bench.auditing.sampling import Column, Generated, planned
from bench.auditing.suites import FEW
from bench.base.pictures import PNG_BYTES_PER_PIXEL


def plan(audit: Audit) -> dict[str, Any]:
    """What would be made, in numbers, without making it."""
    studio = audit.studio
    steps = audit.suite.settings.model.steps
    side = audit.suite.settings.model.side
    columns: list[tuple[Column, Generated]] = []
    yours = planned(studio.prepared(audit.yours), [*audit.askings, *audit.held_out_askings])
    columns.append((audit.yours, yours))
    if audit.base:
        columns.append((audit.base, planned(studio.prepared(audit.base), audit.askings)))
    for column, _, _ in audit.settings():
        columns.append((column, planned(studio.prepared(column), compared(audit.askings), FEW)))
    for column in remedy_columns(audit):
        columns.append((column, planned(studio.prepared(column), compared(audit.askings), FEW)))
    images = {column.name: len(set(generated.keys)) for column, generated in columns}
    missing = sum(len(made.prepared.images.lacking(made.keys)) for _, made in columns)
    return {
        "pictures": len(audit.training),
        "held_out": len(audit.holdout) if audit.holdout else 0,
        "prompts": len(audit.askings),
        "images": images,
        "images_missing": missing,
        "row_evaluations": 2 * steps * missing,
        "disk_mib": round(missing * side * side * PNG_BYTES_PER_PIXEL / 2**20, 1),
        "out": str(audit.asked.out),
    }
