"""Who makes the units of a run and does the work of attacks prompt by prompt: this process, or workers of Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from bench.generating import generate
from bench.method import State
from bench.work import Unit

if TYPE_CHECKING:
    from bench.runner import Run

Item = TypeVar("Item")
Result = TypeVar("Result")


class Executor(Protocol):
    """Makes units and maps functions. `ahead`: whether it makes what attacks will ask for together with the images of the roles."""

    ahead: bool

    def make(self, run: Run, state: State, units: Sequence[Unit]) -> None:
        """Store those images of the units that the store does not hold."""
        ...

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results in the order of the items, as they come."""
        ...


class Local:
    """One unit after the other in this process, and attacks when they ask."""

    ahead = False

    def make(self, run: Run, state: State, units: Sequence[Unit]) -> None:
        generate(run, state, units)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        return map(function, items)
