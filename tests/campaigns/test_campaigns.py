"""The campaigns in a short form; `python tests/campaigns/NAME.py --count N` is the long one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("name", "count"), [("kills", 1), ("full_disks", 1), ("pairs", 1), ("mutations", 10)]
)
def test_campaign(name, count, tmp_path):
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name(f"{name}.py"), "--count", str(count)],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"tried {count}, passed {count}" in done.stdout
