"""The command that writes what a row of an audit tries as a file of its own, where one can."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from bench.auditing.asked import Asked, Lora
from bench.auditing.filtered import FILTER
from bench.auditing.sampling import Column
from bench.base.safetensors_header import read_header
from bench.diffusion.lora.merge import Strength
from bench.diffusion.lora.rescale import is_bound


def scale_commands(loras: Sequence[Lora]) -> str:
    """`bench lora scale` of every file whose strength is not 1, joined by `&&`; empty where there
    is none, and where no files can say the strengths. Every command writes a file of its own.
    """
    if not are_sayable(loras):
        return ""
    found: list[str] = []
    outs: list[str] = []
    for lora in loras:
        unet, text = lora.strength.unet, lora.strength.text
        if (unet, text) in ((1, 1), (0, 0)):  # as it is, or not there at all
            continue
        given = [str(lora.file), f"{unet:.10g}"]
        options = ["--text-weight", f"{text:.10g}"] if unet != text else []
        outs.append(_beside(lora, _spelled(lora), outs))
        options += ["--out", outs[-1]]
        # Behind -- a negative number is no option.
        words = [*options, "--", *given] if unet < 0 else [*given, *options]
        found.append(_command(["scale", *words]))
    return " && ".join(found)


def are_sayable(loras: Sequence[Lora]) -> bool:
    """Whether files can act at weight 1 as these do at their strengths. Those of a DoRA can only
    where its parts stay as they are or are left out.
    """
    return not any(is_bound(read_header(one.file).tensors, one.strength) for one in loras)


def filter_command(asked: Asked, column: Column) -> str:
    """`bench lora filter` for a remedy; empty for another remedy than the filter, and for its
    controls.
    """
    given = column.parameters
    if column.method != FILTER or set(given) - {"q", "rho"}:
        return ""
    words = ["filter"]
    for lora in asked.loras:
        unet, text = lora.strength.unet, lora.strength.text
        weights = f"{unet:.10g}" if unet == text else f"{unet:.10g},{text:.10g}"
        words.append(str(lora.file) if (unet, text) == (1, 1) else f"{lora.file}:{weights}")
    places = {"--model": asked.model, "--base": asked.base, "--config": asked.config}
    for option, place in places.items():
        words += [option, str(place)] if place else []
    words += ["--like", asked.like] if asked.like else []
    words += ["--drop", f"{given['q']:g}"] if "q" in given else []
    words += ["--rank-share", f"{given['rho']:g}"] if "rho" in given else []
    share = f"{given['q']:g}" if "q" in given else "default"
    share += f"-{given['rho']:g}" if "rho" in given else ""
    beside = asked.loras[0] if asked.loras else Lora(Path("model"), Strength())
    return _command([*words, "--out", _beside(beside, f"{FILTER}-{share}")])


def _spelled(lora: Lora) -> str:
    unet, text = lora.strength.unet, lora.strength.text
    return f"at-{unet:g}" if unet == text else f"at-{unet:g}-{text:g}"


def _beside(lora: Lora, what: str, taken: Sequence[str] = ()) -> str:
    """A file name in the folder that the command is given in, numbered where it is taken."""
    stem, number = f"{lora.file.stem}-{what}", 1
    name = f"{stem}.safetensors"
    while name in taken:
        number += 1
        name = f"{stem}-{number}.safetensors"
    return name


def _command(words: Sequence[str]) -> str:
    return shlex.join(["bench", "lora", *words])
