"""Checks of a submitted record's pictures: digests, thumbnails, exhibits, and the images themselves where a sample store came with it."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from bench.attack import EXHIBITS
from bench.errors import one_line
from bench.evidence import PROMPTS, SIDE, THUMBNAILS, evenly, small_png
from bench.store import SampleKey, SampleStore, decode_png, pixel_digest, read_picture
from bench.submitted import NAME, Case
from bench.suite import Prompt, Role


def samples(case: Case) -> Iterator[str]:
    if not case.record.samples:
        yield "there are none: measure it again with this version"
    elif set(case.record.samples) != set(case.run.roles):
        yield f"of the roles {', '.join(sorted(case.record.samples))[:NAME]}, and images are of {', '.join(case.run.roles)}"
    for role in case.run.roles:
        samples, prompts = case.record.samples.get(role), case.suite.prompts(role)
        if samples is None:
            continue
        images = case.suite.settings.prompts[role].images_per_prompt * case.record.seeds
        if (samples.prompts, samples.images) != (len(prompts), images):
            yield f"{role} has {samples.prompts} prompts of {samples.images} images, and the suite {len(prompts)} of {images}"
        if samples.sha256.keys() != {prompts[row].id for row in evenly(len(prompts), PROMPTS)}:
            yield f"{role} has digests of {len(samples.sha256)} prompts that are not those of the suite whose images have digests"
        if any(len(digests) != images for digests in samples.sha256.values()):
            yield f"{role} has prompts with more or fewer than {images} digests"
        if not all(re.fullmatch("[0-9a-f]{16}", digest) for digests in samples.sha256.values() for digest in digests):
            yield f"{role} has a digest that is not 16 hex digits"
        seen: dict[tuple[str, ...], str] = {}
        for prompt, digests in samples.sha256.items():
            if (first := seen.setdefault(tuple(digests), prompt)) != prompt:
                case.notes.append(f"prompts {first} and {prompt} of the role {role} have the same images")
    digest_of: dict[SampleKey, str] = {}
    for role, prompt, key, digest in _keys(case):
        if digest_of.setdefault(key, digest) != digest:
            yield f"prompt {prompt} of the role {role} has another digest than the same prompt and seed in another role"


def _keys(case: Case) -> Iterator[tuple[Role, str, SampleKey, str]]:
    """Role, prompt id, key and digest of every image that has one. Of a role with too few or too many digests, nothing."""
    for role in case.run.roles:
        samples, prompts = case.record.samples.get(role), case.suite.prompts(role)
        each = case.suite.settings.prompts[role].images_per_prompt
        if samples is None or any(len(digests) != each * case.record.seeds for digests in samples.sha256.values()):
            continue
        sets = [case.run.samples(role, generation).keys for generation in range(case.record.seeds)] if samples.sha256 else []
        for row, prompt in enumerate(prompts):
            keys = [key for keys in sets for key in keys[row * each : (row + 1) * each]]
            for key, digest in zip(keys, samples.sha256.get(prompt.id, ()), strict=False):
                yield role, prompt.id, key, digest


def small_picture(encoded: str) -> np.ndarray:
    """A record's picture, base64 of a PNG, as uint8 `[H, W, 3]`. Raises `ValueError` for anything else and for one that is larger than allowed."""
    png = base64.b64decode(encoded, validate=True)
    image = Image.open(io.BytesIO(png))  # reads the head only: a small file can hold a picture that fills all memory
    if image.format != "PNG" or max(image.size) > SIDE:
        raise ValueError(f"{image.format} of {image.size[0]}x{image.size[1]} pixels, and a PNG of at most {SIDE} a side is allowed")
    return decode_png(png)


def thumbnails(case: Case) -> Iterator[str]:
    if "memorized" not in case.run.roles:
        return
    prompts, samples = case.suite.prompts("memorized"), case.run.samples("memorized")
    wanted = {prompts[row].id: row for row in evenly(len(prompts), THUMBNAILS)}
    recorded, side = case.record.samples.get("memorized"), case.suite.settings.model.side
    if sorted(thumbnail.prompt_id for thumbnail in case.record.thumbnails) != sorted(wanted):
        yield f"{len(case.record.thumbnails)} thumbnails, and not one of each of {len(wanted)} memorized prompts"
    for thumbnail in case.record.thumbnails:
        row = wanted.get(thumbnail.prompt_id)
        if row is None:
            continue
        name, key = f"thumbnail of {thumbnail.prompt_id}", samples.keys[row * samples.images]
        if (thumbnail.prompt, thumbnail.group, thumbnail.seed) != (prompts[row].text, prompts[row].group, key.seed):
            yield f"{name} has another text, group or seed than the suite's prompt"
        try:
            picture = small_picture(thumbnail.png)
        except Exception as error:
            yield f"{name} is no picture: {one_line(error)[:120]}"
            continue
        digests = recorded.sha256.get(thumbnail.prompt_id, []) if recorded else []
        if picture.shape[:2] != (min(side, SIDE),) * 2:
            yield f"{name} has {picture.shape[1]}x{picture.shape[0]} pixels, and images have {side}x{side}"
        elif side <= SIDE and digests and pixel_digest(picture) != digests[0]:
            yield f"{name} is not the image of the recorded digest"
        yield from _reference_problems(case, name, thumbnail.reference, prompts[row])


def _reference_problems(case: Case, name: str, encoded: str | None, prompt: Prompt) -> Iterator[str]:
    paths = prompt.references if case.suite.settings.share_references else ()
    if encoded is None and not paths:
        return
    if encoded is None or not paths:
        yield f"{name} has {'no' if encoded is None else 'a'} training picture, and by the suite it has {'one' if paths else 'none'}"
        return
    own = read_picture(paths[0])
    try:
        theirs = small_picture(encoded)
    except Exception as error:
        yield f"{name} has a training picture that is none: {one_line(error)[:120]}"
        return
    shrunk = max(own.shape[:2]) > SIDE  # which releases of Pillow do in their own ways
    expected = small_picture(small_png(own))
    if theirs.shape != expected.shape or not (shrunk or np.array_equal(theirs, expected)):
        yield f"{name} has another training picture than the suite"


def exhibits(case: Case) -> Iterator[str]:
    texts = {(prompt.id, prompt.text) for role in case.suite.settings.prompts for prompt in case.suite.prompts(role)}
    for exhibit in case.record.exhibits:
        if exhibit.attack not in case.run.attacks or (exhibit.prompt_id, exhibit.prompt) not in texts:
            yield f"one of '{exhibit.attack[:NAME]}' for prompt '{exhibit.prompt_id[:NAME]}' is of no attack or prompt of the suite"
        if exhibit.reference is not None and not case.suite.settings.share_references:
            yield f"that of prompt {exhibit.prompt_id[:NAME]} shows a training picture, which the suite may not share"
        try:
            for encoded in (*exhibit.pictures, *([exhibit.reference] if exhibit.reference else [])):
                small_picture(encoded)
        except Exception as error:
            yield f"that of prompt {exhibit.prompt_id[:NAME]} has a picture that is none: {one_line(error)[:120]}"
    attacks = [exhibit.attack for exhibit in case.record.exhibits]
    if any(attacks.count(attack) > EXHIBITS for attack in set(attacks)):
        yield f"more than {EXHIBITS} of one attack"


def store(case: Case) -> Iterator[str]:
    assert case.store is not None
    wanted = list(_keys(case))
    stores = sorted(_stores_of(case, case.store), key=lambda found: len(found.missing(key for _, _, key, _ in wanted)))
    if not stores:
        yield f"{case.store} has no images of {case.record.method} with these parameters, made as the suite says"
        return
    missing = set(stores[0].missing(key for _, _, key, _ in wanted))
    if missing:
        yield f"{len(missing)} of {len(wanted)} images are not there"
    there = [item for item in wanted if item[2] not in missing]
    side, wrong = case.suite.settings.model.side, []
    for start in range(0, len(there), 256):
        part = there[start : start + 256]
        for (role, prompt, _, digest), png in zip(part, stores[0].png([key for _, _, key, _ in part]), strict=True):
            image = Image.open(io.BytesIO(png))
            if image.size != (side, side) or pixel_digest(decode_png(png)) != digest:
                wrong.append(f"{prompt} ({role})")
    if wrong:
        yield f"{len(wrong)} of {len(there)} images differ from their digests; the first is one of prompt {wrong[0]}"
    else:
        case.notes.append(f"{len(there)} images were compared with their digests, and all agree")


def _stores_of(case: Case, root: Path) -> Iterator[SampleStore]:
    """The folders whose key says that they are of this method and made as the suite says; their name follows from the key."""
    record = case.record
    own = {
        "method": record.method, "version": record.method_version, "parameters": record.parameters,
        "source": record.sources.get(f"method {record.method}"), "generation": case.suite.generation,
    }  # fmt: skip
    for folder in sorted((root / record.suite).glob(f"{record.method}-*")):
        try:
            identity = json.loads((folder / "key.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(identity, dict) and all(identity.get(key) == value for key, value in own.items()):
            found = SampleStore(root, record.suite, record.method, identity)
            if found.folder == folder:
                yield found
