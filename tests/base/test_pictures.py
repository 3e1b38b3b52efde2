"""One rule for every picture, whoever gives it."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from attacks._training_set import TrainingSet
from bench.base import pictures
from bench.base.errors import UserError
from bench.base.pictures import (
    BadPicture,
    centred_square,
    decode_image,
    decode_picture,
    decode_png,
    decode_small_png,
    encode_png,
    has_picture_suffix,
    read_picture,
    small_png,
)
from bench.features.real_pictures import pictures_in, read_cut
from bench.new_suite.prompts import _undecodable
from bench.studies.finetune.data import fitted_picture

GREYS = np.arange(256, dtype=np.uint8).reshape(16, 16)


def encoded(picture, format, **options) -> bytes:
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(
        buffer, format, **options
    )
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 9000 x 9000 pixels."""
    head = struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


# every reader of picture files that users name, as a function of the file; all of a side of 16
READERS = {
    "reference pictures": read_picture,
    "real pictures": lambda path: read_cut(path, 16),
    "fine-tuning": lambda path: fitted_picture(path, 16),
    "training sets of attacks": lambda path: next(iter(TrainingSet.open([path], 16)))[1][0],
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("8 bits.png", encoded(GREYS, "PNG")),
        ("16 bits.png", encoded(GREYS.astype(np.uint16) * 257, "PNG")),
        ("16 bits.tif", encoded(GREYS.astype(np.uint16) * 257, "TIFF")),
        ("16 bits, the other end first.tif", encoded(GREYS.astype(">u2") * 257, "TIFF")),
        ("16 bits.pgm", encoded(GREYS.astype(np.int32) * 257, "PPM")),
    ],
)
def test_the_same_greys_give_the_same_pixels_in_8_and_16_bits(tmp_path, reader, name, content):
    (tmp_path / name).write_bytes(content)
    assert np.array_equal(READERS[reader](tmp_path / name), GREYS[..., None].repeat(3, axis=2))


def test_16_bit_colours_and_greys_are_rounded_alike():
    """Pillow keeps the high byte of colours."""
    values = np.array([[0, 255, 256, 511, 40_000, 65_535]], np.uint16)
    grey = decode_picture(encoded(values, "PNG"))[..., 0]
    rows = b"\0" + values.repeat(3).astype(">u2").tobytes()
    head = struct.pack(">IIBBBBB", 6, 1, 16, 2, 0, 0, 0)
    colour = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )
    assert np.array_equal(grey, decode_picture(colour)[..., 0])
    assert np.array_equal(grey, values >> 8)


REFUSED = {
    "floats": (encoded((GREYS / 255).astype(np.float32), "TIFF"), "not known which value"),
    "32 bits": (encoded(GREYS.astype(np.int32), "TIFF"), "not known which value"),
    "a program": (encoded(GREYS, "EPS"), "no whole picture of a format that is read"),
    "text": (b"an error page", "no whole picture of a format that is read"),
    "nothing": (b"", "no whole picture of a format that is read"),
    "half a JPEG": (encoded(GREYS, "JPEG")[:200], "no whole picture"),
    "a PNG without its end": (encoded(GREYS, "PNG")[:-12], "its end is missing"),
    "a bomb": (bomb(), "9000x9000 pixels, and 64,000,000 are allowed"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_used_is_one_line_that_names_the_file(tmp_path, reader, what):
    content, says = REFUSED[what]
    path = tmp_path / "odd.png"  # its name says nothing
    path.write_bytes(content)
    with pytest.raises(UserError, match="odd.png.*" + says.replace("(", r"\(")) as error:
        READERS[reader](path)
    assert "\n" not in str(error.value) and "object at" not in str(error.value)
    assert says in _undecodable(path)


def test_no_program_is_started_for_eps(monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr("os.system", lambda *_: pytest.fail("a program was started"))
    with pytest.raises(BadPicture):
        decode_picture(encoded(GREYS, "EPS"))


@pytest.mark.parametrize("path", ["gone.png", ".", "a\0b.png", "x" * 5000, "/dev/zero"])
def test_what_is_no_file_is_one_line(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        read_picture(tmp_path / path)


def test_transparency_orientation_and_later_pictures_are_ignored():
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (8, 12, 3), dtype=np.uint8)
    alpha = np.dstack([pixels, random.integers(0, 256, (8, 12), dtype=np.uint8)])
    assert np.array_equal(decode_picture(encoded(alpha, "PNG")), pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    for format in ("PNG", "JPEG", "WEBP"):
        turned = decode_picture(encoded(pixels, format, exif=exif))
        assert turned.shape == pixels.shape
        assert np.array_equal(turned, decode_picture(encoded(pixels, format)))
    first, second = Image.fromarray(pixels).convert("P"), Image.fromarray(255 - pixels)
    animated = encoded(first, "GIF", save_all=True, append_images=[second])
    assert np.array_equal(decode_picture(animated), np.asarray(first.convert("RGB")))


def test_colour_pictures_of_8_bits_are_what_pillow_makes_of_them():
    pixels = np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    for picture, format in (
        (Image.fromarray(pixels), "PNG"),
        (Image.fromarray(pixels).convert("CMYK"), "JPEG"),
        (Image.fromarray(pixels).quantize(16), "PNG"),
        (Image.fromarray(pixels).convert("LA"), "PNG"),
        (Image.fromarray(pixels).convert("1"), "PNG"),
        (Image.fromarray(pixels), "BMP"),
    ):
        content = encoded(picture, format)
        expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert np.array_equal(decode_picture(content), expected)
    assert np.array_equal(decode_png(encode_png(pixels)), pixels)


def test_a_limit_on_pixels_can_be_given_and_names_the_format_that_was_read():
    assert decode_image(encoded(GREYS, "JPEG"), most_pixels=256)[1] == "JPEG"
    with pytest.raises(BadPicture, match="16x16 pixels, and 255 are allowed"):
        decode_image(encoded(GREYS, "JPEG"), most_pixels=255)
    with pytest.raises(BadPicture, match=r"format that is read \(PNG\)"):
        decode_png(encoded(GREYS, "JPEG"))


def test_small_pictures_come_back_and_larger_ones_are_refused():
    pixels = np.random.default_rng(2).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    assert np.array_equal(decode_small_png(small_png(pixels)), pixels)
    narrow = np.zeros((10, 200, 3), np.uint8)
    with pytest.raises(BadPicture, match="200x10 pixels, and at most 128 a side"):
        decode_small_png(small_png(narrow, 200))


@pytest.mark.parametrize("size", [(40, 57), (57, 40), (16, 16), (10, 70)])
def test_the_centre_square_is_cut_from_the_resized_picture(size):
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8))
    short = min(image.size)
    resized = image.resize((16 * image.width // short, 16 * image.height // short), 3)
    left, top = (resized.width - 16) // 2, (resized.height - 16) // 2
    expected = np.asarray(resized.crop((left, top, left + 16, top + 16)))
    assert np.array_equal(centred_square(image, 16), expected)


@pytest.mark.parametrize("reader", ["real pictures", "fine-tuning", "training sets of attacks"])
def test_a_picture_too_narrow_to_be_resized_fills_no_memory(tmp_path, reader, monkeypatch):
    (tmp_path / "line.png").write_bytes(encode_png(np.zeros((1, 9000, 3), np.uint8)))
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1_000_000)
    with pytest.raises(UserError, match="line.png.*too long and narrow"):
        READERS[reader](tmp_path / "line.png")


def test_one_list_of_suffixes_serves_all(tmp_path):
    for number, suffix in enumerate((*pictures.SUFFIXES, ".PNG", ".JpEg", ".txt", "")):
        (tmp_path / f"{number}{suffix}").write_bytes(encoded(GREYS, "PNG"))
    named = {path for path in tmp_path.iterdir() if has_picture_suffix(path)}
    assert len(named) == len(pictures.SUFFIXES) + 2
    assert set(pictures_in(tmp_path).files) == named
    assert {path for _, path in TrainingSet.open(tmp_path, 16).files} == named
