"""`bench experiment memorization-by-size`: of how many training pictures does a model give copies?
(Gu et al. 2023, arXiv 2310.02664.)

Models of one architecture are trained from random weights on nested sets of N pictures, every
picture shown equally often whatever N is. A generation is memorized when it is less than a third
as far from the nearest training picture as from the second nearest. What the labels are is the
question: the caption of a picture is "class k", and k is its true class, a class drawn at random,
or a number of its own.

    <out>/pictures/                         where no other folder is given: drawn by the testbed
          latents-<hash>.npy                as the autoencoder encodes them
          trainings/n0064-true-s0/          one training each, `trainings.py` says what is in it
                    .../generated-<step>.npy, and what its snapshots generate
          ideal/n0064.npy                   generations of the ideal denoiser
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.base import limits
from bench.base.digests import digest_of, path_digest, seed_of
from bench.base.errors import UserError, one_line
from bench.base.files import write_atomically
from bench.base.progress import Report, silent
from bench.diffusion.denoiser import Denoiser, trajectory
from bench.diffusion.model import scheduler_of
from bench.diffusion.request import Step
from bench.records.environment import environment
from bench.records.experiment import Experiment
from bench.statistics.memorized_share import nearest_two
from bench.studies.experiments.by_size_tables import (
    CLAIM,
    CONDITIONINGS,
    about,
    found_in,
    tables_of,
)
from bench.studies.experiments.ideal import ideal_denoiser
from bench.studies.experiments.pictures import Pictures, read_pictures, refuse_few
from bench.studies.experiments.trainings import (
    Kept,
    Remembering,
    evenly_timed,
    pace,
    steps_for,
    train_once,
)
from bench.studies.finetune.data import encoded_once
from bench.studies.finetune.train import load_trainable, moments_by, pipeline_side
from bench.training.loop import Course

NAME, VERSION = "memorization-by-size", 1
PAPER = "Gu et al. 2023, On Memorization in Diffusion Models, arXiv:2310.02664"


@dataclass(frozen=True)
class Ask:
    """What is trained and measured. Defaults fit the embedded model and a core of a CPU."""

    sizes: tuple[int, ...] = (8, 16, 32, 64, 128)
    conditionings: tuple[str, ...] = CONDITIONINGS
    seeds: int = 1  # trainings of each
    held_out: int = 64  # real pictures that no training sees
    epochs: int = 2000  # how often each picture is shown
    batch_size: int = 8
    learning_rate: float = 3e-3
    warmup: int = 50
    weight_decay: float = 0.01
    ema: float = 0.98
    width: int = 32  # channels of the first level; the others in proportion
    # What the models predict: epsilon, or v, of which an error at high noise is not multiplied when
    # it becomes a picture. The source's preconditioning has the same effect.
    predicts: str = "v_prediction"
    generations: int = 256  # of each snapshot; half of them choose among snapshots
    steps: int = 20  # of sampling
    snapshots: int = 3
    epsilon: float = 0.1  # of the EMM
    images_batch: int = 64
    seed: int = 0
    checkpoint_every: int = 200

    @property
    def wanted(self) -> int:
        """Pictures that are needed."""
        return max(self.sizes) + self.held_out

    def course(self, size: int, seed: int) -> Course:
        """How a model of so many pictures is trained."""
        return Course(
            steps=steps_for(self.epochs * size, self.batch_size),
            learning_rate=self.learning_rate,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            ema=self.ema,
            seed=seed,
            checkpoint_every=self.checkpoint_every,
        )

    def trainings(self) -> list[tuple[int, str, int]]:
        """Size, conditioning and seed of each, small ones first."""
        return [
            (size, conditioning, self.seed + seed)
            for seed in range(self.seeds)
            for size in self.sizes
            for conditioning in self.conditionings
        ]


def check(ask: Ask) -> None:
    """Raise `UserError` for what cannot be measured."""
    if not ask.sizes or min(ask.sizes) < 2:
        raise UserError(
            "--sizes must be 2 at least: among fewer pictures there is no second nearest"
        )
    if max(ask.sizes) > limits.EXPERIMENT_PICTURES:
        raise UserError(f"--sizes must be at most {limits.EXPERIMENT_PICTURES:,}")
    if ask.seeds > limits.GENERATIONS:
        raise UserError(f"--seeds must be at most {limits.GENERATIONS:,}, not {ask.seeds}")
    if list(ask.sizes) != sorted(set(ask.sizes)):
        raise UserError("--sizes must ascend, each given once")
    if unknown := [name for name in ask.conditionings if name not in CONDITIONINGS]:
        raise UserError(f"unknown conditioning '{unknown[0]}': known: {', '.join(CONDITIONINGS)}")
    if not ask.conditionings or len(set(ask.conditionings)) < len(ask.conditionings):
        raise UserError("--conditioning names each of them once, and one at least")
    if ask.predicts not in ("epsilon", "v_prediction"):
        raise UserError(f"--predicts is epsilon or v_prediction, not '{ask.predicts}'")
    if ask.generations < 4 or ask.generations % 2:
        raise UserError("--generations must be an even number of at least 4: half of them choose")
    if not 0 < ask.epsilon < 1:
        raise UserError("--epsilon must lie between 0 and 1")


def labels(pictures: Pictures, conditioning: str, size: int, seed: int) -> list[str]:
    """The captions of the first `size` pictures. Random classes are as many as there are true
    ones, drawn for each picture alone, so that nested sets share them.
    """
    count = len(set(pictures.classes))
    if conditioning == "true":
        classes: Sequence[int] = pictures.classes[:size]
    elif conditioning == "random":
        classes = [seed_of(seed, "label", d) % count for d in pictures.digests[:size]]
    else:
        classes = range(size)
    return [f"class {number}" for number in classes]


def name_of(size: int, conditioning: str, seed: int) -> str:
    """The name of a training, and of its folder."""
    return f"n{size:04d}-{conditioning}-s{seed}"


def plan(ask: Ask) -> dict[str, Any]:
    """What would be trained and evaluated, without any file."""
    check(ask)
    trainings = ask.trainings()
    steps = {
        name_of(*training): ask.course(training[0], training[2]).steps for training in trainings
    }
    generated = ask.generations * ask.snapshots * len(trainings)
    return {
        "experiment": NAME,
        "trainings": steps,
        "training_steps": sum(steps.values()),
        "batch_size": ask.batch_size,
        "pictures": ask.wanted,
        "generations": generated,
        "row_evaluations": generated * ask.steps,
        "ideal_generations": ask.generations * len(ask.sizes),
    }


class Study:
    """The experiment with its pictures and the frozen parts of the model at hand."""

    def __init__(self, ask: Ask, model: Path, data: Path, out: Path, device: torch.device) -> None:
        import diffusers

        check(ask)
        self.ask, self.model, self.out, self.device = ask, model, out, device
        self.pipe = load_trainable(model, device)
        self.pipe.scheduler = diffusers.DDIMScheduler.from_config(
            scheduler_of(diffusers.DDIMScheduler, self.pipe.scheduler.config).config,
            prediction_type=ask.predicts,
        )
        self.side = pipeline_side(self.pipe.unet.config, self.pipe.vae.config)
        everything = read_pictures(data, self.side)
        refuse_few(everything, ask.wanted, "the experiment")
        # Held out: the next ones in the nested order, of every class in turn.
        self.pictures = everything.chosen(range(ask.wanted))
        self.config = _at_width(self.pipe.unet.config, ask.width)

    def new_unet(self, seed: int) -> torch.nn.Module:
        """The architecture with random weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                made = type(self.pipe.unet).from_config(self.config)
            except ValueError as error:  # widths that its groups or heads do not divide
                raise UserError(
                    f"width {self.ask.width} does not suit the model: {one_line(error)[:160]}"
                ) from error
        return made.to(self.device)

    def measured_pace(self) -> dict[str, float]:
        """Seconds of a training step and of a generation, by trying some."""
        pictures = np.zeros((len(self.pictures.pairs), 1, 2, *self._shape()), np.float32)
        loss = self._loss(pictures, ["class 0"] * len(pictures), len(pictures), 0)
        unet = self.new_unet(0).train()
        optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-9)

        def step() -> None:
            loss(unet, 0, torch.Generator().manual_seed(0)).backward()
            optimizer.step()
            optimizer.zero_grad()

        step()
        of_step = pace(step)
        denoiser = self._denoiser(unet)
        few = ["class 0"] * min(16, self.ask.images_batch)
        seconds = pace(lambda: _generated(denoiser, few, range(len(few)), len(few)), 2)
        denoiser.close()
        return {"step": of_step, "generation": seconds / len(few)}

    def run(self, data: str, report: Report = silent) -> Experiment:
        """Train and generate whatever is not there yet, and work out the tables. `data` is what
        the page calls the pictures.
        """
        moments = encoded_once(
            self.out / f"latents-{self._latents_hash()}.npy",
            self.pictures.pairs,
            self.side,
            False,
            moments_by(self.pipe, self.device),
            report,
        )
        # The mode alone: noise of the autoencoder would be new pictures at every view.
        latents = np.stack([moments[:, :, 0], np.zeros_like(moments[:, :, 0])], 2)
        decoded = self._decoded(latents)
        raw: dict[str, Any] = {
            "trainings": self._trainings(latents, decoded, report),
            "ideal": self._ideals(latents, decoded, report),
            "held_out": self._floors(self.pictures.pixels[max(self.ask.sizes) :], decoded),
            "round_trips": self._floors(None, decoded),
        }
        settings = self.settings()
        tables = tables_of(raw, settings)
        return Experiment(
            experiment=NAME,
            experiment_version=VERSION,
            data=data,
            label=f"width{self.ask.width}-epochs{self.ask.epochs}",
            title="Memorization by number of training pictures",
            about=about(settings),
            claim=CLAIM,
            found=found_in(tables),
            paper=PAPER,
            model=self.model.resolve().name,
            model_sha256=path_digest(self.model),
            data_sha256=self.pictures.sha256,
            settings=settings,
            raw=raw,
            tables=tables,
            environment=environment(self.device),
        )

    def settings(self) -> dict[str, Any]:
        """Everything that decides the numbers, besides the contents of model and pictures."""
        given = {k: v for k, v in asdict(self.ask).items() if k != "checkpoint_every"}
        given |= {"sizes": list(self.ask.sizes), "conditionings": list(self.ask.conditionings)}
        return given | {
            "classes": len(set(self.pictures.classes)),
            "side": self.side,
            "duplicates_removed": self.pictures.removed,
            "parameters": sum(value.numel() for value in self.new_unet(0).parameters()),
        }

    def _latents_hash(self) -> str:
        return digest_of(
            [self.pictures.sha256, path_digest(self.model / "vae"), self.side, "mode"]
        )[:16]

    def _shape(self) -> tuple[int, int, int]:
        config = self.pipe.unet.config
        return (config.in_channels, config.sample_size, config.sample_size)

    def _loss(
        self, latents: np.ndarray, captions: Sequence[str], size: int, seed: int
    ) -> Remembering:
        return Remembering(
            self.pipe, latents, captions, np.arange(size), self.ask.batch_size, seed, self.device
        )

    def _decoded(self, latents: np.ndarray) -> np.ndarray:
        """What the autoencoder makes of every picture, uint8 `[n, side, side, 3]`."""
        denoiser = Denoiser(self.pipe, self.ask.steps, 1.0)
        denoiser.close()
        parts = [
            denoiser.decode(torch.from_numpy(np.ascontiguousarray(part)).to(self.device))
            for part in np.array_split(latents[:, 0, 0], -(-len(latents) // 16))
        ]
        return np.concatenate(parts)

    def _trainings(
        self, latents: np.ndarray, decoded: np.ndarray, report: Report
    ) -> dict[str, dict[str, Any]]:
        ask, found = self.ask, dict[str, dict[str, Any]]()
        total, before = plan(ask)["training_steps"], 0
        for size, conditioning, seed in ask.trainings():
            name = name_of(size, conditioning, seed)
            course = ask.course(size, seed)
            captions = labels(self.pictures, conditioning, size, ask.seed)
            kept = Kept(
                self.out / "trainings" / name,
                {
                    "captions": captions,
                    "pictures": self.pictures.digests[:size],
                    "model_sha256": path_digest(self.model),
                    "batch_size": ask.batch_size,
                    "width": ask.width,
                    "predicts": ask.predicts,
                },
                course,
                evenly_timed(course.steps, ask.snapshots),
            )
            unet = self.new_unet(seed)
            loss = self._loss(latents, captions, size, seed)

            def watch(step: int, before: int = before, name: str = name) -> None:
                report(f"train {name}", before + step, total)

            facts = train_once(kept, unet, loss, self.device, watch)
            before += course.steps
            report(f"train {name}", before, total)
            snapshots = []
            for step in kept.snapshots:
                kept.load(unet, step)
                made = self._generations(
                    kept.folder / f"generated-{step:08d}.npy",
                    lambda unet=unet: self._denoiser(unet),  # type: ignore[misc]
                    captions,
                    kept.snapshot(step),
                )
                snapshots.append({"step": step} | self._distances(made, size, decoded))
            found[name] = {
                "size": size,
                "conditioning": conditioning,
                "seed": seed,
                "losses": facts["losses"],
                "snapshots": snapshots,
            }
        return found

    def _denoiser(self, unet: torch.nn.Module) -> Denoiser:
        pipe = copy.copy(self.pipe)
        pipe.unet = unet.eval().requires_grad_(False)
        return Denoiser(pipe, self.ask.steps, 1.0, self.ask.images_batch)

    def _generations(
        self,
        file: Path,
        denoiser: Callable[[], Denoiser],
        captions: Sequence[str],
        made_by: Path | str,
    ) -> np.ndarray:
        """Generations of a model, kept in a file whose name says what made them.

        Each has the caption of a training picture that is drawn evenly, and noise of its own; both
        are the same for every model, as far as sizes allow.
        """
        ask = self.ask
        digest = path_digest(made_by) if isinstance(made_by, Path) else made_by
        key = digest_of([digest, ask.generations, ask.steps, ask.seed, ask.images_batch])[:12]
        file = file.with_name(f"{file.stem}-{key}.npy")
        if not file.exists():
            seeds = [seed_of(ask.seed, "noise", number) for number in range(ask.generations)]
            rows = [
                seed_of(ask.seed, "label", number) * len(captions) >> 63
                for number in range(ask.generations)
            ]
            model = denoiser()
            made = _generated(model, [captions[row] for row in rows], seeds, ask.images_batch)
            model.close()
            content = io.BytesIO()
            np.save(content, made)
            write_atomically(file, content.getvalue())
        try:
            return np.asarray(np.load(file, allow_pickle=False))
        except (OSError, ValueError) as error:
            raise UserError(f"{file} is damaged: {one_line(error)}; delete it") from error

    def _distances(self, made: np.ndarray, size: int, decoded: np.ndarray) -> dict[str, Any]:
        """Distances to the training pictures, and to what the autoencoder makes of them."""
        first, second = nearest_two(made, self.pictures.pixels[:size])
        near, far = nearest_two(made, decoded[:size])
        return {
            "first": first.tolist(),
            "second": second.tolist(),
            "first_decoded": near.tolist(),
            "second_decoded": far.tolist(),
        }

    def _ideals(
        self, latents: np.ndarray, decoded: np.ndarray, report: Report
    ) -> dict[str, dict[str, Any]]:
        found = {}
        for done, size in enumerate(self.ask.sizes):
            report("ideal", done, len(self.ask.sizes))
            known = torch.from_numpy(latents[:size, 0, 0].copy()).to(self.device)
            made = self._generations(
                self.out / "ideal" / f"n{size:04d}.npy",
                lambda known=known: ideal_denoiser(  # type: ignore[misc]
                    self.pipe, known, self.ask.steps, self.ask.images_batch
                ),
                [""],
                digest_of([self._latents_hash(), size]),
            )
            found[str(size)] = self._distances(made, size, decoded)
        report("ideal", len(self.ask.sizes), len(self.ask.sizes))
        return found

    def _floors(
        self, pictures: np.ndarray | None, decoded: np.ndarray
    ) -> dict[str, dict[str, Any]]:
        """The rule applied to pictures that no model made: held-out ones, or (None) round trips of
        the training pictures through the autoencoder.
        """
        return {
            str(size): self._distances(
                decoded[:size] if pictures is None else pictures, size, decoded
            )
            for size in self.ask.sizes
            if pictures is None or len(pictures)
        }


def _at_width(config: Mapping[str, Any], width: int) -> dict[str, Any]:
    """A UNet's configuration with another first width, the others in proportion."""
    widths = config["block_out_channels"]
    changed = [max(1, round(width * each / widths[0])) for each in widths]
    groups = config.get("norm_num_groups") or 1
    if any(each % groups for each in changed):
        raise UserError(
            f"width {width} gives levels of {', '.join(map(str, changed))} channels, and the"
            f" model's {groups} groups do not divide them all; give a multiple of {groups}"
        )
    return dict(config) | {"block_out_channels": tuple(changed)}


def _alone(step: Step) -> torch.Tensor:
    return step.unconditional_only()


def _generated(
    denoiser: Denoiser, captions: Sequence[str], seeds: Sequence[int], batch: int
) -> np.ndarray:
    """One picture a caption, uint8 `[n, side, side, 3]`, without guidance and so at one row a
    step.
    """
    parts = []
    for start in range(0, len(captions), batch):
        part = slice(start, start + batch)
        asked = denoiser.request(list(captions[part]), list(seeds[part]))
        # Both branches hold the caption, and only one of them is evaluated.
        asked = asked.replace(null_embeddings=asked.embeddings)
        with torch.no_grad():
            latents = trajectory(denoiser, asked, _alone)
        parts.append(denoiser.decode(latents))
    return np.concatenate(parts)
