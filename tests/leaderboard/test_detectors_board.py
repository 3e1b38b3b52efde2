"""The board of detectors, of files made by hand."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from bench.base.errors import UserError
from bench.leaderboard.detectors import DetectorRow, in_words, make_detector_boards
from bench.leaderboard.detectors_page import as_csv, html, markdown
from bench.records.detection import Detection, OverSteps, load_detection
from bench.statistics.detection import area_interval, newcombe
from bench.statistics.units import Design


def detection(name: str = "mine", needs: str = "trajectory", shift: float = 1.0, **changes):
    """Ten memorized prompts, of which the first six are copied; 200 clean, 20 hard, 100 for the
    threshold.
    """
    rng = np.random.default_rng(0)
    counts = {"memorized": 10, "clean": 200, "hard": 20, "calibration": 100}
    scores, one, first = {}, {}, {}
    for kind, count in counts.items():
        table = rng.normal(shift * 6 if kind == "memorized" else 0.0, 1.0, (count, 2))
        ids = [f"{kind}-{number:03d}" for number in range(count)]
        scores[kind] = dict(zip(ids, table.tolist(), strict=True))
        one[kind] = dict(zip(ids, table.mean(1).tolist(), strict=True))
        first[kind] = dict(zip(ids, table[:, 0].tolist(), strict=True))
    memorized = list(scores["memorized"])
    given = {
        "suite": "tiny",
        "suite_version": 1,
        "protocol": "0" * 16,
        "detector": name,
        "detector_version": 1,
        "source": None,
        "needs": needs,
        "parameters": {},
        "changed": {},
        "images": 2,
        "copied": {prompt: 1.0 if place < 6 else 0.0 for place, prompt in enumerate(memorized)},
        "copies": {prompt: [1, 0] for prompt in memorized[:6]},
        "scores": scores,
        "of_prompt": one,
        "of_first": first,
        "rows_alone": 2.0,
        "rows_on_top": 0.0,
        "seconds": 0.001,
        "kept_bytes": 100,
        "environment": {},
    }
    return Detection.model_validate(given | changes)


def board(*records, damaged=()):
    (found,) = make_detector_boards(records, damaged)
    return found


def test_positives_are_copied_prompts_and_all_listed_ones_stand_apart():
    row = DetectorRow(detection())
    assert (len(row.positives()), len(row.positives(listed=True))) == (6, 10)
    unlabelled = DetectorRow(detection(copied=None))
    assert len(unlabelled.positives()) == 10
    area = row.area("hard")
    assert area is not None and (area.positives, area.negatives) == (6, 20)
    assert area.value == 1.0 and 0 < area.low < area.high == 1.0


def test_the_threshold_comes_from_prompts_that_nobody_judges():
    row = DetectorRow(detection())
    calibration = np.sort(list(row.record.of_prompt["calibration"].values()))
    assert row.calibrated.threshold == calibration[-2]
    clean = np.array(list(row.record.of_prompt["clean"].values()))
    assert row.alarms("clean") == (clean > calibration[-2]).mean() == row.calibrated.alarms


def test_no_sign_is_turned_round():
    row = DetectorRow(detection(shift=-1.0))
    assert row.area("clean").value == 0.0 and row.calibrated.found == 0.0


def test_images_are_compared_one_by_one():
    row = DetectorRow(detection())
    area = row.area_of_images("clean")
    assert area is not None and (area.positives, area.negatives) == (6, 400)
    by_prompt = detection()
    single = {kind: {p: [v[0]] for p, v in of.items()} for kind, of in by_prompt.scores.items()}
    assert DetectorRow(detection(scores=single)).area_of_images("clean") is None


def test_prompts_that_hang_together_are_counted_once():
    """The six copied prompts are two clusters of three."""
    memorized = [f"memorized-{number:03d}" for number in range(10)]
    clusters = {prompt: place // 3 for place, prompt in enumerate(memorized[:6])}
    hanging = detection(shift=0.2, design={"memorized": {"clusters": clusters}})
    row, alone = DetectorRow(hanging), DetectorRow(detection(shift=0.2))
    units = Design(clusters, {}).units(memorized[:6])
    for kind in ("clean", "hard"):
        area, plain = row.area(kind), alone.area(kind)
        bounds = area_interval(row.positives(), row.others(kind), (units, None))
        assert (area.low, area.high) == bounds and area.high - area.low > plain.high - plain.low
        assert (area.value, area.positives) == (plain.value, 6)
        images = row.area_of_images(kind)
        assert (images.low, images.high) == newcombe(images.value, 2, len(row.others(kind)))


def test_floors_stand_last_and_other_protocols_apart():
    best, worse = detection("best"), detection("worse", shift=0.2)
    floor = detection("floor", needs="text")
    other = detection("other", protocol="f" * 16)
    found = board(worse, floor, other, best, damaged=[("tiny", "a file is damaged")])
    assert [row.label for row in found.rows] == ["best", "worse", "floor"]
    assert [record.detector for record, _ in found.apart] == ["other"]
    text = markdown(found)
    assert "floor (floor)" in text and "other: scored under another protocol" in text
    assert "a file is damaged" in text and "nan" not in text.lower()


def test_numbers_of_the_table_are_those_of_the_csv():
    found = board(detection("one"), detection("two", shift=0.3))
    lines = list(csv.DictReader(io.StringIO(as_csv(found))))
    for row, line in zip(found.rows, lines, strict=True):
        area = row.area("hard")
        assert float(line["auc_hard"]) == pytest.approx(area.value, abs=1e-6)
        assert float(line["found_as_set_up"]) == pytest.approx(row.calibrated.found, abs=1e-6)


def test_no_text_of_a_record_is_a_formula_in_the_csv():
    record = detection(parameters={"=1+1": 2})
    (line,) = csv.DictReader(io.StringIO(as_csv(board(record))))
    assert line["parameters"] == "'=1+1=2"


def test_few_clean_prompts_give_a_dash_and_no_rate():
    record = detection()
    few = {kind: dict(list(of.items())[:50]) for kind, of in record.of_prompt.items()}
    row = DetectorRow(detection(of_prompt=few))
    assert row.at_rate is None and row.calibrated is None and row.alarms("clean") is None
    assert "| – | – |" in markdown(board(row.record)) and "AUC" in in_words(row.record)


def test_the_page_draws_every_detector_and_escapes_what_records_say():
    steps = OverSteps(low=[0.0, 1.0], middle=[1.0, 2.0], high=[2.0, 3.0])
    hostile = detection(
        "mine",
        over_steps={"memorized": steps, "clean": steps},
        paper="<script>alert(1)</script>",
        changed={"x": "</td><img src=x>"},
    )
    page = html(board(hostile, detection("constant", shift=0.0)))
    assert "<script>" not in page and "<img" not in page and "&lt;script&gt;" in page
    assert page.count('<section class="card"') == 2 and page.count("Reading of") == 1
    assert page == html(board(detection("constant", shift=0.0), hostile))


def test_a_damaged_file_is_one_line(tmp_path):
    path = detection().save(tmp_path)
    assert load_detection(path) == detection() and path.name.startswith("mine-")
    for content in (b"{", b"[]", b'{"suite": "x"}', b"\xff\xfe", b'{"schema_version": 2}'):
        path.write_bytes(content)
        with pytest.raises(UserError, match="detection") as error:
            load_detection(path)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot be read"):
        load_detection(tmp_path)
