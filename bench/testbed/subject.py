"""The subject of `bench audit`: a LoRA of the embedded model that has learned some pictures by
heart, with a known truth.

24 scenes that the embedded model never saw stand in folders as kohya's trainer reads them, in each
folder as often in an epoch as its name says; 12 more, drawn alike, are never trained on.

<out>/data/64_scene/scene-0000.png, scene-0000.txt    and 16_scene, 4_scene, 1_scene
      holdout/scene-0024.png, scene-0024.txt
      subject.safetensors                 the LoRA in kohya's spelling
      subject-000010.safetensors          the same after so many epochs
      subject-diffusers.safetensors       the last one in the spelling of diffusers and peft
      measured.json, sheet.png            what is copied, and the pictures
      training/                           what an interrupted training goes on from
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.base.digests import digest_of, path_digest
from bench.base.errors import UserError
from bench.base.files import write_atomically
from bench.base.pictures import read_picture
from bench.base.progress import Report, silent
from bench.diffusion.lora.file import read_lora
from bench.diffusion.lora.merge import Strength, merge
from bench.diffusion.model import load_denoiser
from bench.studies.experiments.trainings import Kept, Remembering, pace, steps_for, train_once
from bench.studies.finetune.data import Pair, encoded_once, pairs_digest, read_pairs
from bench.studies.finetune.train import load_trainable, moments_by, pipeline_side
from bench.suite.load import load_suite
from bench.testbed.bundle import BUNDLE
from bench.testbed.fresh import fresh_scenes, write_picture
from bench.testbed.opened import OpenedBundle
from bench.testbed.scenes import render
from bench.testbed.sheets import write_blocks
from bench.testbed.sprites import ATTRIBUTION
from bench.training.loop import Course
from bench.training.lora import TARGETS, Lora
from bench.training.lora_files import (
    Folder,
    Told,
    kohya_header,
    kohya_tensors,
    peft_header,
    peft_tensors,
    write_lora,
)

SHIPPED = Path(__file__).parent / "subject"  # what the command gave, without the files between
REPEATS = (64, 16, 4, 1)  # in an epoch, by folder
EACH, HELD_OUT = 6, 12  # pictures
CLASS = "scene"  # the words of the folders' names
NAME = "subject"
BASE = "testbed"  # what the files' header calls the base model
IMAGES, SHOWN = 8, 4  # of each caption, where copies are counted; and on the sheet


@dataclass(frozen=True)
class Settings:
    """How the LoRA is trained."""

    rank: int = 16
    alpha: int = 16
    epochs: int = 50
    save_every: int = 10  # epochs
    batch_size: int = 16
    learning_rate: float = 1e-3
    warmup: int = 50
    seed: int = 2  # of the scenes, and of everything drawn in the training
    checkpoint_every: int = 200  # steps

    @property
    def listed(self) -> int:
        """Pictures of an epoch, repeats counted."""
        return EACH * sum(REPEATS)

    @property
    def saves(self) -> dict[int, int]:
        """The epochs after which a file is saved, by the number of steps that ends them."""
        epochs = [*range(self.save_every, self.epochs, self.save_every), self.epochs]
        return {steps_for(epoch * self.listed, self.batch_size): epoch for epoch in epochs}

    def course(self) -> Course:
        """What the loop needs of it."""
        return Course(
            steps=max(self.saves),
            learning_rate=self.learning_rate,
            warmup=self.warmup,
            seed=self.seed,
            checkpoint_every=self.checkpoint_every,
        )


def write_pictures(out: Path, seed: int, side: int) -> None:
    """Write the folders of training pictures and that of held-out ones, each picture beside its
    caption, and where the drawings come from.

    Raises `UserError` for the seed that the embedded model was trained with, and where other
    pictures lie there already.
    """
    folders = [out / "data" / f"{times}_{CLASS}" for times in REPEATS for _ in range(EACH)]
    folders += [out / "holdout"] * HELD_OUT
    other = UserError(
        f"{out} holds other pictures than those of seed {seed}: give another folder with --out"
    )
    for number, (folder, scene) in enumerate(
        zip(folders, fresh_scenes(len(folders), seed), strict=True)
    ):
        name = f"scene-{number:04d}"
        write_picture(folder / f"{name}.png", render(scene, side), other)
        write_atomically(folder / f"{name}.txt", f"{scene.caption}\n".encode())
    text = f"{ATTRIBUTION}\n\nThe pictures here and everything trained on them derive from it.\n"
    write_atomically(out / "ATTRIBUTION.md", text.encode())


class Training:
    """The training of a subject on the pictures in its folder, of a pipeline in another one."""

    def __init__(
        self,
        out: Path,
        settings: Settings,
        model: Path,
        device: torch.device,
        report: Report = silent,
    ) -> None:
        self.out, self.settings, self.device, self.report = out, settings, device, report
        self.work = out / "training"
        self.pairs = {times: read_pairs(out / "data" / f"{times}_{CLASS}") for times in REPEATS}
        self.model = model
        self.pipe = load_trainable(model, device)
        self.lora = self._new_lora()

    def _new_lora(self) -> Lora:
        settings = self.settings
        return Lora(self.pipe.unet, settings.rank, settings.alpha, settings.seed)

    @cached_property
    def listed(self) -> list[Pair]:
        """Every picture once."""
        return [pair for pairs in self.pairs.values() for pair in pairs]

    @cached_property
    def loss(self) -> Remembering:
        side = pipeline_side(self.pipe.unet.config, self.pipe.vae.config)
        kept = digest_of([pairs_digest(self.listed), path_digest(self.model / "vae"), side])[:16]
        latents = encoded_once(
            self.work / f"latents-{kept}.npy",
            self.listed,
            side,
            False,
            moments_by(self.pipe, self.device),
            self.report,
        )
        counts = [times for times, pairs in self.pairs.items() for _ in pairs]
        return Remembering(
            self.pipe,
            latents,
            [pair.caption for pair in self.listed],
            np.repeat(np.arange(len(counts)), counts),
            self.settings.batch_size,
            self.settings.seed,
            self.device,
        )

    def pace(self) -> float:
        """Seconds of one step of the training on this machine; nothing is learned."""

        def step() -> None:
            self.loss(self.lora, 0, torch.Generator().manual_seed(0)).backward()
            self.lora.zero_grad(set_to_none=True)

        with self.lora.attached():
            return pace(step)

    def train(self) -> dict[str, Any]:
        """Train to the end, or go on from where the folder stands, and write the LoRA files; the
        training's facts.

        Raises `UserError` for a folder of another training and when a loss or a weight is not
        finite, and `KeyboardInterrupt` after Ctrl-C, once the step under way is saved.
        """
        course, saves = self.settings.course(), self.settings.saves
        identity = {
            "model_sha256": path_digest(self.model),
            "data_sha256": {times: pairs_digest(pairs) for times, pairs in self.pairs.items()},
            "rank": self.settings.rank,
            "alpha": self.settings.alpha,
            "targets": TARGETS,
            "batch_size": self.settings.batch_size,
        }
        kept = Kept(self.work, identity, course, tuple(saves))

        def watch(step: int) -> None:
            self.report("train", step, course.steps)
            if step in saves:
                self._write(kept, step)

        with self.lora.attached():
            facts = train_once(kept, self.lora, self.loss, self.device, watch)
        for step in saves:
            if not self._file(step).is_file():
                self._write(kept, step)
        self._write_for_diffusers(kept)
        return facts

    def _file(self, step: int) -> Path:
        epoch = self.settings.saves[step]
        last = epoch == self.settings.epochs
        return self.out / (f"{NAME}.safetensors" if last else f"{NAME}-{epoch:06d}.safetensors")

    def _write(self, kept: Kept, step: int) -> None:
        lora = self._new_lora()
        kept.load(lora, step)
        header = kohya_header(lora, kept.course, self._told(), self.settings.saves[step], step)
        write_lora(self._file(step), kohya_tensors(lora), header)

    @property
    def last(self) -> Path:
        """The file that the whole training gives, in kohya's spelling."""
        return self._file(self.settings.course().steps)

    def _write_for_diffusers(self, kept: Kept) -> None:
        lora = self._new_lora()
        kept.load(lora, kept.course.steps)
        write_lora(
            self.out / f"{NAME}-diffusers.safetensors", peft_tensors(lora), peft_header(lora)
        )

    def _told(self) -> Told:
        folders = tuple(
            Folder(f"{times}_{CLASS}", times, tuple(pair.caption for pair in pairs))
            for times, pairs in self.pairs.items()
        )
        side = pipeline_side(self.pipe.unet.config, self.pipe.vae.config)
        return Told(folders, side, self.settings.batch_size, self.settings.epochs, BASE)


def cost(settings: Settings, seconds: float) -> dict[str, Any]:
    """What a training takes where one step takes so many seconds, and what it shows."""
    steps = settings.course().steps
    return {
        "pictures": EACH * len(REPEATS),
        "an_epoch": settings.listed,
        "steps": steps,
        "batch_size": settings.batch_size,
        "views": {f"{times}_{CLASS}": times * settings.epochs for times in REPEATS},
        "seconds": round(steps * seconds, 1),
    }


def cost_text(found: dict[str, Any]) -> str:
    """What `cost` found, in one line."""
    views = ", ".join(f"{number:,}" for number in found["views"].values())
    seconds = found["seconds"]
    time = f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
    return (
        f"{found['pictures']} pictures, {found['an_epoch']} an epoch; {found['steps']:,} steps of"
        f" {found['batch_size']} show each {views} times by folder; about {time} here"
    )


def measure(
    out: Path, settings: Settings, report: Report = silent, images: int = IMAGES
) -> dict[str, Any]:
    """Count copies by folder, of the embedded model with the LoRA merged and without it, from the
    same prompts and seeds, sampled as the suite testbed does; writes `measured.json`, and
    `sheet.png` with generations beside their pictures.

    An image is a copy when its similarity to its caption's picture is above the suite's threshold;
    a picture is copied when one of its images is.
    """
    suite = load_suite("testbed")
    threshold = suite.settings.metrics["sscd"]["threshold"]
    folders = {
        f"{times}_{CLASS}": read_pairs(out / "data" / f"{times}_{CLASS}") for times in REPEATS
    }
    folders["holdout"] = read_pairs(out / "holdout")
    pairs = [pair for inside in folders.values() for pair in inside]
    pictures = [read_picture(pair.path) for pair in pairs]
    prompts = [pair.caption for pair in pairs for _ in range(images)]
    file = read_lora(out / f"{NAME}.safetensors")
    similarity, generated = dict[str, np.ndarray](), list[np.ndarray]()
    for who, files in (("base", []), ("lora", [file])):
        denoiser = load_denoiser(suite, torch.device("cpu"))
        merge(denoiser.pipe, [(each, Strength()) for each in files])
        opened = OpenedBundle(BUNDLE, suite, denoiser, report, [each.digest for each in files])
        generated = opened.generate(prompts, NAME)
        features = opened.describe(generated).reshape(len(pairs), images, -1)
        similarity[who] = np.einsum("pid,pd->pi", features, opened.describe(pictures))
    ends = np.cumsum([len(inside) for inside in folders.values()])
    rows = [
        {"folder": name, "views": times * settings.epochs, "pictures": int(end - start)}
        | {who: _copies(values[start:end], threshold) for who, values in similarity.items()}
        for name, times, start, end in zip(folders, (*REPEATS, 0), [0, *ends[:-1]], ends)
    ]
    found = {
        "settings": asdict(settings),
        "lora": file.digest,
        "images_per_caption": images,
        "threshold": threshold,
        "folders": rows,
    }
    write_atomically(out / "measured.json", (json.dumps(found, indent=1) + "\n").encode())
    beside = np.array(generated).reshape(len(pairs), images, *generated[0].shape)
    _write_sheet(out / "sheet.png", rows, pictures, beside)
    return found


def _copies(similarity: np.ndarray, threshold: float) -> dict[str, Any]:
    """What similarities `[pictures, images]` of one folder say."""
    above = similarity > threshold
    return {
        "copied": int(above.any(1).sum()),
        "images": round(float(above.mean()), 4),
        "mean": round(float(similarity.mean()), 4),
        "highest": round(float(similarity.max()), 4),
    }


def _write_sheet(
    file: Path, rows: list[dict[str, Any]], pictures: list[np.ndarray], generated: np.ndarray
) -> None:
    """Of each folder the first pictures, each beside generations for its caption."""
    blocks, start = list[tuple[str, list[list[np.ndarray]]]](), 0
    for row in rows:
        numbers = range(start, start + row["pictures"])
        title = f"{row['folder']}: {row['lora']['copied']} of {row['pictures']} copied"
        shown = [[pictures[n], *generated[n, :SHOWN]] for n in numbers[:EACH]]
        blocks.append((title, shown))
        start = numbers.stop
    write_blocks(file, blocks, across=len(blocks))


def table(found: dict[str, Any]) -> str:
    """What `measure` found, as a table in Markdown."""
    lines = [
        "| folder | views | pictures copied | images that are copies | mean similarity | highest |"
        " of the base: copied | mean similarity |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["folders"]:
        lora, base = row["lora"], row["base"]
        cells = (
            row["folder"],
            f"{row['views']:,}",
            f"{lora['copied']} of {row['pictures']}",
            f"{lora['images']:.0%}",
            f"{lora['mean']:.2f}",
            f"{lora['highest']:.2f}",
            f"{base['copied']} of {row['pictures']}",
            f"{base['mean']:.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
