"""The one reader and writer of pictures."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image

from bench.base.errors import UserError, one_line

SIDE = 128  # pixels a side of a small picture, at most


def small_png(picture: np.ndarray, side: int = SIDE) -> str:
    """A picture, uint8 `[H, W, 3]`, of at most `side` pixels a side, as base64 of a PNG."""
    image = Image.fromarray(picture)
    image.thumbnail((side, side))
    return base64.b64encode(encode_png(np.asarray(image))).decode()


def encode_png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def pixel_digest(picture: np.ndarray) -> str:
    """16 hex digits of sha256 over the shape and the pixels of a picture, uint8 `[H, W, 3]`: the
    same however it was compressed.
    """
    return hashlib.sha256(
        repr(picture.shape).encode() + np.ascontiguousarray(picture).tobytes()
    ).hexdigest()[:16]


def decode_png(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def read_picture(path: Path) -> np.ndarray:
    """A picture file as uint8 `[H, W, 3]`.

    Raises `UserError` when it is missing, truncated or no picture.
    """
    try:
        return decode_png(path.read_bytes())
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"picture {path} cannot be read: {one_line(error)[:120]}") from error
