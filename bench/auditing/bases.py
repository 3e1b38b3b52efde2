"""Whether the model at hand is the one that a LoRA file was trained on, as far as its header says.

A file that does not fit the shapes of a model is refused when it is merged. One that was trained on
another model of the same shapes merges without a word, and its images are then not those that its
author sees. Headers are hints: people edit and strip them, so what differs is a note and no error.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.auditing.header import TrainingHeader
from bench.base.digests import path_digest
from bench.base.errors import visible
from bench.diffusion.families import family_of_pipeline
from bench.diffusion.lora.merge import WIDTHS

XL = WIDTHS[2048]
# kohya-ss/sd-scripts: sd_v1, sd_v2, with _v where the training predicted v; sdxl_base_v1-0
VERSION = re.compile(r"sd_v([12])(_v)?$")
# The digest that came before sha256 of whole files: of 64 KiB behind the first MiB, 8 digits.
OLD_START, OLD_LENGTH, OLD_DIGITS = 1 << 20, 1 << 16, 8


def base_notes(name: str, header: TrainingHeader, pipe: Any, model: Path) -> Iterator[str]:
    """What differs between the base that a file's header names and a loaded pipeline, a line each;
    `model` is the folder, or the checkpoint in one file, that the pipeline was loaded from.
    """
    name = visible(name)
    yield from _other_kind(name, header, pipe)
    if not (header.base_hash or header.base_old_hash):
        return
    if model.is_dir():
        yield (
            f"{name} names the digest of the file that it was trained on{_called(header)}, and the"
            " model here is a folder, which has none: only the kind of model was compared."
        )
        return
    stated = header.base_hash or header.base_old_hash
    here = path_digest(model) if header.base_hash else old_hash(model)
    if stated != here:
        yield (
            f"{name} was trained on another file than {visible(model.name)}, its header says:"
            f" {stated[:12]}{_called(header)} and not {here[:12]}. Its images here may be others"
            " than its author's, unless that file holds the same weights."
        )


def old_hash(file: Path) -> str:
    """The digest by which models were known before sha256 of whole files (ss_sd_model_hash)."""
    with file.open("rb") as stream:
        stream.seek(OLD_START)
        return hashlib.sha256(stream.read(OLD_LENGTH)).hexdigest()[:OLD_DIGITS]


def _other_kind(name: str, header: TrainingHeader, pipe: Any) -> Iterator[str]:
    kind = _kind_of(pipe)
    if kind is None:
        return
    stated, predicts_v = _stated(header)
    if stated and stated != kind:
        yield (
            f"{name} was trained on {stated}, its header says ({_source(header)}), and the model"
            f" here is {kind}: its images here are no images of it."
        )
        return
    predicts = pipe.scheduler.config.get("prediction_type")
    if predicts_v is not None and predicts_v != (predicts == "v_prediction"):
        yield (
            f"{name} was trained on a model that predicts {'v' if predicts_v else 'epsilon'}, its"
            f" header says ({_source(header)}), and the model here predicts"
            f" {'v' if predicts == 'v_prediction' else 'epsilon'}."
        )


def _kind_of(pipe: Any) -> str | None:
    """SD 1, SD 2 or SD XL; None for a model that is none of the published ones."""
    if family_of_pipeline(pipe) == "sdxl":
        return XL
    width: Any = pipe.unet.config.cross_attention_dim
    return WIDTHS.get(width) if isinstance(width, int) else None


def _stated(header: TrainingHeader) -> tuple[str, bool | None]:
    """The kind of model that a header names, empty for none, and whether it predicts v."""
    version = header.base_version.strip().lower()
    if version.startswith("sdxl"):
        return XL, None
    if found := VERSION.match(version):
        return f"SD {found[1]}", bool(found[2])
    # trainers say that XL is no version 2, so only yes tells something
    return ("SD 2" if header.version_2 else ""), None


def _source(header: TrainingHeader) -> str:
    return f"base version {header.base_version}" if header.base_version else "version 2"


def _called(header: TrainingHeader) -> str:
    return f" ({header.base})" if header.base else ""
