"""What a model is asked, by kind: a picture's own caption, and prompts that belong to no picture.

Kinds are never pooled: a caption is what an attacker with the data types, a trigger what a user
types, and the empty prompt nothing at all.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from bench.base.spread import spread
from bench.captioned.folder import Captioned

Kind = Literal["caption", "shuffled", "trigger", "tags", "empty", "novel"]
MEANINGS: dict[Kind, str] = {
    "caption": "the caption of a training picture, as it was trained",
    "shuffled": "the tags of a caption in another order",
    "trigger": "the trigger word alone",
    "tags": "the five commonest tags that the file's header lists",
    "empty": "no prompt at all",
    "novel": "scenes that no caption describes",
}
# Scenes that a subject or a style may be asked for; ours, fixed so that audits are alike.
SCENES = (
    "a photo of {} on a beach",
    "a photo of {} in the snow",
    "{} in front of a red brick wall",
    "{} in a forest at night",
    "a drawing of {}",
    "an oil painting of {}",
    "{} on the surface of the moon",
    "a close-up of {} in the rain",
)
TAGS, SHUFFLED, LEAST_TAGS = 5, 16, 3
# What stands in captions of all kinds, and is no trigger.
PLAIN = frozenset(
    "a an and at by for from in is it its of on or over that the this to under with without"
    " photo picture image painting drawing close up view".split()
)
WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")


Size = tuple[int, int] | None  # height and width in pixels; None for the model's square


@dataclass(frozen=True)
class Asking:
    """One prompt, how many images of it are made and of which size, and the training pictures whose
    own it is.
    """

    kind: Kind
    text: str
    images: int
    own: tuple[int, ...] = ()
    size: Size = None


def trigger_of(given: str, entries: Sequence[Captioned]) -> str:
    """The word that calls up what was learned: the one that was given, else what a folder calls
    its pictures where that is their caption, else the one word that every caption has and that is
    not plain English; empty where there is none.

    A folder's words are no trigger where every picture has a caption of its own: they were never
    shown to the model.
    """
    if given:
        return given
    words = {entry.words for entry in entries if entry.words and entry.caption == entry.words}
    if len(words) == 1:
        return words.pop()
    captions = [entry.caption.lower() for entry in entries if entry.captions]
    if len(captions) < 3:
        return ""
    common = set(WORD.findall(captions[0]))
    for caption in captions[1:]:
        common &= set(WORD.findall(caption))
    common -= PLAIN
    return common.pop() if len(common) == 1 else ""


def askings(
    entries: Sequence[Captioned],
    *,
    images: int,
    trigger: str,
    tags: Mapping[str, int],
    novel: Sequence[str],
    keep_tokens: int = 0,
    quick: bool = False,
    seed: int = 0,
    sizes: Sequence[Size] = (),
) -> list[Asking]:
    """All prompts in order: captions first, one for each text, with `images` images for each
    picture that has it; then the kinds without a picture, four times as many images each.

    `tags` counts those of the file's header. `quick` asks for captions, trigger and novel scenes.
    With `sizes`, one for each picture, its own prompts are asked for in its size; what belongs to
    no picture is asked for as a square.
    """
    captions = {entry.caption for entry in entries}
    found = caption_askings([entry.caption for entry in entries], images, sizes)
    pooled = 4 * images
    if not quick:
        shuffled = _shuffled(entries, images, keep_tokens, seed)
        found += [replace(one, size=sizes[one.own[0]]) if sizes else one for one in shuffled]
    if trigger and trigger not in captions:
        found.append(Asking("trigger", trigger, pooled))
    if not quick:
        common = ", ".join(tag for tag, _ in Counter(tags).most_common(TAGS))
        if common and common not in captions:
            found.append(Asking("tags", common, pooled))
        if "" not in captions:
            found.append(Asking("empty", "", pooled))
    scenes = [scene for scene in novel if scene not in captions]
    found += [Asking("novel", scene, max(1, pooled // len(scenes))) for scene in scenes]
    return found


def caption_askings(
    captions: Sequence[str], images: int, sizes: Sequence[Size] = ()
) -> list[Asking]:
    """The captions of pictures, one for each text (and each size), with `images` images for each
    picture that has it.
    """
    own: dict[tuple[str, Size], list[int]] = {}
    for number, caption in enumerate(captions):
        own.setdefault((caption, sizes[number] if sizes else None), []).append(number)
    return [
        Asking("caption", caption, images * len(numbers), tuple(numbers), size)
        for (caption, size), numbers in own.items()
    ]


def novel_scenes(trigger: str, given: Sequence[str], otherwise: Sequence[str]) -> list[str]:
    """Prompts that no caption describes: those given, else the fixed scenes with the trigger, else
    eight of some clean captions.
    """
    if given:
        return list(dict.fromkeys(given))
    if trigger:
        return [scene.format(trigger) for scene in SCENES]
    return list(dict.fromkeys(spread(list(otherwise), len(SCENES))))


def _shuffled(
    entries: Sequence[Captioned], images: int, keep_tokens: int, seed: int
) -> list[Asking]:
    """Captions that are lists of tags, in another order; the first `keep_tokens` stay."""
    random = np.random.default_rng([seed, 11])
    tagged = [
        (number, parts)
        for number, entry in enumerate(entries)
        if len(parts := [tag.strip() for tag in entry.caption.split(",")])
        >= LEAST_TAGS + keep_tokens
    ]
    found = []
    for number, parts in spread(tagged, SHUFFLED):
        kept, moved = parts[:keep_tokens], parts[keep_tokens:]
        order = random.permutation(len(moved))
        if list(order) == sorted(order):
            order = order[::-1]
        text = ", ".join([*kept, *(moved[place] for place in order)])
        found.append(Asking("shuffled", text, images, (number,)))
    return found
