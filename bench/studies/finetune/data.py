"""What `bench finetune` trains on: captioned pictures as people keep them, and which of them are
repeated.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.base.digests import digest_of, path_digest
from bench.base.errors import UserError, one_line, visible
from bench.base.pictures import BadPicture, centred_square, has_picture_suffix, read_image
from bench.base.prompt_lists import read_list

METADATA = ("metadata.csv", "metadata.jsonl")


@dataclass(frozen=True)
class Pair:
    """A training picture and its caption; `name` is its path inside the folder."""

    name: str
    path: Path
    caption: str


def read_pairs(folder: Path) -> list[Pair]:
    """The pairs of a folder, sorted by name.

    Captions stand in `metadata.csv` or `metadata.jsonl` (file_name, text), as for Hugging Face's
    imagefolder, or in `NAME.txt` beside each picture. Raises `UserError` for a folder without
    captions, and for the first picture that is missing, named twice or without a caption.
    """
    if not folder.is_dir():
        raise UserError(f"data folder {folder} is not there")
    lists = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(lists) > 1:
        raise UserError(f"{folder} holds both {' and '.join(METADATA)}; keep one")
    pairs = [
        _pair(folder, name, text, where)
        for name, text, where in (_listed(lists[0]) if lists else _beside(folder))
    ]
    if not pairs:
        raise UserError(
            f"{folder} holds no captioned pictures: give a metadata.csv (file_name, text), a"
            " metadata.jsonl, or NAME.txt beside each picture"
        )
    seen: set[str] = set()
    for pair in pairs:
        if pair.name in seen:
            raise UserError(f"{lists[0]} names picture {visible(pair.name)} twice")
        seen.add(pair.name)
    return sorted(pairs, key=lambda pair: pair.name)


def _pair(folder: Path, name: str, caption: str, where: str) -> Pair:
    path = folder / name
    if not name or Path(name).is_absolute() or ".." in Path(name).parts or "|" in name:
        raise UserError(
            f"{where}: '{visible(name)}' is no path inside the folder (and '|' is not allowed"
            " in it)"
        )
    if not caption:
        raise UserError(f"{where}: picture {visible(name)} has no caption")
    if not path.is_file():
        raise UserError(f"{where}: picture {visible(name)} is missing")
    return Pair(Path(name).as_posix(), path, caption)


def _listed(file: Path) -> Iterator[tuple[str, str, str]]:
    """File name, caption and place of every entry of a metadata file."""
    found = read_list(file, "csv" if file.suffix == ".csv" else "jsonl")
    if found.rows and not {"file_name", "text"} <= set(found.columns):
        raise UserError(
            f"{file} has not both file_name and text (it has:"
            f" {visible(', '.join(found.columns)) or 'none'})"
        )
    for row in found.rows:
        name, caption = row.text("file_name").strip(), row.text("text").strip()
        yield name, caption, f"{file}, line {row.line}"


def _beside(folder: Path) -> Iterator[tuple[str, str, str]]:
    for path in sorted(folder.iterdir()):
        if has_picture_suffix(path) and path.is_file():
            text = path.with_suffix(".txt")
            try:
                yield (
                    path.name,
                    text.read_text(encoding="utf-8").strip() if text.is_file() else "",
                    str(folder),
                )
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{text} cannot be read: {one_line(error)[:120]}") from error


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
