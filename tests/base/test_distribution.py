"""A checkout and an installed wheel are told apart, and neither is written to by surprise."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from bench.base import distribution
from bench.base.errors import UserError
from bench.leaderboard import frames
from bench.studies import calibration
from bench.suite.load import load_suite
from conftest import bench

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_name_is_that_of_the_project_and_this_is_its_checkout():
    assert PROJECT["name"] == distribution.NAME
    assert distribution.checkout() == ROOT


def test_what_is_not_installed_has_no_version():
    assert distribution.package_version("no-such-distribution-of-anybody") is None


def test_the_version_is_one_line_and_exit_code_zero():
    done = bench("--version")
    version = distribution.package_version()
    assert (done.returncode, done.stdout, done.stderr) == (0, f"bench {version}\n", "")


def test_extras_are_had_by_the_name_of_the_distribution():
    assert distribution.command_for("ray") == "pip install 'diffusion-memorization-bench[ray]'"
    assert distribution.command_for("dev", "ray").endswith("[dev,ray]'")


def test_a_wheel_looks_for_the_board_in_the_current_folder_only(tmp_path, monkeypatch):
    monkeypatch.setattr(frames, "checkout", lambda: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="^no records below leaderboards/records;"):
        frames.load_board("testbed")


def test_a_calibration_never_changes_a_suite_of_an_installed_package(monkeypatch):
    monkeypatch.setattr(calibration, "checkout", lambda: None)
    monkeypatch.setattr(calibration, "ROOT", ROOT)
    with pytest.raises(UserError, match=r"lies in an installed package.* --out"):
        calibration.calibrate(
            load_suite("testbed"), "clique_extraction", {}, "", None, None, lambda *_: None
        )


def test_asking_for_the_version_imports_no_torch():
    code = (
        "import sys; sys.argv = ['bench', '--version']\n"
        "from bench.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)
