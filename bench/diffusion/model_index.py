"""Which classes a diffusers folder may name for its parts, before diffusers reads it.

`model_index.json` names a Python package and a class for every part, and diffusers imports what it
names. A folder that strangers made may name the parts of Stable Diffusion and nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path

from bench.base.errors import UserError, one_line, visible

PACKAGES = ("diffusers", "transformers", "stable_diffusion")
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")


def check_model_index(folder: Path) -> None:
    """Raises `UserError` for a folder whose parts are of other packages, whose tokenizer is none of
    CLIP, or that brings Python code.
    """
    path = folder / "model_index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        parts = {name: value for name, value in index.items() if not name.startswith("_")}
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)[:100]}); a file is missing or damaged, fetch"
            " or build it again"
        ) from error
    for name, value in parts.items():
        if not isinstance(value, list) or len(value) != 2:
            continue  # a setting such as requires_safety_checker
        package, kind = value
        if package is not None and package not in PACKAGES:
            raise UserError(
                f"{path}: its {visible(name)[:40]} is of the package"
                f" '{visible(str(package))[:40]}', and parts are of {', '.join(PACKAGES)}"
            )
        if name == "tokenizer" and kind not in TOKENIZERS:
            raise UserError(
                f"{path}: its tokenizer is '{visible(str(kind))[:40]}', and CLIP's is needed"
                f" ({', '.join(TOKENIZERS)})"
            )
    if code := sorted(folder.rglob("*.py")):
        raise UserError(
            f"the model in {folder} brings Python code ({visible(code[0].name)[:60]}), which is"
            " never run; remove it"
        )
