"""The attack that docs/attacks.md shows is complete: it keeps the contracts."""

from __future__ import annotations

import re
from pathlib import Path

from conftest import bench

PAGE = Path(__file__).parents[2] / "docs/attacks.md"


def test_the_example_of_the_docs_keeps_the_contracts(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) < 45
    file = tmp_path / "more_guidance.py"
    file.write_text(code)
    tried = bench("check", file)
    assert tried.returncode == 0, tried.stdout + tried.stderr
