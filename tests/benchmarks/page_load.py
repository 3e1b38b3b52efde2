"""How long boards of many rows take: to be made by `bench leaderboard`, and to be opened in
Chromium; and how large their files are.

    PYTHONPATH=. python tests/benchmarks/page_load.py --rows 7 24 40 200
    PYTHONPATH=. python tests/benchmarks/page_load.py --against 15f2a62   # and the same of a commit

The committed records of a suite are written again under other names, with their numbers shifted,
as rows of one table, and its strength curves as curves of as many methods. A page is opened from
its file: without playwright, the time is that of a whole `chromium --headless` that takes a
screenshot, less that of the same with an empty page. The least of several counts.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from many_records import HERE, renamed

from bench.records.parts import REFERENCE
from bench.records.record import load_records
from bench.records.sweep import load_sweeps

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
LONGEST = 120  # seconds that a browser may take
LOADED = """async () => {
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    return [performance.now(), performance.getEntriesByType("navigation")[0].loadEventEnd];
}"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[40, 200])
    parser.add_argument("--methods", type=int, default=24)
    parser.add_argument("--suite", default="testbed")
    parser.add_argument("--against", help="a commit whose pages are measured first")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="a folder for the boards, to look at them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        trees = {"now": HERE}
        if arguments.against:
            trees = {
                arguments.against: exported(arguments.against, Path(temporary, "tree"))
            } | trees
        for rows in arguments.rows:
            records = folder / f"{rows}" / "records"
            synthetic(records, arguments.suite, rows, arguments.methods)
            found = {}
            for name, tree in trees.items():
                out = folder / f"{rows}" / name
                measured = {"made, s": made(tree, records, out)}
                sizes = {path: path.stat().st_size / 2**20 for path in out.rglob("*.*")}
                measured["all files, MiB"] = sum(sizes.values())
                for what, page in (
                    ("page", out / f"{arguments.suite}.html"),
                    ("pictures", out / "pictures" / f"{arguments.suite}.html"),
                ):
                    if page.exists():
                        measured[f"{what}, MiB"] = sizes[page]
                        if CHROMIUM:
                            measured[f"{what} open, s"] = opened(page, arguments.repeat)
                found[name] = measured
                print(f"{rows} rows, {name}:", said(measured), flush=True)
            if arguments.against:
                before, now = found.values()
                ratios = {what.split(",")[0]: before[what] / now[what] for what in before}
                print(f"{rows} rows, {arguments.against} / now:", said(ratios), flush=True)


def said(numbers: dict[str, float]) -> str:
    return "; ".join(f"{name} {number:.2f}" for name, number in numbers.items())


def exported(commit: str, into: Path) -> Path:
    """The files of a commit."""
    archive = subprocess.run(
        ["git", "archive", commit, "bench", "methods", "metrics", "attacks"],
        check=True,
        capture_output=True,
        cwd=HERE,
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(into, filter="data")
    return into


def synthetic(records: Path, suite: str, rows: int, methods: int) -> None:
    """Records of so many rows and methods, and beside them a curve of every method."""
    known = [
        record for record in load_records(HERE / "leaderboards/records")[0] if record.suite == suite
    ]
    known.sort(key=lambda record: record.method != REFERENCE)
    for number in range(rows):
        # The row of none comes first, and once.
        base = known[1 + (number - 1) % (len(known) - 1)] if number else known[0]
        renamed(base, number, methods).save(records)
    curves = [
        found for found in load_sweeps(HERE / "leaderboards/sweeps")[0] if found.suite == suite
    ]
    for number in range(1, min(rows, methods + 1)) if curves else ():
        base = curves[number % len(curves)]
        name = f"method_{number % methods:02d}"
        worse = 0.02 * (number % 7)
        points = [shifted(point, worse, number) for point in base.points]
        copy = base.model_copy(update={"method": name, "points": points, "method_version": 1})
        copy.save(records.parent / "sweeps" / suite / f"{name}.json")


def shifted(point, replication: float, number: int):
    """A point with more replication and, by its number, less or more utility."""
    by = {"copies": replication, "sscd": replication, "clip_score_clean": -0.004 * (number % 5)}
    scores = {
        name: score.model_copy(
            update={
                key: value + by.get(name, 0.0)
                for key in ("value", "low", "high")
                if (value := getattr(score, key)) is not None
            }
        )
        for name, score in point.scores.items()
    }
    return point.model_copy(update={"scores": scores})


def made(tree: Path, records: Path, out: Path) -> float:
    """Seconds of `bench leaderboard` in a process of its own."""
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "bench", "leaderboard", "--records", records, "--out", out],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
    )
    return time.perf_counter() - begun


def opened(page: Path, repeat: int) -> float:
    """Seconds until a page is loaded and painted; the least of `repeat`."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        empty = page.with_name("empty.html")
        empty.write_text("<!doctype html><title>empty</title>")
        return max(
            min(_shot(page) for _ in range(repeat)) - min(_shot(empty) for _ in range(repeat)), 0.0
        )
    seconds = []
    with sync_playwright() as driver:
        for _ in range(repeat):
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            tab = browser.new_page(viewport={"width": 1400, "height": 900})
            tab.goto(page.resolve().as_uri(), wait_until="load", timeout=1000 * LONGEST)
            painted, loaded = tab.evaluate(LOADED)
            seconds.append(max(painted, loaded) / 1000)
            browser.close()
    return min(seconds)


def _shot(page: Path) -> float:
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        subprocess.run(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                f"--user-data-dir={folder}/profile",
                f"--screenshot={folder}/page.png",
                "--window-size=1400,900",
                page.resolve().as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=LONGEST,
        )
        return time.perf_counter() - begun


if __name__ == "__main__":
    main()
