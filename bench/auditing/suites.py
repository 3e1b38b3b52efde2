"""The suite of an audit: an ordinary one, which can be read, edited and run by hand, with its lists
and the pictures beside it.

    <out>/audit.toml            the model as it is published
          audit-base.toml       the same prompts on what it was made from
          audit-attack.toml     the model against an attacker who knows what it was made from
          prompts/*.csv         captions, held-out captions, novel scenes; kinds.csv for the reader
          views/                the pictures as they were trained, the plainest view of each

Sampler and judges are those of a shipped suite (`--like`), so that an audit measures as the boards
do.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomlkit

from bench.assets.catalogue import PREFIX
from bench.auditing.asked import Asked, Lora
from bench.auditing.pictures import Pictures
from bench.auditing.prompts import Asking
from bench.auditing.work import HEADING, claim
from bench.base.errors import UserError, is_whole, visible
from bench.base.files import write_atomically
from bench.base.pictures import encode_png
from bench.diffusion.checkpoint import check_checkpoint
from bench.diffusion.lora.merge import Strength
from bench.diffusion.model_index import check_model_index
from bench.diffusion.weight_files import refuse_pickle
from bench.new_suite.given import Given
from bench.new_suite.given import absolute as linked
from bench.new_suite.model import ModelChecks
from bench.running.experiment import metric_settings
from bench.suite.embeddings import token_in
from bench.suite.load import load_suite
from bench.suite.places import SUITE_PREFIX
from bench.suite.schema import SuiteSettings
from bench.suite.suite import Suite

NAME, BASE, ATTACKED = "audit", "audit-base", "audit-attack"
ATTACK, TARGETS = "model_guidance", 16  # and how many pictures it is after
FEW = 4  # images of a prompt where methods and weights are compared
ROUNDS, TIMED = 3, 4  # of the timing of a method
SLUG = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Judges:
    """What measures: the copy descriptor with its profile and threshold, and the open_clip model
    where there is one, as a suite file states them.
    """

    sscd: Mapping[str, Any]
    clip: Mapping[str, Any] | None

    @property
    def threshold(self) -> float:
        return float(self.sscd["threshold"])

    @property
    def profile(self) -> str:
        return str(self.sscd["profile"])

    def at(self, threshold: float) -> Judges:
        """The same with another threshold."""
        return replace(self, sscd={**self.sscd, "threshold": threshold})


def judges_of(like: Suite, asked: Asked) -> Judges:
    """Those of a suite, or the descriptor that was named instead.

    Raises `UserError` where the suite has no copy descriptor, or its file is not here.
    """
    given = metric_settings(like, "sscd") or {}
    if not given:
        raise UserError(
            f"suite {like.name} has no [metrics.sscd], so an audit cannot take its copy descriptor"
            " from there: name another with --like, or --sscd FILE"
        )
    if asked.sscd:
        given["weights"] = str(asked.sscd.expanduser().resolve())
    else:
        given["weights"] = stated(like, given["weights"])
    given["profile"] = asked.profile or given.get("profile", "nemo")
    if asked.threshold is not None:
        given["threshold"] = asked.threshold
    given.setdefault("threshold", 0.7)
    clip = metric_settings(like, "clip_score")
    if clip is None:
        return Judges(given, None)
    weights = clip.get("weights", "")
    named = {key: value for key, value in clip.items() if key in ("model", "weights")}
    if weights:
        named["weights"] = stated(like, weights)
    else:
        named["model"] = stated(like, clip["model"])
    return Judges(given, named)


def stated(like: Suite, text: str) -> str:
    """A path of a suite as another suite file has to say it."""
    if text.startswith((PREFIX, SUITE_PREFIX)) or Path(text).is_absolute():
        return text
    if like.called == like.name:
        return f"{SUITE_PREFIX}{like.name}:{text}"
    like.place(text)  # says what can be no path
    return str(linked(like.places.beside_suite(text)))


def model_table(asked: Asked, like: Suite, on_gpu: bool) -> dict[str, Any]:
    """The section [model] without what is asked on top: the named model with its own side, or the
    suite's with everything that makes it that model; sampled as the suite samples.

    Raises `UserError` for what is no model that is supported.
    """
    settings = like.settings.model
    table: dict[str, Any] = {
        "dtype": asked.dtype or (settings.dtype if on_gpu else "float32"),
        "scheduler": settings.scheduler,
        "steps": asked.steps or settings.steps,
        "guidance_scale": settings.guidance_scale if asked.guidance is None else asked.guidance,
        "batch_size": asked.batch_size or settings.batch_size,
    }
    if clip_skip := settings.clip_skip if asked.clip_skip is None else asked.clip_skip:
        table["clip_skip"] = clip_skip
    if (chunks := asked.chunks or settings.chunks) > 1:
        table["chunks"] = chunks
    if asked.model is None:
        return table | suites_model(asked, like)
    table |= {"path": str(named(asked.model)), "side": model_side(asked, like)}
    if config := config_of(asked.model, asked, like):
        table["config"] = config
    return table


def suites_model(asked: Asked, like: Suite) -> dict[str, Any]:
    """What a suite says of its model itself, as another suite file has to say it.

    A LoRA on top of it is compared with the model without that LoRA, and a suite that names both
    LoRAs and a base would mean that base: so the latter is left out.
    """
    settings = like.settings.model
    table: dict[str, Any] = {"path": stated(like, settings.path), "side": settings.side}
    if settings.config:
        table["config"] = stated(like, settings.config)
    if settings.vae_tiling:
        table["vae_tiling"] = True
    if settings.size_conditioning:
        table["size_conditioning"] = settings.size_conditioning.model_dump(
            mode="json", exclude_none=True
        )
    if settings.embeddings:
        table["embeddings"] = [
            {
                "path": stated(like, one.path),
                "token": token_in(like.places.named(one.path), one.token),
            }
            for one in settings.embeddings
        ]
    if asked.loras:
        return table
    if settings.loras:
        table["loras"] = [
            {
                "file": stated(like, one.file),
                "weight": one.strengths[0],
                "text_weight": one.strengths[1],
            }
            for one in settings.loras
        ]
    if settings.base:
        table["base"] = stated(like, settings.base)
    if settings.weight != 1:
        table["weight"] = settings.weight
    return table


def refuse_on_top(asked: Asked, like: Suite) -> None:
    """Raises `UserError` for a LoRA on top of a suite's model that is itself merged or blended: no
    suite says that its base is the model without that one LoRA alone.
    """
    settings = like.settings.model
    if asked.model is None and asked.loras and (settings.loras or settings.weight != 1):
        has = "LoRA files" if settings.loras else "a weight between base and model"
        raise UserError(
            f"suite {like.name} has {has} in its [model], and a LoRA on top of that cannot be told"
            " from it: name the model that the LoRA was trained on with --model"
        )


def model_side(asked: Asked, like: Suite) -> int:
    """Pixels a side of the pictures of the model that is named, or of the suite's; its
    configurations say it, in its own folder or beside a checkpoint in one file.

    Raises `UserError` for what is no model that is supported, with everything that is wrong, and
    for a suite's model that takes no LoRA.
    """
    if asked.config and not (asked.model and asked.model.is_file()):
        raise UserError(
            "--config is for a checkpoint in one file, which --model names; a folder has its own"
            " configurations"
        )
    refuse_on_top(asked, like)
    if asked.model is None:
        return like.settings.model.side
    for path in filter(None, (asked.model, asked.base)):
        check_named(path)
    folder = configurations_of(asked.model, asked, like)
    problems: list[str] = []
    facts = ModelChecks(Given(model=folder), problems, []).check(weights=folder == asked.model)
    if problems:
        raise UserError("; ".join(problems))
    for path in filter(None, (asked.model, asked.base)):
        if config := config_of(path, asked, like):
            folder = like.place(config)
            check_checkpoint(path, folder, check_model_index(folder))
    return int(facts["side"])


def check_named(path: Path) -> None:
    """Raises `UserError` for a model that is not there, or a file that is no safetensors."""
    refuse_pickle(path)
    if not path.exists() and path.suffix == ".safetensors":
        raise UserError(f"there is no model {visible(str(path))}")


def config_of(path: Path, asked: Asked, like: Suite) -> str | None:
    """Where a suite finds tokenizer, scheduler and configurations of a model in one file: in what
    `--config` names, else in the other model (base or fine-tuned) where that is a folder, else in
    the suite's own model. None for a folder, which has its own.

    Raises `UserError` where there is no such folder.
    """
    if not path.is_file():
        return None
    if asked.config:
        return str(named(asked.config))
    for other in (asked.model, asked.base):
        if other and other.is_dir():
            return str(named(other))
    settings = like.settings.model
    own = settings.config or settings.path
    if not (like.place(own) / "model_index.json").is_file():
        raise UserError(
            f"{visible(str(path))} is a checkpoint in one file, which says nothing of tokenizer and"
            " scheduler, and the model of suite"
            f" {like.name}, which could, is not here: give --config FOLDER, a diffusers folder of"
            " the same architecture (its weights are not needed)"
        )
    return stated(like, own)


def configurations_of(path: Path, asked: Asked, like: Suite) -> Path:
    """The diffusers folder that says what kind of model a model is: its own, or beside a checkpoint
    in one file that of `config_of`.
    """
    config = config_of(path, asked, like)
    return like.place(config) if config else path


def lora_tables(loras: Iterable[Lora]) -> list[dict[str, Any]]:
    """LoRAs as tables [[model.loras]]."""
    return [
        {
            "file": str(named(lora.file)),
            "weight": lora.strength.unet,
            "text_weight": lora.strength.text,
        }
        for lora in loras
    ]


def embedding_tables(files: Iterable[Path]) -> list[dict[str, Any]]:
    """Textual inversions as tables [[model.embeddings]], each with its word."""
    return [{"path": str(named(file)), "token": token_in(named(file))} for file in files]


def named(path: Path) -> Path:
    """A path as a suite file has to say it, with its links left: a hub's cache names files by
    links.

    Raises `UserError` for one that is not valid Unicode.
    """
    found = linked(path.expanduser())
    if not is_whole(str(found)):
        raise UserError(
            f"{visible(str(found))}: the name is not valid Unicode, which a suite file cannot hold;"
            " rename it"
        )
    return found


@dataclass(frozen=True)
class Files:
    """Everything that is written before a model is loaded."""

    asked: Asked
    like: Suite
    judges: Judges
    training: Pictures
    holdout: Pictures | None
    askings: Sequence[Asking]
    on_gpu: bool

    def write(self) -> Suite:
        """Write pictures, lists and the suite files. Returns the suite of the published model."""
        claim(self.asked.out)
        self.pictures("training", self.training)
        if self.holdout:
            self.pictures("holdout", self.holdout)
        self._list("captions", self._captions())
        novel = [
            {"id": f"novel-{number}", "prompt": asking.text}
            for number, asking in enumerate(one for one in self.askings if one.kind == "novel")
        ]
        if novel:
            self._list("novel", novel)
        if self.holdout:
            self._list("holdout", self._held_out())
        self._list(
            "kinds",
            [
                {"kind": one.kind, "prompt": one.text, "images": str(one.images)}
                for one in self.askings
            ],
        )
        return self.suites()

    def suites(self) -> Suite:
        """Write the suite files alone, whose lists are there. Returns the same suite."""
        if self.asked.has_base:
            self._toml(BASE, self.table(BASE, loras=(), base=True))
        if self.attacked:
            table = self.table(ATTACKED, self.asked.loras, judged=False, attacked=True)
            self._toml(ATTACKED, table)
        self._toml(NAME, self.table(NAME, self.asked.loras))
        return load_suite(str(self.asked.out / f"{NAME}.toml"))

    def table(
        self,
        name: str,
        loras: Sequence[Lora],
        base: bool = False,
        judged: bool = True,
        attacked: bool = False,
        weight: float = 1.0,
    ) -> dict[str, Any]:
        """The settings of one suite. `base`: of what the model was made from; `judged`: methods
        are timed on it; `attacked`: with the attack of whoever knows the base; `weight`: how much
        is kept of a fine-tuning as a whole.
        """
        model = model_table(self.asked, self.like, self.on_gpu)
        if self.asked.base and base:
            model["path"] = str(named(self.asked.base))
            model.pop("config", None)
            if config := config_of(self.asked.base, self.asked, self.like):
                model["config"] = config
        elif self.asked.base:
            model["base"] = str(named(self.asked.base))
        if weight != 1:
            model["weight"] = weight
        if loras:
            model["loras"] = lora_tables(loras)
        if self.asked.embeddings and not base:
            model["embeddings"] = [
                *model.get("embeddings", []),
                *embedding_tables(self.asked.embeddings),
            ]
        captions: dict[str, Any] = {"file": "prompts/captions.csv", "images_per_prompt": FEW}
        if not all(self.training.captions):
            captions["empty"] = True
        prompts: dict[str, Any] = {"memorized": captions}
        if any(one.kind == "novel" for one in self.askings):
            prompts["clean"] = {"file": "prompts/novel.csv", "images_per_prompt": FEW}
        if self._controls_are_apart():
            prompts["control"] = {"file": "prompts/holdout.csv"}
        if calibration := self._calibration():
            prompts["calibration"] = calibration
        metrics: dict[str, Any] = {"sscd": dict(self.judges.sscd)}
        if self.judges.clip:
            metrics["clip_score"] = dict(self.judges.clip)
        if judged:
            metrics["walltime"] = {"rounds": ROUNDS, "images": TIMED}
        if attacked:
            metrics = {"sscd": dict(self.judges.sscd)}
        attacks = {ATTACK: {"targets": min(TARGETS, len(self.training))}} if attacked else {}
        return {
            "name": name,
            "description": "What a fine-tuned model gives back of its training pictures",
            "track": "audit",
            "seed": self.asked.seed,
            "group_name": "views an epoch",
            "store": NAME,
            "share_references": False,
            "model": model,
            "prompts": prompts,
            "metrics": metrics,
            "attacks": attacks,
        }

    @property
    def attacked(self) -> bool:
        """Whether the attack is made: it needs two pictures to tell apart."""
        return self.asked.attacks and len(self.training) > 1

    def with_loras(self, suite: Suite, loras: Sequence[Lora]) -> Suite:
        """The same suite with other LoRAs, in memory: for weights and earlier epochs."""
        table = self.table(NAME, loras, judged=False)
        return replace(suite, settings=SuiteSettings.model_validate(table))

    def with_weight(self, suite: Suite, weight: float) -> Suite:
        """The same suite with its model, fine-tuned as a whole, at a weight, in memory."""
        table = self.table(NAME, (), judged=False, weight=weight)
        return replace(suite, settings=SuiteSettings.model_validate(table))

    def _controls_are_apart(self) -> bool:
        """Held-out captions that are captions of training pictures too cannot be controls."""
        if self.holdout is None or not all(self.holdout.captions):
            return False
        return not set(self.holdout.captions) & set(self.training.captions)

    def _calibration(self) -> dict[str, Any] | None:
        """The clean prompts of the suite, which methods such as wen learn a threshold from."""
        found = self.like.settings.prompts.get("calibration")
        if found is None or not self.like.places.is_there(found.file):
            return None
        table = found.model_dump(mode="json", exclude_defaults=True)
        table["file"] = stated(self.like, found.file)
        table.pop("references", None)
        return table

    def _captions(self) -> list[dict[str, str]]:
        """A row for each picture, which refers to its own plainest view and then to those of the
        pictures that share its caption.
        """
        shared: dict[str, list[int]] = {}
        for number, caption in enumerate(self.training.captions):
            shared.setdefault(caption, []).append(number)
        return [
            {
                "id": row_id(entry.name),
                "prompt": entry.caption,
                "group": str(entry.repeats),
                "reference": "|".join(
                    f"../{self._view_file('training', self.training, other)}"
                    for other in sorted(shared[entry.caption], key=lambda n: n != number)
                ),
            }
            for number, entry in enumerate(self.training.entries)
        ]

    def _held_out(self) -> list[dict[str, str]]:
        assert self.holdout is not None
        return [
            {
                "id": row_id(entry.name),
                "prompt": entry.caption,
                "reference": f"../{self._view_file('holdout', self.holdout, number)}",
            }
            for number, entry in enumerate(self.holdout.entries)
        ]

    def view_file(self, number: int) -> str:
        """Where the plainest view of a training picture lies, below the work folder."""
        return self._view_file("training", self.training, number)

    def _view_file(self, kind: str, pictures: Pictures, number: int) -> str:
        slug = SLUG.sub("_", pictures.entries[number].name)[-60:]
        return f"views/{kind}/{number:04d}-{slug}/{pictures.names[number][0]}.png"

    def pictures(self, kind: str, pictures: Pictures) -> None:
        """Write the plainest view of each picture below the work folder."""
        for number, pixels in enumerate(pictures.plain):
            path = self.asked.out / self._view_file(kind, pictures, number)
            _write_if_other(path, encode_png(pixels))

    def _list(self, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        _write_if_other(self.asked.out / f"prompts/{name}.csv", stream.getvalue().encode())

    def _toml(self, name: str, table: dict[str, Any]) -> None:
        document = tomlkit.document()
        document.add(tomlkit.comment(HEADING))
        document.add(
            tomlkit.comment(
                "Its prompts are captions of training pictures, and methods learn from them: no"
                " leaderboard takes its records."
            )
        )
        for key, value in table.items():
            document.add(key, tomlkit.item(value))
        _write_if_other(self.asked.out / f"{name}.toml", tomlkit.dumps(document).encode())


def _write_if_other(path: Path, content: bytes) -> None:
    """Write a file unless it holds just this: what is read from it then stays as it was found."""
    if not (path.is_file() and path.read_bytes() == content):
        write_atomically(path, content)


def weighted(loras: Iterable[Lora], weight: float) -> list[Lora]:
    """The LoRAs with all their strengths times a weight."""
    return [
        Lora(one.file, Strength(one.strength.unet * weight, one.strength.text * weight))
        for one in loras
    ]


def in_unet_only(loras: Iterable[Lora]) -> list[Lora]:
    """The LoRAs without what they do to the text encoder."""
    return [Lora(one.file, Strength(one.strength.unet, 0.0)) for one in loras]


def row_id(name: str) -> str:
    """The id that a picture's row has in the suite's list."""
    return name.replace("|", "_")
