"""What a suite file may say (model, prompts by role, metrics and attacks), and which of it decides
numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from bench.base import limits
from bench.base.names import DETECTORS, EXPERIMENTS, PAGES
from bench.base.prompt_lists import NO_DELIMITERS, Format

# control: captions with pictures of the same kind that the model was never trained on. unnamed and
# neighbours: of the track `removal` alone, see `SuiteSettings.track`
ROLES = ("fit", "calibration", "memorized", "unnamed", "neighbours", "clean", "quality", "control")
Role = Literal[
    "fit", "calibration", "memorized", "unnamed", "neighbours", "clean", "quality", "control"
]
MEASURED_ROLES: tuple[Role, ...] = ("memorized", "unnamed", "neighbours", "clean", "quality")
OF_REMOVAL: tuple[Role, ...] = ("unnamed", "neighbours")
Track = Literal["held_out", "removal", "audit"]
# What detectors are judged on has these kinds, and those that a suite names.
KINDS_OF_PROMPTS = ("memorized", "clean", "calibration")
Scheduler = Literal[
    "DDIMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LoraSettings(_Frozen):
    """A LoRA file that is merged into the model before anything is generated."""

    file: str = Field(description="a safetensors file, relative to the suite file, or asset:NAME")
    weight: float = Field(
        1.0, allow_inf_nan=False, description="strength in the UNet; may be negative or above 1"
    )
    text_weight: float | None = Field(
        None, allow_inf_nan=False, description="strength in the text encoder; `weight` by default"
    )

    @property
    def strengths(self) -> tuple[float, float]:
        """In the UNet, and in the text encoder."""
        return self.weight, self.weight if self.text_weight is None else self.text_weight


class EmbeddingSettings(_Frozen):
    """A textual inversion (Gal et al. 2023): a word of its own, with one vector or several."""

    path: str = Field(description="a safetensors file, relative to the suite file, or asset:NAME")
    token: str = Field(
        "",
        description=(
            "the word in prompts that stands for it; by default the one that the file says, else"
            " the file's name without .safetensors"
        ),
    )


Pair = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]


class SizeConditioning(_Frozen):
    """What Stable Diffusion XL is told of the picture that it is to make: how large it was once,
    and which part of it is shown. In pixels, height or top first.
    """

    original: Pair | None = Field(None, description="[height, width]; the model's side by default")
    crop: Pair = Field((0, 0), description="[top, left] of the part that is shown")
    target: Pair | None = Field(None, description="[height, width] of it; the model's side")


class ModelSettings(_Frozen):
    """The pipeline and how it is sampled: everything that decides a picture except prompt, seed and
    method.
    """

    path: str = Field(
        description=(
            "diffusers folder or `.safetensors` checkpoint in one file, relative to the suite file,"
            " or asset:NAME"
        )
    )
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    scheduler: Scheduler = Field(
        "DDIMScheduler",
        description="class name in diffusers; those that draw no noise of their own",
    )
    steps: int = Field(50, ge=1)
    guidance_scale: float = Field(7.5, ge=0, allow_inf_nan=False)
    side: int = Field(512, ge=8, description="pixels; must be what the model gives")
    batch_size: int = Field(8, ge=1, description="images sampled together")
    config: str | None = Field(
        None,
        description=(
            "for a checkpoint in one file: a diffusers folder with configs, tokenizer and"
            " scheduler; weights are not needed"
        ),
    )
    vae_tiling: bool = Field(
        False, description="decode in tiles, for large pictures; changes pixels where tiles meet"
    )
    loras: tuple[LoraSettings, ...] = Field(
        (), description="LoRA files merged into the model, in tables [[model.loras]]"
    )
    embeddings: tuple[EmbeddingSettings, ...] = Field(
        (), description="textual inversions, words of their own, in tables [[model.embeddings]]"
    )
    chunks: int = Field(
        1,
        ge=1,
        le=limits.CHUNKS,
        description=(
            "read this many chunks of a prompt, of 75 tokens each, and cut what is longer: 2 and 3"
            " where kohya's scripts say max_token_length 150 and 225"
        ),
    )
    clip_skip: int = Field(
        0,
        ge=0,
        description=(
            "read texts this many layers of the text encoder earlier, as diffusers counts: 1 where"
            " kohya's scripts and A1111 say 2"
        ),
    )
    base: str = Field(
        "",
        description=(
            "what the model was fine-tuned from, a folder or file as `path`; with [[model.loras]]"
            " it is the model without them, unless another is named"
        ),
    )
    size_conditioning: SizeConditioning | None = Field(
        None, description="for Stable Diffusion XL: the sizes that the model is told"
    )


class PromptSettings(_Frozen):
    """The prompts of one role: a list with the column `prompt`, and optionally with `id`, `group`,
    `reference` (paths of training pictures, with `|` between them), `seed`, `anchor` (a clean
    caption of the same objects) and columns to filter on.
    """

    file: str = Field(
        description=(
            "a CSV, JSON lines, or one prompt a line; relative to the suite file, or asset:NAME"
        )
    )
    format: Format = "csv"
    delimiter: str = Field(",", min_length=1, max_length=1)
    columns: dict[Literal["id", "prompt", "group", "reference", "seed", "anchor"], str] = Field(
        default_factory=dict,
        description="what the list calls them, where not so; `seed`: of a prompt's first image",
    )
    references: str = Field(
        "",
        description=(
            "asset:NAME of pictures by id, or a path with {column} in it; instead of a column of"
            " paths relative to the list"
        ),
    )
    expected: int | None = Field(
        None, ge=1, description="prompts that the list gives; another number is an error"
    )
    where: dict[str, str] = Field(
        default_factory=dict, description="keep rows whose columns have these values"
    )
    groups: tuple[str, ...] = Field((), description="keep rows of these groups; all by default")
    drawn: tuple[int, int] | None = Field(
        None,
        description=(
            "[i, n]: keep the rows whose id falls into part i of n parts by its sha256, so that"
            " rows added to the list move no other"
        ),
    )
    part: tuple[int, int] | None = Field(
        None, description="[i, n]: keep every n-th row, beginning with row i"
    )
    without: tuple[int, int] | None = Field(None, description="[i, n]: leave these rows out")
    together: bool = Field(
        False,
        description=(
            "count near-duplicates, captions with half of their words in common, as one row in"
            " `part`, `without` and `drawn`: none stands on both sides"
        ),
    )
    per_group: int | None = Field(
        None, ge=1, description="keep this many of each group, evenly spread over its rows"
    )
    limit: int | None = Field(None, ge=1, description="keep this many, evenly spread over the list")
    images_per_prompt: int = Field(1, ge=1, le=limits.IMAGES_PER_PROMPT)
    empty: bool = Field(
        False, description="the empty prompt may stand in the list: of pictures without a caption"
    )

    @field_validator("delimiter")
    @classmethod
    def _cells_can_be_cut_at_it(cls, delimiter: str) -> str:
        if delimiter in NO_DELIMITERS:
            raise ValueError("it must be no quote, line end or NUL")
        return delimiter

    @field_validator("part", "without", "drawn")
    @classmethod
    def _part_of_a_whole(cls, part: tuple[int, int] | None) -> tuple[int, int] | None:
        if part and not 0 <= part[0] < part[1]:
            raise ValueError("it must be [i, n] with 0 <= i < n")
        return part


class DetectionSettings(_Frozen):
    """What detectors are judged on (`bench detect`), beside the prompts of the suite's roles. It
    changes no number of a method.
    """

    images: int = Field(4, ge=1, le=limits.IMAGES_PER_PROMPT, description="of each prompt")
    calibration: int = Field(
        200,
        ge=1,
        description="prompts of the role calibration, whose scores set each detector's threshold",
    )
    labels: str = Field(
        "",
        description=(
            "which share of each prompt's images is a copy, by `bench calibrate copies`; without"
            " it every memorized prompt counts as a positive"
        ),
    )
    record: tuple[str, ...] = Field(
        (), description="detectors whose view of sampling the ordinary run of `none` keeps"
    )
    negatives: dict[str, PromptSettings] = Field(
        default_factory=dict,
        description=(
            "further prompts that are not memorized, by kind; clean and quality are `clean`"
        ),
    )

    @field_validator("negatives")
    @classmethod
    def _no_kind_of_ours(cls, given: dict[str, PromptSettings]) -> dict[str, PromptSettings]:
        for name in given:
            if name in KINDS_OF_PROMPTS or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(
                    f"negatives cannot be called '{name}': take lower-case letters, and none of"
                    f" {', '.join(KINDS_OF_PROMPTS)}"
                )
        return given


class SuiteSettings(_Frozen):
    """The TOML file, checked. Unknown keys are errors."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    version: int = Field(1, ge=1)
    description: str = ""
    seed: int = Field(0, ge=0, description="base of every image's own seed")
    track: Track = Field(
        "held_out",
        description=(
            "held_out: methods learn from the role fit, and nothing of it is judged; removal:"
            " methods learn from the prompts of the role memorized, the *named* ones, with their"
            " pictures, and these are judged beside the roles unnamed and neighbours; audit: of"
            " somebody's own model, methods learn from the training pictures that are judged, and"
            " no leaderboard takes the record"
        ),
    )
    group_name: str = Field("group", description="what the column `group` means, for tables")
    stratified: bool = Field(
        False,
        description=(
            "the number of prompts of each group was fixed when the list was made, so intervals"
            " keep it"
        ),
    )
    share_references: bool = Field(
        False, description="reference pictures may be stored in records and shown on pages"
    )
    store: str = Field(
        "",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$",
        description="folder of the sample store, for suites that share images; the name by default",
    )
    model: ModelSettings
    prompts: dict[Role, PromptSettings]
    metrics: dict[str, dict[str, Any]] = Field(
        min_length=1, description="metric names to their parameters"
    )
    attacks: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="attack names to their parameters"
    )
    detection: DetectionSettings | None = Field(
        None, description="what detectors are judged on (`bench detect`)"
    )

    def judges(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Metrics, then attacks: kind, name and parameters of each."""
        return [("metric", *item) for item in self.metrics.items()] + [
            ("attack", *item) for item in self.attacks.items()
        ]

    @field_validator("name")
    @classmethod
    def _no_page_has_it(cls, name: str) -> str:
        if name in PAGES or name.startswith((DETECTORS, EXPERIMENTS)):
            raise ValueError(
                f"a suite cannot be called '{name}': a page of the leaderboards has that name"
            )
        return name

    @field_validator("prompts")
    @classmethod
    def _memorized_is_there(cls, prompts: dict[str, PromptSettings]) -> dict[str, PromptSettings]:
        if "memorized" not in prompts:
            raise ValueError("a suite needs prompts of the role memorized")
        return prompts

    @model_validator(mode="after")
    def _roles_are_of_the_track(self) -> SuiteSettings:
        if self.track != "held_out" and "fit" in self.prompts:
            raise ValueError(
                f"in the track {self.track} methods learn from the prompts of the role memorized:"
                " leave [prompts.fit] out"
            )
        if self.track == "removal":
            if "unnamed" not in self.prompts:
                raise ValueError(
                    "the track removal needs [prompts.unnamed], memorized prompts that methods are"
                    " not told of: without them nobody sees what else a removal changes"
                )
        elif others := [role for role in OF_REMOVAL if role in self.prompts]:
            raise ValueError(
                f'[prompts.{others[0]}] is of the track removal: set track = "removal"'
            )
        return self


# Settings that came after the first records: while they hold their default they are no part of
# fingerprints and keys, which stay what they were.
LATER = {
    "suite": ("stratified", "track"),
    "model": (
        "config",
        "vae_tiling",
        "loras",
        "base",
        "size_conditioning",
        "embeddings",
        "clip_skip",
        "chunks",
    ),
    "prompts": (
        "format",
        "delimiter",
        "columns",
        "references",
        "expected",
        "without",
        "per_group",
        "together",
        "drawn",
        "empty",
    ),
}


def protocol(settings: SuiteSettings) -> dict[str, Any]:
    """The settings that decide a method's numbers, as JSON: all except the description, the store's
    folder and what detectors are judged on; those in `LATER` only where they are not at their
    default.
    """
    table = settings.model_dump(mode="json", exclude={"description", "store", "detection"})
    sections: list[tuple[str, dict[str, Any], BaseModel]] = [
        ("suite", table, settings),
        ("model", table["model"], settings.model),
    ]
    sections += [
        ("prompts", table["prompts"][role], prompts) for role, prompts in settings.prompts.items()
    ]
    for name, section, model in sections:
        for key in LATER.get(name, ()):
            default = type(model).model_fields[key].get_default(call_default_factory=True)
            if section[key] == (list(default) if isinstance(default, tuple) else default):
                del section[key]
    return table


def texts_in(value: Any) -> Iterator[str]:
    """All texts in a JSON value, keys excepted."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_in(item)
