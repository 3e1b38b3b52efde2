"""Fine-tuning a diffusers pipeline on pictures some of which are repeated, so that it memorizes
them (Chavhan et al., arXiv 2406.18566, section 5.4).

Only the UNet is trained, or a LoRA of it, on the loss that it was trained with: noise or velocity,
whichever its scheduler says. Here are the work folder, the data as the autoencoder sees it, and the
model that comes out; the loop and the loss are in `bench.training`.

    <out>/training.json             settings, hashes of model and data, which pictures are repeated;
                                    facts once it is finished
          latents-<hash>.npy        the pictures as the autoencoder encodes them
          checkpoints/step-00000500/unet.safetensors, average.safetensors, optimizer.pt (the newest
          is kept)
          pipeline/                 the fine-tuned model, a diffusers folder
          lora.safetensors          with a rank: what was trained, in kohya's spelling; the model
                                    has it merged
"""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError

from bench.base import limits
from bench.base.digests import digest_of, path_digest
from bench.base.errors import UserError, one_line
from bench.base.files import is_there, read_regular_file, write_atomically
from bench.base.progress import Report, silent
from bench.base.work_folder import refuse_own_files, refuse_read
from bench.diffusion.families import family_of, refuse_family
from bench.diffusion.lora.file import read_lora
from bench.diffusion.lora.merge import Strength, merge
from bench.diffusion.model import quiet_libraries
from bench.studies.finetune.data import (
    Pair,
    choose_duplicated,
    encoded_once,
    pairs_digest,
    read_pairs,
    training_list,
)
from bench.training.denoising import Denoising
from bench.training.loop import Course, Learner, Watch
from bench.training.lora import Lora
from bench.training.lora_files import Folder, Told, kohya_header, kohya_tensors, write_lora

# Settings that are no part of a training's identity: more steps continue it, and where files lie
# and how often they are saved does not change the result.
UNDECIDING = ("model", "data", "steps", "checkpoint_every")
COMMAND = "bench finetune"
# In a work folder, everything but the store and the records, which hold what others left there too.
WRITTEN = (
    *("training.json", "checkpoints", "pipeline", "lora.safetensors"),
    *("suite.toml", "suite.clique_extraction.json", "prompts", "references", "result.json"),
)
LONGEST_CAPTION = 1_000_000  # tokens: a tokenizer that states more states nothing


@dataclass(frozen=True)
class Training:
    """What is trained and how.

    Defaults are the paper's where it names them (steps, batch size, learning rate), else those of
    diffusers' example.
    """

    model: Path
    data: Path
    duplicate: int  # pictures that are repeated
    times: int  # how often each of these stands in an epoch
    steps: int = 15_000
    batch_size: int = 4
    learning_rate: float = 1e-5
    warmup: int = 500
    accumulate: int = 1  # batches a step
    ema: float = 0.0  # decay of the average that is saved in place of the last weights; 0: none
    flip: bool = False  # mirror half of the pictures
    precision: Literal["no", "fp16", "bf16"] = "no"
    gradient_checkpointing: bool = False
    seed: int = 0
    checkpoint_every: int = 500
    rank: int = 0  # of the LoRA that is trained in place of the whole UNet; 0: none

    def facts(self) -> dict[str, Any]:
        """What decides the result besides the contents of model and data."""
        facts = {key: value for key, value in asdict(self).items() if key not in UNDECIDING}
        if not self.rank:  # trainings of before have none
            del facts["rank"]
        return facts

    def course(self) -> Course:
        """What the loop needs of it."""
        return Course(
            steps=self.steps,
            learning_rate=self.learning_rate,
            warmup=self.warmup,
            accumulate=self.accumulate,
            ema=self.ema,
            precision=self.precision,
            seed=self.seed,
            checkpoint_every=self.checkpoint_every,
        )


@dataclass(frozen=True)
class Prepared:
    """A training whose data is read and checked.

    `duplicated` holds the positions in `pairs` of those that are repeated. `identity` is what
    decides the result; a work folder belongs to one identity.
    """

    training: Training
    out: Path
    pairs: tuple[Pair, ...]
    duplicated: tuple[int, ...]
    identity: dict[str, Any]

    @property
    def pipeline(self) -> Path:
        return self.out / "pipeline"

    @property
    def lora(self) -> Path:
        return self.out / "lora.safetensors"

    def finished(self) -> dict[str, Any] | None:
        """The facts of the finished training, when exactly this one is finished."""
        known = _known(self.out)
        return (
            known["facts"]
            if known
            and known["facts"].get("steps") == self.training.steps
            and self.pipeline.is_dir()
            else None
        )


def prepare(training: Training, out: Path) -> Prepared:
    """Read the data, and claim the work folder `out` for this training.

    Raises `UserError` for bad data, for a missing model, for a folder that belongs to another
    training or holds files of no training, and where what is read would be written over.
    """
    if not (training.model / "model_index.json").is_file():
        raise UserError(
            f"model {training.model} is no diffusers folder: it holds no model_index.json"
        )
    refuse_family(family_of(training.model), ("sd",), COMMAND)
    refuse_read(out, WRITTEN, [training.model, training.data], COMMAND)
    for read in (training.model, training.data):
        if out.expanduser().resolve().is_relative_to(read.resolve()):
            raise UserError(f"{out} lies in {read}, which is read: give another folder with --out")
    pairs = read_pairs(training.data)
    duplicated = choose_duplicated(len(pairs), training.duplicate, training.seed)
    identity = training.facts() | {
        "model_sha256": path_digest(training.model),
        "data_sha256": pairs_digest(pairs),
        "pictures": len(pairs),
    }
    known = _known(out)
    if known is None:
        refuse_own_files(out, WRITTEN, COMMAND)
    if known and known["identity"] != identity:
        differs = sorted(key for key in identity if known["identity"].get(key) != identity[key])
        raise UserError(
            f"{out} belongs to another training (it differs in {', '.join(differs)}): give another"
            " folder with --out"
        )
    prepared = Prepared(training, out, tuple(pairs), duplicated, identity)
    if not known:
        _write_facts(prepared, {})
    return prepared


def _known(out: Path) -> dict[str, Any] | None:
    """What `training.json` of a work folder holds; None where there is none yet."""
    file = out / "training.json"
    try:
        known = json.loads(read_regular_file(file, limits.RECORD_BYTES)) if is_there(file) else None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file} cannot be read: {one_line(error)}; give another folder with --out"
        ) from error
    if known is not None and not (
        isinstance(known, dict)
        and isinstance(known.get("identity"), dict)
        and isinstance(known.get("facts"), dict)
    ):
        raise UserError(f"{file} was not written by `{COMMAND}`; give another folder with --out")
    return known


def _write_facts(prepared: Prepared, facts: dict[str, Any]) -> None:
    names = [prepared.pairs[number].name for number in prepared.duplicated]
    content = {"identity": prepared.identity, "duplicated": names, "facts": facts}
    write_atomically(
        prepared.out / "training.json", (json.dumps(content, indent=1) + "\n").encode()
    )


def train(
    prepared: Prepared, device: torch.device, report: Report = silent, watch: Watch | None = None
) -> dict[str, Any]:
    """Train to the end, or go on from the newest checkpoint.

    Writes the folder `pipeline`, and returns the facts: steps, seconds, losses and how often
    pictures were shown. Raises `UserError` when the loss or a weight is not finite, with the last
    good checkpoint kept, and `KeyboardInterrupt` after Ctrl-C or SIGTERM, once the step under way
    is finished and saved.
    """
    known = prepared.finished()
    if known is not None:
        return known
    training = prepared.training
    pipe = load_trainable(training.model, device)
    listed = training_list(len(prepared.pairs), prepared.duplicated, training.times)
    latents = _latents(prepared, pipe, device, report)
    loss = Denoising(
        pipe,
        latents,
        [pair.caption for pair in prepared.pairs],
        listed,
        training.batch_size,
        training.seed,
        device,
    )
    unet = pipe.unet.to(memory_format=torch.channels_last).train().requires_grad_(True)
    if training.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    lora = Lora(unet, training.rank, training.rank, training.seed) if training.rank else None
    with lora.attached() if lora else nullcontext():
        learner = Learner(
            lora or unet,
            training.course(),
            loss,
            device,
            prepared.out / "checkpoints",
            "lower --lr or raise --warmup, with another --out",
        )
        learned = learner.learn(watch or (lambda step, loss: None))
    facts = learned | _shown(prepared, pipe, len(listed))
    result = learner.result
    if isinstance(result, Lora):
        _write_lora(prepared, pipe, result, facts["epochs"])
        merge(pipe, [(read_lora(prepared.lora), Strength())])
        result = pipe.unet
    _save_pipeline(pipe, result, prepared.pipeline)
    _write_facts(prepared, facts)
    return facts


def _write_lora(prepared: Prepared, pipe: Any, lora: Lora, epochs: float) -> None:
    """Write the LoRA with a header that tells repeated pictures and others apart, as folders of
    kohya's trainer would.
    """
    training, name = prepared.training, prepared.training.data.resolve().name
    folders = tuple(
        Folder(f"{repeats}_{name}", repeats, tuple(pair.caption for pair in pairs))
        for repeats, pairs in zip((training.times, 1), duplicated_pairs(prepared), strict=True)
        if pairs
    )
    told = Told(
        folders,
        pipeline_side(pipe.unet.config, pipe.vae.config),
        training.batch_size,
        math.ceil(epochs),
        training.model.resolve().name,
        training.flip,
    )
    header = kohya_header(lora, training.course(), told, math.ceil(epochs), training.steps)
    write_lora(prepared.lora, kohya_tensors(lora), header)


def _shown(prepared: Prepared, pipe: Any, listed: int) -> dict[str, Any]:
    """How often pictures were shown on average, and how many captions are longer than the text
    encoder reads and were cut.
    """
    training, tokenizer = prepared.training, pipe.tokenizer
    epochs = training.steps * training.batch_size * training.accumulate / listed
    cut = sum(
        len(tokenizer(pair.caption).input_ids) > tokenizer.model_max_length
        for pair in prepared.pairs
    )
    return {
        "listed": listed,
        "epochs": round(epochs, 2),
        "views_repeated": round(epochs * training.times, 1),
        "captions_cut": cut,
    }


def _latents(prepared: Prepared, pipe: Any, device: torch.device, report: Report) -> np.ndarray:
    """The pictures as the autoencoder encodes them, scaled as the UNet sees them; float32
    `[n, views, 2, C, h, w]`, of which the 2 are mean and deviation.
    """
    training, side = prepared.training, pipeline_side(pipe.unet.config, pipe.vae.config)
    kept = digest_of(
        [prepared.identity["data_sha256"], path_digest(training.model / "vae"), side, training.flip]
    )[:16]
    return encoded_once(
        prepared.out / f"latents-{kept}.npy",
        prepared.pairs,
        side,
        training.flip,
        moments_by(pipe, device),
        report,
    )


def moments_by(pipe: Any, device: torch.device) -> Callable[[np.ndarray], np.ndarray]:
    """A function from pictures, uint8 `[b, side, side, 3]`, to mean and deviation of what the
    pipeline's autoencoder makes of them, scaled as the UNet sees it: float32 `[b, 2, C, h, w]`.
    """

    @torch.no_grad()
    def encode(pictures: np.ndarray) -> np.ndarray:
        pixels = (
            torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
            .to(device)
            .float()
            / 127.5
            - 1.0
        )
        found = pipe.vae.encode(pixels).latent_dist
        scale, shift = (
            pipe.vae.config.scaling_factor,
            getattr(pipe.vae.config, "shift_factor", None) or 0.0,
        )
        return torch.stack([(found.mean - shift) * scale, found.std * scale], 1).cpu().numpy()

    return encode


def load_trainable(folder: Path, device: torch.device) -> Any:
    """The pipeline in float32 with frozen autoencoder and text encoder.

    Raises `UserError` where a file is missing or damaged, and for a tokenizer that does not say how
    many tokens the text encoder reads.
    """
    import diffusers

    quiet_libraries()
    refuse_family(family_of(folder), ("sd",), "training")
    try:
        with warnings.catch_warnings():
            # The keyword's newer name is unknown to older releases of diffusers.
            warnings.filterwarnings("ignore", message=".*torch_dtype.*", category=FutureWarning)
            pipe = diffusers.StableDiffusionPipeline.from_pretrained(
                folder,
                torch_dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                safety_checker=None,
                requires_safety_checker=False,
            )
    except Exception as error:  # diffusers, transformers and safetensors each raise their own
        raise UserError(
            f"the model in {folder} cannot be loaded ({one_line(error)[:160]}); a file is missing"
            " or damaged"
        ) from error
    if pipe.tokenizer.model_max_length > LONGEST_CAPTION:  # what transformers puts for none
        raise UserError(
            f"the tokenizer of {folder} states no model_max_length; add it to"
            " tokenizer/tokenizer_config.json"
        )
    pipe.to(device)
    for part in (pipe.vae, pipe.text_encoder):
        part.eval().requires_grad_(False)
    return pipe


def pipeline_side(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> int:
    """Pixels a side of the pictures that a pipeline makes, by the configurations of its parts.

    Raises `UserError` where the UNet states no size, or one that is not a square.
    """
    size = unet.get("sample_size")
    sides = size if isinstance(size, list | tuple) else [size]
    if len(set(sides)) != 1 or not isinstance(sides[0], int) or sides[0] < 1:
        raise UserError(
            f"sample_size is {size} in the UNet's config.json; it must be the side of a square, in"
            " latents"
        )
    return sides[0] * 2 ** (len(vae["block_out_channels"]) - 1)


def _save_pipeline(pipe: Any, unet: torch.nn.Module, folder: Path) -> None:
    """The pipeline with the trained UNet as a diffusers folder, written beside and renamed."""
    pipe.unet = unet.eval().to(memory_format=torch.contiguous_format)
    for part in (pipe, pipe.unet, pipe.vae):
        # Else the place of the model would be part of the configuration of what was trained.
        part.register_to_config(_name_or_path="")
    temporary, old = (
        folder.with_name(f".{folder.name}.tmp"),
        folder.with_name(f".{folder.name}.old"),
    )
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        pipe.save_pretrained(temporary, safe_serialization=True)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the fine-tuned model cannot be written to {folder}: {one_line(error)}; the checkpoint"
            " is kept, repeat the command"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def duplicated_pairs(prepared: Prepared) -> tuple[Sequence[Pair], Sequence[Pair]]:
    """The pairs that are repeated, and the others."""
    chosen = set(prepared.duplicated)
    return [prepared.pairs[number] for number in prepared.duplicated], [
        pair for number, pair in enumerate(prepared.pairs) if number not in chosen
    ]
