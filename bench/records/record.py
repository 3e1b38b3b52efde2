"""The run record: one JSON file per (suite, method, parameters), and the environment it was made
in.

Records are the source of truth: every table and page is a pure function of them. A number that
could not be measured is `null` with a reason.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.base import limits
from bench.base.digests import digest_of
from bench.base.errors import UnknownName, UserError, one_line
from bench.base.files import read_regular_file, write_atomically
from bench.base.names import PAGES
from bench.base.parameters import unknown_key, validation_line
from bench.records.versions import SCHEMA, upgraded
from bench.statistics.intervals import INTERVALS
from bench.statistics.units import Design

if TYPE_CHECKING:
    from pandas import DataFrame

# of suites and methods, which become parts of paths, and of scores, which become columns
NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"
# Columns of the tables that are no scores; a score `x` takes `x` and `x_` with each of the endings.
IDENTITY = (
    "method",
    "parameters",
    "where",
    "needs",
    "holds_against",
    "seeds",
    "pareto",
    "run",
    "measured_by",
)
ENDINGS = (
    "low",
    "high",
    "n",
    "by_seed",
    "by_group",
    "difference",
    "difference_low",
    "difference_high",
)


RowsBy = Literal["score", "group", "seed", "prompt"]  # of `RunRecord.to_frame`
FRAME_COLUMNS: dict[RowsBy, tuple[str, ...]] = {
    "score": (
        "value",
        "low",
        "high",
        "n",
        "prompts",
        "unit",
        "higher_is_better",
        "metric",
        "metric_version",
        "threat",
        "reason",
    ),
    "group": ("group", "value", "low", "high", "prompts", "unit", "metric"),
    "seed": ("generation", "value", "unit", "metric"),
    "prompt": ("prompt_id", "value", "unit", "metric"),
}
FRAME_TYPES = {
    **dict.fromkeys(("value", "low", "high"), "float64"),
    **dict.fromkeys(("n", "prompts", "metric_version", "generation"), "Int64"),
    "higher_is_better": "boolean",
}

# Numbers that tables can hold and add up.
Number = Annotated[float, Field(ge=-1e100, le=1e100)]
Count = Annotated[int, Field(ge=0, le=2**53)]
ScoreName = Annotated[str, Field(pattern=NAME)]


LONE = re.compile(r"\\u[dD][89a-fA-F]")  # half characters, which no page can hold


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Shown(_Strict):
    """How a table shows a score that is none of the built-in ones: its metric or attack declares
    it.
    """

    heading: str
    decimals: int = Field(default=3, ge=0, le=9)
    meaning: str


class Score(_Strict):
    """One number with its interval (95 %, None where there is none), what it was measured on, and
    by which version of which metric.
    """

    value: Number | None
    low: Number | None = None
    high: Number | None = None
    n: Count = Field(default=0, description="images or measurements behind the number")
    prompts: Count = Field(
        default=0, description="prompts behind the number; intervals resample prompts"
    )
    unit: str
    higher_is_better: bool | None
    metric: str
    metric_version: Count
    reason: str = Field(default="", description="why value is null")
    details: dict[str, Any] = Field(
        default_factory=dict, description="the operating point: profile, threshold, model, hashes"
    )
    statistic: Literal["lower_median", "lower_mad", "std"] | None = Field(
        default=None,
        description="of the values by prompt; null: their mean, or what details or the unit say",
    )
    groups: dict[str, Number] = Field(
        default_factory=dict, description="the same number by group of prompts"
    )
    group_intervals: dict[str, tuple[Number, Number]] = Field(
        default_factory=dict, description="its interval by group, where groups are few"
    )
    group_prompts: dict[str, Count] = Field(
        default_factory=dict, description="prompts behind it by group"
    )
    by_seed: list[Number | None] = Field(
        default_factory=list,
        description=(
            "the same number of each generation, where there are several; null: that one has none"
        ),
    )
    threat: Literal["api", "weights", "inputs"] | None = Field(
        default=None, description="of an attack: what the attacker holds"
    )
    role: str | None = Field(default=None, description="the role of prompts that it is of")
    shown: Shown | None = Field(
        default=None, description="how a table shows it, where its metric or attack says so"
    )

    @model_validator(mode="after")
    def _explained(self) -> Score:
        if self.value is None and not self.reason:
            raise ValueError("value is null without a reason")
        return self


class Thumbnail(_Strict):
    """A sample picture kept in the record: the first image of a prompt, and the training picture
    where the suite may share it.
    """

    prompt_id: str
    prompt: str
    group: str
    seed: int
    png: str = Field(description="base64 of the stored PNG")
    reference: str | None = Field(default=None, description="base64 of the training picture's PNG")


class RecordedSamples(_Strict):
    """The images of one role of prompts: how many, and sha256 of the pixels of those of some
    prompts, for whoever makes them again.
    """

    prompts: Count
    images: Count = Field(description="of each prompt, those of all seeds together")
    sha256: dict[str, list[str]] = Field(
        default_factory=dict,
        description=(
            "prompt id to its images' digests, first 16 hex digits, in the order of their seeds"
        ),
    )


class RecordedMaker(_Strict):
    """What made some of the images: as far as it may decide a pixel."""

    images: Count
    device: str = ""
    device_name: str = ""
    dtype: str = Field(default="", description="number type of the UNet's weights")
    batch_size: int | None = Field(default=None, description="images sampled together")
    execution: dict[str, Any] = Field(
        default_factory=dict, description="what differs from the defaults: attention, TF32, ..."
    )
    bench: str | None = None
    packages: dict[str, str | None] = Field(default_factory=dict)


class RecordedDesign(_Strict):
    """How the prompts of one role hang together, by their ids."""

    clusters: dict[str, Count] = Field(
        default_factory=dict,
        description=(
            "number of the cluster of each prompt that shares its training picture or half of its"
            " words with another"
        ),
    )
    strata: dict[str, str] = Field(
        default_factory=dict, description="group of each prompt, where their numbers were fixed"
    )

    @property
    def design(self) -> Design:
        """The same for whoever makes intervals."""
        return Design(self.clusters, self.strata)


def recorded_designs(designs: Mapping[str, Design]) -> dict[str, RecordedDesign]:
    """Those of them under which some prompts hang together, or lie in strata, by their names."""
    return {
        name: RecordedDesign(clusters=dict(design.clusters), strata=dict(design.strata))
        for name, design in designs.items()
        if design.clusters or any(design.strata.values())
    }


class RecordedReferences(_Strict):
    """Training pictures of one role of prompts: how many prompts ought to have one, and how many
    have; links rot.
    """

    expected: Count
    found: Count


class RecordedExhibit(_Strict):
    """What an attack found, to look at: generations of one prompt and the training picture that
    they betray.
    """

    attack: str
    prompt_id: str
    prompt: str
    group: str
    caption: str
    pictures: list[str] = Field(description="base64 of PNGs, shrunk where they are large")
    reference: str | None = Field(default=None, description="base64 of the training picture's PNG")


class RunRecord(_Strict):
    schema_version: Literal[2] = 2
    run: str = Field(
        pattern=r"^[0-9a-f]+$",
        description="hash of suite, method, parameters and metric versions; the file's name",
    )
    status: Literal["running", "complete", "partial", "failed"]
    suite: str = Field(pattern=NAME)
    suite_version: Count
    suite_fingerprint: str
    limit: Count | None = None
    seeds: int = Field(
        default=1,
        ge=1,
        le=10_000,
        description=(
            "generations of every prompt, each from seeds of its own; a method is fitted once, and"
            " searches for known pictures are made once"
        ),
    )
    intervals: str = Field(default=INTERVALS, description="how the intervals of scores were made")
    track: Literal["held_out", "removal", "audit"] = Field(
        default="held_out",
        description=(
            "held_out: nothing that methods learn from is judged; removal: they learn from the"
            " prompts of the role memorized, which are judged"
        ),
    )
    group_name: str = "group"
    method: str = Field(pattern=NAME)
    method_version: Count
    where: str
    needs: list[str]
    paper: str
    holds_against: list[Literal["api", "weights"]] | None = Field(
        default=None,
        description=(
            "attackers whom the mitigation meets, measured; one with the weights meets edited"
            " weights only; null: not known"
        ),
    )
    parameters: dict[str, Any]
    changed: dict[str, Any] = Field(
        default_factory=dict, description="the parameters that are not the method's defaults"
    )
    tuning: dict[str, Any] | None = Field(
        default=None, description="how the parameters were chosen, when `bench tune` chose them"
    )
    sources: dict[str, str] = Field(
        default_factory=dict,
        description="sha256 of what is no built-in; a plug-in's after its distribution and version",
    )
    images: dict[str, Count] = Field(default_factory=dict, description="images by prompt role")
    references: dict[str, RecordedReferences] = Field(
        default_factory=dict, description="training pictures expected and found, by prompt role"
    )
    samples: dict[str, RecordedSamples] = Field(
        default_factory=dict, description="the images by prompt role, as digests"
    )
    made_by: list[RecordedMaker] = Field(
        default_factory=list,
        description="what made the images, most first; images may be older than the run",
    )
    design: dict[str, RecordedDesign] = Field(
        default_factory=dict,
        description="by prompt role, which prompts stand or fall together: intervals follow it",
    )
    scores: dict[ScoreName, Score] = Field(default_factory=dict)
    facts: dict[str, dict[str, Number]] = Field(
        default_factory=dict,
        description="what the method reported of its images, means by prompt role",
    )
    cost: dict[ScoreName, Score] = Field(default_factory=dict)
    attacks: dict[ScoreName, Score] = Field(default_factory=dict)
    per_prompt: dict[str, dict[str, Number]] = Field(
        default_factory=dict,
        description=(
            "score name to prompt id to mean over its images; of a median over prompts, over its"
            " generations"
        ),
    )
    thumbnails: list[Thumbnail] = Field(default_factory=list, max_length=limits.RECORD_PICTURES)
    exhibits: list[RecordedExhibit] = Field(default_factory=list, max_length=limits.RECORD_PICTURES)
    environment: dict[str, Any] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)
    errors: list[str] = Field(default_factory=list)
    content_sha256: str = Field(
        default="",
        description=(
            "of everything else in the file, in canonical form; empty in records from before there"
            " was one"
        ),
    )

    @model_validator(mode="after")
    def _names_have_columns(self) -> RunRecord:
        if self.suite.lower() in PAGES:
            raise ValueError(f"a suite cannot be called '{self.suite}': a page has that name")
        names = [name for scores in (self.scores, self.cost, self.attacks) for name in scores]
        taken = Counter(
            [*IDENTITY, *names, *(f"{name}_{ending}" for name in names for ending in ENDINGS)]
        )
        for name in names:
            if taken[name] > 1:
                raise ValueError(
                    f"a score cannot be called '{name}': a column of the tables has that name"
                )
        return self

    def path(self, records: Path) -> Path:
        return records / self.suite / self.method / f"{self.run}.json"

    def to_frame(self, by: RowsBy = "score") -> DataFrame:
        """The numbers of the record as a tidy pandas DataFrame, at full precision.

        `by` says what a row stands for. "score": one number of the record with its 95 % interval
        (`low`, `high`), the images or measurements behind it (`n`), its unit and its metric; a
        number that could not be measured is NaN and has a `reason`. "group": the same number for
        one group of prompts. "seed": for one of several generations. "prompt": its
        mean over the images of one prompt.

        Every row also has `suite`, `method`, `run`, `part` ("scores", "attacks" or "cost") and
        `score`, so that frames of several records can be concatenated. Raises `UserError` for any
        other `by`.
        """
        import pandas

        if by not in get_args(RowsBy):
            raise UnknownName("kind of row", str(by), get_args(RowsBy))
        rows = [
            {
                "suite": self.suite,
                "method": self.method,
                "run": self.run,
                "part": part,
                "score": name,
                "unit": score.unit,
                "metric": score.metric,
                **cells,
            }
            for part in ("scores", "attacks", "cost")
            for name, score in getattr(self, part).items()
            for cells in self._cells(name, score, by)
        ]
        columns = ["suite", "method", "run", "part", "score", *FRAME_COLUMNS[by]]
        types = {name: kind for name, kind in FRAME_TYPES.items() if name in columns}
        return pandas.DataFrame(rows, columns=columns).astype(types)

    def _cells(self, name: str, score: Score, by: RowsBy) -> list[dict[str, Any]]:
        """What the rows of one score hold besides its name, unit and metric."""
        if by == "score":
            return [{column: getattr(score, column) for column in FRAME_COLUMNS["score"]}]
        if by == "seed":
            return [{"generation": i, "value": value} for i, value in enumerate(score.by_seed)]
        if by == "prompt":
            values = self.per_prompt.get(name, {})
            return [{"prompt_id": prompt, "value": value} for prompt, value in values.items()]
        rows = []
        for group, value in score.groups.items():
            low, high = score.group_intervals.get(group, (None, None))
            prompts = score.group_prompts.get(group)
            rows.append(
                {"group": group, "value": value, "low": low, "high": high, "prompts": prompts}
            )
        return rows

    def save(self, records: Path) -> Path:
        """Write atomically below the folder of records; returns the file."""
        path = self.path(records)
        plain = json.loads(json.dumps(self.model_dump(), allow_nan=False))
        self.content_sha256 = plain["content_sha256"] = content_digest(plain)
        content = json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        write_atomically(path, content.encode())
        return path


def content_digest(content: dict[str, Any]) -> str:
    """sha256 over a record as JSON reads it, without the field that holds it.

    Fields that later versions add do not change it.
    """
    return digest_of({key: value for key, value in content.items() if key != "content_sha256"})


def load_record(path: Path | str) -> RunRecord:
    """Read one record. Raises `UserError` naming the file when it is truncated, of the wrong form,
    of another schema, or was changed after it was made.
    """
    path = Path(path)
    try:
        text = read_regular_file(path, limits.RECORD_BYTES).decode()
        content = json.loads(text, parse_constant=_refuse)
        if LONE.search(text):
            json.dumps(content, ensure_ascii=False).encode()
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"record {path} cannot be read: {one_line(error)[:300]}") from error
    if not isinstance(content, dict):
        raise UserError(f"record {path} holds no object but {type(content).__name__}")
    try:
        current = upgraded(content)  # before anything else: an older form has other fields
        record = RunRecord.model_validate(current)
        digest = content_digest(content)
    except ValidationError as error:
        what = unknown_key(error, RunRecord, "field") or validation_line(error)
        raise UserError(f"record {path}: {str(what)[:600]}") from error
    # numbers beyond any range, nesting beyond any stack
    except (UserError, ValueError, RecursionError) as error:
        raise UserError(f"record {path}: {one_line(error)[:600]}") from error
    if not record.content_sha256 and content["schema_version"] > 1:
        raise UserError(f"record {path} has no sha256 of its content; measure it again")
    if record.content_sha256 and record.content_sha256 != digest:
        raise UserError(
            f"record {path} was changed after it was made: its content does not match its sha256;"
            " measure it again"
        )
    return record


def record_schema() -> dict[str, Any]:
    """The JSON Schema of a record as this version writes it."""
    schema: dict[str, Any] = _with_descriptions_on_one_line(RunRecord.model_json_schema())
    return schema | {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Run record, schema {SCHEMA}",
    }


def _with_descriptions_on_one_line(value: Any) -> Any:
    """A JSON Schema whose descriptions do not depend on where a docstring breaks its lines."""
    if isinstance(value, list):
        return [_with_descriptions_on_one_line(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: (
            " ".join(item.split())
            if key == "description" and isinstance(item, str)
            else _with_descriptions_on_one_line(item)
        )
        for key, item in value.items()
    }


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"it holds {constant}")


def load_records(folder: Path) -> tuple[list[RunRecord], list[Damaged]]:
    """Every record below a folder, in the order of their paths, and the files that cannot be used.

    A record in another's place is one of these, so that none counts twice.
    """
    records, damaged = [], []
    for path in sorted(folder.rglob("*.json")):
        try:
            record = load_record(path)
            if record.path(folder) != path:
                raise UserError(f"record {path} says that it belongs at {record.path(folder)}")
            records.append(record)
        except UserError as error:
            place = path.relative_to(folder).parts[0]
            suite = (
                place
                if path.parent != folder and re.match(NAME, place) and place.lower() not in PAGES
                else ""
            )
            damaged.append(Damaged(path, suite, one_line(error).replace(f"{folder}/", "")))
    return records, damaged


@dataclass(frozen=True)
class Damaged:
    """A file below a folder of records that cannot be used: its path, the suite in whose folder it
    lies (or empty), and what is wrong, in one line.
    """

    path: Path
    suite: str
    why: str  # paths in it are relative to the folder
