"""Records of older schemas: a step from each to the next, so that a record is never too old to be
read.

A step changes the plain content of the JSON file. What an older form did not hold stays unknown and
is not guessed, but for what follows from its other fields.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.base.errors import UserError

SCHEMA = 2  # that this version writes


def upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """A record's content in the form of `SCHEMA`; the one given stays as it is.

    Raises `UserError` for a schema that is unknown or newer.
    """
    known = content.get("schema_version")
    if isinstance(known, bool) or not isinstance(known, int) or not 1 <= known <= SCHEMA:
        newer = (
            "; a newer version of the bench made it"
            if isinstance(known, int) and known > SCHEMA
            else ""
        )
        raise UserError(
            f"schema_version is {known!r:.40}, and this version reads 1 to {SCHEMA}{newer}"
        )
    for version in range(known, SCHEMA):
        content = STEPS[version](content) | {"schema_version": version + 1}
    return content


def _from_1(content: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 had one generation, plain percentile intervals, no digests of images, and did not
    know whom a method holds against.
    """
    against: list[str] | None = [] if content.get("method") == "none" else None
    return {
        "seeds": 1,
        "intervals": "percentile bootstrap over prompts",
        "holds_against": against,
    } | content


# by the schema that they start from
STEPS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}
