"""The tiny model and suite of `bench.testbed.tiny`, as fixtures.

Nothing heavy is imported here: the process that hands out the tests to others reads this file
before these begin, and they would wait for it.
"""

from __future__ import annotations

import contextlib
import gc
import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest

from bench.base.imports import quick_imports
from bench.base.lazy import door

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# what tests take from here, beside `bench`, `examples` and `run_in_child`
__getattr__ = door(
    __name__,
    dict.fromkeys(
        ("CAPTIONS", "SIDE", "SUITE", "build_tiny_pipeline", "write_csv"), "bench.testbed.tiny"
    ),
)

# `make test` draws the same examples every time, so it fails only for whoever changed something;
# `make fuzz` searches freely, and for longer (`pytest --hypothesis-profile search`). No example has
# a deadline, because the machine may be busy.
hypothesis.settings.register_profile("gate", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("search", max_examples=1000, deadline=None, print_blob=True)
hypothesis.settings.load_profile("gate")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Without the garbage collector, which would go through what was imported again and again: half
    of the time that it takes to collect the tests. What is there then is never looked at again.
    """
    with quick_imports():
        tests = yield
        gc.freeze()
    return tests


def pytest_sessionfinish():
    gc.unfreeze()  # or libraries complain at the end that something of theirs was never freed


def examples(count: int) -> hypothesis.settings:
    """`count` examples in the gate, and at least as many as the profile says in a free search."""
    searching = hypothesis.settings.get_current_profile_name() == "search"
    return hypothesis.settings(max_examples=max(count, 1000) if searching else count)


@pytest.fixture(autouse=True)
def _drawn_alike():
    """What a test draws without a generator of its own is the same whatever ran before it."""
    import torch

    torch.manual_seed(0)


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`bench` with these arguments, in this process: exit code and both outputs, as of a child.

    An error that `bench` lets through is raised here.
    """
    from bench.cli.main import main

    outputs, code = (io.StringIO(), io.StringIO()), 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(outputs[0]),
        contextlib.redirect_stderr(outputs[1]),
    ):
        patch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(sys.argv, code, *(text.getvalue() for text in outputs))


def run_in_child(file: Path, tmp_path: Path, seconds: float) -> None:
    """Run a file of tests in a process of its own, for what may end its process or start others.

    Fails with the child's output, which names the test that ran last, when a test fails, when the
    process ends without a word, and after `seconds`, which should be fewer than the caller's
    timeout has; everything that it started ends with it.
    """
    command = [sys.executable, "-m", "pytest", "-vvx", "-p", "no:xdist", "-p", "no:cacheprovider"]
    environment = {key: value for key, value in os.environ.items() if "PYTEST" not in key}
    with subprocess.Popen(
        [*command, "--basetemp", str(tmp_path / "child"), str(file)],
        env=environment,
        cwd=Path(__file__).parents[1],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
            ended = f"ended with status {process.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            ended = f"was stopped after {seconds:g} s"
    assert process.returncode == 0 and " passed" in output, f"{file.name} {ended}:\n{output}"


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _suites_may_read_what_tests_write(tmp_path_factory):
    """Suites of tests extend the tiny one, which lies in another folder; see `bench --allow`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_ALLOW", str(tmp_path_factory.getbasetemp()))
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """Everything the tiny suite names, as files."""
    from bench.testbed.tiny import build_tiny_suite

    folder = tmp_path_factory.mktemp("tiny")
    build_tiny_suite(folder)
    return folder


@pytest.fixture(scope="session")
def fuzz_folder(tiny_folder, tmp_path_factory) -> Path:
    """The same files again, for tests that change them."""
    folder = tmp_path_factory.mktemp("fuzz") / "tiny"
    shutil.copytree(tiny_folder, folder)
    (folder / "loop").symlink_to("loop")
    return folder


@pytest.fixture
def tiny_suite(tiny_folder):
    from bench.suite.load import load_suite

    return load_suite(str(tiny_folder / "tiny.toml"))


@pytest.fixture(scope="session")
def tiny_pipe():
    from bench.testbed.tiny import build_tiny_pipeline

    return build_tiny_pipeline()


@pytest.fixture
def denoiser(tiny_pipe):
    from bench.diffusion.denoiser import Denoiser

    denoiser = Denoiser(tiny_pipe, steps=4, guidance_scale=4.0, batch_size=4)
    yield denoiser
    denoiser.close()
