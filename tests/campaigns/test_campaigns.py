"""The campaigns in a short form; `python tests/campaigns/NAME.py --count N` is the long one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_campaigns():
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("short.py")],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name, count in (("kills", 1), ("full disks", 1), ("pairs", 1), ("mutations", 10)):
        assert f"{name}: tried {count}, passed {count}" in done.stdout
