"""A run of the track `removal` from end to end: what is judged, and what the record says of it."""

from __future__ import annotations

import json

import pytest
import torch

from bench.records.record import load_record
from bench.suite.load import load_suite
from conftest import bench
from one_run import Run
from removal_suite import removal_folder

CPU = torch.device("cpu")


@pytest.fixture
def file(tiny_folder, tmp_path):
    file = removal_folder(tiny_folder, tmp_path / "suite")
    head, _, rest = file.read_text().partition("[metrics.fid]")
    _, _, rest = rest.partition("[metrics.walltime]")
    file.write_text(f"{head}[metrics.walltime]{rest}".replace("[prompts.quality]", "[prompts.x]"))
    text = file.read_text()
    before, _, after = text.partition("[prompts.x]")
    file.write_text(before + after[after.index("[prompts.control]") :])
    return file


def test_named_unnamed_neighbours_and_clean_prompts_are_judged(file, tmp_path):
    suite = load_suite(str(file))
    record = Run(suite, "uce", {}, tmp_path / "records", tmp_path / "store", CPU).execute()
    assert (record.status, record.track) == ("complete", "removal")
    assert record.images == {"memorized": 2, "unnamed": 8, "neighbours": 2, "clean": 6}
    assert set(record.per_prompt["sscd"]) == {"p0", "p1"}
    assert set(record.per_prompt["copies_unnamed"]) == {"p2", "p3", "p4", "p5"}
    assert set(record.per_prompt["clip_score_neighbours"]) == {"p0", "p1"}
    unnamed = record.scores["copies_unnamed"]
    assert unnamed.role == "unnamed" and unnamed.low <= unnamed.value <= unnamed.high
    assert record.cost["fit_nfe"].value == 0
    assert record.holds_against == ["api", "weights"]
    assert load_record(record.path(tmp_path / "records")).track == "removal"


def test_a_plan_counts_every_role(file):
    planned = bench("run", "--suite", file, "--method", "siss", "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    images = json.loads(planned.stdout)["images"]
    assert images == {"memorized": 2, "unnamed": 8, "neighbours": 2, "clean": 6}


def test_what_needs_fit_prompts_of_its_own_says_so(file):
    tuned = bench("tune", "uce", "--grid", "ridge=1,2", "--suite", file)
    assert tuned.returncode == 2 and "[prompts.fit]" in tuned.stderr


def test_a_suite_without_anchors_says_so_in_plan_and_record(tiny_folder, file, tmp_path):
    """`uce` reads the empty prompt in place of an anchor, which is another question."""
    places = ("--store", tmp_path / "store", "--records", tmp_path / "records")
    suite = ("--suite", tiny_folder / "tiny.toml")
    for method, remarks in (("uce", 1), ("wanda", 0)):
        planned = bench("run", *suite, *places, "--method", method, "--dry-run")
        assert planned.stdout.count("remark: ") == remarks
    done = bench("run", *suite, *places, "--method", "uce", "--json")
    assert any("the empty prompt stands in" in one for one in json.loads(done.stdout)["warnings"])
    named = bench("run", "--suite", file, *places, "--method", "uce", "--dry-run")
    assert named.returncode == 0 and "remark" not in named.stdout
