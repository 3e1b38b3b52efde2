"""Checks of a submitted record's pictures: digests, thumbnails, exhibits, and the images themselves
where a sample store came with it.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from bench.base.errors import UserError, one_line
from bench.base.pictures import SIDE, BadPicture, decode_png, decode_small_png, small_png
from bench.base.spread import evenly
from bench.contracts.target import EXHIBITS
from bench.records.record import RunRecord
from bench.running.experiment import Experiment
from bench.running.units import PROMPTS, THUMBNAILS
from bench.store.folders import Root, open_folder
from bench.store.store import SampleKey, SampleStore, pixel_digest, read_picture
from bench.submission.claim import NAME, Claim
from bench.suite.prompts import Prompt
from bench.suite.schema import Role

Keyed = tuple[SampleKey, str]  # where a store keeps an image, and its digest
AT_ONCE = 256  # images that are read from a store together


def samples(claim: Claim) -> Iterator[str]:
    """There are digests of the images of every role that has some, and equal images have equal
    ones.
    """
    recorded, roles = claim.record.samples, claim.experiment.roles
    if not recorded:
        yield "there are none: measure it again with this version"
    elif set(recorded) != set(roles):
        yield (
            f"of the roles {', '.join(sorted(recorded))[:NAME]}, and images are of"
            f" {', '.join(roles)}"
        )
    for role in roles:
        yield from _problems_of(claim.experiment, claim.record, role)
    digest_of: dict[SampleKey, str] = {}
    for role, prompts in keyed(claim.experiment, claim.record).items():
        seen: dict[tuple[str, ...], str] = {}
        for prompt, images in prompts.items():
            if (first := seen.setdefault(tuple(digest for _, digest in images), prompt)) != prompt:
                claim.notes.append(
                    f"prompts {first} and {prompt} of the role {role} have the same images"
                )
            if any(digest_of.setdefault(key, digest) != digest for key, digest in images):
                yield (
                    f"prompt {prompt} of the role {role} has another digest than the same prompt"
                    " and seed in another role"
                )


def _problems_of(experiment: Experiment, record: RunRecord, role: Role) -> Iterator[str]:
    """What is wrong with the recorded digests of one role."""
    if role not in record.samples:
        return
    samples, prompts = record.samples[role], experiment.suite.prompts(role)
    images = experiment.images_per_prompt(role) * experiment.seeds
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


def keyed(experiment: Experiment, record: RunRecord) -> dict[Role, dict[str, list[Keyed]]]:
    """The images of every role whose digests are those that the suite asks for.

    They stand by role and prompt id in the suite's order, those of the first generation first.
    """
    found: dict[Role, dict[str, list[Keyed]]] = {}
    for role in experiment.roles:
        if role not in record.samples or any(_problems_of(experiment, record, role)):
            continue
        prompts, each = experiment.suite.prompts(role), experiment.images_per_prompt(role)
        generations = [
            experiment.keys_of(prompts, each, generation) for generation in range(experiment.seeds)
        ]
        digests = record.samples[role].sha256
        found[role] = {
            prompt.id: list(
                zip(
                    (key for keys in generations for key in keys[row * each : (row + 1) * each]),
                    digests[prompt.id],
                    strict=True,
                )
            )
            for row, prompt in enumerate(prompts)
            if prompt.id in digests
        }
    return found


def equal(store: SampleStore, images: Sequence[Keyed], sides: tuple[int, int]) -> list[bool]:
    """Whether each image, as the store has it, is of this height and width and has its digest."""
    found = []
    for start in range(0, len(images), AT_ONCE):
        part = images[start : start + AT_ONCE]
        for (_, digest), png in zip(part, store.png([key for key, _ in part]), strict=True):
            found.append(_digest_of(png, math.prod(sides)) == digest)
    return found


def _digest_of(png: bytes, most_pixels: int) -> str:
    """The digest of a picture's pixels; empty for a damaged one and for one with more pixels."""
    try:
        return pixel_digest(decode_png(png, most_pixels))
    except BadPicture:
        return ""


def small_picture(encoded: str) -> np.ndarray:
    """A record's picture, base64 of a PNG, as uint8 `[H, W, 3]`.

    Raises `ValueError` for anything else and for one that is larger than allowed.
    """
    return decode_small_png(encoded)


def thumbnails(claim: Claim) -> Iterator[str]:
    """There is one thumbnail of each prompt that should have one, and it shows the first image of
    the recorded digest, beside the suite's training picture.
    """
    if "memorized" not in claim.experiment.roles:
        return
    prompts = claim.suite.prompts("memorized")
    each = claim.experiment.images_per_prompt("memorized")
    keys = claim.experiment.keys_of(prompts, each)
    wanted = {prompts[row].id: row for row in evenly(len(prompts), THUMBNAILS)}
    recorded, sides = claim.record.samples.get("memorized"), claim.suite.settings.model.sides
    if not claim.record.thumbnails and claim.record.environment.get("keep_images") == "none":
        yield (
            "there are no thumbnails, as pictures were dropped: measure it again with --keep-images"
            " sample"
        )
    elif sorted(thumbnail.prompt_id for thumbnail in claim.record.thumbnails) != sorted(wanted):
        yield (
            f"{len(claim.record.thumbnails)} thumbnails, and not one of each of {len(wanted)}"
            " memorized prompts"
        )
    expected = small_picture(small_png(np.zeros((*sides, 3), dtype=np.uint8))).shape[:2]
    for thumbnail in claim.record.thumbnails:
        row = wanted.get(thumbnail.prompt_id)
        if row is None:
            continue
        name, key = f"thumbnail of {thumbnail.prompt_id}", keys[row * each]
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
        if picture.shape[:2] != expected:
            yield (
                f"{name} has {picture.shape[1]}x{picture.shape[0]} pixels, and images have"
                f" {sides[1]}x{sides[0]}"
            )
        elif max(sides) <= SIDE and digests and pixel_digest(picture) != digests[0]:
            yield f"{name} is not the image of the recorded digest"
        yield from _reference_problems(claim, name, thumbnail.reference, prompts[row])


def _reference_problems(
    claim: Claim, name: str, encoded: str | None, prompt: Prompt
) -> Iterator[str]:
    """What is wrong with the training picture of a thumbnail; `encoded` is the recorded one."""
    paths = prompt.references if claim.suite.settings.share_references else ()
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
    shrunk = max(own.shape[:2]) > SIDE  # releases of Pillow do that in their own ways
    expected = small_picture(small_png(own))
    if theirs.shape != expected.shape or not (shrunk or np.array_equal(theirs, expected)):
        yield f"{name} has another training picture than the suite"


def exhibits(claim: Claim) -> Iterator[str]:
    """Exhibits are of the suite's attacks and prompts, and show what the suite may share."""
    counts = Counter(exhibit.attack for exhibit in claim.record.exhibits)
    if any(count > EXHIBITS for count in counts.values()):
        yield f"more than {EXHIBITS} of one attack"
    attacks = len(claim.experiment.attacks)
    if counts.total() > EXHIBITS * max(1, attacks):  # too many to look at each
        yield f"{counts.total()} of {len(counts)} attacks; the suite has {attacks}"
        return
    texts = {
        (prompt.id, prompt.text)
        for role in claim.suite.settings.prompts
        for prompt in claim.suite.prompts(role)
    }
    for exhibit in claim.record.exhibits:
        if (
            exhibit.attack not in claim.experiment.attacks
            or (exhibit.prompt_id, exhibit.prompt) not in texts
        ):
            yield (
                f"one of '{exhibit.attack[:NAME]}' for prompt '{exhibit.prompt_id[:NAME]}' is of no"
                " attack or prompt of the suite"
            )
        if exhibit.reference is not None and not claim.suite.settings.share_references:
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


def store(claim: Claim) -> Iterator[str]:
    """The images of the store that came with the record have the record's digests."""
    assert claim.store is not None
    wanted = [
        (f"{prompt} ({role})", *image)
        for role, prompts in keyed(claim.experiment, claim.record).items()
        for prompt, images in prompts.items()
        for image in images
    ]
    best = min(
        _stores_of(claim, claim.store),
        key=lambda found: len(found.missing(key for _, key, _ in wanted)),
        default=None,
    )
    if best is None:
        yield (
            f"{claim.store} has no images of {claim.record.method} with these parameters, made as"
            " the suite says"
        )
        return
    missing = set(best.missing(key for _, key, _ in wanted))
    if missing:
        yield f"{len(missing)} of {len(wanted)} images are not there"
    yield from _dropped_differ(claim, best, wanted)
    there = [item for item in wanted if item[1] not in missing and item[1] not in best.dropped]
    same = equal(
        best, [(key, digest) for _, key, digest in there], claim.suite.settings.model.sides
    )
    wrong = [prompt for (prompt, _, _), right in zip(there, same, strict=True) if not right]
    if wrong:
        yield (
            f"{len(wrong)} of {len(there)} images differ from their digests; the first is one of"
            f" prompt {wrong[0]}"
        )
    elif there:
        claim.notes.append(f"{len(there)} images were compared with their digests, and all agree")


def _dropped_differ(
    claim: Claim, found: SampleStore, wanted: Sequence[tuple[str, SampleKey, str]]
) -> Iterator[str]:
    """Of pictures that were dropped, the digests that the store keeps are the record's."""
    dropped = [item for item in wanted if item[1] in found.dropped]
    if not dropped:
        return
    claim.notes.append(
        f"the pictures of {len(dropped)} of {len(wanted)} images were dropped from the store"
        " (--keep-images): of these only its digests were compared, which say no more than the"
        " record"
    )
    kept = found.pixel_digests([key for _, key, _ in dropped])
    differing = [
        prompt for (prompt, _, digest), own in zip(dropped, kept, strict=True) if own != digest
    ]
    if differing:
        yield (
            f"{len(differing)} of {len(dropped)} digests of dropped pictures are not the record's;"
            f" the first is one of prompt {differing[0]}"
        )


def _stores_of(claim: Claim, root: Root) -> Iterator[SampleStore]:
    """The stores below `root` whose key says that their images are of this method and made as the
    suite says; the name of their folder follows from the key.
    """
    record = claim.record
    own = {
        "method": record.method,
        "version": record.method_version,
        "parameters": record.parameters,
        "source": record.sources.get(f"method {record.method}"),
        "generation": claim.suite.generation,
    }
    files = open_folder(root).at(claim.suite.store_name)
    for folder in files.folders():
        if not folder.startswith(f"{record.method}-"):
            continue
        try:
            identity = json.loads(files.read(f"{folder}/key.json"))
        except (UserError, ValueError, RecursionError):
            continue
        if isinstance(identity, dict) and all(
            identity.get(key) == value for key, value in own.items()
        ):
            found = SampleStore(root, claim.suite.store_name, record.method, identity)
            if found.files == files.at(folder):
                yield found
