"""What the base class of attacks on known pictures makes of what an attacker finds."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from held import alone

from bench.base.errors import Unmeasurable
from bench.contracts.held import Finding, Known
from bench.contracts.picture_attack import Judged, PictureAttack, _scores
from bench.statistics.units import Design
from bench.suite.prompts import Prompt

THRESHOLD, MARKS, IMAGES = 0.5, 3, 4


class Attack(PictureAttack):
    """Finds what it is given."""

    item = "some"


def judged_of(memorized, control, ceiling=None, plain=None, base=None, chosen=2):
    """Findings whose generations are copies of their own picture where a table says so.

    Tables are `[pictures, marks, images]` of 0 and 1. Every picture is a direction of its own, and
    what copies nothing points nowhere else.
    """
    pictures = len(memorized) + len(control)
    axes = np.eye(pictures + 1)

    def found(table, first):
        return tuple(
            Finding(
                Known(
                    Prompt(f"p{first + row}", "text", "", (str(first + row),)),
                    str(first + row),
                    first == 0,
                    (0,),
                    0,
                ),
                np.where(np.asarray(marks)[..., None] > 0, axes[first + row], axes[-1]),
                chosen,
            )
            for row, marks in enumerate(table)
        )

    settings = SimpleNamespace(
        metrics={"sscd": {"weights": "w", "threshold": THRESHOLD}},
        prompts={"control": SimpleNamespace(file="controls.csv")},
    )
    suite = SimpleNamespace(
        settings=settings, training_pictures=[str(row) for row in range(len(memorized))]
    )
    first = np.asarray(memorized)[:, :1]
    judged = Judged(
        SimpleNamespace(suite=suite, exhibits=[]),
        tuple(f"mark {mark}" for mark in range(MARKS)),
        found(memorized, 0),
        found(control, len(memorized)),
        found(memorized if ceiling is None else ceiling, 0),
        found(first if plain is None else plain, 0),
        found(first if base is None else base, 0),
        Attack(),
    )

    class Described:
        digest = "d"

        def __call__(self, pictures):
            return np.stack([axes[int(picture)] for picture in pictures])

    judged.__dict__["descriptor"] = Described()
    return judged


@pytest.fixture(autouse=True)
def _pictures_are_their_names(monkeypatch):
    monkeypatch.setattr("bench.contracts.picture_attack.read_picture", lambda path: path)
    monkeypatch.setattr("bench.contracts.picture_attack.design_of", lambda *_: Design())


def random_tables(seed=0, pictures=6):
    random = np.random.default_rng(seed)
    return [
        (random.random((pictures, MARKS, IMAGES)) < share).astype(int) for share in (0.7, 0.2, 0.9)
    ]


def test_every_score_is_what_a_slow_count_gives():
    memorized, control, ceiling = random_tables()
    random = np.random.default_rng(1)
    plain, base = ((random.random((6, 1, IMAGES)) < share).astype(int) for share in (0.1, 0.8))
    scores = alone(_scores("some", judged_of(memorized, control, ceiling, plain, base)))
    count = dict.fromkeys(("own", "others", "zero", "ceiling", "best", "plain"), 0)
    for row in range(6):
        count["own"] += sum(memorized[row][2])
        count["others"] += sum(control[row][2])
        count["zero"] += sum(memorized[row][0])
        count["ceiling"] += sum(ceiling[row][2])
        count["best"] += any(memorized[row][2])
        count["plain"] += any(plain[row][0])
    images = 6 * IMAGES
    assert scores["some_memorized"].table.mean() == pytest.approx(count["own"] / images)
    assert scores["some_control"].table.mean() == pytest.approx(count["others"] / images)
    assert scores["some_excess"].value == pytest.approx((count["own"] - count["others"]) / images)
    assert scores["some_zero"].table.mean() == pytest.approx(count["zero"] / images)
    assert scores["some_ceiling"].table.mean() == pytest.approx(count["ceiling"] / images)
    assert scores["some_best"].table.mean() == pytest.approx(count["best"] / 6)
    assert scores["some_plain"].table.mean() == pytest.approx(count["plain"] / 6)
    assert scores["some_recovered"].value == pytest.approx(
        (memorized[:, 2].mean() - plain.mean()) / (base.mean() - plain.mean())
    )
    curve = scores["some_excess"].details["curve"]
    for mark in range(MARKS):
        assert curve["memorized"][mark][0] == pytest.approx(memorized[:, mark].mean(), abs=1e-6)
        assert curve["control"][mark][0] == pytest.approx(control[:, mark].mean(), abs=1e-6)
    low, high = scores["some_excess"].interval
    assert low < scores["some_excess"].value < high


def test_a_picture_that_any_effort_brings_back_is_no_memory():
    """Copies of memorized pictures and of controls alike: the excess is nothing."""
    all_ = np.ones((5, MARKS, IMAGES), dtype=int)
    scores = alone(_scores("some", judged_of(all_, all_)))
    assert scores["some_memorized"].table.min() == 1
    assert scores["some_excess"].value == 0
    low, high = scores["some_excess"].interval
    assert low < 0 < high


def test_a_selector_of_known_pictures_has_the_whole_excess_and_an_interval():
    ones, zeros = np.ones((8, MARKS, 2), dtype=int), np.zeros((8, MARKS, 2), dtype=int)
    scores = alone(_scores("some", judged_of(ones, zeros)))
    assert scores["some_excess"].value == 1
    low, high = scores["some_excess"].interval
    assert 0 < low < 1 == high


def test_a_copy_of_another_training_picture_is_counted_too():
    judged = judged_of(np.zeros((3, MARKS, 2), dtype=int), np.zeros((3, MARKS, 2), dtype=int))
    other = np.eye(7)[1]
    judged.memorized[0].features[:] = other
    scores = alone(_scores("some", judged))
    assert scores["some_memorized"].table.sum() == 0
    assert scores["some_any"].table.tolist() == [[1, 1], [0, 0], [0, 0]]


def test_what_was_never_removed_cannot_be_recovered():
    all_ = np.ones((5, MARKS, IMAGES), dtype=int)
    scores = alone(_scores("some", judged_of(all_, all_)))
    assert isinstance(scores["some_recovered"], Unmeasurable)


def test_streams_follow_from_picture_and_purpose_alone():
    def drawn(*purpose, root=0, name="a"):
        known = Known(Prompt(name, "text", "", ()), "", True, (1,), root)
        return int(known.random(*purpose).initial_seed())

    assert drawn("noise", 0) == drawn("noise", 0)
    others = {drawn("noise", 1), drawn("time", 0), drawn("noise", 0, root=1)}
    others.add(drawn("noise", 0, name="b"))
    assert len(others) == 4 and drawn("noise", 0) not in others


def test_captions_of_one_picture_count_as_one(monkeypatch):
    """Eight captions in two clusters tell less than eight that have nothing in common."""
    memorized = np.array([[[1, 1]] * MARKS] * 4 + [[[0, 0]] * MARKS] * 4)
    control = np.zeros((8, MARKS, 2), dtype=int)
    apart = alone(_scores("some", judged_of(memorized, control)))["some_excess"].interval
    clusters = {f"p{row}": row // 4 for row in range(8)}
    monkeypatch.setattr("bench.contracts.picture_attack.design_of", lambda *_: Design(clusters))
    together = alone(_scores("some", judged_of(memorized, control)))["some_excess"].interval
    assert together[1] - together[0] > apart[1] - apart[0]


def test_what_made_the_findings_is_told_once():
    judged = judged_of(np.ones((3, MARKS, 2), dtype=int), np.zeros((3, MARKS, 2), dtype=int))
    for number, finding in enumerate((*judged.memorized, *judged.control)):
        finding.made_by.update(device="cpu" if number else "cuda")
    made = alone(_scores("some", judged))["some_excess"].details["made_by"]
    assert made == [{"device": "cuda"}, {"device": "cpu"}]
