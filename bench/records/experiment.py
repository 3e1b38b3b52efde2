"""The file of an experiment that trains models (`bench experiment`): what was asked, the raw number
of every item, and the tables that follow from them.

An experiment is no row of the method board: it says something of training, and its page stands
beside the boards.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bench.base.digests import digest_of
from bench.base.files import write_atomically
from bench.records.files import load_below, load_file
from bench.records.record import NAME, Count, Number


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Cell(_Strict):
    """A number with its 95 % interval, where it has one, over `n` items. `note` stands in the place
    of a number that there is none of, and behind one that there is.
    """

    value: Number | None = None
    low: Number | None = None
    high: Number | None = None
    n: Count = 0
    note: str = ""


class Column(_Strict):
    """What stands in one column of a table."""

    heading: str
    decimals: Annotated[int, Field(ge=0, le=9)] = 3
    means: str = ""


class Curves(_Strict):
    """Columns of a table as lines over its rows, whose labels are then numbers."""

    x_name: str
    y_name: str
    columns: list[str]
    logarithmic: bool = False
    chance: Number | None = None  # where a dashed line is drawn


class ResultTable(_Strict):
    """A table of results: a row a label, a cell a column."""

    name: str = Field(pattern=NAME)
    title: str
    means: str = ""
    rows_are: str
    columns: list[Column]
    labels: list[str]
    cells: list[list[Cell]]
    curves: Curves | None = None

    @model_validator(mode="after")
    def _fits(self) -> ResultTable:
        if len(self.cells) != len(self.labels) or any(
            len(row) != len(self.columns) for row in self.cells
        ):
            raise ValueError(
                f"table {self.name} needs a row for each label, a cell for each column"
            )
        if self.curves:
            known = {column.heading for column in self.columns}
            if unknown := [name for name in self.curves.columns if name not in known]:
                raise ValueError(f"curves of table {self.name} name no column {unknown[0]!r}")
            for label in self.labels:
                float(label)
        return self

    def cell(self, label: str, heading: str) -> Cell:
        """The cell of a row and a column."""
        headings = [column.heading for column in self.columns]
        return self.cells[self.labels.index(label)][headings.index(heading)]


class Experiment(_Strict):
    """The content of `leaderboards/experiments/<experiment>-<data>/<label>-<digits>.json`."""

    schema_version: Literal[1] = 1
    experiment: str = Field(pattern=NAME)
    experiment_version: Count
    data: str = Field(pattern=NAME, description="name of the suite or of the pictures")
    label: str = Field(pattern=NAME, description="what tells it from others of its page")
    title: str
    about: list[str] = Field(description="what was asked, in sentences")
    claim: str = Field("", description="what the paper claims")
    found: list[str] = Field(
        default_factory=list, description="what the tables say of it, in sentences"
    )
    paper: str = ""
    model: str
    model_sha256: str
    data_sha256: str
    settings: dict[str, Any]
    raw: dict[str, Any] = Field(description="by item; every table follows from it")
    tables: list[ResultTable]
    environment: dict[str, Any]

    @property
    def folder(self) -> str:
        """The name of its folder, and of its page."""
        return f"{self.experiment}-{self.data}"

    @property
    def file_name(self) -> str:
        """The same question to the same model and data has the same name."""
        content = [self.experiment_version, self.model_sha256, self.data_sha256, self.settings]
        return f"{self.label}-{digest_of(content)[:8]}.json"

    def table(self, name: str) -> ResultTable:
        """One of its tables. Raises `KeyError` for a name that none has."""
        return {table.name: table for table in self.tables}[name]

    def save(self, folder: Path) -> Path:
        """Write the file below `folder`, atomically; returns its path."""
        path = folder / self.folder / self.file_name
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        write_atomically(path, (content + "\n").encode())
        return path


def load_experiment(path: Path) -> Experiment:
    """Read one file. Raises `UserError` when it is missing, damaged or of another form."""
    return load_file(path, Experiment, "experiment")


def load_experiments(folder: Path) -> tuple[list[Experiment], list[tuple[str, str]]]:
    """All files below a folder; and of each that cannot be used, its folder and what is wrong."""
    return load_below(folder, load_experiment)
