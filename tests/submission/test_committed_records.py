"""The committed records get through the checks that a stranger's must get through."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from bench.records.record import load_record
from bench.running.prepare import prepare
from bench.submission.claim import Claim
from bench.submission.submit import CONSISTENCY, differences, findings_of
from bench.suite.load import load_suite

RECORDS = Path(__file__).parents[2] / "leaderboards/records"
suite_of = cache(load_suite)


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
