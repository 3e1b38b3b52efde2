"""The views of a picture that a training makes."""

import itertools

import numpy as np
import pytest
from PIL import Image

from bench.captioned.views import Training, bucket, views


def image(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_a_square_picture_of_the_right_side_is_its_own_view_and_its_mirror_image():
    given = image(32, 32)
    plain, mirrored = views(given, Training(32))
    assert plain.name == "square"
    assert np.array_equal(plain.pixels, np.asarray(given))
    assert mirrored.name == "square, mirrored"
    assert np.array_equal(mirrored.pixels, np.asarray(given)[:, ::-1])
    assert [view.name for view in views(given, Training(32, flips=False))] == ["square"]


def test_a_symmetric_picture_has_one_view():
    given = Image.new("RGB", (32, 32), (10, 200, 30))
    assert len(views(given, Training(32))) == 1


def test_a_wide_picture_has_a_bucket_and_random_crops():
    found = views(image(640, 400), Training(512, flips=False, random_crops=True))
    assert [view.name for view in found] == [
        "square",
        "bucket",
        "crop top left",
        "crop top right",
        "crop bottom left",
        "crop bottom right",
        "crop centre",
    ]
    assert found[0].pixels.shape == (512, 512, 3)
    assert found[1].pixels.shape == (384, 640, 3)


def by_hand(width, height, side):
    """All pairs of multiples of an eighth of the side, tried one by one."""
    step = side // 8
    allowed = range(side // 2, 2 * side + 1, step)
    pairs = [(w, h) for w, h in itertools.product(allowed, allowed) if w * h <= side * side]
    # of each width kohya keeps the tallest
    widest = {w: max(h for v, h in pairs if v == w) for w, _ in pairs}
    tallest = {h: max(w for w, v in pairs if v == h) for _, h in pairs}
    kept = set(widest.items()) | {(w, h) for h, w in tallest.items()}
    ratio = np.log(width / height)
    return min(sorted(kept), key=lambda pair: abs(np.log(pair[0] / pair[1]) - ratio))


@pytest.mark.parametrize(
    "size", [(512, 512), (640, 400), (400, 640), (1920, 1080), (3000, 500), (333, 1000), (7, 5)]
)
@pytest.mark.parametrize("side", [32, 64, 512, 768])
def test_buckets_are_those_of_the_slow_search(size, side):
    assert bucket(*size, side) == by_hand(*size, side)


def test_buckets_keep_the_number_of_pixels():
    for ratio in np.linspace(0.3, 3, 28):
        width, height = bucket(round(1000 * ratio), 1000, 512)
        assert width * height <= 512 * 512
        assert width % 64 == 0
        assert height % 64 == 0
