"""The tiny suite as one of the track `removal`: two named prompts, four unnamed, neighbours."""

from __future__ import annotations

import shutil
from pathlib import Path

from conftest import CAPTIONS, SUITE, write_csv

SECTIONS = """
[prompts.memorized]
file = "named.csv"

[prompts.unnamed]
file = "prompts.csv"
where = { split = "memorized" }
images_per_prompt = 2

[prompts.neighbours]
file = "neighbours.csv"
"""
METRIC = """
[metrics.removal]
weights = "./descriptor.safetensors"
profile = "testbed"
threshold = 0.5
clip = "./clip"
"""


def removal_text() -> str:
    """The suite's TOML."""
    head, _, rest = SUITE.partition("[prompts.fit]")
    _, _, rest = rest.partition("[prompts.calibration]")
    before, _, after = rest.partition("[prompts.memorized]")
    _, _, after = after.partition("[prompts.clean]")
    track = head.replace('name = "tiny"', 'name = "tiny-removal"\ntrack = "removal"')
    metrics, _, _ = f"[prompts.calibration]{before}[prompts.clean]{after}".partition("[detection]")
    return track + SECTIONS.lstrip() + metrics + METRIC.lstrip()


def removal_folder(tiny: Path, folder: Path) -> Path:
    """A copy of the tiny suite's folder with the suite `removal.toml`; its path."""
    shutil.copytree(tiny, folder)
    named = [["id", "prompt", "group", "anchor", "reference"]]
    for i in range(2):
        anchor = "" if i else "an apple"
        named.append([f"p{i}", CAPTIONS[i], ["1", "10"][i % 2], anchor, f"reference-{i}.png"])
    write_csv(folder / "named.csv", named)
    neighbours = [["id", "prompt"], ["p0", "an apple sticker"], ["p1", "a fox and a key sticker"]]
    write_csv(folder / "neighbours.csv", neighbours)
    clean = [["id", "prompt"], *([f"c{i}", f"{text}, clean"] for i, text in enumerate(CAPTIONS))]
    write_csv(folder / "clean.csv", clean)
    file = folder / "removal.toml"
    file.write_text(removal_text())
    return file
