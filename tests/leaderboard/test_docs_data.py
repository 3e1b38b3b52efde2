"""The code of docs/data.md and of the README's part on Python runs, from the root of a checkout."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def blocks():
    for name in ("docs/data.md", "README.md"):
        page = (ROOT / name).read_text(encoding="utf-8")
        for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
            if "import bench\n" in code:
                yield pytest.param(code, id=f"{name}-{code.splitlines()[-1][:20]}")


@pytest.mark.parametrize("code", list(blocks()))
def test_the_code_runs(code, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    exec(compile(code, "a page's code", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) > 2


def test_there_is_code_to_run():
    assert len(list(blocks())) == 4
