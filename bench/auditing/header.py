"""What the header of a LoRA file says of its training (kohya-ss/sd-scripts): hints, since people
edit and strip it, and something that the file tells whoever downloads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.base.errors import visible

LONGEST = 200  # characters of a text of the header that is kept


@dataclass(frozen=True)
class TrainingHeader:
    """Facts of a training, each None or empty where the header does not say it.

    `folders` has pictures and repeats by the name of a folder, `tags` counts every tag of the
    captions.
    """

    base: str = ""
    base_hash: str = ""
    pictures: int | None = None  # with repeats
    epoch: int | None = None
    epochs: int | None = None
    rank: str = ""
    flips: bool | None = None
    random_crops: bool | None = None
    keep_tokens: int = 0
    clip_skip: int | None = None
    folders: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    tags: Mapping[str, int] = field(default_factory=dict)

    @property
    def told(self) -> bool:
        """Whether the file tells something of its training data."""
        return bool(self.folders or self.tags)


def read_training_header(header: Mapping[str, str]) -> TrainingHeader:
    """What is there, whatever form it has; what cannot be read counts as not said."""
    folders: dict[str, tuple[int, int]] = {}
    for name, facts in _table(header, "ss_dataset_dirs").items():
        if isinstance(facts, dict):
            folders[_short(name)] = (_count(facts, "img_count"), _count(facts, "n_repeats"))
    tags: dict[str, int] = {}
    for counted in _table(header, "ss_tag_frequency").values():
        if isinstance(counted, dict):
            for tag, count in counted.items():
                if isinstance(count, int):
                    tags[_short(tag.strip())] = tags.get(_short(tag.strip()), 0) + count
    return TrainingHeader(
        base=_short(header.get("ss_sd_model_name", "")),
        base_hash=_short(header.get("ss_new_sd_model_hash", "")),
        pictures=_number(header, "ss_num_train_images"),
        epoch=_number(header, "ss_epoch"),
        epochs=_number(header, "ss_num_epochs"),
        rank=_short(header.get("ss_network_dim", "")),
        flips=_truth(header, "ss_flip_aug"),
        random_crops=_truth(header, "ss_random_crop"),
        keep_tokens=max(0, _number(header, "ss_keep_tokens") or 0),
        clip_skip=_number(header, "ss_clip_skip"),
        folders=folders,
        tags=tags,
    )


def _short(text: object) -> str:
    return visible(str(text))[:LONGEST]


def _table(header: Mapping[str, str], key: str) -> dict[str, Any]:
    try:
        found = json.loads(header.get(key, "{}"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _count(facts: Mapping[str, Any], key: str) -> int:
    value = facts.get(key, 0)
    return value if isinstance(value, int) else 0


def _number(header: Mapping[str, str], key: str) -> int | None:
    text = header.get(key, "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else None


def _truth(header: Mapping[str, str], key: str) -> bool | None:
    return {"true": True, "false": False}.get(header.get(key, "").strip().lower())
