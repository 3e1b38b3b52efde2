"""An audit made ready: inputs read and checked, pictures described, suites written; nothing
generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from bench.auditing.asked import Asked, Lora, Remedy
from bench.auditing.bases import base_notes
from bench.auditing.commands import scale_commands
from bench.auditing.compare import Comparison, comparison_of, descriptor_of, refuse_held_out
from bench.auditing.header import TrainingHeader, read_training_header, together
from bench.auditing.pictures import Pictures, bucket_notes, groups, notes_on, read_both
from bench.auditing.prompts import Asking, askings, caption_askings, novel_scenes, trigger_of
from bench.auditing.sampling import Column, Studio
from bench.auditing.suites import (
    ATTACKED,
    BASE,
    Files,
    Judges,
    configurations_of,
    in_unet_only,
    judges_of,
    model_side,
    named,
    weighted,
)
from bench.auditing.threshold import Threshold, is_set, stated, unasked
from bench.auditing.work import refuse_out
from bench.base.digests import path_digest
from bench.base.errors import UserError, visible
from bench.base.limits import CHUNKS
from bench.base.progress import Report, silent
from bench.base.prompt_lists import read_list
from bench.captioned.buckets import LEAST, MOST, STEP, Sides, believable, believed, buckets_of
from bench.captioned.views import Training
from bench.diffusion.between import refuse_other_training, same_weights
from bench.diffusion.denoiser import Denoiser, check_size
from bench.diffusion.families import Family, family_of, family_of_suite
from bench.diffusion.lora.file import read_lora
from bench.diffusion.lora.merge import check
from bench.diffusion.lora.names import part_of
from bench.diffusion.model import load_base
from bench.diffusion.prompt_tokenizer import has_word
from bench.diffusion.textual_inversion import read_embedding
from bench.suite.load import load_suite
from bench.suite.suite import Suite

# What is tried where nobody says what: methods with parameters that their papers name.
REMEDIES = (
    Remedy("guidance", {"share": 0.5}),
    Remedy("random_tokens", {"count": 4}),
    Remedy("wen", {}),
    Remedy("wanda", {}),
)
# Of what a file adds to its base, with as many channels at random as the control.
OF_FILES = (
    Remedy("baf", {"q": 0.25}),
    Remedy("baf", {"q": 0.5}),
    Remedy("baf", {"q": 0.5, "control": "random"}),
    Remedy("baf", {"q": 0.5, "control": "weight"}),
    Remedy("baf", {"q": 0.5, "control": "reverse"}),
)
# On the embedded model these methods need other parameters (Makefile, `make records`).
OF_TESTBED = {"wanda": {"sparsity": 0.1, "branch": "cond", "token_norm": "none"}}
OTHER_AUTOENCODER = (
    "The base has another autoencoder than the model: images of the base are decoded with its own,"
    " those of the weights between the two with the model's."
)


@dataclass
class Audit:
    """An audit made ready: inputs read, suites written, nothing generated."""

    asked: Asked
    like: Suite
    judges: Judges
    training: Pictures
    holdout: Pictures | None
    askings: list[Asking]
    held_out_askings: list[Asking]
    header: TrainingHeader
    trigger: str
    files: Files
    suite: Suite
    groups: np.ndarray
    comparison: Comparison
    notes: list[str]
    threshold: Threshold
    sets_threshold: bool  # on images of the base
    device: torch.device
    report: Report
    tried: bool = False  # whether the model was loaded once, with everything that is merged into it
    in_between: bool = True  # whether there are weights between the model and the base; once tried

    @property
    def studio(self) -> Studio:
        store = self.asked.store or str(self.asked.out / "store")
        return Studio(store, self.device, self.asked.out / "records", self.report)

    @property
    def yours(self) -> Column:
        return Column("yours", self.suite, command=scale_commands(self.asked.loras))

    @property
    def base(self) -> Column | None:
        """What the model was made from; None where that is not known."""
        if not self.asked.has_base:
            return None
        return Column("base", load_suite(str(self.asked.out / f"{BASE}.toml")))

    @property
    def base_with_embeddings(self) -> Column | None:
        """What the model is at weight 0 where it has embeddings beside what is weighted: all
        weights have them, and the base has not. None where that is the base itself.
        """
        if not self.asked.embeddings or not (self.asked.loras or self.asked.base):
            return None
        each = "embedding" if len(self.asked.embeddings) == 1 else "embeddings"
        return Column(f"base with the {each}", self.suite.needed_base("the audit"))

    @property
    def base_askings(self) -> list[Asking]:
        """What the base is asked: what the model is, and held-out captions too where its images
        set the threshold.
        """
        return [*self.askings, *(self.held_out_askings if self.sets_threshold else ())]

    @property
    def unasked(self) -> np.ndarray:
        """Which pictures the prompts of `base_askings` do not ask for, bool `[P, N]`."""
        held_out = self.base_askings[len(self.askings) :]
        return unasked(self.askings, held_out, self.training.captions, self.groups)

    def take_threshold(self, found: Threshold) -> None:
        """Judge by another threshold from now on: copies, near-duplicates, suites and attack."""
        self.threshold = found
        if found.value == self.judges.threshold:
            return
        self.judges = self.judges.at(found.value)
        self.files = replace(self.files, judges=self.judges)
        self.suite = self.files.suites()
        self.groups = groups(self.comparison.among_training(), found.value)

    @property
    def attack(self) -> Column | None:
        """The model against the attacker who knows its base; None where that is not tried."""
        if not self.files.attacked:
            return None
        column = Column("attack", load_suite(str(self.asked.out / f"{ATTACKED}.toml")))
        try:
            self.studio.prepared(column)
        except UserError as error:  # of a family of models that it does not know
            self.note(f"The attack was not tried: {error}")
            return None
        return column

    def note(self, text: str) -> None:
        """Add a note to the page, once."""
        if text not in self.notes:
            self.notes.append(text)

    def settings(self) -> list[tuple[Column, str, float | None]]:
        """Weights and epochs beside base and model: column, kind of row, weight."""
        found: list[tuple[Column, str, float | None]] = []
        if self.asked.base:
            for weight in self.asked.curve if self.in_between else ():
                suite = self.files.with_weight(self.suite, weight)
                found.append((Column(f"weight {weight:g}", suite), "weight", weight))
            return found
        if not self.asked.loras:
            return []
        for weight in self.asked.curve:
            column = self._with_loras(self._weight_name(weight), weighted(self.asked.loras, weight))
            found.append((column, "weight", weight))
        if self._touches_text():
            untouched = in_unet_only(self.asked.loras)
            found.append((self._with_loras("text encoder untouched", untouched), "remedy", None))
        for file in self.asked.epochs:
            first = Lora(file, self.asked.loras[0].strength)
            suite = self.files.with_loras(self.suite, [first, *self.asked.loras[1:]])
            stems = [other.stem for other in self.asked.epochs]
            name = file.stem if stems.count(file.stem) == 1 else f"{file.parent.name}/{file.stem}"
            found.append((Column(name, suite), "epoch", None))
        return found

    def _with_loras(self, name: str, loras: list[Lora]) -> Column:
        suite = self.files.with_loras(self.suite, loras)
        return Column(name, suite, command=scale_commands(loras))

    def _weight_name(self, weight: float) -> str:
        """A weight as a person who publishes the file says it; of several files, or of unlike
        strengths, as what they are multiplied with.
        """
        strengths = {(one.strength.unet, one.strength.text) for one in self.asked.loras}
        unet, text = next(iter(strengths))
        if len(self.asked.loras) == 1 and unet == text:
            return f"weight {weight * unet:g}"
        return f"{weight:g} x the weights given"

    def remedies(self) -> tuple[Remedy, ...]:
        """Those that were asked for, or the ones that are tried by default."""
        if self.asked.remedies is not None:
            return self.asked.remedies
        if self.asked.quick:
            return ()
        found = [*REMEDIES, *(OF_FILES if self.asked.loras or self.asked.base else ())]
        if self.like.name.startswith("testbed"):
            found = [
                replace(one, parameters=OF_TESTBED.get(one.method, one.parameters)) for one in found
            ]
        return tuple(found)

    def _touches_text(self) -> bool:
        return any(
            part_of(name) != "unet"
            for one in self.asked.loras
            for name in read_lora(one.file).tensors
        )


def ready(asked: Asked, device: torch.device, report: Report = silent) -> Audit:
    """Read and check every input, describe the pictures, write suites and lists.

    Raises `UserError`, one line, for whatever is wrong with an input.
    """
    _refuse_idle(asked)
    refuse_out(asked)
    like = load_suite(asked.suite_like)
    judges = judges_of(like, asked)
    header = _header(asked)
    words = [read_embedding(named(file)).token for file in asked.embeddings]
    side = model_side(asked, like)
    named_sizes = believable(header.bucket_sizes, side)
    training = Training(
        side,
        flips=asked.flips and header.flips is not False,
        random_crops=asked.random_crops or header.random_crops is True,
        known_buckets=named_sizes or _buckets(header, side),
    )
    asked, told = read_as_trained(asked, header, family_of_model(asked, like))
    descriptor = descriptor_of(judges, like, device)
    pictures, holdout = read_both(asked, training, descriptor, report)
    notes = [*_notes(asked, pictures, holdout, header), *told]
    notes += _uncalled(words, pictures.captions)
    only = words[0] if len(words) == 1 else ""
    trigger = trigger_of(asked.trigger or only, pictures.entries)
    if not trigger:
        notes.append("No trigger word was given or found, so none was tried alone.")
    scenes = novel_scenes(trigger, _lines(asked.novel), _clean(like))
    if not scenes:
        notes.append("No novel scenes were tried: give --novel FILE, one prompt a line.")
    bucketed = header.buckets is True if asked.buckets is None else asked.buckets
    if bucketed:
        notes += bucket_notes(pictures, asked.buckets is None, bool(named_sizes))
    asking = askings(
        pictures.entries,
        images=asked.images_each,
        trigger=trigger,
        tags=header.tags,
        novel=scenes,
        keep_tokens=header.keep_tokens,
        quick=asked.quick,
        seed=asked.seed,
        sizes=pictures.buckets if bucketed else (),
    )
    comparison = comparison_of(judges, like, descriptor, (pictures, holdout), notes)
    refuse_held_out(comparison, training, judges.threshold, report)
    files = Files(asked, like, judges, pictures, holdout, asking, device.type != "cpu")
    suite = files.write()
    if asked.loras and not suite.lora_strengths:
        raise UserError(
            "nothing to compare: with these weights the LoRA files leave the model as it was"
        )
    held_out_askings = (
        caption_askings(holdout.captions, asked.images_each, holdout.buckets if bucketed else ())
        if holdout
        else []
    )
    of_group = groups(comparison.among_training(), judges.threshold)
    sets = is_set(asked, *_pairs(asked, asking, held_out_askings, pictures.captions, of_group))
    return Audit(
        asked=asked,
        like=like,
        judges=judges,
        training=pictures,
        holdout=holdout,
        askings=asking,
        held_out_askings=held_out_askings,
        header=header,
        trigger=trigger,
        files=files,
        suite=suite,
        groups=of_group,
        comparison=comparison,
        notes=notes,
        threshold=stated(asked, judges.threshold, judges.profile, like.name),
        sets_threshold=sets,
        device=device,
        report=report,
    )


def try_model(audit: Audit) -> Denoiser:
    """Load the model with its LoRAs once, and hold every earlier epoch and the base against it.

    Returns the model. Raises `UserError` for a file that does not belong to it or changes nothing,
    before anything is generated.
    """
    prepared = audit.studio.prepared(audit.yours)
    prepared.engine.load()
    for size in {one.size for one in (*audit.askings, *audit.held_out_askings)}:
        if size:
            check_size(prepared.engine.denoiser.pipe, size)
    pipe = prepared.engine.denoiser.pipe
    for file in audit.asked.epochs:
        check(pipe, read_lora(file))
    if audit.base and audit.asked.base:
        # By the suite of the base that has the embeddings too, so that both have the same words.
        base = load_base(audit.suite.needed_base("the audit"), prepared.engine.denoiser)
        try:
            refuse_other_training(pipe, base.pipe)
        except UserError as error:
            if audit.asked.weights:
                raise
            audit.in_between = False
            audit.note(f"No weights were tried: {error}")
        if not same_weights(pipe.vae, base.pipe.vae):
            audit.note(OTHER_AUTOENCODER)
    _note_long_captions(audit, prepared.engine.denoiser)
    model = audit.suite.path(audit.suite.settings.model.path)
    for lora in audit.asked.loras:
        header = read_training_header(read_lora(lora.file).header)
        for note in base_notes(lora.file.name, header, pipe, model):
            audit.note(note)
    audit.tried = True
    return prepared.engine.denoiser


def _refuse_idle(asked: Asked) -> None:
    """Raises `UserError` for options that would be passed over in silence."""
    if asked.epochs and not asked.loras:
        raise UserError("--epochs names earlier saves of a LoRA: give the last one with --lora")
    if asked.base and asked.loras:
        raise UserError(
            "--base is for a model that was fine-tuned as a whole; the base of a LoRA is the model"
            " that it is merged into: leave --base out"
        )
    if asked.base and asked.model is None:
        raise UserError("--base says what a model was fine-tuned from: name that with --model")
    if asked.calibrate and asked.threshold is not None:
        raise UserError("--threshold and --calibrate exclude each other")
    if asked.holdout_random and not asked.holdout:
        raise UserError("--holdout-random speaks of held-out pictures: give --holdout FOLDER")
    if asked.weights and not (asked.loras or asked.base):
        raise UserError(
            "--weights lie between a model and what it was made from: give --lora FILE, or what a"
            " model was fine-tuned from with --base"
        )
    if asked.base and asked.model and _same_files(asked.model, asked.base):
        raise UserError(
            f"nothing to compare: {visible(str(asked.base))} holds the same model as"
            f" {visible(str(asked.model))}"
        )


def _same_files(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and path_digest(one) == path_digest(other)


def _pairs(
    asked: Asked,
    asking: Sequence[Asking],
    held_out: Sequence[Asking],
    captions: Sequence[str],
    of_group: np.ndarray,
) -> tuple[int, int]:
    """How many images the base would make that have a picture which they are not asked for, and of
    how many prompts.
    """
    if not asked.has_base:
        return 0, 0
    free = unasked(asking, held_out, captions, of_group)
    images = [
        one.images for one, row in zip([*asking, *held_out], free, strict=True) if bool(row.any())
    ]
    return sum(images), len(images)


def _buckets(header: TrainingHeader, side: int) -> tuple[Sides, ...]:
    """Those of the resolution and limits that the file states, else of the model's own side."""
    return buckets_of(
        believed(header.resolution, side),
        max(header.bucket_least or LEAST, STEP),
        min(header.bucket_most or MOST, 4 * max(side, LEAST)),
    )


def _header(asked: Asked) -> TrainingHeader:
    """Those of all LoRAs as one: the training is that of the first. Every file is read, so that
    what is wrong with one is said now.
    """
    headers = [read_training_header(read_lora(one.file).header) for one in asked.loras]
    for file in asked.epochs:
        read_lora(file)
    return together(headers)


def _lines(file: Path | None) -> list[str]:
    return [row["prompt"] for row in read_list(file, "lines").rows] if file else []


def _clean(like: Suite) -> list[str]:
    """Clean captions of the suite, where its list is here."""
    settings = like.settings.prompts.get("clean")
    if settings is None or not like.places.is_there(settings.file):
        return []
    return [prompt.text for prompt in like.prompts("clean")]


def _notes(
    asked: Asked, pictures: Pictures, holdout: Pictures | None, header: TrainingHeader
) -> list[str]:
    found = notes_on(pictures, holdout)
    if empty := sum(not one.captions for one in pictures.entries):
        found.append(
            f"{empty} of {len(pictures)} training pictures have no caption: the empty prompt is"
            " their own."
        )
    uncalled = sum(not one.captions for one in holdout.entries) if holdout else 0
    if holdout and uncalled and any(pictures.captions):
        found.append(
            f"{uncalled} of {len(holdout)} held-out pictures have no caption: they were asked with"
            " the empty prompt, which is not what training pictures are asked with."
        )
    shown = sum(one.repeats for one in pictures.entries)
    if header.pictures not in (None, shown) and len(pictures) == pictures.total:
        found.append(
            f"The file's header says that {header.pictures} pictures an epoch were trained on (with"
            f" repeats), and the folder gives {shown}: is it the whole training data?"
        )
    if not asked.has_base:
        found.append(
            "No base model was given, so nothing can tell your training from the base model's: give"
            " --base FOLDER."
        )
    return found


def family_of_model(asked: Asked, like: Suite) -> Family | None:
    """The family of the model that is audited; None where its files do not say it."""
    if asked.model is None:
        return family_of_suite(like)
    return family_of(configurations_of(asked.model, asked, like))


def read_as_trained(
    asked: Asked, header: TrainingHeader, family: Family | None
) -> tuple[Asked, list[str]]:
    """How texts are read: as was asked for, else as the training read them by the file's header;
    and a line of each that the header decides or that differs from it.
    """
    asked, layer = _layer_as_trained(asked, header, family)
    asked, chunks = _chunks_as_trained(asked, header)
    return asked, [line for line in (layer, chunks) if line]


def _layer_as_trained(
    asked: Asked, header: TrainingHeader, family: Family | None
) -> tuple[Asked, str]:
    said = header.clip_skip
    # Of XL kohya's scripts read one and the same layer, whatever they are told.
    if said is None or said < 1 or family == "sdxl":
        return asked, ""
    trained = said - 1
    counted = f"The file's header says clip_skip {said}, which diffusers counts as {trained}"
    if asked.clip_skip is None:
        told = f"{counted}: texts are read so here (--clip-skip 0 reads the last layer)."
        return replace(asked, clip_skip=trained), told if trained else ""
    if asked.clip_skip != trained:
        return asked, f"{counted}; texts are read with {asked.clip_skip}, as was asked for."
    return asked, ""


def _chunks_as_trained(asked: Asked, header: TrainingHeader) -> tuple[Asked, str]:
    trained = {150: 2, 225: 3}.get(header.tokens or 0, 1)  # the two that kohya's scripts offer
    counted = f"The file's header says max_token_length {header.tokens}"
    if asked.chunks is None and trained > 1:
        told = f"{counted}: prompts are read in {trained} chunks of 75 tokens, as in its training."
        return replace(asked, chunks=trained), told
    if trained > 1 and asked.chunks != trained:
        read = "one chunk" if asked.chunks == 1 else f"{asked.chunks} chunks"
        return asked, f"{counted}; prompts are read in {read}, as was asked for."
    return asked, ""


def _uncalled(words: Sequence[str], captions: Sequence[str]) -> list[str]:
    """A line for each word of a textual inversion that no caption has."""
    return [
        f"No caption has the word {visible(word)} of its embedding, so captions alone do not call"
        " it up."
        for word in words
        if not any(has_word(caption, word) for caption in captions)
    ]


def _note_long_captions(audit: Audit, denoiser: Denoiser) -> None:
    most = denoiser.most_tokens
    long = sum(
        len(denoiser.pipe.tokenizer(caption, truncation=False).input_ids) > most
        for caption in audit.training.captions
    )
    if long:
        chunks = audit.suite.settings.model.chunks
        more = f"; --chunks {chunks + 1} reads more, for a model that was trained so"
        audit.note(
            f"Captions longer than the {most} tokens that are read, with beginning and end: {long}."
            f" The rest of them is cut off{more if chunks < CHUNKS else ''}."
        )
