"""The TOML file of a new suite: every section with the reason why it is so; those that are left out
stand there as comments to fill in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tomlkit

from bench.base.errors import UserError, visible
from bench.new_suite.given import Given


def toml_value(value: Any) -> str:
    """A TOML literal on one line. Characters that show nothing are escaped, so that a reader of the
    file sees all of it.

    Raises `UserError` for half a character, and `TypeError` for what TOML cannot hold.
    """
    literal: str = _item(value).as_string()
    return "".join(c if c.isprintable() else _escaped(c) for c in literal)


def _item(value: Any) -> Any:
    if isinstance(value, Mapping):
        table = tomlkit.inline_table()
        for key, item in value.items():
            table[key] = _item(item)
        return table
    if isinstance(value, list | tuple):
        array = tomlkit.array()
        array.extend(map(_item, value))
        return array
    return tomlkit.item(value)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xD800 <= code < 0xE000:
        raise UserError(
            f"text with {visible(character)}, which is no Unicode character, cannot stand in TOML"
        )
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


# why each section is as it is; of those that can be left out, what it would say
SECTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "prompts.fit": (
        (
            "Prompts that methods may learn from; they are never judged. The column split of the"
            " CSV says which, and can be changed by hand."
        ),
        {"file": "prompts.csv", "where": {"split": "fit"}},
    ),
    "prompts.calibration": (
        "Clean prompts that methods and attacks may learn from: wen and nemo need them.",
        {"file": "clean.csv", "where": {"split": "calibration"}},
    ),
    "prompts.memorized": (
        (
            "Held-out suspicious prompts, on which methods are judged. Two images or more a prompt"
            " also give diversity."
        ),
        {},
    ),
    "prompts.clean": (
        "Held-out clean prompts: what a method costs in alignment where nothing is memorized.",
        {"file": "clean.csv", "where": {"split": "clean"}},
    ),
    "prompts.quality": (
        "Prompts of the pictures for FID, one picture each: the held-out clean ones.",
        {"file": "clean.csv", "where": {"split": "clean"}},
    ),
    "metrics.sscd": (
        (
            "Replication: similarity to the training picture. A profile belongs to a checkpoint"
            " (nemo and han: sscd_disc_mixup; wen, jeon, membench and\nconcept_prune:"
            " sscd_disc_large), and the threshold above which a picture counts as memorized to"
            " both: scores of two profiles are never compared."
        ),
        {"weights": "sscd_disc_mixup.torchscript.pt", "profile": "nemo", "threshold": 0.7},
    ),
    "metrics.clip_score": (
        (
            "Alignment: cosine of picture and prompt, by an open_clip folder (model alone) or by an"
            " architecture's name and its checkpoint."
        ),
        {"model": "ViT-B-32", "weights": "open_clip_pytorch_model.bin"},
    ),
    "metrics.fid": (
        (
            "Quality: Frechet distance with clean-fid's resizing. It falls with the number of"
            " images: compare it at the same number only."
        ),
        {
            "weights": "inception-2015-12-05.pt",
            "statistics": "reference.npz",
            "images": 5000,
            "size": 299,
        },
    ),
    "metrics.walltime": (
        "Cost: rounds of so many images, with the method and without it in turn. Needs no files.",
        {},
    ),
    "attacks.clique_extraction": (
        (
            "Extraction without knowing the training pictures (Carlini et al. 2023): many"
            " generations a prompt that agree. Needs prompts.calibration, and\nbefore the first run"
            " `bench calibrate clique_extraction` with this suite."
        ),
        {"images": 32, "clique": 6, "calibration": "clique_extraction.json", "clean_prompts": 16},
    ),
    "attacks.knn_extraction": (
        (
            "Extraction by nearest neighbours: `training` is the folder of all training pictures,"
            " at least 51 different ones."
        ),
        {"images": 4, "training": "training"},
    ),
}


def suite_toml(
    table: Mapping[str, Any], given: Given, found: int, expected: int
) -> tuple[str, tuple[str, ...]]:
    """The suite file, and the names of the sections that stand in it as comments: code after `#`
    alone, prose after `# `.
    """
    lines = [
        (
            "# Written by `bench suite new`. Everything here is part of the protocol: a change"
            " gives another fingerprint, whose results stand apart."
        ),
        (
            "# Paths are relative to this file or absolute; an absolute one ties the fingerprint to"
            " this machine."
        ),
        *_assigned({key: table[key] for key in ("name", "version", "description", "seed")}),
        (
            "# Training pictures stay out of records and pages. Set it to true only where you may"
            " publish them."
        ),
        *_assigned({"share_references": table["share_references"]}),
        "",
        "[model]",
        (
            "# The scheduler is the model folder's own where a suite can hold it, the side what its"
            " unet and vae give. float16 halves the memory on a GPU,"
        ),
        "# and a smaller batch_size lowers it too.",
        *_assigned(table["model"]),
        "",
        (
            f"# Prompts are split by text with seed {given.seed}: a share of {given.fit:g} to learn"
            " from, spread over the groups, the rest to judge by."
        ),
        (
            f"# Training pictures: {found} of {expected} found."
            if expected
            else "# No training pictures were given, so replication cannot be measured."
        ),
    ]
    left_out = []
    for section, (why, example) in SECTIONS.items():
        kind, _, name = section.partition(".")
        settings = table.get(kind, {}).get(name)
        lines += ["", *(f"# {line}" for line in why.split("\n"))]
        if settings is None:
            left_out.append(section)
            lines += [
                "# To have it, fill in and take the # away:",
                f"#[{section}]",
                *(f"#{line}" for line in _assigned(example)),
            ]
        else:
            lines += [f"[{section}]", *_assigned(settings)]
    return "\n".join(lines) + "\n", tuple(left_out)


def _assigned(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {toml_value(value)}" for key, value in settings.items()]
