"""`make test` ends by itself whatever a test does, fails, and names that test."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.doctor.machine import OLDEST

ROOT = Path(__file__).parents[2]
FINE = """
import pytest

@pytest.mark.parametrize("number", range(8))
def test_in_order(number):
    pass
"""


def make_test_options():
    """The options of pytest that `make test` has."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (line,) = re.findall(r"^test:.*\n\t.*python -m pytest (.*)$", makefile, re.MULTILINE)
    return line.replace("$(JOBS)", "2").split()


def test_no_two_files_of_tests_have_one_name():
    """Their folders are no packages: pytest would take the second for the first."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_the_oldest_python_is_the_same_wherever_it_is_said():
    def numbers(pattern, name):
        (found,) = re.findall(pattern, (ROOT / name).read_text(encoding="utf-8"))
        return tuple(map(int, re.split(r"[., ]+", found)))

    oldest = numbers(r'requires-python = ">=([\d.]+)"', "pyproject.toml")
    assert oldest == OLDEST
    assert oldest == numbers(r"sys\.version_info < \(([\d, ]+)\)", "Makefile")
    assert oldest == numbers(r"Python ([\d.]+) or newer is needed", "Makefile")
    assert oldest == numbers(r"On a machine with Python ([\d.]+) or newer", "README.md")


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ("os._exit(1)", []),
        ("ctypes.string_at(0)", []),
        ("threading.Event().wait()", ["--timeout", "3"]),
    ],
    ids=["exit", "segfault", "hang"],
)
def test_a_lost_process_or_a_hang_ends_the_run_and_is_named(tmp_path, body, options):
    (tmp_path / "test_bad.py").write_text(
        f"import ctypes, os, threading\n\ndef test_the_culprit():\n    {body}\n"
    )
    (tmp_path / "test_fine.py").write_text(FINE)
    environment = {key: value for key, value in os.environ.items() if "PYTEST" not in key}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *make_test_options()),
            *("-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, *options, tmp_path),
        ],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode not in (0, 5), done.stdout + done.stderr
    assert "test_bad.py::test_the_culprit" in done.stdout, done.stdout + done.stderr
    assert re.search(r"crashed while running .*test_the_culprit", done.stdout)
