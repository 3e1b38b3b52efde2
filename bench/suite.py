"""A suite: the frozen, fingerprinted protocol that every method runs through, read from one TOML file.

Paths in the file are relative to the file. The fingerprint covers the protocol and the contents of every local file it
names, so two records with the same fingerprint answered the same question.
"""

from __future__ import annotations

import csv
import hashlib
import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from bench.errors import UnknownName, UserError, one_line
from bench.parameters import validation_line
from bench.registry import find_suite

ROLES = ("fit", "calibration", "memorized", "clean", "quality")
Role = Literal["fit", "calibration", "memorized", "clean", "quality"]
Scheduler = Literal[
    "DDIMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
]

# Settings that are younger than records, as paths in the dumped settings. While one holds its default, what it came to say is what
# older suites said without it, so it is no part of fingerprints and keys, and these stay as they were.
LATER = ("model.config", "model.vae_tiling")


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(_Frozen):
    """The pipeline and how it is sampled: everything that decides a picture besides prompt, seed and method."""

    path: str = Field(description="diffusers folder or `.safetensors` checkpoint in one file, relative to the suite file")
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    scheduler: Scheduler = Field("DDIMScheduler", description="class name in diffusers; those that draw no noise of their own")
    steps: int = Field(50, ge=1)
    guidance_scale: float = Field(7.5, ge=0)
    side: int = Field(512, ge=8, description="pixels; must be what the model gives")
    batch_size: int = Field(8, ge=1, description="images sampled together")
    config: str | None = Field(
        None, description="for a checkpoint in one file: a diffusers folder with configs, tokenizer and scheduler; weights are not needed"
    )
    vae_tiling: bool = Field(False, description="decode in tiles, for large pictures; changes pixels where tiles meet")


class PromptSettings(_Frozen):
    """One role's prompts: a CSV with the column `prompt`, optionally `id`, `group`, `reference` (a path) and more to filter on."""

    file: str
    where: dict[str, str] = Field(default_factory=dict, description="keep rows whose columns have these values")
    groups: tuple[str, ...] = Field((), description="keep rows of these groups; all by default")
    part: tuple[int, int] | None = Field(None, description="[i, n]: keep every n-th row, beginning with row i")
    limit: int | None = Field(None, ge=1, description="keep this many, evenly spread over the list")
    images_per_prompt: int = Field(1, ge=1)

    @field_validator("part")
    @classmethod
    def _part_of_a_whole(cls, part: tuple[int, int] | None) -> tuple[int, int] | None:
        if part and not 0 <= part[0] < part[1]:
            raise ValueError("part must be [i, n] with 0 <= i < n")
        return part


class SuiteSettings(_Frozen):
    """The TOML file, checked. Unknown keys are errors."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    version: int = Field(1, ge=1)
    description: str = ""
    seed: int = Field(0, ge=0, description="base of every image's own seed")
    group_name: str = Field("group", description="what the column `group` means, for tables")
    share_references: bool = Field(False, description="reference pictures may be stored in records and shown on pages")
    model: ModelSettings
    prompts: dict[Role, PromptSettings]
    metrics: dict[str, dict[str, Any]] = Field(min_length=1, description="metric names to their parameters")
    attacks: dict[str, dict[str, Any]] = Field(default_factory=dict, description="attack names to their parameters")

    def judges(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Metrics, then attacks: kind, name and parameters of each."""
        return [("metric", *item) for item in self.metrics.items()] + [("attack", *item) for item in self.attacks.items()]

    @field_validator("name")
    @classmethod
    def _no_page_has_it(cls, name: str) -> str:
        if name in ("published", "record.schema", "readme"):
            raise ValueError(f"a suite cannot be called '{name}': a page of the leaderboards has that name")
        return name

    @field_validator("prompts")
    @classmethod
    def _memorized_is_there(cls, prompts: dict[str, PromptSettings]) -> dict[str, PromptSettings]:
        if "memorized" not in prompts:
            raise ValueError("a suite needs prompts of the role memorized")
        return prompts


@dataclass(frozen=True)
class Prompt:
    """One prompt: `id` is unique in its file, `group` a label such as the number of times it was trained on."""

    id: str
    text: str
    group: str
    references: tuple[Path, ...]


@dataclass(frozen=True)
class Suite:
    """A suite ready to run: settings, where they came from, and a limit on prompts per role (which changes the fingerprint)."""

    settings: SuiteSettings
    file: Path
    limit: int | None = None

    @property
    def name(self) -> str:
        return self.settings.name

    def path(self, relative: str) -> Path:
        """A path of the suite file, made absolute. Raises `UserError` when nothing is there."""
        path = (self.file.parent / relative).resolve()
        if not path.exists():
            raise UserError(f"suite {self.name}: '{relative}' is missing (looked at {path})")
        return path

    def prompts(self, role: Role) -> tuple[Prompt, ...]:
        """The prompts of a role, in file order. Empty when the suite has none; `UserError` when its list is empty or malformed."""
        return self._prompts_by_role.get(role, ())

    @cached_property
    def _prompts_by_role(self) -> dict[str, tuple[Prompt, ...]]:
        return {role: self._read_prompts(role, settings) for role, settings in self.settings.prompts.items()}

    def _read_prompts(self, role: str, settings: PromptSettings) -> tuple[Prompt, ...]:
        file = self.path(settings.file)
        try:
            with file.open(newline="", encoding="utf-8") as stream:
                reader = csv.DictReader(stream)
                columns, table = set(reader.fieldnames or ()), list(reader)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"suite {self.name}: the prompt list {file} cannot be read: {one_line(error)}") from error
        for column in {"prompt", *settings.where, *(("group",) if settings.groups else ())}:
            if column not in columns:
                raise UserError(f"suite {self.name}: {file} has no column '{column}' (it has: {', '.join(sorted(columns)) or 'none'})")
        rows = [row for row in table if all(row[key] == value for key, value in settings.where.items())]
        if settings.groups:
            rows = [row for row in rows if row["group"] in settings.groups]
        if settings.part:
            rows = rows[settings.part[0] :: settings.part[1]]
        rows = _spread(_spread(rows, settings.limit), self.limit)
        blank = next((number for number, row in enumerate(rows) if not (row["prompt"] or "").strip()), None)
        if blank is not None:
            raise UserError(f"suite {self.name}: prompt number {blank + 1} of the role {role} in {file} is empty")
        if not rows:
            raise UserError(f"suite {self.name}: no prompts of the role {role} in {file} ({settings.where or 'no filter'})")
        prompts = tuple(
            Prompt(row.get("id") or f"{role}-{i:05d}", row["prompt"], row.get("group") or "", self._references(row.get("reference") or "", file))
            for i, row in enumerate(rows)
        )
        if len({prompt.id for prompt in prompts}) != len(prompts):
            raise UserError(f"suite {self.name}: prompt ids in {file} are not unique")
        return prompts

    def _references(self, listed: str, file: Path) -> tuple[Path, ...]:
        paths = tuple(file.parent / name for name in listed.split("|") if name)
        for path in paths:
            if not path.is_file():
                raise UserError(f"suite {self.name}: reference picture {path} is missing")
        return paths

    def image_seed(self, prompt: str, index: int) -> int:
        """The seed of image `index` of a prompt: its own 63 bits, so prompts do not share initial noise."""
        digest = hashlib.sha256(f"{self.settings.seed}\0{prompt}\0{index}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    @cached_property
    def generation(self) -> dict[str, Any]:
        """What decides a picture besides prompt, seed and method: the key part of the sample store."""
        model = self.picture_settings
        if "config" in model:
            model["config"] = path_digest(self.path(model["config"]))
        return model | {"model_sha256": path_digest(self.path(self.settings.model.path))}

    @property
    def picture_settings(self) -> dict[str, Any]:
        """The settings of the model that decide a picture, without the contents of its files."""
        model = without_later({"model": self.settings.model.model_dump()}, self.settings)["model"]
        return {key: value for key, value in model.items() if key not in ("path", "batch_size")}

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the protocol and the contents of every file it names, 16 hex digits."""
        settings = without_later(self.settings.model_dump(mode="json", exclude={"description"}), self.settings)
        files = {settings["model"]["path"], *(p["file"] for p in settings["prompts"].values())}
        files |= {config for config in (self.settings.model.config,) if config}
        files |= {value for _, _, parameters in self.settings.judges() for value in parameters.values() if self._names_file(value)}
        references = sorted({r for role in self.settings.prompts for p in self.prompts(role) for r in p.references})
        content = {
            "settings": settings,
            "limit": self.limit,
            "files": {name: path_digest(self.path(name)) for name in sorted(files)},
            "references": [path_digest(path) for path in references],
        }
        return digest_of(content)[:16]

    def _names_file(self, value: Any) -> bool:
        return isinstance(value, str) and value != "" and (self.file.parent / value).exists()


def without_later(dumped: dict[str, Any], settings: BaseModel) -> dict[str, Any]:
    """Dumped settings without those of `LATER` that hold their default. `*` in a path stands for every key of a table."""
    for path in LATER:
        _drop_default(dumped, settings, path.split("."))
    return dumped


def _drop_default(dumped: dict[str, Any], settings: Any, path: list[str]) -> None:
    first, *rest = path
    if not rest:
        if first in dumped and getattr(settings, first) == type(settings).model_fields[first].default:
            del dumped[first]
        return
    for key in list(dumped) if first == "*" else [key for key in (first,) if key in dumped]:
        _drop_default(dumped[key], settings[key] if isinstance(settings, dict) else getattr(settings, key), rest)


def load_suite(name: str, limit: int | None = None) -> Suite:
    """A shipped suite by name or a TOML file by path. `limit` keeps that many prompts of every role, for trying things out."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit must be at least 1, not {limit}")
    file = find_suite(name)
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"suite file {file} is not valid TOML: {one_line(error)}") from error
    _refuse_unknown_keys(file, table)
    try:
        return Suite(SuiteSettings.model_validate(table), file, limit)
    except ValidationError as error:
        raise UserError(f"suite file {file}: {validation_line(error)}") from error


def _refuse_unknown_keys(file: Path, table: dict[str, Any]) -> None:
    """Pydantic would refuse them too; this says what was probably meant."""
    sections: list[tuple[str, Any, type[BaseModel]]] = [("", table, SuiteSettings), ("model.", table.get("model"), ModelSettings)]
    prompts = table.get("prompts")
    if isinstance(prompts, dict):
        for role in prompts:
            if role not in ROLES:
                raise UnknownName(f"prompt role in {file.name}", role, ROLES)
        sections += [(f"prompts.{role}.", section, PromptSettings) for role, section in prompts.items()]
    for prefix, section, model in sections:
        for key in section if isinstance(section, dict) else ():
            if key not in model.model_fields:
                raise UnknownName(f"key in {file.name}", prefix + key, (prefix + known for known in model.model_fields))


def _spread(rows: list[dict[str, str]], limit: int | None) -> list[dict[str, str]]:
    """`limit` rows at even distances, so that a short list still covers every group."""
    if limit is None or len(rows) <= limit:
        return rows
    return [rows[i * len(rows) // limit] for i in range(limit)]


def digest_of(content: Any) -> str:
    """sha256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def path_digest(path: Path) -> str:
    """sha256 of a file, or of a folder's relative names and contents."""
    if path.is_dir():
        return digest_of({str(file.relative_to(path)): _file_digest(file) for file in _files(path)})
    return _file_digest(path)


def _files(folder: Path) -> Iterable[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)


def _file_digest(path: Path) -> str:
    status = path.stat()
    return _cached_file_digest(path, status.st_size, status.st_mtime_ns)


@cache
def _cached_file_digest(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
