"""The pictures of an audit: those that the model was trained on and those that were held out, each
with its views, its descriptors and the group of near-duplicates that it belongs to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from bench.auditing.asked import Asked
from bench.auditing.prompts import Size
from bench.base.errors import UserError, one_line, visible
from bench.base.pictures import BadPicture, pixel_digest
from bench.base.progress import Report, silent
from bench.base.spread import spread
from bench.captioned.folder import Captioned, CaptionedFolder, read_folder
from bench.captioned.views import Training, views
from bench.suite.near import components

NO_HOLDOUT = (
    "No held-out pictures were given, so nothing says how often a picture that was never trained on"
    " would be called copied: give --holdout FOLDER."
)
FEW_HELD_OUT = 8
Describe = Callable[[list[np.ndarray]], np.ndarray]
TOGETHER = 64  # views that are described at once; their pixels are then forgotten


@dataclass(frozen=True)
class Pictures:
    """Some captioned pictures in order.

    `plain` holds the plainest view of each, uint8 `[h, w, 3]`. `described` has the descriptors of
    all views, float32 `[V, d]`, and `names` what they are called, views of one picture together.
    `buckets` has height and width of the bucket that each was trained in; None for a square.
    `total` is how many the folder holds, of which these may be a part, and `left` are the others.
    """

    entries: tuple[Captioned, ...]
    plain: tuple[np.ndarray, ...]
    names: tuple[tuple[str, ...], ...]
    described: np.ndarray
    buckets: tuple[Size, ...]
    layout: str
    total: int
    left: tuple[Captioned, ...] = ()

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """Of the pixels of the plainest views."""
        return tuple(map(pixel_digest, self.plain))

    @cached_property
    def owners(self) -> np.ndarray:
        """The number of the picture that each view belongs to, int64 `[V]`."""
        return np.repeat(np.arange(len(self)), [len(found) for found in self.names])

    @property
    def view_names(self) -> list[str]:
        """Of all views in the order of `owners`."""
        return [name for found in self.names for name in found]

    @property
    def captions(self) -> list[str]:
        return [entry.caption for entry in self.entries]


def read_pictures(
    folder: Path,
    training: Training,
    describe: Describe,
    *,
    caption_column: str = "text",
    instance_prompt: str | None = None,
    limit: int | None = None,
    what: str = "pictures",
    report: Report = silent,
) -> Pictures:
    """The pictures of a folder, at most `limit` of them, evenly spread over the folder.

    Raises `UserError` as `read_folder` does, and for a picture that cannot be read, by name.
    """
    found: CaptionedFolder = read_folder(
        folder, caption_column=caption_column, instance_prompt=instance_prompt
    )
    chosen = spread(range(len(found.pictures)), limit)
    entries = tuple(found.pictures[number] for number in chosen)
    kept = set(chosen)
    left = tuple(one for number, one in enumerate(found.pictures) if number not in kept)
    looked = _looked_at(entries, training, describe, f"read {what}", report)
    return Pictures(entries, *looked, found.layout, len(found.pictures), left)


def left_out(
    pictures: Pictures, training: Training, describe: Describe, report: Report = silent
) -> Pictures:
    """The pictures of a folder that are not looked for, as they are: none of them may be held out.

    Raises `UserError` for a picture that cannot be read, by name.
    """
    plain = replace(training, flips=False, random_crops=False)
    looked = _looked_at(pictures.left, plain, describe, "read other training pictures", report)
    return Pictures(pictures.left, *looked, pictures.layout, pictures.total)


def _looked_at(
    entries: Sequence[Captioned], training: Training, describe: Describe, what: str, report: Report
) -> tuple[tuple[np.ndarray, ...], tuple[tuple[str, ...], ...], np.ndarray, tuple[Size, ...]]:
    """The plainest view of each picture, the names of all of its views, their descriptors, and the
    bucket of each picture.
    """
    buckets = list[Size]()
    plain, names, described = list[np.ndarray](), list[tuple[str, ...]](), list[np.ndarray]()
    waiting: list[np.ndarray] = []
    for number, entry in enumerate(entries):
        report(what, number, len(entries))
        try:
            image = entry.image()
            found = views(image, training)
        except BadPicture as error:
            raise UserError(
                f"picture {visible(entry.name)} cannot be used: {one_line(error)[:160]}"
            ) from error
        width, height = training.bucket(image)
        buckets.append(None if width == height else (height, width))
        plain.append(found[0].pixels)
        names.append(tuple(view.name for view in found))
        waiting += [view.pixels for view in found]
        if len(waiting) >= TOGETHER:
            described.append(describe(waiting))
            waiting = []
    if waiting:
        described.append(describe(waiting))
    report(what, len(entries), len(entries))
    return tuple(plain), tuple(names), np.concatenate(described), tuple(buckets)


def read_both(
    asked: Asked, training: Training, describe: Describe, report: Report = silent
) -> tuple[Pictures, Pictures | None]:
    """The training pictures and the held-out ones of an audit.

    Both are called alike: an instance prompt is the caption of held-out pictures too, and where all
    training pictures have one caption, held-out pictures without any have that one.

    Raises `UserError` as `read_pictures` does, and for a held-out picture with the pixels of a
    training picture.
    """
    pictures = read_pictures(
        asked.data,
        training,
        describe,
        caption_column=asked.caption_column,
        instance_prompt=asked.instance_prompt,
        limit=asked.limit,
        what="training pictures",
        report=report,
    )
    if asked.holdout is None:
        return pictures, None
    holdout = read_pictures(
        asked.holdout,
        training,
        describe,
        caption_column=asked.caption_column,
        instance_prompt=asked.instance_prompt,
        limit=asked.limit,
        what="held-out pictures",
        report=report,
    )
    shared = set(pictures.captions)
    if len(shared) == 1 and (caption := shared.pop()):
        entries = tuple(
            one if one.captions else replace(one, captions=(caption,)) for one in holdout.entries
        )
        holdout = replace(holdout, entries=entries)
    refuse_shared(pictures, holdout)
    return pictures, holdout


def notes_on(pictures: Pictures, holdout: Pictures | None) -> list[str]:
    """What a reader has to know of the pictures that were looked for and of the held-out ones."""
    found = []
    if len(pictures) < pictures.total:
        found.append(
            f"{len(pictures)} of {pictures.total} training pictures were looked for, evenly spread"
            " (--limit)."
        )
    if holdout is None:
        return [*found, NO_HOLDOUT]
    if len(holdout) < holdout.total:
        found.append(f"{len(holdout)} of {holdout.total} held-out pictures were used (--limit).")
    if len(holdout) < FEW_HELD_OUT:
        found.append(
            f"Only {len(holdout)} held-out pictures: false alarms below one in {len(holdout)} do"
            " not show."
        )
    return found


def bucket_notes(pictures: Pictures, by_header: bool, stated: bool) -> list[str]:
    """How many pictures were asked for in which size, where some are no squares. `stated`: the
    file names its buckets.
    """
    counts = Counter(size for size in pictures.buckets if size)
    if not counts:
        return []
    shown = ", ".join(f"{width} x {height}: {n}" for (height, width), n in counts.most_common())
    why = "as the file's header says that it was trained" if by_header else "--buckets"
    sizes = "the file names the sizes" if stated else "sizes by the rule of kohya's scripts"
    return [
        f"{sum(counts.values())} of {len(pictures)} training pictures were asked for in the sides"
        f" of their bucket, width x height ({shown}; {why}; {sizes}); prompts that belong to no"
        " picture were asked for as squares."
    ]


def refuse_shared(training: Pictures, holdout: Pictures) -> None:
    """Raises `UserError` where a held-out picture has the pixels of a training picture."""
    known = {digest: number for number, digest in enumerate(training.digests)}
    for entry, digest in zip(holdout.entries, holdout.digests, strict=True):
        if digest in known:
            raise in_both(entry.name, training.entries[known[digest]].name)


def refuse_alike(
    training: Pictures, holdout: Pictures, similarity: np.ndarray, threshold: float
) -> None:
    """The same where they are as similar as a copy: `similarity` float `[held out, training]`."""
    if not similarity.size:
        return
    row, column = np.unravel_index(int(similarity.argmax()), similarity.shape)
    if similarity[row, column] >= threshold:
        raise in_both(
            holdout.entries[int(row)].name,
            training.entries[int(column)].name,
            f" (similarity {similarity[row, column]:.2f})",
        )


def in_both(held_out: str, trained: str, more: str = "") -> UserError:
    return UserError(
        f"held-out picture {visible(held_out)} is also in the training data, as"
        f" {visible(trained)}{more}: held-out pictures must be ones that the model never saw"
    )


def groups(similarity: np.ndarray, threshold: float) -> np.ndarray:
    """The group of near-duplicates of each picture, int64 `[N]`: pictures as similar to one another
    as a copy, by way of others too. `similarity` is `[N, N]`.
    """
    first, second = np.nonzero(np.triu(similarity >= threshold, 1))
    pairs = set(zip(first.tolist(), second.tolist(), strict=True))
    return components(len(similarity), pairs)


def nearest_views(
    generated: np.ndarray, described: np.ndarray, owners: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Similarity of each generation to each of `count` pictures, the largest over its views,
    float32 `[M, count]`, and the number of the view that has it, int64 `[M, count]`.

    `generated` `[M, d]` and `described` `[V, d]` are unit vectors, `owners` `[V]` as in `Pictures`.
    """
    similarity = np.full((len(generated), count), -np.inf, dtype=np.float32)
    which = np.zeros((len(generated), count), dtype=np.int64)
    starts = np.searchsorted(owners, np.arange(count))
    ends: Sequence[int] = [*starts[1:].tolist(), len(owners)]
    for picture, (start, end) in enumerate(zip(starts.tolist(), ends, strict=True)):
        table = generated @ described[start:end].T
        best = table.argmax(1)
        which[:, picture] = start + best
        similarity[:, picture] = table[np.arange(len(table)), best]
    return similarity, which
