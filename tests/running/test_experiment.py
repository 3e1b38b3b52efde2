"""What a run asks: it needs no torch, and the committed records are answers to it."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.base.errors import UserError
from bench.records.record import load_record
from bench.running.experiment import Experiment, metric_settings
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


def test_settings_of_a_metric_are_those_that_it_takes(tiny_folder, tmp_path):
    suite = load_suite(str(tiny_folder / "tiny.toml"))
    assert metric_settings(suite, "sscd") == suite.settings.metrics["sscd"]
    assert metric_settings(suite, "any_copy") is None
    for number, line in enumerate(('threshold = "x"', "weights = 5", 'profile = "none"', "a = 1")):
        path = tmp_path / f"{number}.toml"
        path.write_text(
            f'name = "mine"\nextends = "{tiny_folder}/tiny.toml"\n[metrics.sscd]\n{line}\n'
        )
        with pytest.raises(UserError, match="metric sscd|SSCD profile"):
            metric_settings(load_suite(str(path)), "sscd")
