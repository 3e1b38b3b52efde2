"""Real pictures, which measures of picture quality compare with: a folder or a list of files,
decoded, cut and turned into features once.

    <cache>/<key>/00000.npy     features of the first pictures, float32 `[n, d]`; one file for each
                                further part
    <cache>/<key>.npz           their mean and covariance (`bench.statistics.frechet`)

The key is made of the pictures' contents, what is cut from them and the network. A part is written
whole or not at all: it is the unit of resume.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.base.arrays import array_as_bytes, array_of
from bench.base.digests import digest_of, path_digest
from bench.base.errors import Unmeasurable, UserError, one_line
from bench.base.files import write_atomically
from bench.base.pictures import (
    SUFFIXES,
    BadPicture,
    has_picture_suffix,
    read_image,
    with_short_side,
)
from bench.base.progress import Report, silent
from bench.features.extractor import Extractor
from bench.features.networks import CleanFeatures
from bench.statistics.frechet import Statistics, moments, read_statistics, write_statistics
from bench.suite.prompts import Prompt

PART = 512  # pictures whose features stand in one file
BATCH = 32  # pictures that are decoded and handed to the network together
# Threads that decode: pictures wait for the network, and not the other way round.
THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class RealSet:
    """Picture files in a fixed order. With a `side` they are cut to a square of so many pixels
    (`centre_square`); without one they stay as they are.
    """

    name: str
    files: tuple[Path, ...]
    side: int | None = None

    @cached_property
    def digest(self) -> str:
        """sha256 over the contents of the files in their order."""
        return digest_of([path_digest(path) for path in self.files])

    @property
    def crop(self) -> str:
        return crop_name(self.side)


def crop_name(side: int | None) -> str:
    return (
        "none" if side is None else f"shorter side to {side} (bicubic, antialiased), centre square"
    )


def pictures_in(folder: Path, side: int | None = None) -> RealSet:
    """All pictures below a folder, known by their suffixes, in the order of their relative names.

    Raises `UserError` when there are fewer than two.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} is no folder of pictures; unpack the archive and name its folder"
        )
    found = sorted(
        (path for path in folder.rglob("*") if has_picture_suffix(path) and path.is_file()),
        key=lambda path: path.relative_to(folder).parts,
    )
    if len(found) < 2:
        raise UserError(
            f"{folder} holds {len(found)} pictures ({', '.join(SUFFIXES)}); at least 2 are needed"
        )
    return RealSet(folder.name, tuple(found), side)


def originals(prompts: Sequence[Prompt], side: int | None = None) -> RealSet:
    """The pictures that prompts name as their references, each once, in the order of the prompts.

    Raises `Unmeasurable` when a prompt names none, and when there are fewer than two.
    """
    if lacking := [prompt.id for prompt in prompts if not prompt.references]:
        raise Unmeasurable(
            f"{len(lacking)} of {len(prompts)} prompts name no reference picture, the first of them"
            f" {lacking[0]}"
        )
    files = tuple(dict.fromkeys(path for prompt in prompts for path in prompt.references))
    if len(files) < 2:
        raise Unmeasurable("all prompts name the same reference picture, and at least 2 are needed")
    return RealSet("references of the prompts", files, side)


def centre_square(image: Image.Image, side: int) -> Image.Image:
    """The shorter side resized to `side` (PIL bicubic, antialiased, 8 bits), then the centre cut
    out: as torchvision's Resize and CenterCrop.
    """
    image = with_short_side(image, side)
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def read_cut(path: Path, side: int | None) -> np.ndarray:
    """One picture file as uint8 `[H, W, 3]`, cut to a square of `side` pixels where that is given.

    Raises `UserError`, which names the file.
    """
    image = read_image(path)
    try:
        return np.asarray(image if side is None else centre_square(image, side))
    except BadPicture as error:
        raise UserError(f"picture {path} cannot be used: {one_line(error)}") from error


def decoded(
    files: Sequence[Path], side: int | None, threads: int = THREADS
) -> Iterator[np.ndarray]:
    """The pictures in order, each uint8 `[H, W, 3]`. Threads decode ahead of need, since Pillow
    decodes and resizes without Python's lock; few pictures are in memory at a time.
    """
    left = iter(files)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[np.ndarray]] = deque(
            pool.submit(read_cut, path, side) for path in islice(left, BATCH + threads)
        )
        try:
            while waiting:
                picture = waiting.popleft().result()
                waiting.extend(pool.submit(read_cut, path, side) for path in islice(left, 1))
                yield picture
        finally:
            for future in waiting:
                future.cancel()


def feature_blocks(
    real: RealSet, extractor: Extractor, cache: Path, report: Report = silent
) -> Iterator[np.ndarray]:
    """Features of the pictures in order, float32 `[n, d]` for a part at a time. Parts that were
    made before are read, and their pictures are not decoded.
    """
    folder = cache / _key(real, extractor)
    for start in range(0, len(real.files), PART):
        yield _part(folder / f"{start // PART:05d}.npy", real, start, extractor, report)
        report(f"real pictures {real.name}", min(start + PART, len(real.files)), len(real.files))


def statistics_of(
    real: RealSet, extractor: Extractor, cache: Path, report: Report = silent
) -> Statistics:
    """Mean and covariance of the pictures' features; measured once, then read.

    Interrupted, the next call goes on after the last whole part.
    """
    file = cache / f"{_key(real, extractor)}.npz"
    if file.exists():
        return replace(read_statistics(file), pictures=real.name)
    made = moments(feature_blocks(real, extractor, cache, report))
    made = replace(
        made,
        fingerprint=extractor.fingerprint,
        pictures=real.name,
        digest=real.digest,
        crop=real.crop,
    )
    write_statistics(made, file)
    return made


def make_statistics(
    pictures: Path,
    weights: Path,
    out: Path,
    cache: Path,
    device: Any,
    size: int = 299,
    side: int | None = None,
    report: Report = silent,
    keep_features: bool = False,
) -> Statistics:
    """Measure a folder of real pictures with the network in `weights` (pictures resized to `size`,
    cut to `side` before) and write its statistics to `out`, with the features where these are to be
    kept.
    """
    real, extractor = pictures_in(pictures, side), CleanFeatures(weights, size, device)
    made = statistics_of(real, extractor, cache, report)
    features = (
        np.concatenate(list(feature_blocks(real, extractor, cache, report)))
        if keep_features
        else None
    )
    write_statistics(made, out, features)
    return made


def _key(real: RealSet, extractor: Extractor) -> str:
    return digest_of([real.digest, real.side, extractor.fingerprint])[:24]


def _part(
    file: Path, real: RealSet, start: int, extractor: Extractor, report: Report
) -> np.ndarray:
    paths = real.files[start : start + PART]
    kept = _read_part(file, len(paths)) if file.exists() else None
    if kept is not None:
        return kept
    blocks = []
    for batch in _batches(decoded(paths, real.side)):
        blocks.append(extractor(batch))
        report(f"real pictures {real.name}", start + sum(map(len, blocks)), len(real.files))
    features = np.concatenate(blocks).astype(np.float32)
    write_atomically(file, array_as_bytes(features))
    return features


def _read_part(file: Path, count: int) -> np.ndarray | None:
    """Features of a part; None for a damaged file, which is named on standard error."""
    try:
        features = array_of(file.read_bytes())
        if features.ndim != 2 or len(features) != count:
            raise ValueError(f"it holds {features.shape} numbers for {count} pictures")
    except (OSError, ValueError, EOFError) as error:
        print(
            f"bench: features of real pictures {file} are damaged and are made again:"
            f" {one_line(error)}",
            file=sys.stderr,
        )
        return None
    return features


def _batches(pictures: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    iterator = iter(pictures)
    while batch := list(islice(iterator, BATCH)):
        yield batch
