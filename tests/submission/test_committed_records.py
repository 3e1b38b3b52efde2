"""The committed records get through the checks that a stranger's must get through."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch

from bench.base.parameters import configure, parse_assignments
from bench.records.record import load_record
from bench.registry import registry
from bench.running.prepare import prepare
from bench.studies.tuning import load_tuning
from bench.submission.claim import Claim
from bench.submission.submit import CONSISTENCY, differences, findings_of
from bench.suite.load import load_suite

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "leaderboards/records"
suite_of = cache(load_suite)


def asked_of_make():
    """What `make records` measures: suite, method, parameters in full, generations, whether tuned;
    the parameters of a tuned row stand in its file.
    """
    made = ["make", "--dry-run", "--always-make", "records"]
    said = subprocess.run(made, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for line in said.splitlines():
        words = shlex.split(line)
        if words[1:2] != ["run"]:
            continue
        given = dict(zip(words[2::2], words[3::2], strict=True))
        tuned = given.get("--tuned")
        pairs = [words[place + 1] for place, word in enumerate(words) if word == "-p"]
        values = load_tuning(ROOT / tuned)[0].chosen if tuned else parse_assignments(pairs)
        method = given["--method"]
        configured = configure("method", method, registry.find("method", method).load(), values)
        yield (
            given.get("--suite", "testbed"),
            method,
            json.dumps(configured.model_dump(mode="json"), sort_keys=True),
            int(given.get("--seeds", 1)),
            tuned is not None,
        )


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_records_measures_the_committed_records_and_no_others():
    committed = [
        (
            record.suite,
            record.method,
            json.dumps(record.parameters, sort_keys=True),
            record.seeds,
            record.tuning is not None,
        )
        for record in map(load_record, sorted(RECORDS.rglob("*.json")))
    ]
    assert sorted(asked_of_make()) == sorted(committed)


def test_a_tuned_row_has_what_the_committed_tuning_chose():
    """Under the file's own sha256, so that no other choice is passed off as it."""
    tuned = set()
    for file in sorted(RECORDS.rglob("*.json")):
        record = load_record(file)
        if record.tuning is None:
            continue
        path = RECORDS.parent / "tuning" / record.suite / f"{record.method}.json"
        tuning, digest = load_tuning(path)
        assert record.tuning["sha256"] == digest, file
        assert tuning.chosen.items() <= record.parameters.items(), file
        tuned.add(record.method)
    said = " ".join((ROOT / "docs/methods.md").read_text(encoding="utf-8").split())
    rest = said.partition("a choice and no row yet (")[2].partition(")")[0]
    committed = {file.stem for file in (RECORDS.parent / "tuning/testbed").iterdir()}
    assert tuned and committed == tuned | set(re.findall(r"`(\w+)`", rest))
    asked = re.findall(r"\$\(TUNE\) (\w+)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert committed == set(asked)


@pytest.mark.parametrize(
    "file",
    sorted(RECORDS.rglob("*.json")),
    ids=lambda file: "-".join(file.relative_to(RECORDS).with_suffix("").parts),
)
def test_what_a_record_says_follows_from_its_values(file, tmp_path):
    record = load_record(file)
    suite = suite_of(record.suite)
    run = prepare(
        suite, record.method, record.parameters, tmp_path, torch.device("cpu"), seeds=record.seeds
    )
    claim = Claim(record, suite, run.experiment, None, None)
    findings = [one for title, check in CONSISTENCY for one in findings_of(claim, title, check)]
    assert [one.text for one in findings if one.verdict == "failed"] == []
    assert differences(record, run.experiment.method) == []
