"""The middle of a picture: what is known, what is judged, and who fills it in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic import gaussian, point
from held import a_model, holding, known_pictures, made, one_by_one, untouched

from attacks.inpainting import Inpainting, holed, pasted
from bench.base.pictures import encode_png
from bench.features.networks import CopyDescriptor
from bench.running.judging import target_of
from bench.running.prepare import prepare


def test_the_known_part_is_the_pictures_own_and_the_hole_is_not(tiny_suite, tmp_path):
    targets = known_pictures(tmp_path)
    attack = Inpainting(images=2)
    held = holding(a_model(gaussian(0.3)))
    for known, arrays in zip(
        targets, made(attack.stages(tiny_suite, targets), [held], targets), strict=True
    ):
        whole, (_, filled) = known.pixels(4), arrays["pictures"]
        hole = np.zeros((4, 4), bool)
        hole[1:3, 1:3] = True
        assert (filled[:, ~hole] == whole[~hole]).all()
        assert (filled[:, hole] != whole[hole]).any()


def test_a_model_that_knows_the_picture_fills_it_in_and_another_does_not(tiny_suite, tmp_path):
    (known, _) = targets = known_pictures(tmp_path)
    blank = known.pixels(4).copy()
    blank[..., 2] = 128  # the autoencoder's blue
    known.picture.write_bytes(encode_png(blank))
    place = a_model(gaussian()).encoded(blank[None])[0]
    errors = []
    for field in (point(place), gaussian(0.3)):
        held = holding(a_model(field, 30, 1.0))
        found = made(Inpainting(images=2).stages(tiny_suite, targets), [held], targets)
        errors.append(found[0]["rmse"][1])
    assert errors[0].max() < 0.01 < 0.1 < errors[1].min()


def test_where_next_to_nothing_is_known_it_is_ddim(tiny_suite, tmp_path):
    targets = known_pictures(tmp_path)
    held = holding(a_model(gaussian(0.3), steps=6))
    whole = np.repeat([known.pixels(4) for known in targets], 2, 0)
    request = held.request(targets, 2)
    filled = Inpainting(images=2, hole=0.99).sampled(held, request, whole)
    # but for the bytes of the autoencoder
    torch.testing.assert_close(filled, held.sample(request), atol=0.05, rtol=0)


def test_null_prompt_rows_and_weights(tiny_suite, tmp_path):
    denoiser = a_model(point(torch.zeros(2, 4, 4)))
    same, held, targets = untouched(denoiser), holding(denoiser), known_pictures(tmp_path)
    own, null = (
        made(Inpainting(images=2, prompt=prompt).stages(tiny_suite, targets), [held], targets)
        for prompt in ("own", "null")
    )
    assert denoiser.rows == 2 * (2 * 2 * 10 * 2 * 2) and same()
    for one, other in zip(own, null, strict=True):
        np.testing.assert_array_equal(one["pictures"][0], other["pictures"][0])
        assert not np.array_equal(one["pictures"][1], other["pictures"][1])


def test_pictures_do_not_depend_on_their_batch(tiny_suite, tmp_path):
    targets, helds = known_pictures(tmp_path, 3), [holding(a_model(gaussian(0.3)))]
    stages = Inpainting(images=2).stages(tiny_suite, targets)
    for batched, alone in zip(
        made(stages, helds, targets), one_by_one(stages, helds, targets), strict=True
    ):
        np.testing.assert_array_equal(batched["pictures"], alone["pictures"])
        np.testing.assert_array_equal(batched["rmse"], alone["rmse"])


def test_holes_of_pictures_of_any_size():
    random = np.random.default_rng(0)
    wide = random.integers(0, 256, (20, 31, 3), dtype=np.uint8)
    np.testing.assert_array_equal(holed(wide, 0.5), wide[5:15, 10:20])
    other = random.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    whole = random.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    both = pasted(other, whole, 0.5)
    np.testing.assert_array_equal(both[:, 2:6, 2:6], other[:, 2:6, 2:6])
    both[:, 2:6, 2:6] = whole[:, 2:6, 2:6]
    np.testing.assert_array_equal(both, whole)


@pytest.fixture
def a_run(tiny_suite, tmp_path):
    settings = tiny_suite.settings.model_copy(update={"attacks": {}})
    return prepare(
        replace(tiny_suite, settings=settings), "none", {}, tmp_path, torch.device("cpu")
    )


def test_only_the_hole_is_judged(a_run, monkeypatch):
    """Of generations with and without effort, of the known picture and of all training pictures."""
    sizes = []
    described = CopyDescriptor.__call__

    def watched(self, pictures):
        sizes.extend(picture.shape[:2] for picture in pictures)
        return described(self, pictures)

    monkeypatch.setattr(CopyDescriptor, "__call__", watched)
    attack = Inpainting(targets=2, images=1, hole=0.25)
    scores = attack.run(target_of(*a_run, attack, {}))
    assert set(sizes) == {(8, 8)}
    assert set(scores) == set(Inpainting.names)
    again = sizes.copy()
    sizes.clear()
    whole = Inpainting(targets=2, images=1, hole=0.5)
    whole.run(target_of(*a_run, whole, {}))
    assert set(sizes) == {(16, 16)} and len(sizes) == len(again)  # nothing of the other hole
