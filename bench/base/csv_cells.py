"""Cells of CSV files that people open: no text of a stranger becomes a formula of a spreadsheet.

Lists of prompts are data that is read back, and hold their texts as they are.
"""

from __future__ import annotations

from typing import Any

FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the beginning of one


def csv_cell(value: Any) -> Any:
    """The value of a cell; a text that a spreadsheet would take for a formula gets an apostrophe
    in front.
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULAS) else value
