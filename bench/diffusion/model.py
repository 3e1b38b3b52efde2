"""Loading the pipeline that a suite pins, in the formats it comes in, and saying clearly when its
files are missing or damaged.

A diffusers folder with safetensors; one that holds only the fp16 variant files, as the hub stores
them; a checkpoint in one `.safetensors` file in the original layout, with a folder for the configs.
Pickles are refused: loading one runs its code.
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bench.base.errors import UserError, one_line
from bench.base.imports import quick_imports
from bench.diffusion.batch_size import batch_size_by_trial
from bench.diffusion.between import blend, refuse_other_shapes
from bench.diffusion.checkpoint import check_checkpoint
from bench.diffusion.clip_skip import skip_layers
from bench.diffusion.denoiser import Denoiser, autoencoder_factor
from bench.diffusion.execution import Execution, prepare
from bench.diffusion.families import CALLED, Family, family_of_pipeline, parts_of
from bench.diffusion.lora.file import read_lora
from bench.diffusion.lora.merge import Strength, merge
from bench.diffusion.model_index import check_model_index
from bench.diffusion.text import read_in_chunks
from bench.diffusion.textual_inversion import insert, read_embedding
from bench.diffusion.weight_files import part_variants, refuse_pickle, stored_types
from bench.suite.suite import Suite

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# What schedulers of Stable Diffusion say, where a folder's scheduler does not say it.
LATENT = {"set_alpha_to_one": False, "steps_offset": 1, "skip_prk_steps": True}


def pick_device(name: str | None) -> torch.device:
    """The named device, or the GPU where there is one.

    Raises `UserError` for a device this machine has not.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device '{name}' cannot be used here: {one_line(error).partition('.')[0]}"
        ) from error
    return device


def quiet_libraries() -> None:
    """Import diffusers and transformers, without their progress bars and warnings: one for every
    batch with a long prompt tells nobody anything.
    """
    with quick_imports():
        import diffusers
        import transformers

        _ = diffusers.StableDiffusionPipeline  # loaded when it is asked for, with all that it needs

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


def scheduler_of(scheduler: Any, config: Any) -> Any:
    """A scheduler of the suite's class with what the folder's scheduler says of the model.

    A folder may hold a scheduler of another class, which does not state all that this one asks for.
    The library's defaults would then clip latents to [-1, 1] and end at another noise level, with
    no word; Stable Diffusion's own values take their place. Latents are never clipped.
    """
    stated = config.keys() - set(config.get("_use_default_values", ()))
    given = {name: value for name, value in LATENT.items() if name not in stated}
    given["clip_sample"] = False
    kind = str(config.get("algorithm_type", ""))
    if kind.startswith("sde") and "algorithm_type" in stated:
        raise UserError(
            f"the scheduler of the model has algorithm_type '{kind}', which draws noise of its own"
            " at every step; use 'dpmsolver++'"
        )
    known = inspect.signature(scheduler.__init__).parameters
    return scheduler.from_config(
        config, **{name: value for name, value in given.items() if name in known}
    )


def load_pipeline(suite: Suite, device: torch.device) -> Any:
    """The suite's `StableDiffusionPipeline` or `StableDiffusionXLPipeline` on a device, in eval
    mode, parameters without gradients, its scheduler the suite's.

    The scheduler keeps what the folder says of the model: noise schedule and prediction type.
    With `[model] weight` UNet and text encoders lie between the base and the model.

    Raises `UserError` for files that are missing, truncated, of another model, pickles, or that
    hold NaN.
    """
    settings, dtype = suite.settings.model, DTYPES[suite.settings.model.dtype]
    path = suite.path(settings.path)
    quiet_libraries()
    if settings.weight == 1:
        pipe = _read(suite, dtype)
    else:
        pipe = _read(suite, torch.float32)
        base = suite.needed_base("[model] weight")
        whole = _read(base, torch.float32)
        refuse_other_shapes(pipe, whole, base.settings.model.path)
        blend(pipe, whole, settings.weight)
        for network in parts_of(pipe).values():
            network.to(dtype)
    if settings.loras:
        given = [(suite.path(lora.file), Strength(*lora.strengths)) for lora in settings.loras]
        merge(pipe, [(read_lora(file), strength) for file, strength in given])
    pipe.to(device)
    for network in parts_of(pipe).values():
        network.eval().requires_grad_(False)
    _check_side(pipe, suite)
    _limit_tokens(pipe.tokenizer, pipe.text_encoder, path)
    if family_of_pipeline(pipe) == "sdxl":
        _limit_tokens(pipe.tokenizer_2, pipe.text_encoder_2, path)
        _settle_xl(pipe, path)
    named = [(suite.places.named(one.path), one.token) for one in settings.embeddings]
    insert(pipe, [read_embedding(file, token) for file, token in named])
    read_in_chunks(pipe, settings.chunks)
    skip_layers(pipe, settings.clip_skip)
    if settings.vae_tiling:
        pipe.vae.enable_tiling()
    return pipe


def _read(suite: Suite, dtype: torch.dtype) -> Any:
    """The pipeline of a suite as its files have it, on the CPU, with the suite's scheduler."""
    import diffusers

    settings = suite.settings.model
    path = suite.path(settings.path)
    if path.is_file():
        # A hub's cache holds links to files without a suffix, and diffusers goes by the suffix.
        path = suite.places.named(settings.path)
    refuse_pickle(path)
    if path.is_dir():
        if settings.config:
            raise UserError(
                f"suite {suite.name}: [model] config is for a checkpoint in one file, and {path} is"
                " a folder, which has its own; leave it out"
            )
        pipe = _from_folder(path, check_model_index(path), dtype)
    elif not settings.config:
        raise UserError(
            f"suite {suite.name}: {path} is a checkpoint in one file, which says nothing of"
            " tokenizer and scheduler; give [model] config = a diffusers folder of the same"
            " architecture (its weights are not needed)"
        )
    else:
        pipe = _from_single_file(path, suite.path(settings.config), dtype)
    scheduler: Any = getattr(diffusers, settings.scheduler, None)
    if diffusers.SchedulerMixin not in getattr(scheduler, "__mro__", ()):
        raise UserError(f"suite {suite.name}: diffusers has no scheduler {settings.scheduler!r}")
    with _clear_errors(path):
        pipe.scheduler = scheduler_of(scheduler, pipe.scheduler.config)
    alphas = getattr(pipe.scheduler, "alphas_cumprod", ())
    if len(alphas) != pipe.scheduler.config.get("num_train_timesteps"):
        raise UserError(
            f"suite {suite.name}: {settings.scheduler} has a noise schedule of {len(alphas)} steps"
            f" for the model in {path}, and"
            f" {pipe.scheduler.config.get('num_train_timesteps')!r} are those of its training"
        )
    pipe.set_progress_bar_config(disable=True)
    for name, network in parts_of(pipe).items():
        _check_numbers(path, name, network)
    if family_of_pipeline(pipe) == "sdxl":
        _check_xl(pipe, path)
    return pipe


def _check_side(pipe: Any, suite: Suite) -> None:
    """Refuse a model of another picture size than the suite says.

    `sample_size` of a UNet is a number, or height and width; a UNet without one takes the suite's.
    """
    side, factor = suite.settings.model.side, autoencoder_factor(pipe)
    stated = pipe.unet.config.sample_size
    if stated is None and side % factor == 0:
        pipe.unet.register_to_config(sample_size=side // factor)
        return
    sizes = list(stated) if isinstance(stated, (list, tuple)) else [stated, stated]
    if sizes != [side / factor] * 2:
        numbers = len(sizes) == 2 and all(isinstance(size, int) for size in sizes)
        gives = (
            " x ".join(str(size * factor) for size in dict.fromkeys(sizes))
            if numbers
            else f"sample_size {stated!r}"
        )
        raise UserError(f"suite {suite.name} says {side} pixels and its model gives {gives}")


def _limit_tokens(tokenizer: Any, text_encoder: Any, path: Path) -> None:
    """Cut prompts to what the text encoder takes, also where the tokenizer states no limit."""
    stated = tokenizer.model_max_length
    if not isinstance(stated, (int, float)) or stated < 3:  # a start, a word and an end
        raise UserError(
            f"the tokenizer of the model in {path} states model_max_length {stated!r}, which is no"
            " number of tokens; fetch or build it again"
        )
    tokens, rows = len(tokenizer), text_encoder.config.vocab_size
    if not rows / 2 <= tokens <= rows:
        # Files of the tokenizer are missing, or it is another model's: every prompt would be noise.
        raise UserError(
            f"the tokenizer of the model in {path} knows {tokens} tokens and its text encoder"
            f" {rows}; fetch or build it again"
        )
    most = text_encoder.config.max_position_embeddings
    tokenizer.model_max_length = int(min(stated, most))


def _check_xl(pipe: Any, path: Path) -> None:
    """Refuse a UNet that does not read what both text encoders and six sizes give."""
    unet, first, second = (
        network.config for network in (pipe.unet, pipe.text_encoder, pipe.text_encoder_2)
    )
    if unet.get("addition_embed_type") != "text_time":
        raise UserError(
            f"the UNet of the model in {path} has addition_embed_type"
            f" {unet.get('addition_embed_type')!r}, and those of {CALLED['sdxl']} have 'text_time'"
        )
    expected = {
        "cross_attention_dim": first.hidden_size + second.hidden_size,
        "projection_class_embeddings_input_dim": second.projection_dim
        + 6 * unet.addition_time_embed_dim,
    }
    for name, number in expected.items():
        if unet.get(name) != number:
            raise UserError(
                f"the parts of the model in {path} do not fit: {name} of its UNet is"
                f" {unet.get(name)!r}, and its text encoders give {number}"
            )


def _settle_xl(pipe: Any, path: Path) -> None:
    """What must hold of two text encoders together, and the number type that decoding needs."""
    if pipe.tokenizer.model_max_length != pipe.tokenizer_2.model_max_length:
        raise UserError(
            f"the text encoders of the model in {path} take {pipe.tokenizer.model_max_length} and"
            f" {pipe.tokenizer_2.model_max_length} tokens, and must take as many"
        )
    if pipe.vae.dtype == torch.float16 and pipe.vae.config.get("force_upcast", True):
        pipe.vae.to(torch.float32)  # in half precision it overflows


def _time_ids(suite: Suite, family: Family) -> tuple[int, ...] | None:
    """The sizes that a model of Stable Diffusion XL is told; None for those of the picture that is
    made, uncropped.
    """
    settings = suite.settings.model
    told = settings.size_conditioning
    if told is None:
        return None
    if family != "sdxl":
        raise UserError(
            f"suite {suite.name}: [model.size_conditioning] is for {CALLED['sdxl']}, and its model"
            f" is {CALLED[family]}; leave it out"
        )
    return (*(told.original or settings.sides), *told.crop, *(told.target or settings.sides))


def load_denoiser(
    suite: Suite, device: torch.device, execution: Execution | None = None, gradients: bool = False
) -> Denoiser:
    """The suite's model, executed as asked for (else as the suite says); `gradients`: a method will
    want some, so a batch size by trial leaves them room.
    """
    execution = execution or Execution()
    pipe = load_pipeline(suite, device)
    prepare(pipe, execution)
    return denoiser_of(pipe, suite, execution, gradients)


def denoiser_of(
    pipe: Any, suite: Suite, execution: Execution | None = None, gradients: bool = False
) -> Denoiser:
    """A pipeline of the suite's model, loaded and prepared, as `load_denoiser` gives it."""
    settings, execution = suite.settings.model, execution or Execution()
    fixed = execution.batch_size if isinstance(execution.batch_size, int) else settings.batch_size
    try:
        time_ids = _time_ids(suite, family_of_pipeline(pipe))
        denoiser = Denoiser(
            pipe, settings.steps, settings.guidance_scale, fixed, time_ids, settings.size
        )
        denoiser.new_scheduler()
    except UserError:
        raise
    except Exception as error:  # each scheduler has its own limits, and raises its own errors
        raise UserError(
            f"suite {suite.name}: {settings.scheduler} cannot sample this model in"
            f" {settings.steps} steps: {one_line(error)[:200]}"
        ) from error
    if execution.batch_size == "auto":
        denoiser.batch_size = batch_size_by_trial(denoiser, execution.memory_gib, gradients)
    return denoiser


def load_base(suite: Suite, model: Denoiser, execution: Execution | None = None) -> Denoiser:
    """What a model was fine-tuned from, by the suite of it (`Suite.base`), on the model's device
    and for batches of its size.

    Raises `UserError` where parts of the two have other shapes, or other noise at their steps.
    """
    # what fits the memory was tried with the model itself
    execution = dataclasses.replace(execution or Execution(), batch_size=None, memory_gib=None)
    base = load_denoiser(suite, model.device, execution)
    base.batch_size = model.batch_size
    path = suite.settings.model.path
    refuse_other_shapes(model.pipe, base.pipe, path)
    if not torch.equal(model.alphas, base.alphas):
        raise UserError(
            f"{path} is no base of the suite's model: its noise schedule is another one; name what"
            " the model was fine-tuned from"
        )
    return base


def stored_as(suite: Suite) -> dict[str, Any]:
    """What the model's files hold, a fact for records: their format and the number type of each
    part, such as `fp16`.
    """
    model = suite.settings.model
    found = stored_types(suite.place(model.path))
    merged = {"loras": suite.lora_strengths, "embeddings": suite.embedding_digests}
    return found | {name: files for name, files in merged.items() if getattr(model, name)}


def _pipeline_of(family: Family) -> tuple[Any, dict[str, Any]]:
    """The class of diffusers for a family, and what its constructors are told beside the parts."""
    import diffusers

    if family == "sdxl":
        # The mark would change pixels.
        return diffusers.StableDiffusionXLPipeline, {"add_watermarker": False}
    return diffusers.StableDiffusionPipeline, {
        "safety_checker": None,
        "requires_safety_checker": False,
    }


def _from_folder(folder: Path, family: Family, dtype: torch.dtype) -> Any:
    """Each part from its full files where it has them, else from its fp16 variant."""
    import diffusers
    import transformers

    classes = {
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
        "text_encoder": transformers.CLIPTextModel,
        "text_encoder_2": transformers.CLIPTextModelWithProjection,
    }
    parts = {}
    for name, variant in part_variants(folder).items():
        with _clear_errors(folder / name):
            model, found = classes[name].from_pretrained(
                folder / name,
                variant=variant,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                **_typed(classes[name], dtype),
            )
            # What a file lacks would be left at random.
            missing = sorted(found["missing_keys"])
            if missing:
                raise UserError(
                    f"the model in {folder} lacks {len(missing)} of the weights of its {name},"
                    f" first {missing[0]}; fetch or build it again"
                )
            if mismatched := sorted(str(key) for key, *_ in found["mismatched_keys"]):
                raise UserError(
                    f"the model in {folder} is damaged: {name}.{mismatched[0]} has another shape"
                    " than its config says; fetch or build it again"
                )
            parts[name] = model
    pipeline, more = _pipeline_of(family)
    with _clear_errors(folder):
        return pipeline.from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True, use_safetensors=True, **more, **parts
        )


def _typed(cls: Any, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The number type under the keyword that the library has for it."""
    return {"dtype" if cls.__module__.startswith("transformers.") else "torch_dtype": dtype}


def _from_single_file(file: Path, config: Path, dtype: torch.dtype) -> Any:
    if not (config / "model_index.json").is_file():
        raise UserError(
            f"{config} is no diffusers folder: it has no model_index.json; give one with the"
            f" configs of the model in {file.name}"
        )
    family = check_model_index(config)
    check_checkpoint(file, config, family)
    pipeline, more = _pipeline_of(family)
    with _clear_errors(file):
        return pipeline.from_single_file(
            str(file), config=str(config), torch_dtype=dtype, local_files_only=True, **more
        )


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            # The keyword's newer name is unknown to older releases of diffusers.
            warnings.filterwarnings("ignore", message=".*torch_dtype.*", category=FutureWarning)
            yield
    except UserError:
        raise
    except Exception as error:  # diffusers, transformers and safetensors each raise their own
        raise UserError(
            f"the model in {path} cannot be loaded ({one_line(error)[:160]}); a file is missing or"
            " damaged, fetch or build it again"
        ) from error


def _check_numbers(path: Path, name: str, module: torch.nn.Module) -> None:
    for key, weights in module.named_parameters():
        if weights.is_meta:
            raise UserError(
                f"the model in {path} lacks weights of its {name}, first {key}; fetch or build it"
                " again"
            )
        if not bool(torch.isfinite(weights).all()):
            raise UserError(
                f"the model in {path} holds NaN or infinity in {name}.{key}; its file is damaged,"
                " fetch or build it again"
            )
