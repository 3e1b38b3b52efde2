"""What an auditor gives to `bench suite new`: as data, or answered on a terminal; and the base of
the checks.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from bench.base import limits
from bench.base.errors import UserError, one_line, visible
from bench.base.files import read_regular_file
from bench.diffusion.weights_header import read_weights_header

PARTS = {
    "unet": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}
# Parts that only Stable Diffusion XL has. Its models are given as one folder.
PARTS_OF_XL = {"text_encoder_2": "config.json", "tokenizer_2": "tokenizer_config.json"}
ASKED = {  # field: question; the first three must be answered
    "model": "Diffusers folder of the model",
    "prompts": "CSV of the suspicious prompts (column prompt; optional id, group, reference)",
    "out": "Suite file to write (.toml)",
    "images": "Folder of training pictures (file name = prompt id, or column reference)",
    "clean": "CSV of clean prompts, which no training picture belongs to",
    "sscd": "SSCD file",
    "clip": "open_clip folder or checkpoint",
    "inception": "Inception file of clean-fid",
    "statistics": "Reference statistics (.npz) for it",
}
LISTED = 5  # examples of one kind of problem


@dataclass(frozen=True)
class Given:
    """What the auditor gives.

    `parts` (unet, vae, text_encoder, tokenizer, scheduler) take the place of the model folder's
    own. `fit` is the share of the suspicious prompts, and of the clean ones, that methods may learn
    from. `missing` says what happens when a training picture is missing or does not decode: the
    suite is refused, or prompts without any picture are dropped.
    """

    model: Path | None = None
    prompts: Path | None = None
    out: Path | None = None
    images: Path | None = None
    clean: Path | None = None
    sscd: Path | None = None
    profile: str = "nemo"
    threshold: float = 0.7
    clip: Path | None = None
    clip_model: str = ""
    inception: Path | None = None
    statistics: Path | None = None
    parts: Mapping[str, Path] = field(default_factory=dict)
    name: str = ""
    steps: int = 50
    guidance: float = 7.5
    images_per_prompt: int = 4
    seed: int = 0
    fit: float = 0.25
    missing: Literal["refuse", "drop"] = "refuse"

    def unanswered(self) -> list[str]:
        """The names of the fields that must be given and are not."""
        whole = set(PARTS) <= set(self.parts)
        return [
            name
            for name in ("model", "prompts", "out")
            if getattr(self, name) is None and not (name == "model" and whole)
        ]


def parse_parts(assignments: Iterable[str]) -> dict[str, Path]:
    """`["unet=FOLDER", ...]`, from the command line, to the parts by name."""
    parts: dict[str, Path] = {}
    for assignment in assignments:
        name, _, folder = assignment.partition("=")
        if not folder or name not in PARTS or name in parts:
            raise UserError(
                f"part '{visible(assignment)}' must be NAME=FOLDER, each name once:"
                f" {', '.join(PARTS)}"
            )
        parts[name] = Path(folder)
    return parts


def ask(given: Given, input: Callable[[str], str] = input, terminal: bool | None = None) -> Given:
    """Ask on a terminal for what is missing; where nothing is, no question is asked.

    Raises one `UserError`, which names everything that is missing, where nobody can answer.
    """
    missing = given.unanswered()
    if not missing:
        return given
    if not (sys.stdin.isatty() if terminal is None else terminal):
        raise UserError(f"missing: {'; '.join(f'{name} ({ASKED[name]})' for name in missing)}")
    answers: dict[str, Any] = {}
    try:
        for name, question in ASKED.items():
            needed = name in missing
            useless = name == "statistics" and not (given.inception or answers.get("inception"))
            if getattr(given, name) is not None or useless or (name == "model" and not needed):
                continue
            answer = _answer(input, question, needed, exists=name != "out")
            if answer is not None:
                answers[name] = answer
        if answers.get("sscd"):
            answers["profile"] = (
                input(f"Profile of the SSCD score [{given.profile}]: ").strip() or given.profile
            )
        checkpoint = answers.get("clip")
        if checkpoint and checkpoint.is_file() and not given.clip_model:
            answers["clip_model"] = input(
                "Architecture of the open_clip checkpoint, such as ViT-B-32: "
            ).strip()
    except EOFError:
        raise UserError(
            "missing:"
            f" {', '.join(name for name in missing if name not in answers) or 'the last answer'}"
            " (input ended)"
        ) from None
    return replace(given, **answers)


def _answer(input: Callable[[str], str], question: str, needed: bool, exists: bool) -> Path | None:
    hint = "" if needed else " [Enter: none]"
    while True:
        answer = input(f"{question}{hint}: ").strip().strip("\"'")
        if not answer and not needed:
            return None
        path = Path(answer).expanduser()
        if answer and (path.exists() or not exists):
            return path
        hint = f" ({visible(answer)} is not there)" if answer else " (needed)"


@dataclass
class Checks:
    """One part of the checks. All parts add to the same lists of problems and notes."""

    given: Given
    problems: list[str]
    notes: list[str]

    def rows_problem(self, path: Path, rows: Sequence[object], what: str) -> None:
        """Add one problem of a CSV: how many rows have it, and the first of them."""
        if rows:
            self.problems.append(f"{path}: {len(rows)} x {what} {examples(rows)}")

    def read_json(self, path: Path) -> dict[str, Any] | None:
        """A JSON object; None, and a problem, where there is none."""
        try:
            content = json.loads(read_regular_file(path, limits.TABLE_BYTES))
        except FileNotFoundError:
            self.problems.append(f"{path} is missing")
        except (OSError, ValueError, RecursionError) as error:
            self.problems.append(f"{path} cannot be read: {one_line(error)[:100]}")
        else:
            if isinstance(content, dict):
                return content
            self.problems.append(f"{path} holds no JSON object")
        return None

    def stored_numbers(self, path: Path) -> Counter[str]:
        """How many parameters are stored as each type, read from the header of a safetensors file.
        A file that is shorter or longer than its header promises is a problem.
        """
        try:
            header = read_weights_header(path)
            if header.size != header.promised:
                raise ValueError(
                    f"it has {header.size:,} bytes and its header promises {header.promised:,}:"
                    " truncated or damaged"
                )
        except ValueError as error:
            self.problems.append(f"{path} is not readable: {str(error)[:120]}")
            return Counter()
        return header.numbers


def absolute(path: Path) -> Path:
    """The path from the root, with its links left as they are."""
    return Path(os.path.abspath(path))  # noqa: PTH100  links stay: a cache may link every file to a place that says nothing


def examples(items: Sequence[object]) -> str:
    """The first few items, and how many more there are."""
    shown = ", ".join(visible(str(item))[:80] for item in items[:LISTED])
    return f"{shown} and {len(items) - LISTED} more" if len(items) > LISTED else shown
