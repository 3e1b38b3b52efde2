"""`RunRecord.to_frame`: a record as tidy tables, compared with the JSON that it was read from."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

import bench
from bench.base.errors import UserError

RECORDS = Path(__file__).resolve().parents[2] / "leaderboards/records"
FILES = sorted(RECORDS.glob("*/*/*.json"))
PARTS = ("scores", "attacks", "cost")


def plain(value):
    return None if pd.isna(value) else value


@pytest.fixture(params=FILES, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def both(request):
    """A committed record, read and as plain JSON."""
    content = json.loads(request.param.read_text(encoding="utf-8"))
    return bench.load_record(request.param), content


def test_a_row_a_score_holds_what_the_record_says(both):
    record, content = both
    frame = record.to_frame()
    assert len(frame) == sum(len(content[part]) for part in PARTS)
    for row in frame.to_dict("records"):
        score = content[row["part"]][row["score"]]
        for name in ("value", "low", "high", "n", "prompts", "unit", "metric", "metric_version"):
            assert plain(row[name]) == score[name], name
        for name in ("higher_is_better", "threat"):
            assert plain(row[name]) == score.get(name), name
        assert (row["suite"], row["method"]) == (content["suite"], content["method"])


def test_a_row_a_group_a_generation_and_a_prompt_hold_what_the_record_says(both):
    record, content = both
    scores = {(part, name): score for part in PARTS for name, score in content[part].items()}
    keys = ["part", "score"]
    groups = record.to_frame(by="group")
    assert {
        (*key, group): value for *key, group, value in groups[[*keys, "group", "value"]].values
    } == {
        (*key, group): value
        for key, score in scores.items()
        for group, value in score["groups"].items()
    }
    intervals = groups.dropna(subset="low")[[*keys, "group", "low", "high"]].values
    assert {(*key, group): [low, high] for *key, group, low, high in intervals} == {
        (*key, group): pair
        for key, score in scores.items()
        for group, pair in score.get("group_intervals", {}).items()
    }
    seeds = record.to_frame(by="seed")
    assert {
        key: [
            None if pd.isna(value) else value for value in rows.sort_values("generation")["value"]
        ]
        for key, rows in seeds.groupby(keys, observed=True)
    } == {key: score["by_seed"] for key, score in scores.items() if score.get("by_seed")}
    prompts = record.to_frame(by="prompt")
    assert {
        name: dict(zip(rows["prompt_id"], rows["value"], strict=True))
        for name, rows in prompts.groupby("score", observed=True)
    } == content["per_prompt"]


def test_a_number_that_was_not_measured_is_nan_with_its_reason():
    record = bench.load_record(FILES[0])
    record.scores["sscd"] = record.scores["sscd"].model_copy(
        update={"value": None, "low": None, "high": None, "reason": "no training pictures"}
    )
    row = record.to_frame().set_index("score").loc["sscd"]
    assert pd.isna(row["value"]) and row["reason"] == "no training pictures"


def test_a_record_without_scores_gives_empty_tables_of_the_same_columns():
    record = bench.load_record(FILES[0])
    empty = record.model_copy(update={"scores": {}, "cost": {}, "attacks": {}, "per_prompt": {}})
    for by in ("score", "group", "seed", "prompt"):
        whole, frame = record.to_frame(by), empty.to_frame(by)
        assert list(frame.columns) == list(whole.columns) and frame.empty
        assert frame["value"].dtype == "float64"


def test_frames_of_several_records_can_be_concatenated():
    records = [bench.load_record(str(path)) for path in FILES]
    frame = pd.concat([record.to_frame() for record in records], ignore_index=True)
    assert len(frame) == sum(len(record.to_frame()) for record in records)
    assert set(frame["run"]) == {record.run for record in records}


def test_another_kind_of_row_is_refused():
    with pytest.raises(UserError, match="unknown kind of row 'prompts': did you mean 'prompt'"):
        bench.load_record(FILES[0]).to_frame(by="prompts")
