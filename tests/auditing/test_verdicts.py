"""What is said of pictures, against slow and obvious formulas."""

import itertools

import numpy as np
import pytest

from bench.auditing.verdicts import (
    Assigned,
    best_of_own,
    chance,
    ease,
    excess,
    hits,
    hits_among,
    permutation_p,
    rank_correlation,
    share_of,
    upper_limit,
    verdicts,
)
from bench.statistics.intervals import clopper_pearson

THRESHOLD = 0.7


def drawn(seed, images=12, pictures=5, held=3):
    random = np.random.default_rng(seed)
    return random.uniform(0, 1, (images, pictures)), random.uniform(0, 1, (images, held))


@pytest.mark.parametrize("seed", range(5))
def test_an_image_is_a_copy_only_where_it_is_nearer_than_to_any_other_picture(seed):
    near, others = drawn(seed)
    found = hits(near, THRESHOLD, others)
    for image, picture in itertools.product(*map(range, near.shape)):
        expected = near[image, picture] >= THRESHOLD and all(
            near[image, picture] > other for other in others[image]
        )
        assert found[image, picture] == expected
    assert np.array_equal(hits(near, THRESHOLD), near >= THRESHOLD)
    assert np.array_equal(hits(near, THRESHOLD, others[:, :0]), near >= THRESHOLD)


def test_every_verdict():
    yours = np.array([[True, True, False, False], [False, True, False, False]])
    base = np.array([[False, True, True, False]])
    attacked = np.array([[True, False, True, False]])
    assert verdicts(yours, base, attacked) == [
        "copied",
        "already in the base",
        "extractable",
        "not seen",
    ]
    assert verdicts(yours, None) == ["copied", "copied", "not seen", "not seen"]


def test_ease_counts_the_images_of_a_pictures_own_prompts():
    hit = np.zeros((8, 2), dtype=bool)
    hit[[0, 1, 5], 0] = True
    asked = Assigned(np.repeat([0, 1], 4), np.array([[True, False], [False, True]]))
    assert ease(hit, asked, 0) == (2, 4, clopper_pearson(2, 4))
    assert ease(hit, asked, 1) == (0, 4, clopper_pearson(0, 4))
    nobody = Assigned(np.repeat([0, 1], 4), np.zeros((2, 2), dtype=bool))
    assert ease(hit, nobody, 0) == (0, 0, None)


def test_the_limit_of_not_seen_is_the_rate_that_such_luck_would_have_once_in_forty():
    for images in (1, 8, 32):
        assert (1 - upper_limit(images)) ** images == pytest.approx(0.025)
    assert upper_limit(8) == pytest.approx(0.369, abs=1e-3)
    assert upper_limit(0) == 1.0


@pytest.mark.parametrize("seed", range(4))
def test_chance_is_the_mean_over_all_exchanges_of_captions(seed):
    random = np.random.default_rng(seed)
    pictures = 5
    groups = np.array([0, 0, 1, 2, 3])
    own = np.zeros((6, pictures), dtype=bool)
    own[np.arange(5), np.arange(5)] = True  # prompt 5 is nobody's caption
    prompt = np.repeat(np.arange(6), 3)
    hit = random.uniform(size=(18, pictures)) < 0.3
    found = chance(hit, Assigned(prompt, own), np.arange(6) < 5, groups)
    expected = 0.0
    for picture in range(pictures):
        others = [caption for caption in range(5) if groups[caption] != groups[picture]]
        reached = [
            any(hit[image, picture] for image in range(18) if prompt[image] == caption)
            for caption in others
        ]
        expected += np.mean(reached)
    assert found.count == pytest.approx(expected)
    assert found.total == pictures


def test_one_caption_for_all_pictures_leaves_nothing_to_exchange():
    hit = np.ones((4, 3), dtype=bool)
    asked = Assigned(np.zeros(4, dtype=int), np.ones((1, 3), dtype=bool))
    assert chance(hit, asked, np.array([True]), np.arange(3)) is None


@pytest.mark.parametrize("seed", range(4))
def test_held_out_pictures_meet_the_condition_that_training_pictures_meet(seed):
    near = np.random.default_rng(seed).uniform(0.4, 1, (10, 4))
    found = hits_among(near, THRESHOLD)
    for image, picture in itertools.product(*map(range, near.shape)):
        others = [near[image, other] for other in range(4) if other != picture]
        expected = near[image, picture] >= THRESHOLD and near[image, picture] > max(others)
        assert found[image, picture] == expected
    assert np.array_equal(hits_among(near[:, :1], THRESHOLD), near[:, :1] >= THRESHOLD)


def test_without_memory_trained_and_held_out_pictures_are_called_copied_alike():
    """Exchangeable pictures of a narrow theme: neither kind may stand out."""
    random = np.random.default_rng(3)
    trained, held = [], []
    for _ in range(200):
        theme = random.normal(0.55, 0.1, (8, 1))
        near = theme + random.normal(0, 0.08, (8, 60))
        trained.append(hits(near[:, :50], THRESHOLD, near[:, 50:]).any(0).mean())
        held.append(hits_among(near[:, 50:], THRESHOLD).any(0).mean())
    assert np.mean(trained) == pytest.approx(np.mean(held), abs=0.02)
    assert np.mean(trained) > 0.02


def test_pictures_that_share_a_caption_have_equal_parts_of_its_images():
    own = np.array([[True, True, False], [False, False, True], [False, False, False]])
    asked = Assigned(np.array([0] * 4 + [1] * 2 + [2] * 5), own)
    assert asked.parts.sum(0).tolist() == [2, 2, 2]
    assert asked.parts[:, 0].nonzero()[0].tolist() == [0, 1]
    assert asked.parts[:, 1].nonzero()[0].tolist() == [2, 3]


@pytest.mark.parametrize("shared", [False, True])
def test_the_p_value_is_even_where_nothing_was_learned(shared):
    """Both kinds have as many images, also where all training pictures share a caption."""
    values = []
    for seed in range(150):
        random = np.random.default_rng(seed)
        own = np.ones((1, 8), dtype=bool) if shared else np.eye(8, dtype=bool)
        asked = Assigned(np.repeat(np.arange(len(own)), 64 // len(own)), own)
        trained = best_of_own(random.uniform(size=(64, 8)), asked)
        other = Assigned(np.repeat(np.arange(6), 8), np.eye(6, dtype=bool))
        held = best_of_own(random.uniform(size=(48, 6)), other)
        values.append(permutation_p(trained, held, seed))
    assert np.mean(np.array(values) < 0.2) == pytest.approx(0.2, abs=0.1)


def test_best_of_own_and_its_absence():
    near = np.array([[0.1, 0.9], [0.6, 0.2], [0.3, 0.4]])
    asked = Assigned(np.array([0, 0, 1]), np.array([[True, False], [False, False]]))
    best = best_of_own(near, asked)
    assert best[0] == 0.6
    assert np.isnan(best[1])


def test_near_duplicates_count_as_one_for_the_interval():
    which = np.array([True] * 6 + [False] * 6)
    alone = share_of(which, np.arange(12))
    together = share_of(which, np.array([0] * 6 + list(range(1, 7))))
    assert alone.count == together.count == 6
    assert alone.interval == clopper_pearson(6, 12)
    assert together.interval[1] - together.interval[0] > alone.interval[1] - alone.interval[0]
    assert share_of(np.zeros(0, dtype=bool), np.zeros(0, dtype=int)).total == 0


def test_permutations_agree_with_all_splits():
    trained, held = np.array([0.9, 0.8, 0.7, 0.2]), np.array([0.3, 0.1, 0.25])
    pooled = np.concatenate([trained, held])
    observed = trained.mean() - held.mean()
    splits = [set(chosen) for chosen in itertools.combinations(range(7), 4)]
    as_large = np.mean(
        [
            pooled[list(chosen)].mean() - pooled[[n for n in range(7) if n not in chosen]].mean()
            >= observed - 1e-12
            for chosen in splits
        ]
    )
    assert permutation_p(trained, held) == pytest.approx(as_large, abs=0.01)
    assert permutation_p(trained[:1], held) is None


def test_excess_has_a_width_where_all_agree():
    alone = np.arange(10)
    value, low, high = excess(np.ones(10, dtype=bool), alone, np.zeros(8, dtype=bool))
    assert value == 1
    assert 0 < low < 1
    assert high == 1
    assert excess(np.ones(10, dtype=bool), alone, np.zeros(0, dtype=bool)) is None
    grouped = excess(np.ones(10, dtype=bool), alone // 5, np.zeros(8, dtype=bool))
    assert grouped[1] < low  # two groups of near-duplicates tell less than ten pictures


def test_rank_correlation_needs_different_repeats():
    assert rank_correlation([64, 16, 4, 1], np.array([0.9, 0.8, 0.5, 0.4])) == pytest.approx(1)
    assert rank_correlation([1, 1, 1], np.array([0.9, 0.8, 0.5])) is None
    assert rank_correlation([1, 2, 3], np.array([np.nan, 0.8, 0.5])) is None
