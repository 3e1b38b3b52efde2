"""Checks of a submitted record's pictures: digests, thumbnails, exhibits, and the images themselves
where a sample store came with it.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from bench.base.errors import UserError, one_line
from bench.base.pictures import SIDE, small_png
from bench.base.spread import evenly
from bench.contracts.attack import EXHIBITS
from bench.records.record import RunRecord
from bench.running.demand import PROMPTS, THUMBNAILS
from bench.running.run import Run
from bench.store.folders import Root, open_folder
from bench.store.store import SampleKey, SampleStore, decode_png, pixel_digest, read_picture
from bench.submission.case import NAME, Case
from bench.suite.prompts import Prompt
from bench.suite.settings import Role

Keyed = tuple[SampleKey, str]  # where a store has it, and its digest


def samples(case: Case) -> Iterator[str]:
    recorded, roles = case.record.samples, case.run.roles
    if not recorded:
        yield "there are none: measure it again with this version"
    elif set(recorded) != set(roles):
        yield (
            f"of the roles {', '.join(sorted(recorded))[:NAME]}, and images are of"
            f" {', '.join(roles)}"
        )
    for role in roles:
        yield from _problems_of(case.run, case.record, role)
    digest_of: dict[SampleKey, str] = {}
    for role, prompts in keyed(case.run, case.record).items():
        seen: dict[tuple[str, ...], str] = {}
        for prompt, images in prompts.items():
            if (first := seen.setdefault(tuple(digest for _, digest in images), prompt)) != prompt:
                case.notes.append(
                    f"prompts {first} and {prompt} of the role {role} have the same images"
                )
            if any(digest_of.setdefault(key, digest) != digest for key, digest in images):
                yield (
                    f"prompt {prompt} of the role {role} has another digest than the same prompt"
                    " and seed in another role"
                )


def _problems_of(run: Run, record: RunRecord, role: Role) -> Iterator[str]:
    if role not in record.samples:
        return
    samples, prompts = record.samples[role], run.suite.prompts(role)
    images = run.suite.settings.prompts[role].images_per_prompt * run.seeds
    if (samples.prompts, samples.images) != (len(prompts), images):
        yield (
            f"{role} has {samples.prompts} prompts of {samples.images} images, and the suite"
            f" {len(prompts)} of {images}"
        )
    if samples.sha256.keys() != {prompts[row].id for row in evenly(len(prompts), PROMPTS)}:
        yield (
            f"{role} has digests of {len(samples.sha256)} prompts that are not those of the suite"
            " whose images have digests"
        )
    if any(len(digests) != images for digests in samples.sha256.values()):
        yield f"{role} has prompts with more or fewer than {images} digests"
    if not all(
        re.fullmatch("[0-9a-f]{16}", digest)
        for digests in samples.sha256.values()
        for digest in digests
    ):
        yield f"{role} has a digest that is not 16 hex digits"


def keyed(run: Run, record: RunRecord) -> dict[Role, dict[str, list[Keyed]]]:
    """The images of every role whose digests are those that the suite asks for: by prompt id, in
    the suite's order, first those of the first generation.
    """
    found: dict[Role, dict[str, list[Keyed]]] = {}
    for role in run.roles:
        if role not in record.samples or any(_problems_of(run, record, role)):
            continue
        sets, digests = (
            [run.samples(role, generation) for generation in range(run.seeds)],
            record.samples[role].sha256,
        )
        rows = [
            (row * sets[0].images, (row + 1) * sets[0].images, prompt.id)
            for row, prompt in enumerate(sets[0].prompts)
            if prompt.id in digests
        ]
        found[role] = {
            prompt: list(
                zip((key for one in sets for key in one.keys[a:b]), digests[prompt], strict=True)
            )
            for a, b, prompt in rows
        }
    return found


def equal(store: SampleStore, images: Sequence[Keyed], side: int) -> list[bool]:
    """Whether each image, as the store has it, is of `side` pixels a side and has its digest."""
    found = []
    for start in range(0, len(images), 256):
        part = images[start : start + 256]
        for (_, digest), png in zip(part, store.png([key for key, _ in part]), strict=True):
            # the size first: it may fill all memory
            found.append(
                Image.open(io.BytesIO(png)).size == (side, side)
                and pixel_digest(decode_png(png)) == digest
            )
    return found


def small_picture(encoded: str) -> np.ndarray:
    """A record's picture, base64 of a PNG, as uint8 `[H, W, 3]`.

    Raises `ValueError` for anything else and for one that is larger than allowed.
    """
    png = base64.b64decode(encoded, validate=True)
    # reads the head only: a small file can hold a picture that fills all memory
    image = Image.open(io.BytesIO(png))
    if image.format != "PNG" or max(image.size) > SIDE:
        raise ValueError(
            f"{image.format} of {image.size[0]}x{image.size[1]} pixels, and a PNG of at most {SIDE}"
            " a side is allowed"
        )
    return decode_png(png)


def thumbnails(case: Case) -> Iterator[str]:
    if "memorized" not in case.run.roles:
        return
    prompts, samples = case.suite.prompts("memorized"), case.run.samples("memorized")
    wanted = {prompts[row].id: row for row in evenly(len(prompts), THUMBNAILS)}
    recorded, side = case.record.samples.get("memorized"), case.suite.settings.model.side
    if not case.record.thumbnails and case.record.environment.get("keep_images") == "none":
        yield (
            "there are no thumbnails, as pictures were dropped: measure it again with --keep-images"
            " sample"
        )
    elif sorted(thumbnail.prompt_id for thumbnail in case.record.thumbnails) != sorted(wanted):
        yield (
            f"{len(case.record.thumbnails)} thumbnails, and not one of each of {len(wanted)}"
            " memorized prompts"
        )
    for thumbnail in case.record.thumbnails:
        row = wanted.get(thumbnail.prompt_id)
        if row is None:
            continue
        name, key = f"thumbnail of {thumbnail.prompt_id}", samples.keys[row * samples.images]
        if (thumbnail.prompt, thumbnail.group, thumbnail.seed) != (
            prompts[row].text,
            prompts[row].group,
            key.seed,
        ):
            yield f"{name} has another text, group or seed than the suite's prompt"
        try:
            picture = small_picture(thumbnail.png)
        except Exception as error:
            yield f"{name} is no picture: {one_line(error)[:120]}"
            continue
        digests = recorded.sha256.get(thumbnail.prompt_id, []) if recorded else []
        if picture.shape[:2] != (min(side, SIDE),) * 2:
            yield (
                f"{name} has {picture.shape[1]}x{picture.shape[0]} pixels, and images have"
                f" {side}x{side}"
            )
        elif side <= SIDE and digests and pixel_digest(picture) != digests[0]:
            yield f"{name} is not the image of the recorded digest"
        yield from _reference_problems(case, name, thumbnail.reference, prompts[row])


def _reference_problems(
    case: Case, name: str, encoded: str | None, prompt: Prompt
) -> Iterator[str]:
    paths = prompt.references if case.suite.settings.share_references else ()
    if encoded is None and not paths:
        return
    if encoded is None or not paths:
        yield (
            f"{name} has {'no' if encoded is None else 'a'} training picture, and by the suite it"
            f" has {'one' if paths else 'none'}"
        )
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
    texts = {
        (prompt.id, prompt.text)
        for role in case.suite.settings.prompts
        for prompt in case.suite.prompts(role)
    }
    for exhibit in case.record.exhibits:
        if (
            exhibit.attack not in case.run.attacks
            or (exhibit.prompt_id, exhibit.prompt) not in texts
        ):
            yield (
                f"one of '{exhibit.attack[:NAME]}' for prompt '{exhibit.prompt_id[:NAME]}' is of no"
                " attack or prompt of the suite"
            )
        if exhibit.reference is not None and not case.suite.settings.share_references:
            yield (
                f"that of prompt {exhibit.prompt_id[:NAME]} shows a training picture, which the"
                " suite may not share"
            )
        try:
            for encoded in (*exhibit.pictures, *([exhibit.reference] if exhibit.reference else [])):
                small_picture(encoded)
        except Exception as error:
            yield (
                f"that of prompt {exhibit.prompt_id[:NAME]} has a picture that is none:"
                f" {one_line(error)[:120]}"
            )
    attacks = [exhibit.attack for exhibit in case.record.exhibits]
    if any(attacks.count(attack) > EXHIBITS for attack in set(attacks)):
        yield f"more than {EXHIBITS} of one attack"


def store(case: Case) -> Iterator[str]:
    assert case.store is not None
    wanted = [
        (f"{prompt} ({role})", *image)
        for role, prompts in keyed(case.run, case.record).items()
        for prompt, images in prompts.items()
        for image in images
    ]
    stores = sorted(
        _stores_of(case, case.store),
        key=lambda found: len(found.missing(key for _, key, _ in wanted)),
    )
    if not stores:
        yield (
            f"{case.store} has no images of {case.record.method} with these parameters, made as the"
            " suite says"
        )
        return
    missing = set(stores[0].missing(key for _, key, _ in wanted))
    if missing:
        yield f"{len(missing)} of {len(wanted)} images are not there"
    dropped = [item for item in wanted if item[1] in stores[0].dropped]
    if dropped:
        case.notes.append(
            f"the pictures of {len(dropped)} of {len(wanted)} images were dropped from the store"
            " (--keep-images): of these only its digests were compared, which say no more than the"
            " record"
        )
        kept = stores[0].pixel_digests([key for _, key, _ in dropped])
        if other := [
            prompt for (prompt, _, digest), own in zip(dropped, kept, strict=True) if own != digest
        ]:
            yield (
                f"{len(other)} of {len(dropped)} digests of dropped pictures are not the record's;"
                f" the first is one of prompt {other[0]}"
            )
    there = [item for item in wanted if item[1] not in missing and item[1] not in stores[0].dropped]
    same = equal(
        stores[0], [(key, digest) for _, key, digest in there], case.suite.settings.model.side
    )
    wrong = [prompt for (prompt, _, _), right in zip(there, same, strict=True) if not right]
    if wrong:
        yield (
            f"{len(wrong)} of {len(there)} images differ from their digests; the first is one of"
            f" prompt {wrong[0]}"
        )
    elif there:
        case.notes.append(f"{len(there)} images were compared with their digests, and all agree")


def _stores_of(case: Case, root: Root) -> Iterator[SampleStore]:
    """The folders whose key says that they are of this method and made as the suite says; their
    name follows from the key.
    """
    record = case.record
    own = {
        "method": record.method,
        "version": record.method_version,
        "parameters": record.parameters,
        "source": record.sources.get(f"method {record.method}"),
        "generation": case.suite.generation,
    }
    files = open_folder(root).at(case.suite.store_name)
    for folder in files.folders():
        if not folder.startswith(f"{record.method}-"):
            continue
        try:
            identity = json.loads(files.read(f"{folder}/key.json"))
        except (UserError, ValueError):
            continue
        if isinstance(identity, dict) and all(
            identity.get(key) == value for key, value in own.items()
        ):
            found = SampleStore(root, case.suite.store_name, record.method, identity)
            if found.files == files.at(folder):
                yield found
