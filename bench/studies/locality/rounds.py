"""Prune every trigger that was found, search again, and so on: how long does an attacker go on
winning, and what is left of the model by then?
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.contracts.held import Arrays, Held
from bench.features.networks import OpenClip
from bench.studies.locality.kept import Kept, name_of
from bench.studies.locality.populations import Member, Subjects
from bench.studies.locality.searches import SearchAttack, search
from bench.studies.locality.transfer import Judge, copied
from bench.studies.locality.weights import Finder
from bench.suite.prompts import Prompt

APART = 1000  # restarts of one round are numbered from this multiple of its number
CLEAN = 32  # clean captions that the model's use is judged by


@dataclass(frozen=True)
class Places:
    """Where searches, weights and generations of the rounds are kept."""

    searches: Kept
    weights: Kept
    generations: Kept
    use: Kept


def rounds(
    places: Places,
    attack: SearchAttack,
    judge: Judge,
    held: Held,
    finder: Finder,
    subjects: Subjects,
    clip: OpenClip | None,
    captions: list[Prompt],
    *,
    count: int,
    searches: int,
    images: int,
    clean: list[str],
) -> list[dict[str, Any]]:
    """A row for the whole model and for each of `count` rounds of pruning: the share of copies that
    new searches bring, the same of the control picture, the alignment of clean captions (None
    without an open_clip model), and the share of weights that are gone.
    """
    gone: dict[str, np.ndarray] = {}
    rows = []
    for number in range(count + 1):
        tag = name_of(gone) if gone else ""
        restarts = [number * APART + row for row in range(searches)]
        with finder.removed(held.denoiser, gone):
            found, shares = {}, {}
            for name, known in (("same", subjects.picture), ("control", subjects.control)):
                jobs = [(known, restart) for restart in restarts]
                what = f"round {number} {name}"
                found[name] = search(places.searches, attack, held, jobs, clean, what, tag)
                pairs = [(known, member) for member in found[name]]
                shares[name] = copied(places.generations, judge, held, pairs, images, tag)
            aligned = _alignment(places.use, held, clip, captions, tag) if clip else None
            last = number == count
            new = [] if last else _found(places.weights, held, finder, found["same"], tag)
        rows.append(
            {
                "round": number,
                "copied": float(shares["same"].mean()),
                "copied_control": float(shares["control"].mean()),
                "clip_clean": aligned,
                "pruned": _density(gone),
            }
        )
        gone = _united([gone, *new] if gone else new) if new else gone
    return rows


def _found(
    kept: Kept, held: Held, finder: Finder, members: list[Member], tag: str
) -> list[dict[str, np.ndarray]]:
    """The weights of the members on the model as it is pruned so far."""
    names = [name_of(member.embedding, tag) for member in members]
    return kept.found(
        f"round: {finder.name}", names, lambda place: finder.find(held.denoiser, members[place])
    )


def _united(sets: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {layer: np.logical_or.reduce([masks[layer] for masks in sets]) for layer in sets[0]}


def _density(masks: Mapping[str, np.ndarray]) -> float:
    total = sum(mask.size for mask in masks.values())
    return sum(int(mask.sum()) for mask in masks.values()) / total if total else 0.0


def _alignment(kept: Kept, held: Held, clip: OpenClip, captions: list[Prompt], tag: str) -> float:
    """The mean cosine of clean captions and one generation of each."""
    texts = [prompt.text for prompt in captions]

    def make(place: int) -> Arrays:
        pictures = held.drawn(held.denoiser.request(texts, list(range(len(texts)))))
        embedded, _ = clip.texts(texts)
        return {"cosine": (clip(list(pictures)) * embedded).sum(1)}

    found = kept.found("generate clean", [name_of(texts, tag)], make)[0]["cosine"]
    return float(found.mean())
