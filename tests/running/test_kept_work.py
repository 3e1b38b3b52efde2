"""What was measured and learned is never lost, and never believed once it is damaged."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench.base import files
from bench.records.record import load_record
from bench.running import run as running
from bench.running.prepare import prepare
from bench.store.store import SampleStore
from conftest import bench
from one_run import Run

CPU = torch.device("cpu")


def new_run(suite, tmp_path, method="none", **parameters):
    return Run(suite, method, parameters, tmp_path / "records", tmp_path / "store", CPU)


def scores(record):
    return {name: score.value for name, score in record.scores.items()}


def test_an_interrupted_run_leaves_the_complete_record_that_was_there(
    tiny_suite, tmp_path, monkeypatch
):
    first = new_run(tiny_suite, tmp_path).execute()
    path = first.path(tmp_path / "records")
    content = path.read_bytes()
    from bench.running import run as running

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        new_run(tiny_suite, tmp_path).execute()
    assert path.read_bytes() == content
    path.write_bytes(content.replace(b'"complete"', b'"running"'))  # no complete one any more
    with pytest.raises(KeyboardInterrupt):
        new_run(tiny_suite, tmp_path).execute()
    assert load_record(path).status == "partial"


@pytest.mark.parametrize("name", ["fit.json", "fit.safetensors", "timing-*.json", "weights.json"])
@pytest.mark.parametrize("harm", ["cut", "changed", "no JSON"])
def test_a_damaged_file_beside_the_shards_is_named_and_made_again(
    tiny_suite, tmp_path, capsys, name, harm
):
    first = new_run(tiny_suite, tmp_path, "wanda", sparsity=0.1).execute()
    path = min((tmp_path / "store").rglob(name))
    whole = path.read_bytes()
    path.write_bytes(
        {
            "cut": whole[:-7],
            "changed": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
            "no JSON": b"\xff{",
        }[harm]
    )
    first.path(tmp_path / "records").unlink()
    capsys.readouterr()
    again = new_run(tiny_suite, tmp_path, "wanda", sparsity=0.1).execute()
    said = capsys.readouterr().err
    assert f"{path.name} is damaged and is" in said and " again" in said
    assert scores(again) == scores(first)
    if name.startswith("fit.safe"):
        assert path.read_bytes() == whole


def test_a_store_of_before_there_were_digests_is_read(tiny_suite, tmp_path, capsys):
    first = new_run(tiny_suite, tmp_path, "wanda", sparsity=0.1).execute()
    fitted = {}
    for path in (tmp_path / "store").rglob("*.json"):
        note = json.loads(path.read_text())
        if path.name == "fit.json":
            fitted = note
            note["tensors"] = len(load_file(path.with_name("fit.safetensors")))
        note.pop("sha256", None)
        path.write_text(json.dumps(note))
    for path in (tmp_path / "store").rglob("features/*/*.npy"):
        path.write_bytes(path.read_bytes()[:-32])
    first.path(tmp_path / "records").unlink()
    capsys.readouterr()
    again = new_run(tiny_suite, tmp_path, "wanda", sparsity=0.1).execute()
    assert "damaged" not in capsys.readouterr().err and scores(again) == scores(first)
    assert again.cost["fit_seconds"].value == fitted["seconds"]


def test_what_killed_writers_left_is_removed_once_it_is_old(tmp_path, monkeypatch):
    store = SampleStore(tmp_path, "suite", "none", {})
    store.prepare()
    old, new = store.folder / ".a.parquet.0f.tmp", store.folder / ".b.parquet.0f.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, time.time() - 2 * files.DEBRIS_AGE))
    store.prepare()
    assert not old.exists() and new.exists()


def test_a_run_asks_no_network_and_writes_only_where_it_was_told(
    tiny_folder, tmp_path, monkeypatch
):
    for part in ("home", "cwd", "cache"):
        (tmp_path / part).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "cwd")

    def refuse(*arguments):
        raise AssertionError(f"the network was asked: {arguments[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    before = {path: path.stat().st_mtime_ns for path in tiny_folder.rglob("*")}
    done = bench("run", "--method", "none", "--suite", tiny_folder / "tiny.toml",
                 "--records", "../records", "--store", "../store")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "cwd").rglob("*")) == list((tmp_path / "home").rglob("*")) == []
    assert {path: path.stat().st_mtime_ns for path in tiny_folder.rglob("*")} == before


def test_sigterm_is_answered_as_ctrl_c(tiny_folder, tmp_path):
    command = [sys.executable, "-m", "bench", "run", "--method", "none", "--records", "r"]
    with subprocess.Popen(
        [*command, "--suite", str(tiny_folder / "tiny.toml"), "--store", "s"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        end = time.monotonic() + 200
        while not list(tmp_path.glob("r/*/*/*.json")) and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=100)
    assert process.returncode == 130 and "goes on where it stopped" in said, said
    (path,) = Path(tmp_path).glob("r/*/*/*.json")
    assert json.loads(path.read_text())["status"] == "partial"


def test_ctrl_c_right_after_the_record_begins_is_told_in_it(tiny_suite, tmp_path, monkeypatch):
    keep, kept = running._keep, []

    def interrupted(record, records):
        keep(record, records)
        kept.append(record.status)
        if len(kept) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(running, "_keep", interrupted)
    prepared = prepare(tiny_suite, "none", {}, tmp_path / "s", torch.device("cpu"))
    with pytest.raises(KeyboardInterrupt):
        running.run(*prepared, tmp_path / "r")
    assert kept == ["running", "partial"]


def test_a_record_says_which_programs_were_trusted(tiny_folder, tmp_path, monkeypatch):
    from bench.features import weights
    from bench.features.architectures.small import Colours

    monkeypatch.setattr(weights, "_TRUSTED", {})
    monkeypatch.chdir(tmp_path)
    network = torch.nn.Sequential(Colours(8))  # the same network under names that are not ours
    torch.jit.trace(network.eval(), torch.rand(2, 3, 32, 32)).save("odd.pt")
    Path("mine.toml").write_text(
        f'name = "mine"\nextends = "{tiny_folder}/tiny.toml"\n'
        '[metrics.sscd]\nweights = "./odd.pt"\n'
    )
    command = ["run", "--method", "none", "--suite", "mine.toml", "--records", "r", "--store", "s"]
    refused = bench(*command)
    assert refused.returncode == 2 and "give --trust " in refused.stderr
    done = bench(*command, "--trust", "odd.pt")
    assert done.returncode == 0 and "trusting odd.pt to run code, sha256" in done.stderr
    (path,) = Path("r").rglob("*.json")
    assert list(load_record(path).environment["trusted"].values()) == ["odd.pt"]
