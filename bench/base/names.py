"""Names that are taken already."""

from __future__ import annotations

PAGES = ("published", "record.schema", "readme", "index")  # no suite may be called so
DETECTORS = "detectors-"  # how the pages of detectors begin, and so no suite's name

EXPERIMENTS = "experiment-"  # how the pages of experiments begin, likewise


def detectors_page(suite: str) -> str:
    """The name of the page of a suite's detectors, without ending."""
    return f"{DETECTORS}{suite}"


def experiment_page(folder: str) -> str:
    """The name of the page of an experiment on some data, without ending."""
    return f"{EXPERIMENTS}{folder}"
