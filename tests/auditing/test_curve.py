"""Remedies against the weights of the file."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from bench.auditing.curve import Against, Point, against_curve, separates, use
from bench.auditing.page import _curve
from bench.auditing.result import Row


def point(name, copies, likeness, weight=None, pictures=20, spread=0.0):
    """Of so many pictures the first share is copied in all of four images; likeness of 8 scenes."""
    table = np.zeros((pictures, 4))
    table[: round(copies * pictures)] = 1
    random = np.random.default_rng(0)
    like = likeness + spread * random.standard_normal((8, 4))
    return Point(name, table, like, like, weight)


def curve(spread=0.0):
    return [
        point("0", 0.0, 0.2, 0.0, spread=spread),
        point("0.5", 0.4, 0.5, 0.5, spread=spread),
        point("1", 0.8, 0.8, 1.0, spread=spread),
    ]


def test_use_is_nothing_at_the_base_and_all_at_the_model():
    base, half, whole = curve()
    assert use(base, base, whole)[0] == pytest.approx(0)
    assert use(whole, base, whole)[0] == pytest.approx(1)
    assert use(half, base, whole)[0] == pytest.approx(0.5)


def test_use_is_not_stated_where_base_and_model_are_alike():
    base, _, whole = curve()
    same = Point("1", whole.copies, base.likeness, base.alignment, 1.0)
    assert not separates(base, same)
    assert use(base, base, same) is None
    assert against_curve(point("r", 0.1, 0.2), [base, same]) is None


def test_a_remedy_that_only_damages_is_no_better_than_a_smaller_weight():
    found = against_curve(point("damage", 0.4, 0.5), curve())
    assert found.weight == pytest.approx(0.5)
    assert found.gain[0] == pytest.approx(0)
    assert found.words == "not told apart from weight 0.5"


def test_a_remedy_between_two_weights_is_held_against_what_lies_between():
    found = against_curve(point("r", 0.2, 0.65), curve())
    assert found.weight == pytest.approx(0.75)
    # 0.6 of the pictures are copied there: half way from 0.4 to 0.8
    assert found.gain[0] == pytest.approx(0.6 - 0.2)
    assert found.words == "better than weight 0.75"


def test_what_keeps_more_use_than_any_weight_is_not_held_against_one():
    assert against_curve(point("r", 0.9, 0.95), curve()) is None


def test_without_a_base_there_is_no_yardstick():
    assert against_curve(point("r", 0.2, 0.5), curve()[1:]) is None
    bare = Point("r", np.zeros((3, 4)))
    assert against_curve(bare, curve()) is None


def test_without_a_weight_between_there_is_no_yardstick():
    base, _, whole = curve()
    assert against_curve(point("r", 0.2, 0.5), [base, whole]) is None
    larger = point("1.2", 0.9, 0.9, 1.2)
    assert against_curve(point("r", 0.2, 0.5), [base, whole, larger]) is None


def test_a_remedy_is_not_called_better_where_its_use_is_uncertain():
    """The same means as of a remedy that is better, with novel prompts that disagree."""
    sure = point("r", 0.2, 0.65)
    assert against_curve(sure, curve()).gain[1] > 0
    swing = np.linspace(-1.5, 1.5, 8)[:, None].repeat(4, 1)
    unsure = Point("r", sure.copies, sure.likeness + swing, sure.alignment)
    found = against_curve(unsure, curve())
    assert found.gain[0] == pytest.approx(against_curve(sure, curve()).gain[0])
    assert found.gain[1] < 0
    assert found.words.startswith("not told apart")


def test_the_verdict_goes_by_the_interval_and_not_by_the_number():
    words = [Against(0.5, gain).words for gain in ((0.1, 0.02, 0.2), (-0.1, -0.2, -0.02))]
    assert words == ["better than weight 0.5", "worse than weight 0.5"]
    for value in (-0.1, 0.0, 0.1):
        assert Against(0.5, (value, -0.2, 0.2)).words == "not told apart from weight 0.5"


def row(weight, copies, use):
    return Row(
        name=f"weight {weight:g}",
        kind="weight",
        weight=weight,
        copies=copies,
        interval=(copies, copies),
        use=None if use is None else (use, use, use),
        alignment=None,
        seconds=None,
        travels="",
    )


@pytest.mark.parametrize("uses", [(0, 0.4, 1), (0, -0.3, 1.42), (None, None, None), (0, 3, 1)])
def test_the_chart_has_room_for_every_use(uses):
    """Nothing is cut at 0 or 1: heights are in the order of the uses, inside of the axis."""
    rows = [row(weight, 0.1, use) for weight, use in zip((0, 0.5, 1), uses, strict=True)]
    drawn = _curve(SimpleNamespace(rows=rows))
    known = [use for use in uses if use is not None]
    heights = [y for _, y in drawn["used"]]
    marks = [y for y, _ in drawn["y_ticks"]]
    assert sorted(known) == [use for _, use in sorted(zip(heights, known, strict=True))[::-1]]
    assert len(set(heights)) == len(known)
    assert all(min(marks) <= y <= max(marks) for y in heights)
    labels = {label.replace("\xa0", " "): y for y, label in drawn["y_ticks"]}
    assert {"0 %", "100 %"} <= labels.keys()
    assert drawn["dots"][0].y == pytest.approx(
        labels["0 %"] + (labels["100 %"] - labels["0 %"]) / 10, abs=0.1
    )


def test_near_duplicates_count_as_one_picture():
    """Twenty pictures in five groups tell less than twenty that have nothing in common."""
    groups = np.repeat(np.arange(5), 4)
    copies = np.repeat(np.arange(20)[:, None] < 8, 4, axis=1)
    alone, grouped = Point("1", copies, weight=1.0), Point("1", copies, weight=1.0, groups=groups)
    assert np.ptp(grouped.interval) > 1.4 * np.ptp(alone.interval)
    remedy = point("r", 0.2, 0.5)
    (_, low, high), (value, lower, higher) = (
        against_curve(replace(remedy, groups=given), curve()).gain for given in (None, groups)
    )
    assert lower <= low <= value <= high <= higher and higher - lower > 1.4 * (high - low)
    assert against_curve(replace(remedy, groups=np.zeros(20)), curve()) is None
