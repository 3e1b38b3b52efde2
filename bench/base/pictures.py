"""The one reader and writer of pictures.

One rule holds for every picture, whoever gives it: stored images, reference pictures, real
pictures, data to fine-tune on, training sets of attacks, submissions and downloaded links.

- Formats are those of `FORMATS`, whatever the file's name says. Nothing else is tried, so that no
  bytes can start a program (Pillow runs Ghostscript for EPS).
- Pixels become RGB of 8 bits a channel. 16 bits a channel keep their high byte, greys as colours.
  Greys of floats, of 32 or of 12 bits and signed ones are refused: nothing in the file says which
  value is white.
- Transparency is ignored: the colours beneath it count. Palettes are looked up, CMYK is converted
  without its colour profile, and of an animation the first picture counts.
- Orientation marks (EXIF) of JPEG, PNG and WebP are ignored, as clean-fid, torchvision and the
  tools that made the training sets do. A TIFF's own orientation is a part of its format and is
  followed.
- A picture of more than `MAX_PIXELS` pixels, a truncated one and one without its end are refused.
"""

from __future__ import annotations

import base64
import hashlib
import io
import threading
import warnings
from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from bench.base import limits
from bench.base.errors import UserError, one_line
from bench.base.files import read_regular_file

# what Pillow calls the formats that are read, and the suffix that each is stored under
FORMATS = {
    "BMP": "bmp",
    "GIF": "gif",
    "JPEG": "jpg",
    "MPO": "jpg",  # a JPEG that carries a second picture
    "PNG": "png",
    "PPM": "ppm",
    "TIFF": "tif",
    "WEBP": "webp",
}
# how names of picture files end, in lower case
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MAX_PIXELS, MAX_BYTES = limits.PICTURE_PIXELS, limits.PICTURE_BYTES
PNG_BYTES_PER_PIXEL = 2.2  # of a generated picture on disk, measured
SIDE = 128  # pixels a side of a small picture, at most

# Pillow warns of large pictures, which are refused here; what is to be warned of is a setting of
# the whole process, so headers are read one at a time
_READING_A_HEADER = threading.Lock()


class BadPicture(ValueError):
    """Why some bytes are no picture that can be used."""


def has_picture_suffix(path: Path) -> bool:
    """Whether a file's name ends as those of pictures do, in lower or upper case."""
    return path.suffix.lower() in SUFFIXES


def decode_image(
    content: bytes, formats: Collection[str] = tuple(FORMATS), most_pixels: int | None = None
) -> tuple[Image.Image, str]:
    """An encoded picture as a Pillow image of the mode RGB, and its format as `FORMATS` has it.

    `most_pixels`: more are refused before they are decoded; `MAX_PIXELS` by default. Raises
    `BadPicture` for everything that the rule above refuses.
    """
    try:
        with _header(content, formats) as image:
            kind = str(image.format)
            _refuse_size(image, MAX_PIXELS if most_pixels is None else most_pixels)
            _refuse_without_end(content, kind)
            return _as_rgb(image), kind
    except BadPicture:
        raise
    except UnidentifiedImageError as error:
        known = ", ".join(name for name in formats if name != "MPO")
        raise BadPicture(f"it is no whole picture of a format that is read ({known})") from error
    except Exception as error:  # what a broken picture raises depends on its format
        raise BadPicture(f"it is no whole picture: {one_line(error)[:120]}") from error


def decode_picture(content: bytes, most_pixels: int | None = None) -> np.ndarray:
    """An encoded picture as uint8 `[H, W, 3]`. Raises `BadPicture`."""
    return np.asarray(decode_image(content, most_pixels=most_pixels)[0])


def decode_png(png: bytes, most_pixels: int | None = None) -> np.ndarray:
    """A PNG, and no other format, as uint8 `[H, W, 3]`. Raises `BadPicture`."""
    return np.asarray(decode_image(png, ("PNG",), most_pixels)[0])


def read_image(path: Path) -> Image.Image:
    """A picture file as a Pillow image of the mode RGB.

    Raises `UserError`, which names the file, when it is missing or `decode_image` refuses it.
    """
    try:
        return decode_image(read_regular_file(path, MAX_BYTES))[0]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(
            f"picture {path} cannot be read: {one_line(ValueError(reason))[:200]}"
        ) from error


def read_picture(path: Path) -> np.ndarray:
    """A picture file as uint8 `[H, W, 3]`. Raises `UserError` as `read_image` does."""
    return np.asarray(read_image(path))


def encode_png(picture: np.ndarray) -> bytes:
    """A picture, uint8 `[H, W, 3]`, as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def small_png(picture: np.ndarray, side: int = SIDE) -> str:
    """A picture, uint8 `[H, W, 3]`, of at most `side` pixels a side, as base64 of a PNG."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side))
    return base64.b64encode(encode_png(np.asarray(image))).decode()


def decode_small_png(encoded: str, side: int = SIDE) -> np.ndarray:
    """What `small_png` made, as uint8 `[H, W, 3]`.

    Raises `ValueError` for what is no base64, `BadPicture` for another format than PNG and for more
    than `side` pixels a side.
    """
    picture = decode_png(base64.b64decode(encoded, validate=True), side * side)
    if max(picture.shape[:2]) > side:
        height, width = picture.shape[:2]
        raise BadPicture(f"it has {width}x{height} pixels, and at most {side} a side are allowed")
    return picture


def pixel_digest(picture: np.ndarray) -> str:
    """16 hex digits of sha256 over the shape and the pixels of a picture, uint8 `[H, W, 3]`: the
    same however it was compressed.
    """
    return hashlib.sha256(
        repr(picture.shape).encode() + np.ascontiguousarray(picture).tobytes()
    ).hexdigest()[:16]


def with_short_side(image: Image.Image, side: int) -> Image.Image:
    """A picture whose shorter side is `side` pixels (Pillow's bicubic filter, antialiased, 8 bits;
    the longer side rounded down, as torchvision does). One that has it stays as it is.

    Raises `BadPicture` when the longer side would leave more than `MAX_PIXELS` pixels.
    """
    short = min(image.size)
    if short == side:
        return image
    width, height = (side * length // short for length in image.size)
    if width * height > MAX_PIXELS:
        raise BadPicture(
            f"{image.width}x{image.height} pixels are too long and narrow to be resized to"
            f" {side} a side"
        )
    return image.resize((width, height), Image.Resampling.BICUBIC)


def centred_square(image: Image.Image, side: int) -> np.ndarray:
    """A picture as uint8 `[side, side, 3]`: its shorter side resized to `side`, the centre cut out
    (the odd pixel is lost on the right and at the bottom). Pixels of one that fits stay as they
    are.

    This is how attacks and fine-tuning cut. `bench.features.real_pictures.centre_square` rounds the
    odd pixel as torchvision does.
    """
    image = with_short_side(image, side)
    if image.size != (side, side):
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(image)


def _header(content: bytes, formats: Collection[str]) -> Image.Image:
    """The picture with its pixels not yet decoded."""
    with _READING_A_HEADER, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Pillow's reader of JPEG finds the second picture of an MPO by itself
        return Image.open(io.BytesIO(content), formats=[name for name in formats if name != "MPO"])


def _refuse_size(image: Image.Image, most: int) -> None:
    if not image.width or not image.height:
        raise BadPicture("it has no pixels")
    if image.width * image.height > most:
        raise BadPicture(f"it has {image.width}x{image.height} pixels, and {most:,} are allowed")


def _refuse_without_end(content: bytes, kind: str) -> None:
    """Pillow decodes PNG and GIF files whose end is missing."""
    if (kind == "PNG" and b"IEND\xaeB`\x82" not in content) or (
        kind == "GIF" and not content.rstrip(b"\0").endswith(b";")
    ):
        raise BadPicture("it is no whole picture: its end is missing")


def _as_rgb(image: Image.Image) -> Image.Image:
    if not image.mode.startswith(("I", "F")):
        return image.convert("RGB")
    if not _has_16_bit_greys(image):
        raise BadPicture(
            f"it is not known which value of its greys is white (mode {image.mode}): save it with 8"
            " bits"
        )
    high = (np.asarray(image) >> 8).astype(np.uint8)
    return Image.fromarray(high).convert("RGB")


def _has_16_bit_greys(image: Image.Image) -> bool:
    """Whether greys reach from 0, black, to 65535, white."""
    if image.format == "TIFF":
        # 12 bits, and files where 0 is white, have the same mode
        tags = image.getexif()
        bits, black_is_zero = tags.get(258), tags.get(262)
        return image.mode.startswith("I;16") and bits in (16, (16,)) and black_is_zero == 1
    return image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
