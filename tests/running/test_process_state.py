"""Code of others leaves the process as it was, or says so and costs itself only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.base.errors import UserError
from bench.records.record import load_record
from bench.running.process_state import _SETTINGS, process_kept
from conftest import bench

CHANGES = {
    "torch's default number type": lambda: torch.set_default_dtype(torch.float64),
    "torch's recording of gradients": lambda: torch.set_grad_enabled(False),
    "torch's number of threads": lambda: torch.set_num_threads(2),
    "torch's precision of products": lambda: torch.set_float32_matmul_precision("medium"),
    "cuDNN's choice of algorithms": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "NumPy's treatment of floating-point errors": lambda: np.seterr(all="raise"),
    "the working folder": lambda: os.chdir("/"),
    "the environment": lambda: os.environ.update(PATH="/nowhere"),
    "Python's search path": lambda: sys.path.append("/nowhere"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_setting_is_named_and_set_back(what):
    here, threads = Path.cwd(), torch.get_num_threads()
    message = f"metric x: measure left {what} changed"
    with pytest.raises(UserError, match=message), process_kept("metric x: measure"):
        CHANGES[what]()
    with process_kept("it"):
        pass
    assert (Path.cwd(), torch.get_num_threads()) == (here, threads)
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()


def test_what_libraries_add_to_the_environment_is_no_change(monkeypatch):
    monkeypatch.delenv("SOME_LIBRARY_ADDED", raising=False)
    with process_kept("it"):
        monkeypatch.setenv("SOME_LIBRARY_ADDED", "1")


def test_our_own_variables_are_not_added(monkeypatch):
    monkeypatch.delenv("BENCH_CACHE", raising=False)
    with pytest.raises(UserError, match="the environment"), process_kept("it"):
        os.environ["BENCH_CACHE"] = "/nowhere"
    assert "BENCH_CACHE" not in os.environ


def test_a_setting_that_cannot_be_read_any_more_is_a_changed_one(monkeypatch):
    def unreadable():
        raise RuntimeError("two ways to say it disagree")

    with pytest.raises(UserError, match="precision of products"), process_kept("it"):
        name = "torch's precision of products"
        back = _SETTINGS[name][1]
        monkeypatch.setitem(_SETTINGS, name, (unreadable, back))


def test_settings_are_set_back_after_an_error_too():
    with pytest.raises(ZeroDivisionError), process_kept("it"):
        torch.set_default_dtype(torch.float64)
        1 / 0  # noqa: B018
    assert torch.get_default_dtype() == torch.float32


METRIC = '''
import torch
from bench import Metric, PerSet
class Rude(Metric):
    """It leaves torch changed."""
    names = ("rude",)
    roles = ("clean",)
    def measure(self, evaluation):
        torch.set_default_dtype(torch.float64)
        return {"rude": PerSet(1.0, n=1, unit="", higher_is_better=None)}
'''
HANGING = '''
import threading, time
from bench import Method
threading.Thread(target=time.sleep, args=(10_000,), name="forever").start()
class Hanging(Method):
    """Its thread never ends."""
    paper = "none"
'''


def test_a_metric_that_changes_the_process_costs_its_own_score_only(
    tiny_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rude.py").write_text(METRIC)
    (tmp_path / "mine.toml").write_text(
        f'name = "mine"\nextends = "{tiny_folder}/tiny.toml"\n[metrics."rude.py"]\n'
    )
    done = bench("run", "--method", "none", "--suite", "mine.toml", "--records", "r")
    assert "left torch's default number type changed" in done.stderr
    assert "running code of" in done.stderr and "sha256" in done.stderr
    (path,) = (tmp_path / "r").rglob("*.json")
    record = load_record(path)
    assert record.scores["rude"].value is None and record.scores["sscd"].value is not None


def test_a_thread_that_never_ends_does_not_keep_the_command(tiny_folder, tmp_path):
    (tmp_path / "hanging.py").write_text(HANGING)
    command = [sys.executable, "-m", "bench", "run", "--method", "./hanging.py", "--dry-run"]
    done = subprocess.run(
        [*command, "--suite", str(tiny_folder / "tiny.toml"), "--store", str(tmp_path / "s")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "a plug-in left a thread running: forever" in done.stderr
