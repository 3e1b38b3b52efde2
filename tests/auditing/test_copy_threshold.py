"""From which similarity on an image counts as a copy, against slow and obvious rules."""

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bench.auditing.asked import Asked, Lora
from bench.auditing.audit import _settle_threshold
from bench.auditing.prompts import Asking
from bench.auditing.threshold import (
    HIGHEST,
    LOWEST,
    Threshold,
    calibrated,
    is_set,
    lowest_threshold,
    measured,
    nearest_unasked,
    stated,
    unasked,
)
from bench.base.errors import UserError
from bench.statistics.intervals import clopper_pearson

ASKED = Asked(Path("data"), Path("out"))
YOURS = replace(ASKED, model=Path("model"), base=Path("base"))


def drawn(count, low=0.5, high=0.8, seed=0):
    return np.random.default_rng(seed).uniform(low, high, count)


@pytest.mark.parametrize("count", [50, 999, 1000, 2500])
@pytest.mark.parametrize("seed", range(3))
def test_at_most_one_in_a_thousand_reaches_it_and_nothing_lower_would_do(count, seed):
    nearest = drawn(count, seed=seed)
    found = lowest_threshold(nearest)
    assert sum(value >= found for value in nearest) <= count // 1000
    assert sum(value >= found - 3e-4 for value in nearest) > count // 1000 or found == LOWEST


def test_numbers_of_single_precision_do_not_reach_what_lies_above_them():
    for value in np.linspace(0.5, 0.99, 997, dtype=np.float32):
        nearest = np.full(60, value, dtype=np.float32)
        assert not (nearest >= lowest_threshold(nearest)).any()


def test_it_is_never_below_a_half_nor_what_a_suite_cannot_state():
    assert lowest_threshold(drawn(100, 0, 0.3)) == LOWEST == 0.5
    assert lowest_threshold(np.ones(100)) == HIGHEST < 1


def test_what_a_prompt_asks_for_is_its_own_picture_its_caption_and_near_duplicates():
    askings = [
        Asking("caption", "a", 4, (0, 1)),
        Asking("shuffled", "c, b", 4, (2,)),
        Asking("novel", "d", 4),
        Asking("empty", "", 4),
    ]
    held_out = [Asking("caption", "a", 4, (3,)), Asking("caption", "x", 4, (0,))]
    captions = ["a", "a", "b, c", "d", "e"]
    groups = np.array([0, 1, 2, 3, 2])  # the last looks like the third
    expected = {
        0: {2, 3, 4},
        1: {0, 1, 3},
        2: {0, 1, 2, 4},
        3: {0, 1, 2, 3, 4},
        4: {2, 3, 4},  # a held-out picture's number is none of a training picture
        5: {0, 1, 2, 3, 4},
    }
    free = unasked(askings, held_out, captions, groups)
    assert {row: set(np.flatnonzero(free[row]).tolist()) for row in range(6)} == expected


@pytest.mark.parametrize("seed", range(3))
def test_each_image_has_the_nearest_picture_that_it_was_not_asked_for(seed):
    random = np.random.default_rng(seed)
    similarity = random.uniform(0, 1, (12, 5))
    prompt = random.integers(0, 4, 12)
    free = random.uniform(0, 1, (4, 5)) < 0.6
    free[2] = False
    nearest, prompts = nearest_unasked(similarity, prompt, free)
    expected = [
        (max(similarity[image, n] for n in range(5) if free[prompt[image], n]), prompt[image])
        for image in range(12)
        if any(free[prompt[image]])
    ]
    assert list(zip(nearest, prompts, strict=True)) == expected


def test_false_alarms_are_of_images_that_did_not_set_the_threshold():
    """Half of the prompts comes nearer than the other half: the other half's threshold lets it
    pass, though none of all images reaches the one that all set.
    """
    prompt = np.repeat(np.arange(20), 10)
    nearest = np.where(prompt % 2 == 0, 0.55, 0.75) + drawn(200, 0, 0.1)
    found = calibrated(stated(YOURS, 0.7, "nemo", "s"), "nemo", nearest, prompt)
    assert found.origin == "calibrated"
    assert found.value > nearest.max()
    assert (found.alarms.count, found.alarms.total, found.prompts) == (100, 200, 20)
    low, high = found.alarms.interval
    assert 0.2 < low < 0.5 < high < 0.8  # ten of twenty prompts, not a hundred of 200 images


def test_no_false_alarm_has_the_limit_of_its_prompts():
    prompt = np.repeat(np.arange(12), 8)
    found = measured(stated(ASKED, 0.9, "nemo", "s"), drawn(96), prompt)
    assert found.origin == "suite"
    assert found.alarms.count == 0
    assert found.alarms.interval == pytest.approx(clopper_pearson(0, 12))
    alone = measured(stated(ASKED, 0.9, "nemo", "s"), drawn(8), np.zeros(8, dtype=int))
    assert alone.alarms is None


def test_who_sets_the_threshold():
    """Whoever names a model borrows the suite's threshold, unless there are enough images."""
    assert not is_set(ASKED, 1000, 20)
    assert is_set(YOURS, 50, 2)
    assert not is_set(YOURS, 49, 20)
    assert not is_set(YOURS, 50, 1)
    assert not is_set(replace(YOURS, calibrate=False), 1000, 20)
    assert not is_set(replace(YOURS, threshold=0.6), 1000, 20)
    lora = replace(ASKED, loras=(Lora(Path("x")),))
    assert not is_set(lora, 1000, 20)
    assert is_set(replace(lora, calibrate=True), 1000, 20)
    assert is_set(replace(lora, sscd=Path("other")), 1000, 20)
    with pytest.raises(UserError, match="makes 49 with 20 prompts: raise --images"):
        is_set(replace(lora, calibrate=True), 49, 20)
    with pytest.raises(UserError, match="no base: give --lora FILE, --embedding FILE or --base"):
        is_set(replace(ASKED, calibrate=True), 0, 0)


def test_where_it_comes_from_is_said():
    origins = {"suite": ASKED, "borrowed": YOURS, "given": replace(YOURS, threshold=0.8)}
    for origin, asked in origins.items():
        assert stated(asked, 0.8, "nemo", "s").origin == origin
    assert stated(ASKED, 0.8, "nemo", "s", of_model=False).origin == "borrowed"
    borrowed = stated(YOURS, 0.7, "nemo", "sd14-mem500")
    assert "borrowed from suite sd14-mem500" in borrowed.words
    assert "no images of a base model" in borrowed.words
    prompt = np.repeat(np.arange(10), 10)
    found = calibrated(borrowed, "nemo", drawn(100, 0, 0.4), prompt)
    assert "This audit set the threshold on 100 images of the base, made with 10 prompts" in (
        found.words
    )
    assert "at most 1 in 1,000" in found.words
    assert "lets 0 of 100 images of the other half pass (0 %; 95 % over prompts: 0 % to 31 %)" in (
        found.words
    )
    assert found.facts == {
        "threshold": 0.5,
        "threshold_origin": "calibrated",
        "threshold_pairs": 100,
        "false_alarms": 0.0,
        "false_alarms_low": 0.0,
        "false_alarms_high": pytest.approx(clopper_pearson(0, 10)[1]),
    }


def test_pictures_between_a_half_and_the_threshold_are_similar():
    found = stated(YOURS, 0.7, "nemo", "s")
    for best, similar in ((0.49, False), (0.5, True), (0.69, True)):
        assert found.similar(best) is similar
    # where a half means nothing, and where nothing lies between
    assert not stated(YOURS, 0.9, "testbed", "s").similar(0.6)
    assert not stated(YOURS, 0.5, "nemo", "s").similar(0.6)


def test_every_origin_has_its_words():
    for origin, alarms in itertools.product(("given", "suite", "borrowed", "calibrated"), (None,)):
        assert Threshold(0.7, origin, "s", alarms=alarms).words.startswith(("The", "This"))


def settled(similarity, calibrate=None, groups=None):
    """What an audit takes for its threshold, .7 before, and what it notes."""
    images, pictures = similarity.shape
    taken, notes = [], []
    audit = SimpleNamespace(
        threshold=Threshold(0.7, "borrowed", "testbed"),
        unasked=np.ones((images, pictures), dtype=bool),
        sets_threshold=True,
        asked=SimpleNamespace(calibrate=calibrate),
        judges=SimpleNamespace(profile="sscd"),
        groups=np.arange(pictures) if groups is None else np.array(groups),
        training=SimpleNamespace(
            entries=[SimpleNamespace(name=f"{number}.png") for number in range(pictures)]
        ),
        take_threshold=taken.append,
        note=notes.append,
    )
    seen = SimpleNamespace(similarity=similarity)
    _settle_threshold(audit, seen, SimpleNamespace(prompt=np.arange(images)))
    return taken[0], notes


@pytest.mark.parametrize(
    ("calibrate", "origin", "value"), [(None, "borrowed", 0.7), (True, "calibrated", 0.5)]
)
def test_by_itself_an_audit_only_becomes_stricter(calibrate, origin, value):
    """Images of a base that is not narrowed to the theme would set too low a threshold."""
    found, notes = settled(np.full((60, 2), 0.3), calibrate)
    assert (found.origin, found.value, found.alarms.count, notes) == (origin, value, 0, [])


def test_a_picture_that_the_base_knows_does_not_hide_copies_of_the_others():
    similarity = np.full((60, 3), 0.3)
    similarity[::2, 1] = 0.95
    found, (note,) = settled(similarity)
    assert (found.origin, found.value, found.alarms.count) == ("borrowed", 0.7, 30)
    assert "1.png" in note
    assert "the base knows that picture" in note
    similarity[::2, 2] = 0.94  # its near-duplicate
    assert settled(similarity, groups=(0, 1, 1))[0].origin == "borrowed"
    found, (note,) = settled(similarity)
    assert found.origin == "calibrated"
    assert found.value > 0.95
    assert "lies above" in note


def test_a_threshold_above_all_images_is_none():
    similarity = np.full((60, 2), 0.3)
    similarity[:, 0] = 1.0
    with pytest.raises(
        UserError, match=r"finds no threshold: an image of the base is 1.00 similar"
    ):
        settled(similarity, calibrate=True)
    assert settled(similarity)[0].origin == "borrowed"
