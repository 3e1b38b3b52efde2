"""Groups of prompts apart: numbers, intervals and counts in records, and their tables on every
page; training pictures that were lost, through a whole run.
"""

import csv
import io
import json
import re

import numpy as np
import pytest
import torch

from bench.contracts.metric import PerImage
from bench.leaderboard.board import columns_of, make_boards
from bench.leaderboard.columns import BY_NAME
from bench.leaderboard.grouped import FEW, grouped
from bench.leaderboard.markdown import markdown
from bench.leaderboard.page import html
from bench.leaderboard.tables import as_csv, as_json
from bench.records.record import RunRecord, Score, content_digest, load_record
from bench.running.scoring import FEW_GROUPS, as_score
from bench.statistics import intervals as stats
from bench.submission import submit as submitting
from bench.submission.submit import submit
from bench.submission.verify import verify
from bench.suite.load import load_suite
from bench.suite.prompts import Prompt
from conftest import CAPTIONS, SUITE, write_csv
from one_run import Run

CPU = torch.device("cpu")
TWO = [("VM", 6), ("TM", 10)]


def prompts_of(groups=TWO):
    return [
        Prompt(f"{group}{i}", "words", group, ()) for group, count in groups for i in range(count)
    ]


def score_of(level=0.8, groups=TWO, **more):
    """Similarities of two images a prompt: high in the first group, low in the others."""
    prompts = prompts_of(groups)
    random = np.random.default_rng(1)
    table = np.array(
        [
            random.normal(level if prompt.group == groups[0][0] else 0.1, 0.05, 2)
            for prompt in prompts
        ]
    )
    return table, as_score("sscd", 1, PerImage(table, prompts, "cosine", False, **more))


def record_of(method, level=0.8, **scores):
    return RunRecord(
        run={"none": "a", "wanda": "b"}.get(method, "c"),
        status="complete",
        suite="demo",
        suite_version=1,
        suite_fingerprint="f",
        group_name="type",
        method=method,
        method_version=1,
        where="nothing",
        needs=[],
        paper="",
        parameters={},
        scores={"sscd": score_of(level)[1]} | scores,
    )


def board_of(*records):
    (board,) = make_boards(list(records))
    return board


def test_each_group_has_its_number_its_interval_and_its_count():
    table, score = score_of()
    assert (
        score.group_prompts == {"VM": 6, "TM": 10}
        and sum(score.group_prompts.values()) == score.prompts
    )
    for group, rows in (("VM", table[:6]), ("TM", table[6:])):
        assert score.groups[group] == pytest.approx(rows.mean(), abs=1e-6)
        assert score.group_intervals[group] == pytest.approx(
            stats.cluster_bootstrap(rows), abs=1e-6
        )
    share = as_score(
        "m",
        1,
        PerImage(
            np.array([[1.0]] * 6 + [[0.0]] * 10), prompts_of(), "share", False, proportion=True
        ),
    )
    assert share.group_intervals["VM"] == pytest.approx(stats.clopper_pearson(6, 6), abs=1e-6)


def test_a_group_of_one_prompt_and_one_of_many_groups_have_no_interval():
    _, one = score_of(groups=[("VM", 6), ("TM", 1)])
    assert one.group_intervals.keys() == {"VM"} and one.group_prompts == {"VM": 6, "TM": 1}
    _, many = score_of(groups=[(f"g{i}", 2) for i in range(FEW_GROUPS + 1)])
    assert many.group_intervals == {} and len(many.groups) == FEW_GROUPS + 1
    assert score_of(percentile=95)[1].group_intervals == {}  # too few prompts for that percentile


def test_groups_stand_apart_on_both_pages_with_none_first():
    board = board_of(record_of("wanda", 0.4), record_of("none"))
    (table,) = grouped(board)
    assert table.groups == ("TM", "VM") and table.prompts == (10, 6)
    assert [row.record.method for row, _ in table.rows] == ["none", "wanda"]
    page, text = html(board), markdown(board)
    assert "## By type" in text and "| method | TM (10 prompts) | VM (6 prompts) |" in text
    line = next(
        line for line in text.partition("## By type")[2].splitlines() if line.startswith("| wanda")
    )
    assert re.fullmatch(
        r"\| wanda \| 0\.\d{3} \[0\.\d+, 0\.\d+\] \| 0\.4\d\d \[0\.\d+, 0\.\d+\] \|", line
    ), line
    section = page.partition('<section id="by-group"')[2].partition("</section>")[0]
    assert (
        "10 prompts" in section
        and section.count("<tr data-row") == 2
        and 'href="#by-group"' in page
    )
    for cell in line.split("|")[2:4]:
        assert cell.split()[0] in section and " ".join(cell.split()[1:]) in section


def test_a_record_without_intervals_by_group_shows_plain_values():
    old = json.loads(record_of("none").model_dump_json())
    for score in old["scores"].values():
        for key in ("group_intervals", "group_prompts", "statistic"):
            del score[key]
    (table,) = grouped(board_of(RunRecord.model_validate(old)))
    assert table.prompts == (None, None) and all(
        re.fullmatch(r"0\.\d{3}", cell) for _, cells in table.rows for cell in cells
    )
    assert "| method | TM | VM |" in markdown(board_of(RunRecord.model_validate(old)))


def test_a_record_from_before_keeps_its_digest(tmp_path):
    old = json.loads(record_of("none").model_dump_json())
    for score in old["scores"].values():
        for key in ("group_intervals", "group_prompts", "statistic"):
            del score[key]
    old["content_sha256"] = content_digest(old)
    path = tmp_path / "old.json"
    path.write_text(json.dumps(old))
    assert load_record(path).scores["sscd"].group_intervals == {}


@pytest.mark.parametrize("groups", [[("VM", 6)], [(f"g{i}", 2) for i in range(FEW + 1)]])
def test_one_group_or_many_have_no_table(groups):
    board = board_of(record_of("none", sscd=score_of(groups=groups)[1]))
    assert (
        grouped(board) == []
        and "## By" not in markdown(board)
        and "of each method by" not in html(board)
    )


def test_programs_read_groups_with_interval_and_count():
    board = board_of(record_of("none"))
    (row,) = json.loads(as_json(board))
    score = board.rows[0].record.scores["sscd"]
    low, high = score.group_intervals["VM"]
    assert row["sscd_by_group"]["VM"] == {
        "value": score.groups["VM"],
        "low": low,
        "high": high,
        "prompts": 6,
    }
    (line,) = csv.DictReader(io.StringIO(as_csv(board)))
    assert json.loads(line["sscd_by_group"]) == row["sscd_by_group"]
    plain = Score(value=1.0, unit="s", higher_is_better=False, metric="m", metric_version=1)
    assert "sscd_by_group" not in json.loads(as_json(board_of(record_of("none", sscd=plain))))[0]


def test_a_difference_of_medians_is_plain_and_not_the_mean_of_differences():
    both = []
    for method, level in (("none", 0.8), ("wanda", 0.4)):
        table, score = score_of(level, statistic="lower_median")
        prompts = prompts_of()
        made = record_of(method, sscd=score)
        both.append(
            made.model_copy(
                update={
                    "per_prompt": {
                        "sscd": {
                            p.id: float(v) for p, v in zip(prompts, table.mean(1), strict=True)
                        }
                    }
                }
            )
        )
    board = board_of(*both)
    row = next(row for row in board.rows if row.record.method == "wanda")
    assert row.difference(BY_NAME["sscd"]) == (
        both[1].scores["sscd"].value - both[0].scores["sscd"].value,
        None,
        None,
    )


# Training pictures that were lost, through run, tables, `bench submit` and `bench verify`.


@pytest.fixture(scope="module")
def lost(tiny_folder):
    """The tiny suite where one of four memorized prompts has no training picture, with two papers'
    protocols beside ours.
    """
    rows = [["id", "prompt", "group", "split", "reference"]]
    for i, caption in enumerate(CAPTIONS):
        rows.append(
            [
                f"p{i}",
                caption,
                ["VM", "TM"][i % 2],
                "fit" if i < 2 else "memorized",
                "" if i == 4 else f"reference-{i}.png",
            ]
        )
    write_csv(tiny_folder / "lost.csv", rows)
    profiles = "".join(
        f'\n[metrics.{name}]\nweights = "./pooled.safetensors"\n'
        for name in ("sscd_nemo24", "sscd_membench25", "sscd_dcr23", "any_copy")
    )
    text = (
        SUITE.replace('name = "tiny"', 'name = "lost"')
        .replace('"prompts.csv"', '"lost.csv"')
        .replace("steps = 3", "steps = 1")
    )
    text = (
        text.partition("[prompts.quality]")[0]
        + "[metrics.sscd]"
        + text.partition("[metrics.sscd]")[2].partition("[metrics.clip_score]")[0]
        + profiles
    )
    (tiny_folder / "lost.toml").write_text(text)
    return load_suite(str(tiny_folder / "lost.toml"))


@pytest.fixture(scope="module")
def runs(lost, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lost")
    made = {}
    for method in ("none", "wanda"):
        run = Run(lost, method, {}, folder / "records", folder / "store", CPU)
        made[method] = load_record(run.execute().path(folder / "records"))
    return folder, made


def test_a_run_measures_what_is_left_and_warns_once(runs):
    record = runs[1]["none"]
    assert record.status == "complete" and not record.errors
    assert [line for line in record.warnings if "picture" in line] == [
        "1 of 4 memorized prompts have no training picture"
    ]
    for name in ("sscd", "memorized_ratio", "sscd_nemo24_orig", "sscd_membench25_top1"):
        assert record.scores[name].prompts == 3 and record.per_prompt[name].keys() == {
            "p2",
            "p3",
            "p5",
        }
        assert (
            record.scores[name].details["n_expected"],
            record.scores[name].details["n_found"],
        ) == (4, 3)
    assert record.scores["diversity"].prompts == record.scores["sscd_dcr23_mean"].prompts == 4
    assert (
        record.scores["sscd_membench25_top3"].value is None
        and "needs 3 images" in record.scores["sscd_membench25_top3"].reason
    )
    assert record.scores["sscd"].group_prompts == {"VM": 1, "TM": 2}


def test_differences_are_paired_over_the_prompts_that_are_left(runs):
    board = board_of(*runs[1].values())
    row = next(row for row in board.rows if row.record.method == "wanda")
    by_name = {column.name: column for column in columns_of(board)}
    assert row.paired(by_name["sscd"]) == 3 and row.paired(by_name["diversity"]) == 4
    low, high = row.difference(by_name["sscd"])[1:]
    assert low is not None and high is not None
    assert row.difference(by_name["sscd_nemo24_orig"])[1] is None  # of medians
    assert "sscd_nemo24_orig_mad" in by_name and "MemBench, TMLR 2025" in markdown(board)


def test_a_record_that_lacks_prompts_is_taken_and_lies_in_it_are_named(
    runs, lost, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        submitting,
        "CHECKS",
        [check for check in submitting.CHECKS if check[1] is not submitting._pages],
    )
    folder, made = runs
    path = made["wanda"].path(folder / "records")
    assert (
        submit(path, tmp_path / "out", folder / "store", tmp_path / "committed", lost).failures
        == ()
    )
    for change, says in LIES:
        content = json.loads(path.read_text())
        change(content["scores"], content["per_prompt"])
        content["content_sha256"] = content_digest(content)
        (tmp_path / "theirs.json").write_text(json.dumps(content))
        failures = submit(
            tmp_path / "theirs.json", tmp_path / "refused", None, tmp_path / "committed", lost
        ).failures
        assert any(says in failure for failure in failures), (says, failures)


def _median_of_another_size(scores, per_prompt):
    scores["sscd_nemo24_orig"].update(value=0.0, low=0.0, high=0.1)


def _another_prompt(scores, per_prompt):
    per_prompt["sscd"]["p4"] = float(np.mean(list(per_prompt["sscd"].values())))


def _interval_by_group(scores, per_prompt):
    scores["sscd"]["group_intervals"]["TM"] = [-0.9, 0.999]


def _counts_by_group(scores, per_prompt):
    scores["diversity"]["group_prompts"] = {"VM": 1, "TM": 3}


def _a_mean_as_a_median(scores, per_prompt):
    scores["sscd"]["statistic"] = "lower_mad"


LIES = [
    (_median_of_another_size, "and the median over its prompts is"),
    (_another_prompt, "not the suite's prompts of one role"),
    (_interval_by_group, "for TM, which does not follow from its values by prompt"),
    (_counts_by_group, "counts prompts by group that are not the suite's"),
    (_a_mean_as_a_median, "is the lower_mad over prompts, and sscd gives the mean"),
]


@pytest.mark.parametrize("seed", range(4))
def test_images_of_some_prompts_are_compared_with_all_training_pictures(runs, lost, tmp_path, seed):
    """The nearest picture may be one of a prompt that is not made again."""
    record = runs[1]["none"]
    found = verify(record, lost, prompts=1, seed=seed, store=tmp_path / "store", device=CPU)
    compared = {one.name: one for one in found.compared}
    for name in ("sscd_dcr23_mean", "any_copy"):
        for theirs, ours in compared[name].values.values():
            assert ours == pytest.approx(theirs, abs=1e-6)


def test_a_record_that_lacks_prompts_can_be_made_again(runs, lost, tmp_path):
    found = verify(runs[1]["none"], lost, prompts=2, seed=3, store=tmp_path / "store", device=CPU)
    assert found.verdict == "identical", found
    assert {one.name for one in found.compared} >= {
        "sscd",
        "diversity",
        "sscd_nemo24_orig",
        "sscd_dcr23_mean",
    }
