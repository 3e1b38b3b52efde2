"""What `bench finetune` trains on: captioned pictures as people keep them, and which of them are
repeated.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.base.digests import digest_of, path_digest
from bench.base.errors import UserError, one_line, visible
from bench.base.pictures import BadPicture, centred_square, read_image
from bench.captioned.folder import read_folder


@dataclass(frozen=True)
class Pair:
    """A training picture and its caption; `name` is its path inside the folder."""

    name: str
    path: Path
    caption: str


def read_pairs(folder: Path) -> list[Pair]:
    """The pairs of a folder, sorted by name.

    Captions stand in `metadata.csv` or `metadata.jsonl` (file_name, text), as for Hugging Face's
    imagefolder, or in `NAME.txt` beside each picture. Raises `UserError` as
    `bench.captioned.folder.read_folder` does, and for a picture without a caption.
    """
    found = read_folder(folder, layouts=("listed", "beside"), every_picture=False)
    for picture in found.pictures:
        if not picture.captions:
            raise UserError(f"{folder}: picture {visible(picture.name)} has no caption")
    return [Pair(one.name, folder / one.name, one.caption) for one in found.pictures]


def pairs_digest(pairs: Sequence[Pair]) -> str:
    """sha256 over names, captions and the bytes of the pictures."""
    return digest_of([[pair.name, pair.caption, path_digest(pair.path)] for pair in pairs])


def choose_duplicated(total: int, count: int, seed: int) -> tuple[int, ...]:
    """The numbers of the `count` pictures of `total` that are repeated, in ascending order.

    Raises `UserError` when there are not that many.
    """
    if count > total:
        raise UserError(
            f"{count} pictures cannot be repeated: the data folder holds {total}; lower --duplicate"
        )
    return tuple(
        sorted(
            int(number)
            for number in np.random.default_rng([seed, 0]).choice(total, size=count, replace=False)
        )
    )


def training_list(total: int, duplicated: Sequence[int], times: int) -> np.ndarray:
    """The picture numbers of one epoch before shuffling, int64: each once, those of `duplicated`
    `times` times.
    """
    counts = np.ones(total, dtype=np.int64)
    counts[list(duplicated)] = times
    return np.repeat(np.arange(total), counts)


def fitted_picture(path: Path, side: int) -> np.ndarray:
    """A picture file as uint8 `[side, side, 3]`: short side resized to `side` (Pillow's bicubic),
    centre cropped, as attacks that verify copies do.

    Raises `UserError` when it cannot be read.
    """
    image = read_image(path)
    try:
        return centred_square(image, side)
    except BadPicture as error:
        raise UserError(f"picture {path} cannot be used: {one_line(error)}") from error


def encoded_once(
    file: Path,
    pairs: Sequence[Pair],
    side: int,
    flip: bool,
    encode: Callable[[np.ndarray], np.ndarray],
    report: Callable[[str, int, int], None],
    batch: int = 8,
) -> np.ndarray:
    """What the autoencoder makes of each picture, float32 `[n, views, 2, C, h, w]`, kept in `file`.

    There are two views with `flip`, the second one mirrored, and one without; the 2 are mean and
    deviation. `encode` takes uint8 `[b, side, side, 3]` to `[b, 2, C, h, w]`. The file is
    memory-mapped, so a large set needs no memory. Raises `UserError` for a picture that cannot be
    read, and when the file cannot be written.
    """
    if not file.exists():
        temporary = file.with_name(f".{file.name}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # Written and not mapped: a full disk is then an error, and not a signal.
            with temporary.open("wb") as stream:
                for start in range(0, len(pairs), batch):
                    report("encode", start, len(pairs))
                    pictures = np.stack(
                        [fitted_picture(pair.path, side) for pair in pairs[start : start + batch]]
                    )
                    moments = np.stack(
                        [encode(pictures), *([encode(pictures[:, :, ::-1])] if flip else [])], 1
                    ).astype("<f4")
                    if start == 0:
                        shape = (len(pairs), *moments.shape[1:])
                        np.lib.format.write_array_header_1_0(
                            stream, {"descr": "<f4", "fortran_order": False, "shape": shape}
                        )
                    stream.write(moments.tobytes())
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(file)
        except OSError as error:
            raise UserError(f"{file} cannot be written: {one_line(error)}") from error
        finally:
            temporary.unlink(missing_ok=True)
        report("encode", len(pairs), len(pairs))
    return np.load(file, mmap_mode="r", allow_pickle=False)
