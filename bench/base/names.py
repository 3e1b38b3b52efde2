"""Names that are taken already."""

from __future__ import annotations

PAGES = ("published", "record.schema", "readme")  # of the leaderboards; no suite may have them
