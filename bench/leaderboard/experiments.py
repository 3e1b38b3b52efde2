"""The page of one experiment on one set of data: the records that stand on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.base.names import experiment_page
from bench.records.experiment import Experiment


@dataclass(frozen=True)
class ExperimentBoard:
    """The records of one folder, by label; files that cannot be used are named in `damaged`.

    Experiments say something of training. None of their numbers stands on the board of methods.
    """

    folder: str
    records: tuple[Experiment, ...]
    damaged: tuple[str, ...]

    @property
    def page(self) -> str:
        """The name of its files, without ending."""
        return experiment_page(self.folder)

    @property
    def title(self) -> str:
        return self.records[0].title

    @property
    def data(self) -> str:
        return self.records[0].data


def make_experiment_boards(
    records: Sequence[Experiment], damaged: Sequence[tuple[str, str]]
) -> list[ExperimentBoard]:
    """One board a folder that has a record."""
    boards = []
    for folder in sorted({record.folder for record in records}):
        own = [record for record in records if record.folder == folder]
        own.sort(key=lambda record: (record.label, record.file_name))
        why = tuple(why for place, why in damaged if place == folder)
        boards.append(ExperimentBoard(folder, tuple(own), why))
    return boards
