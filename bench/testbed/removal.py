"""The prompt lists of the removal track on the embedded model: canaries that it copies, each with
an anchor, and their neighbours.

Anchor and neighbour of a canary are clean captions of its objects, without its invented words.
Methods train on anchors, and neighbours are judged, so that no caption is both. Which canaries are
named and which are not is drawn by the suite, from their ids.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.base.files import write_atomically
from bench.base.foreign import read_table
from bench.base.prompt_lists import read_list
from bench.testbed.captions import CLEAN_TEMPLATES, JOINTS
from bench.testbed.plan import CPU_PLAN
from bench.testbed.scenes import Canary, canary_scenes
from bench.testbed.sprites import concept_names

COPIED = 0.5  # the share of a prompt's images from which it counts as copied
PROMPTS, NEIGHBOURS = "testbed-removal.prompts.csv", "testbed-removal.neighbours.csv"
REFERENCES = "../testbed/bundle/references"  # from the folder of shipped suites


def write_removal_lists(bundle: Path, folder: Path) -> list[Path]:
    """Write both lists for the embedded model in `bundle` into a folder; the files written.

    Canaries with an object all of whose captions are taken have no neighbour.
    """
    shares = read_table(bundle / "prompts/labels.json")
    copied = [
        canary
        for canary in canary_scenes(CPU_PLAN)
        if canary.kind == "verbatim"
        and canary.split != "pristine"
        and shares["share_of_copies"].get(canary.name, 0.0) >= COPIED
    ]
    clean, quality, trained_on = (
        {row.text("prompt") for row in read_list(bundle / f"prompts/{name}.csv").rows}
        for name in ("clean", "quality", "calibration")
    )
    anchors = {
        canary.name: _first(canary, "anchor", trained_on - quality, _captions(canary), clean)
        for canary in copied
    }
    taken = {*trained_on, *anchors.values()}
    neighbours = dict[str, str]()
    for canary in copied:
        fresh = set(_captions(canary)) - clean - quality - set(neighbours.values())
        neighbours[canary.name] = _first(canary, "neighbour", fresh, _captions(canary), taken)
    prompts = [
        [
            canary.name,
            canary.caption,
            str(canary.views),
            canary.split,
            anchors[canary.name],
            f"{REFERENCES}/{canary.name}.png",
        ]
        for canary in copied
    ]
    beside = [
        [canary.name, neighbours[canary.name], str(canary.views), canary.split]
        for canary in copied
        if neighbours[canary.name]
    ]
    return [
        _write(
            folder / PROMPTS, ["id", "prompt", "group", "split", "anchor", "reference"], prompts
        ),
        _write(folder / NEIGHBOURS, ["id", "prompt", "group", "split"], beside),
    ]


def _captions(canary: Canary) -> list[str]:
    """All clean captions of a canary's objects."""
    names = [concept_names()[concept] for concept in canary.scenes[0].concepts]
    objects = [joint.join(order) for order in itertools.permutations(names) for joint in JOINTS]
    return list(
        dict.fromkeys(
            template.format(one) for template in CLEAN_TEMPLATES for one in dict.fromkeys(objects)
        )
    )


def _first(
    canary: Canary, purpose: str, wished: set[str], captions: Sequence[str], without: Iterable[str]
) -> str:
    """One of the captions that are not left out, of those wished for where there are any; in an
    order drawn by the canary's name. Empty where none is left.
    """
    there = [caption for caption in captions if caption not in set(without)]
    preferred = [caption for caption in there if caption in wished]

    def drawn(caption: str) -> str:
        return hashlib.sha256(f"{canary.name}\0{purpose}\0{caption}".encode()).hexdigest()

    return min(preferred or there, key=drawn, default="")


def _write(file: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([header, *rows])
    write_atomically(file, table.getvalue().encode())
    return file
