"""`bench experiment solidmark`: does a model know a number that was drawn for a picture?
(SolidMark: Kriplani et al. 2025, arXiv 2503.00592.)

Every training picture gets a key, a grey drawn at random, as a frame around it. A model that is
shown the picture and fills in the frame can only know the key from training. Groups of pictures are
shown at different doses, drawn at random, one of them never.

    <out>/pictures/            where no other folder is given: scenes of the testbed
          framed/              pictures with their keys, for training
          latents-<hash>.npy   as the autoencoder encodes these
          trainings/<row>/     one training each, `trainings.py` says what is in it
          readings/<row>/      answers of a model, a file for some pictures
"""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import PrivateAttr
from torch import Tensor

from bench.base import limits
from bench.base.digests import digest_of, path_digest, seed_of
from bench.base.errors import UserError, one_line
from bench.base.files import write_atomically
from bench.base.pictures import encode_png
from bench.base.progress import Report, silent
from bench.contracts.method import Method, State
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.model import scheduler_of
from bench.diffusion.request import Request, Step
from bench.records.environment import environment
from bench.records.experiment import Experiment
from bench.registry import registry
from bench.running.sampling import sample
from bench.studies.experiments.disturbed import MITIGATIONS, SETTINGS, Disturbed
from bench.studies.experiments.marks import Kind, Mark
from bench.studies.experiments.pictures import Pictures, read_pictures, refuse_few
from bench.studies.experiments.solidmark_tables import (
    BASE,
    CLAIM,
    DELTAS,
    about,
    found_in,
    tables_of,
)
from bench.studies.experiments.trainings import Kept, pace, steps_for, train_once
from bench.studies.finetune.data import Pair, encoded_once
from bench.studies.finetune.train import load_trainable, moments_by, pipeline_side
from bench.training.loop import Course

NAME, VERSION = "solidmark", 1
PAPER = "Kriplani et al. 2025, SolidMark, arXiv:2503.00592"
FACTOR = 8  # pixels a latent, of a model whose files are not there
AT_ONCE = 16  # pictures whose answers are one file


@dataclass(frozen=True)
class Ask:
    """What is trained and asked. Defaults fit the embedded model and a core of a CPU."""

    pictures: int = 96  # in all; each dose gets as many
    doses: tuple[int, ...] = (0, 1, 10, 50)  # views in a round
    rounds: int = 10
    rows: tuple[str, ...] = (BASE, *MITIGATIONS)
    methods: tuple[str, ...] = ()  # asked of the fine-tuned model too
    mark: Kind = "frame"
    width: int = 4  # pixels, of the frame; the side of a patch
    batch_size: int = 16
    learning_rate: float = 4e-4
    warmup: int = 100
    ema: float = 0.999
    noises: int = 4  # of each picture
    every: int = 1  # steps from one pasting to the next
    steps: int = 25
    guidance: float = 1.0
    images_batch: int = 32
    seed: int = 0
    checkpoint_every: int = 250

    @property
    def trained(self) -> list[str]:
        """The rows that are trained."""
        return [row for row in self.rows if row != BASE]

    @property
    def round(self) -> int:
        """Views in a round."""
        return sum(self.doses) * (self.pictures // len(self.doses))

    def course(self) -> Course:
        """How a model is fine-tuned."""
        return Course(
            steps=steps_for(self.rounds * self.round, self.batch_size),
            learning_rate=self.learning_rate,
            warmup=self.warmup,
            ema=self.ema,
            seed=self.seed,
            checkpoint_every=self.checkpoint_every,
        )


def check(ask: Ask) -> None:
    """Raise `UserError` for what cannot be asked."""
    known = (BASE, *MITIGATIONS)
    if unknown := [row for row in ask.rows if row not in known]:
        raise UserError(f"unknown row '{unknown[0]}': known: {', '.join(known)}")
    if not ask.rows or len(set(ask.rows)) < len(ask.rows):
        raise UserError("--row names each of them once, and one at least")
    if list(ask.doses) != sorted(set(ask.doses)) or not any(ask.doses):
        raise UserError("--doses must ascend, each given once, with one above 0 at least")
    if ask.doses[0] < 0:
        raise UserError("--doses are numbers of views, from 0 on")
    for option, asked in (("--doses", ask.doses[-1]), ("--pictures", ask.pictures)):
        if asked > limits.EXPERIMENT_PICTURES:
            raise UserError(f"{option} must be at most {limits.EXPERIMENT_PICTURES:,}")
    if ask.pictures % len(ask.doses) or ask.pictures // len(ask.doses) < 4:
        raise UserError(
            f"--pictures must be a multiple of the {len(ask.doses)} doses, 4 of each at least"
        )
    if ask.methods and MITIGATIONS[0] not in ask.rows:
        raise UserError(f"--method is asked of the row {MITIGATIONS[0]}; name it with --row too")


def plan(ask: Ask, factor: int | None = None, side: int | None = None) -> dict[str, Any]:
    """What would be trained and evaluated, without any file. `factor`: pixels a latent."""
    check(ask)
    rows = len(ask.rows) + len(ask.methods)
    asked = ask.pictures * ask.noises * rows
    branches = 1 if ask.guidance == 1 else 2
    mark = Mark(ask.mark, ask.width, side) if side else None
    return {
        "experiment": NAME,
        "trainings": dict.fromkeys(ask.trained, ask.course().steps),
        "training_steps": ask.course().steps * len(ask.trained),
        "batch_size": ask.batch_size,
        "views": {str(dose): dose * ask.rounds for dose in ask.doses},
        "side": mark.whole if mark else None,
        "latents": mark.whole // factor if mark and factor else None,
        "queries": asked,
        "row_evaluations": asked * ask.steps * branches,
        "round_trips": asked * -(-ask.steps // ask.every),
    }


def key_of(seed: int, digest: str) -> int:
    """The key of a picture, a byte: a function of the seed and its pixels alone."""
    return seed_of(seed, "key", digest) >> 55


def dealt(count: int, doses: Sequence[int], seed: int) -> np.ndarray:
    """The dose of each of `count` pictures, drawn so that every dose has as many."""
    each = np.repeat(np.asarray(doses), count // len(doses))
    return np.random.default_rng([seed, 5]).permutation(each)


class Pasting(Method):
    """A method that, at every `every`-th step, pastes what is known of the pictures into the clean
    pictures that the latents hold, and goes on from there; what it wraps guides.

    The noise is then what makes the latents out of the pasted picture: the predicted one still
    holds the difference to what the model had drawn. It knows the pictures without their keys.
    """

    _inner: Method = PrivateAttr()
    _denoiser: Denoiser = PrivateAttr()
    _mark: Mark = PrivateAttr()
    _pictures: np.ndarray = PrivateAttr()
    _every: int = PrivateAttr()
    _first: np.ndarray | None = PrivateAttr(None)  # what it would have drawn after the first step

    def __init__(
        self, inner: Method, denoiser: Denoiser, mark: Mark, pictures: np.ndarray, every: int
    ) -> None:
        super().__init__()
        self._inner, self._denoiser, self._mark = inner, denoiser, mark
        self._pictures, self._every = pictures, every

    def adjust(self, denoiser: Denoiser, request: Request, state: State) -> Request:
        """As the wrapped method does."""
        return self._inner.adjust(denoiser, request, state)

    def guide(self, step: Step, state: State) -> Tensor:
        """The noise towards the pasted picture, epsilon `[B, C, h, w]`."""
        guided, denoiser = self._inner.guide(step, state), self._denoiser
        if step.index % self._every:
            return guided
        signal, latents = denoiser.alphas[step.index].float(), step.latents.float()
        clean = (latents - (1 - signal).sqrt() * guided.float()) / signal.sqrt()
        drawn = denoiser.decode(clean.to(denoiser.dtype))
        if step.index == 0:
            self._first = drawn
        pasted = denoiser.encoded(self._mark.pasted(drawn, self._pictures)).float()
        noise = (latents - signal.sqrt() * pasted) / (1 - signal).sqrt()
        return noise.to(guided.dtype)

    @property
    def first(self) -> np.ndarray:
        """What the model would have drawn after the first step, uint8 `[B, H, W, 3]`."""
        if self._first is None:
            raise ValueError("no step was made yet")
        return self._first


class Alone(Method):
    """The conditional prediction alone, at one row a step, of requests whose branches both hold the
    caption.
    """

    def guide(self, step: Step, state: State) -> Tensor:
        """Guidance 1."""
        return step.unconditional_only()


@dataclass(frozen=True)
class Answers:
    """What a model filled in, uint8 `[n, whole, whole, 3]` both: at the end, and what it would have
    drawn after the first step, from pure noise and the caption alone.
    """

    last: np.ndarray
    first: np.ndarray


def answers(
    denoiser: Denoiser,
    mark: Mark,
    pictures: np.ndarray,
    captions: Sequence[str],
    seeds: Sequence[int],
    every: int,
    method: Method | None = None,
) -> Answers:
    """Fill in the keys of known pictures, uint8 `[n, side, side, 3]`, each from its own noise."""
    request = denoiser.request(list(captions), list(seeds))
    state: State = {}
    if method is None and denoiser.guidance_scale == 1:
        request = request.replace(null_embeddings=request.embeddings)
    inner = method or (Alone() if denoiser.guidance_scale == 1 else Method())
    pasting = Pasting(inner, denoiser, mark, pictures, every)
    with method.attach(denoiser.pipe, state) if method else nullcontext():
        latents = sample(denoiser, request, pasting, state)
    return Answers(denoiser.decode(latents), pasting.first)


class Study:
    """The experiment with its pictures and the model at hand."""

    def __init__(self, ask: Ask, model: Path, data: Path, out: Path, device: torch.device) -> None:
        import diffusers

        check(ask)
        self.ask, self.model, self.out, self.device = ask, model, out, device
        self.methods = {name: _method(name) for name in ask.methods}
        self.pipe = load_trainable(model, device)
        # The steps are worked out here, for which they must be those of DDIM.
        self.pipe.scheduler = scheduler_of(diffusers.DDIMScheduler, self.pipe.scheduler.config)
        side = pipeline_side(self.pipe.unet.config, self.pipe.vae.config)
        self.mark = Mark(ask.mark, ask.width, side)
        self.factor = side // int(self.pipe.unet.config.sample_size)
        if ask.mark == "frame" and ask.width % self.factor:
            raise UserError(
                f"a frame of {ask.width} pixels does not fit the latents of the model: give a"
                f" multiple of {self.factor} with --width"
            )
        if ask.mark == "patch" and ask.width >= side:
            raise UserError(f"a patch of {ask.width} pixels covers the whole picture of {side}")
        self.pipe.unet.register_to_config(sample_size=self.mark.whole // self.factor)
        everything = read_pictures(data, side)
        refuse_few(everything, ask.pictures, "the experiment")
        self.pictures: Pictures = everything.chosen(range(ask.pictures))
        self.keys = [key_of(ask.seed, digest) for digest in self.pictures.digests]
        self.doses = dealt(ask.pictures, ask.doses, ask.seed)

    def measured_pace(self) -> dict[str, float]:
        """Seconds of a training step and of a query, by trying some."""
        few = range(min(8, self.ask.pictures))
        unet = copy.deepcopy(self.pipe.unet)
        latents = self._latent_shape()
        loss = self._loss(MITIGATIONS[0], np.zeros((self.ask.pictures, 1, 2, *latents), "<f4"))
        unet.to(memory_format=loss.memory_format).train().requires_grad_(True)
        optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-9)

        def step() -> None:
            loss(unet, 0, torch.Generator().manual_seed(0)).backward()
            optimizer.step()
            optimizer.zero_grad()

        step()
        of_step = pace(step, 2)
        denoiser = self._denoiser(self.pipe.unet, steps=3)
        captions = [self.pictures.pairs[number].caption for number in few]
        known = self.pictures.pixels[list(few)]
        seconds = pace(
            lambda: answers(denoiser, self.mark, known, captions, list(few), self.ask.every), 1
        )
        denoiser.close()
        return {"step": of_step, "query": seconds / len(few) / 3 * self.ask.steps}

    def run(self, data: str, report: Report = silent) -> Experiment:
        """Train and ask whatever is not there yet, and work out the tables. `data` is what the page
        calls the pictures.
        """
        ask = self.ask
        settings = self.settings()
        raw: dict[str, Any] = {
            "pictures": [pair.name for pair in self.pictures.pairs],
            "doses": [int(dose) for dose in self.doses],
            "keys": self.keys,
            "rows": {},
        }
        latents = self._latents(report)
        total, before = plan(ask)["training_steps"], 0
        for row in ask.rows:
            unet, made_by = self.pipe.unet, path_digest(self.model / "unet")
            if row != BASE:
                unet, kept = self._trained(row, latents, before, total, report)
                before += kept.course.steps
                made_by = path_digest(kept.snapshot(kept.course.steps))
            raw["rows"][row] = self._asked(row, unet, made_by, None, report)
            for name, method in self.methods.items() if row == MITIGATIONS[0] else ():
                raw["rows"][f"{row}, {name}"] = self._asked(
                    f"{row}-{name}", unet, made_by, method, report
                )
        tables = tables_of(raw, settings)
        return Experiment(
            experiment=NAME,
            experiment_version=VERSION,
            data=data,
            label=f"{ask.mark}-{ask.rounds}-rounds",
            title="Keys painted on training pictures",
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
        listed = {name: list(given[name]) for name in ("doses", "rows", "methods")}
        return (
            given
            | listed
            | {
                "side": self.mark.side,
                "whole": self.mark.whole,
                "deltas": list(DELTAS),
                "mitigations": {row: SETTINGS[row] for row in self.ask.rows if row in SETTINGS},
                "duplicates_removed": self.pictures.removed,
            }
        )

    def _latent_shape(self) -> tuple[int, int, int]:
        side = self.mark.whole // self.factor
        return (self.pipe.unet.config.in_channels, side, side)

    def _latents(self, report: Report) -> np.ndarray:
        """Marked pictures as the autoencoder encodes them, its mode alone."""
        key = digest_of(
            [self.pictures.digests, self.keys, asdict(self.mark), path_digest(self.model / "vae")]
        )[:16]
        folder = self.out / f"framed-{key}"
        pairs = []
        painted = self.mark.painted(self.pictures.pixels, self.keys)
        for number, (pair, picture) in enumerate(zip(self.pictures.pairs, painted, strict=True)):
            path = folder / f"{number:05d}.png"
            if not path.exists():
                write_atomically(path, encode_png(picture))
            pairs.append(Pair(path.name, path, pair.caption))
        moments = encoded_once(
            self.out / f"latents-{key}.npy",
            pairs,
            self.mark.whole,
            False,
            moments_by(self.pipe, self.device),
            report,
        )
        return np.stack([moments[:, :, 0], np.zeros_like(moments[:, :, 0])], 2)

    def _loss(self, row: str, latents: np.ndarray) -> Disturbed:
        return Disturbed(
            row,
            self.pipe,
            latents,
            [pair.caption for pair in self.pictures.pairs],
            np.repeat(np.arange(len(self.doses)), self.doses),
            self.ask.batch_size,
            self.ask.seed,
            self.device,
        )

    def _trained(
        self, row: str, latents: np.ndarray, before: int, total: int, report: Report
    ) -> tuple[torch.nn.Module, Kept]:
        """The fine-tuned UNet of a row, trained where it is not there yet."""
        ask, course = self.ask, self.ask.course()
        kept = Kept(
            self.out / "trainings" / row,
            {
                "row": row,
                "strength": SETTINGS.get(row),
                "pictures": self.pictures.digests,
                "captions": [pair.caption for pair in self.pictures.pairs],
                "keys": self.keys,
                "doses": [int(dose) for dose in self.doses],
                "mark": asdict(self.mark),
                "batch_size": ask.batch_size,
                "model_sha256": path_digest(self.model),
            },
            course,
            (course.steps,),
        )
        unet = copy.deepcopy(self.pipe.unet)
        train_once(
            kept,
            unet,
            self._loss(row, latents),
            self.device,
            lambda step: report(f"train {row}", before + step, total),
        )
        report(f"train {row}", before + course.steps, total)
        kept.load(unet, course.steps)
        return unet, kept

    def _denoiser(self, unet: torch.nn.Module, steps: int | None = None) -> Denoiser:
        pipe = copy.copy(self.pipe)
        pipe.unet = unet.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
        return Denoiser(pipe, steps or self.ask.steps, self.ask.guidance, self.ask.images_batch)

    def _asked(
        self, row: str, unet: torch.nn.Module, made_by: str, method: Method | None, report: Report
    ) -> dict[str, Any]:
        """What a model answers for every picture, read against the keys only here."""
        ask, count, parts = self.ask, self.ask.pictures, list[Answers]()
        denoiser: Denoiser | None = None
        for start in range(0, count, AT_ONCE):
            report(f"ask {row}", start, count)
            numbers = range(start, min(start + AT_ONCE, count))
            key = digest_of(
                [
                    made_by,
                    path_digest(self.model / "vae"),
                    [self.pictures.digests[number] for number in numbers],
                    [self.pictures.pairs[number].caption for number in numbers],
                    asdict(self.mark),
                    [ask.noises, ask.every, ask.steps, ask.guidance, ask.images_batch, ask.seed],
                    _facts(method),
                ]
            )[:16]
            file = self.out / "readings" / row / f"{start:05d}-{key}.npz"
            if not file.exists():
                denoiser = denoiser or self._denoiser(unet)
                _write(file, self._answered(denoiser, numbers, method))
            parts.append(_read(file))
        if denoiser is not None:
            denoiser.close()
        report(f"ask {row}", count, count)
        return self._readings(
            Answers(
                np.concatenate([part.last for part in parts]),
                np.concatenate([part.first for part in parts]),
            )
        )

    def _answered(
        self, denoiser: Denoiser, numbers: Sequence[int], method: Method | None
    ) -> Answers:
        ask = self.ask
        rows = [number for number in numbers for _ in range(ask.noises)]
        seeds = [
            seed_of(ask.seed, "probe", self.pictures.digests[number], noise)
            for number in numbers
            for noise in range(ask.noises)
        ]
        found = list[Answers]()
        for start in range(0, len(rows), ask.images_batch):
            part = slice(start, start + ask.images_batch)
            found.append(
                answers(
                    denoiser,
                    self.mark,
                    self.pictures.pixels[rows[part]],
                    [self.pictures.pairs[row].caption for row in rows[part]],
                    seeds[part],
                    ask.every,
                    method,
                )
            )
        return Answers(
            np.concatenate([each.last for each in found]),
            np.concatenate([each.first for each in found]),
        )

    def _readings(self, found: Answers) -> dict[str, Any]:
        """Greys from 0 to 1 of each picture and noise, rounded to six decimals: the mean answer,
        the mean distance of its pixels to the key, the share of pixels within each delta, and the
        answer after one step.
        """
        keys = np.repeat(np.array(self.keys) / 255, self.ask.noises)
        pixels = self.mark.read(found.last)
        away = np.abs(pixels - keys[:, None, None])

        def by_noise(values: np.ndarray) -> list[list[float]]:
            return np.round(values.reshape(-1, self.ask.noises), 6).tolist()

        return {
            "answers": by_noise(pixels.mean((1, 2))),
            "pixels": by_noise(away.mean((1, 2))),
            "shares": {f"{d:g}": by_noise((away < d).mean((1, 2))) for d in DELTAS},
            "first": by_noise(self.mark.read(found.first).mean((1, 2))),
        }


def _method(name: str) -> Method:
    """A method with its defaults. Raises `UserError` for one that has to learn first."""
    made = registry.find("method", name).load()()
    if made.needed():
        raise UserError(
            f"method {name} learns from {', '.join(made.needed())} first, which this experiment"
            " does not offer"
        )
    return made


def _facts(method: Method | None) -> Mapping[str, Any] | None:
    if method is None:
        return None
    return {
        "method": type(method).__module__,
        "version": method.version,
        "parameters": method.model_dump(mode="json"),
    }


def _write(file: Path, found: Answers) -> None:
    content = io.BytesIO()
    np.savez(content, last=found.last, first=found.first)
    write_atomically(file, content.getvalue())


def _read(file: Path) -> Answers:
    try:
        with np.load(file, allow_pickle=False) as content:
            return Answers(content["last"], content["first"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{file} is damaged: {one_line(error)}; delete it") from error
