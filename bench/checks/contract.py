"""What a contract is: a check of a subject that is kept, broken with advice, or not applicable."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from bench.registry.registry import Entry

Verdict = Literal["kept", "broken", "skipped"]


class Broken(Exception):
    """A contract that does not hold.

    `difference` says what was found, and `advice` what the author of the class can change.
    """

    def __init__(self, difference: str, advice: str) -> None:
        super().__init__(f"{difference}; {advice}")


class NotApplicable(Exception):
    """A contract that says nothing about this class; the message is the reason."""


@dataclass(frozen=True)
class Result:
    """The outcome of one contract.

    `note` is the difference and the advice of a broken contract, the reason of a skipped one, and
    empty for one that is kept.
    """

    contract: str
    verdict: Verdict
    note: str = ""


@dataclass(frozen=True)
class Subject:
    """What is checked: a class of a method, metric, attack or detector.

    `configured` is an instance of `cls` with the parameters `values`. `folder` holds the suite
    `tiny.toml`, on whose model of random weights it is tried.
    """

    entry: Entry
    cls: type[Any]
    configured: Any
    values: dict[str, Any]
    folder: Path

    @cached_property
    def store(self) -> Path:
        """An empty folder below `folder` for images that several contracts read."""
        return Path(tempfile.mkdtemp(dir=self.folder))


# Raises `Broken` or `NotApplicable`; returns when the subject keeps the contract.
Contract = Callable[[Subject], None]
