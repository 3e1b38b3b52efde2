"""Who makes the units of a run and does the work of attacks prompt by prompt: this process, or
workers of Ray.

A worker of Ray is an actor: it loads the model once, keeps its GPU as long as it lives, and is
given one unit at a time. The process that asks gives a unit whose worker was lost to the next free
one. Workers end when the units are stored, so that nothing holds memory while scores are measured
and timed. The store is where results meet: workers write shards, and whoever asked reads them from
there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import Protocol, TypeVar

from bench.base.progress import Report
from bench.contracts.method import State
from bench.running.engine import Engine
from bench.running.experiment import Experiment
from bench.running.generating import generate
from bench.running.images import Images
from bench.running.pieces import Piece
from bench.running.units import Unit
from bench.store.store import SampleKey

Item = TypeVar("Item")
Result = TypeVar("Result")


class Executor(Protocol):
    """Makes units and maps functions.

    `ahead` says whether it makes what attacks will ask for together with the images of the roles.
    """

    @property
    def ahead(self) -> bool: ...

    def make(
        self,
        experiment: Experiment,
        engine: Engine,
        images: Images,
        state: State,
        units: Sequence[Unit],
        read: Set[SampleKey],
        report: Report,
    ) -> None:
        """Store those images of the units that the store does not hold.

        Images in `read` will be read as pictures, so theirs may not have been dropped.
        """
        ...

    def search(
        self,
        experiment: Experiment,
        engine: Engine,
        images: Images,
        state: State,
        pieces: Sequence[Piece],
        report: Report,
    ) -> None:
        """Store what attacks on known pictures find, piece by piece, where that is worth while
        before they ask for it themselves.
        """
        ...

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results in the order of the items, as they come."""
        ...


class Local:
    """One unit after the other in this process; images of an attack when it asks."""

    ahead = False

    def make(
        self,
        experiment: Experiment,
        engine: Engine,
        images: Images,
        state: State,
        units: Sequence[Unit],
        read: Set[SampleKey],
        report: Report,
    ) -> None:
        generate(experiment, engine, images, state, units, read, report)

    def search(
        self,
        experiment: Experiment,
        engine: Engine,
        images: Images,
        state: State,
        pieces: Sequence[Piece],
        report: Report,
    ) -> None:
        """Nothing: the attack finds it in this process."""

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        return map(function, items)
