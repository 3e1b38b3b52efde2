"""The views of a picture that a training makes."""

import itertools

import numpy as np
import pytest
from PIL import Image

from bench.captioned.buckets import believable, buckets_of, nearest_bucket
from bench.captioned.views import Training, views


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


def by_hand(width, height, side, most=1024):
    """All pairs of allowed sides, tried one by one; in miniature below 256 pixels."""
    step, least, most = (64, 256, most) if side >= 256 else (side // 8, side // 2, 2 * side)
    allowed = range(least, most + 1, step)
    pairs = [(w, h) for w, h in itertools.product(allowed, allowed) if w * h <= side * side]
    # of each width kohya keeps the tallest
    widest = {w: max(h for v, h in pairs if v == w) for w, _ in pairs}
    tallest = {h: max(w for w, v in pairs if v == h) for _, h in pairs}
    kept = set(widest.items()) | {(w, h) for h, w in tallest.items()}
    kept.add((side // step * step, side // step * step))
    if (width, height) in kept:
        return (width, height)
    return min(sorted(kept), key=lambda pair: abs(pair[0] / pair[1] - width / height))


@pytest.mark.parametrize(
    "size",
    [
        (512, 512),
        (640, 400),
        (400, 640),
        (1920, 1080),
        (3000, 500),
        (333, 1000),
        (7, 5),
        (768, 512),
    ],
)
@pytest.mark.parametrize("side", [32, 64, 512, 768, 1024])
@pytest.mark.parametrize("most", [1024, 2048])
def test_buckets_are_those_of_the_slow_search(size, side, most):
    assert nearest_bucket(*size, buckets_of(side, most=most)) == by_hand(*size, side, most)


def test_buckets_of_a_photograph_at_three_resolutions():
    """As kohya's scripts give them, which take no share of the resolution."""
    for side, most, expected in (
        (512, 1024, (640, 384)),
        (768, 1024, (896, 640)),
        (1024, 1024, (1024, 704)),
        (1024, 2048, (1216, 832)),
    ):
        assert nearest_bucket(1500, 1000, buckets_of(side, most=most)) == expected


def test_buckets_keep_the_number_of_pixels():
    for ratio in np.linspace(0.3, 3, 28):
        width, height = nearest_bucket(round(1000 * ratio), 1000, buckets_of(512))
        assert width * height <= 512 * 512
        assert width % 64 == 0
        assert height % 64 == 0


def test_sizes_that_a_file_states_are_taken_within_reason():
    stated = [(640, 384), (384, 640), (8192, 8), (100000, 100000), (513, 512), (1024, 1024)]
    assert believable(stated, 512) == ((384, 640), (640, 384), (1024, 1024))
    found = Training(512, known_buckets=((448, 576),)).bucket(image(10, 20))
    assert found == (448, 576)
