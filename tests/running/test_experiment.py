"""What a run asks: it needs no torch, and the committed records are answers to it."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.records.record import load_record
from bench.running.experiment import Experiment
from bench.suite.load import load_suite

RECORDS = sorted((Path(__file__).parents[2] / "leaderboards/records").glob("*/*/*.json"))


def test_an_experiment_is_asked_without_torch():
    code = "import bench.running.experiment, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_fingerprint_and_id_of_a_committed_record_follow_from_suite_and_method(path):
    record = load_record(path)
    suite = load_suite(record.suite, record.limit)
    if suite.settings.version != record.suite_version:
        pytest.skip("the record is of an older version of its suite")
    asked = Experiment.resolve(suite, record.method, record.parameters, record.seeds)
    assert (asked.suite.fingerprint, asked.id) == (record.suite_fingerprint, record.run)
