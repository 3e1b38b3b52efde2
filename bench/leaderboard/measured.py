"""What was measured: the sentence that a shipped suite says of itself, and which model it is of.

A suite of somebody's own is not looked up: its record has a name and no file, and of its model its
page says nothing that nobody knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.registry.registry import SUITES, suites
from bench.suite.load import load_suite

EMBEDDED = SUITES.parent / "testbed" / "bundle" / "pipeline"


@dataclass(frozen=True)
class Measured:
    """What a suite says of itself, empty where another version of it was measured; whether it is of
    the embedded model; pixels of a side.
    """

    description: str
    embedded: bool
    side: int

    @property
    def sentences(self) -> str:
        """The description as a sentence, and the model where it is the embedded one."""
        said = [
            *([f"{self.description}."] if self.description else []),
            *([model_of(self.side)] if self.embedded else []),
        ]
        return " ".join(said)


def model_of(side: int) -> str:
    """The embedded model in a sentence."""
    return (
        f"The embedded model is a small one, of {side}x{side} pixels, that this project trained so"
        " that it memorizes some of its training pictures. What is found on it says nothing of"
        " Stable Diffusion."
    )


def measured(suite: str, version: int) -> Measured | None:
    """Of a shipped suite, by name and by the version that was measured; None for any other."""
    file = suites().get(suite)
    if file is None:
        return None
    settings = load_suite(suite).settings
    model: Path = file.parent / settings.model.path
    return Measured(
        settings.description if settings.version == version else "",
        model.resolve() == EMBEDDED.resolve(),
        settings.model.side,
    )


def all_embedded(found: Iterable[Measured | None]) -> int:
    """The pixels of a side where all suites are of the embedded model; else 0."""
    sides = {each.side if each and each.embedded else 0 for each in found}
    return sides.pop() if len(sides) == 1 else 0
