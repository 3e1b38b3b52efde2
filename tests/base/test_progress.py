"""Progress where nobody watches: a line now and then, and no more."""

import itertools

from bench.base import progress


def test_a_log_gets_a_line_a_minute(capsys, monkeypatch):
    clock = itertools.count(0, 25)  # seconds from one report to the next
    monkeypatch.setattr(progress, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(progress, "LINE_EVERY", 60.0)
    with progress.reporter() as report:
        for done in range(8):
            report("generate", done * 100, 700)
    lines = [line for line in capsys.readouterr().err.splitlines() if " of " in line]
    assert lines == ["generate: 200 of 700", "generate: 500 of 700"]
