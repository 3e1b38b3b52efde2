"""What the header of a LoRA file says of its training (kohya-ss/sd-scripts): hints, since people
edit and strip it, and something that the file tells whoever downloads it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from string import hexdigits
from typing import Any

from bench.base.errors import visible
from bench.captioned.buckets import Sides

MANY = 10**12  # pictures, repeats or tags: a count beyond is none
LONGEST = 200  # characters of a text of the header that is kept


@dataclass(frozen=True)
class TrainingHeader:
    """Facts of a training, each None or empty where the header does not say it.

    `folders` has pictures and repeats by the name of a folder, `tags` counts every tag of the
    captions.
    """

    base: str = ""
    base_hash: str = ""  # sha256 of the base's file
    base_old_hash: str = ""  # the short one that came before it
    base_version: str = ""
    version_2: bool | None = None  # whether the base was Stable Diffusion 2
    pictures: int | None = None  # with repeats
    epoch: int | None = None
    epochs: int | None = None
    rank: str = ""
    flips: bool | None = None
    random_crops: bool | None = None
    buckets: bool | None = None  # whether pictures kept their proportions
    bucket_sizes: tuple[Sides, ...] = ()  # width and height of those that held pictures
    bucket_least: int | None = None  # pixels a side
    bucket_most: int | None = None
    resolution: int | None = None  # the side of a square of as many pixels as were trained at
    keep_tokens: int = 0
    clip_skip: int | None = None
    tokens: int | None = None  # of a caption that were read at most, without beginning and end
    folders: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    tags: Mapping[str, int] = field(default_factory=dict)
    others: tuple[str, ...] = ()  # names of what else stands there
    read: bool = False  # whether there was a file with a header

    @property
    def told(self) -> bool:
        """Whether the file tells something of its training data."""
        return bool(self.folders or self.tags)


def together(headers: Sequence[TrainingHeader]) -> TrainingHeader:
    """What several files tell: all folders and tags, and the training of the first."""
    if not headers:
        return TrainingHeader()
    folders, tags, others = dict[str, tuple[int, int]](), dict[str, int](), list[str]()
    for one in headers:
        folders |= one.folders
        others += one.others
        for tag, count in one.tags.items():
            tags[tag] = tags.get(tag, 0) + count
    known = tuple(dict.fromkeys(others))
    return replace(headers[0], folders=folders, tags=tags, others=known)


def read_training_header(header: Mapping[str, str]) -> TrainingHeader:
    """What is there, whatever form it has; what cannot be read counts as not said."""
    folders: dict[str, tuple[int, int]] = {}
    datasets = _datasets(header)
    for one in datasets:  # of a training that was set up by a file
        for subset in _subsets(one):
            if subset.get("image_dir"):
                counts = (_count(subset, "img_count"), _count(subset, "num_repeats"))
                folders[_short(subset["image_dir"])] = counts
    for name, facts in _table(header, "ss_dataset_dirs").items():
        if isinstance(facts, dict):
            folders[_short(name)] = (_count(facts, "img_count"), _count(facts, "n_repeats"))
    tags: dict[str, int] = {}
    frequencies = [_table(header, "ss_tag_frequency")]
    frequencies += [
        given for one in datasets if isinstance(given := one.get("tag_frequency"), dict)
    ]
    for counted in (counts for one in frequencies for counts in one.values()):
        if isinstance(counted, dict):
            for tag, count in counted.items():
                if isinstance(count, int) and 0 <= count < MANY:
                    tags[_short(tag.strip())] = tags.get(_short(tag.strip()), 0) + count
    return TrainingHeader(
        base=_short(header.get("ss_sd_model_name", "")),
        base_hash=_hexadecimal(header, "ss_new_sd_model_hash", 64),
        base_old_hash=_hexadecimal(header, "ss_sd_model_hash", 8),
        base_version=_short(header.get("ss_base_model_version", "")),
        version_2=_truth(header, "ss_v2"),
        pictures=_number(header, "ss_num_train_images"),
        epoch=_number(header, "ss_epoch"),
        epochs=_number(header, "ss_num_epochs"),
        rank=_short(header.get("ss_network_dim", "")),
        flips=_either(_truth(header, "ss_flip_aug"), datasets, "flip_aug"),
        random_crops=_either(_truth(header, "ss_random_crop"), datasets, "random_crop"),
        buckets=_any_of(_truth(header, "ss_enable_bucket"), datasets, "enable_bucket"),
        bucket_sizes=_bucket_sizes(header, datasets),
        bucket_least=_number(header, "ss_min_bucket_reso") or _first(datasets, "min_bucket_reso"),
        bucket_most=_number(header, "ss_max_bucket_reso") or _first(datasets, "max_bucket_reso"),
        resolution=_resolution(header.get("ss_resolution") or _first_text(datasets, "resolution")),
        keep_tokens=max(0, _number(header, "ss_keep_tokens") or 0),
        clip_skip=_number(header, "ss_clip_skip"),
        tokens=_number(header, "ss_max_token_length"),
        folders=folders,
        tags=tags,
        others=tuple(sorted(_short(key) for key, text in header.items() if _says(key, text))),
        read=True,
    )


def _says(key: str, text: str) -> bool:
    """Whether a text of the header is more than a number or a setting that is off."""
    known = ("ss_dataset_dirs", "ss_tag_frequency", "format", "ss_datasets")
    return key not in known and text.strip() not in ("", "None", "{}", "[]", "False", "null")


def _datasets(header: Mapping[str, str]) -> list[dict[str, Any]]:
    """What `ss_datasets` lists."""
    try:
        found = json.loads(header.get("ss_datasets", "[]"))
    except (ValueError, RecursionError):
        return []
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _subsets(dataset: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = dataset.get("subsets")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _bucket_sizes(
    header: Mapping[str, str], datasets: Sequence[Mapping[str, Any]]
) -> tuple[Sides, ...]:
    """The buckets that `ss_bucket_info` lists, or those of every dataset."""
    found = set[Sides]()
    for table in (_table(header, "ss_bucket_info"), *(one.get("bucket_info") for one in datasets)):
        buckets = table.get("buckets") if isinstance(table, dict) else None
        for bucket in buckets.values() if isinstance(buckets, dict) else ():
            match bucket:
                case {"resolution": [int(width), int(height)]} if min(width, height) > 0:
                    found.add((width, height))
    return tuple(sorted(found))


def _resolution(text: str) -> int | None:
    """`(512, 768)`, `512,768` or `512` as the side of a square of as many pixels."""
    sides = [int(found) for found in re.findall(r"(?<!\d)\d{1,5}(?!\d)", text)]
    return math.isqrt(sides[0] * sides[-1]) if len(sides) in (1, 2) else None


def _first(datasets: Sequence[Mapping[str, Any]], key: str) -> int | None:
    return next((found for one in datasets if type(found := one.get(key)) is int), None)


def _first_text(datasets: Sequence[Mapping[str, Any]], key: str) -> str:
    return next((str(found) for one in datasets if (found := one.get(key))), "")


def _either(stated: bool | None, datasets: Sequence[Mapping[str, Any]], key: str) -> bool | None:
    """A setting of the whole training, or of any of its folders; None where nothing is said."""
    return _any_of(stated, [subset for one in datasets for subset in _subsets(one)], key)


def _any_of(stated: bool | None, parts: Sequence[Mapping[str, Any]], key: str) -> bool | None:
    said = [
        value for value in (stated, *(one.get(key) for one in parts)) if isinstance(value, bool)
    ]
    return any(said) if said else None


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
    return value if isinstance(value, int) and 0 <= value < MANY else 0


def _number(header: Mapping[str, str], key: str) -> int | None:
    text = header.get(key, "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else None


def _hexadecimal(header: Mapping[str, str], key: str, digits: int) -> str:
    """A digest in lower case; empty for another text, such as that of a base without a file."""
    text = header.get(key, "").strip().lower()
    return text if len(text) == digits and set(text) <= set(hexdigits) else ""


def _truth(header: Mapping[str, str], key: str) -> bool | None:
    return {"true": True, "false": False}.get(header.get(key, "").strip().lower())
