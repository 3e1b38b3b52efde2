"""Run the benchmarks behind docs/performance.md one after another and keep what each printed in
docs/performance.json.

    PYTHONPATH=. python tests/benchmarks/report.py                       # about half an hour, idle
    PYTHONPATH=. python tests/benchmarks/report.py --only generation --only start
    PYTHONPATH=. python tests/benchmarks/report.py --again

A part that is there stays, so that an interrupted report goes on where it stopped; `--again`
measures it anew. The load of the machine when a part began is kept beside it, since figures of a
busy machine say little. A test holds every figure of the page to this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[2]
KEPT = HERE / "docs/performance.json"
ONE = {"OMP_NUM_THREADS": "1"}
TWO = {"OMP_NUM_THREADS": "2"}
# By name: the script with its arguments, and the threads that it has.
PARTS: dict[str, tuple[list[str], dict[str, str]]] = {
    "generation": (["generation.py"], ONE),
    "published_methods": (["published_methods.py"], ONE),
    "nemo": (["nemo_rows.py", "--prompts", "4"], ONE),
    "cliques": (["cliques.py", "--cap", "20"], ONE),
    "near_pairs": (["near_pairs.py"], ONE),
    "fid": (["fid.py"], ONE),
    "many_records": (["many_records.py", "--records", "200", "--methods", "200"], ONE),
    "start": (["start.py"], ONE),
    "stream": (["coco_stream.py"], TWO),
    "executors": (["executors.py", "--images", "128", "--rounds", "1"], ONE),
    "audit_folders": (["audit_folders.py"], TWO),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=sorted(PARTS), help="this part alone")
    parser.add_argument("--again", action="store_true", help="measure anew what is there")
    arguments = parser.parse_args()
    kept: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for name in arguments.only or PARTS:
        if name in kept and not arguments.again:
            print(f"{name}: is there")
            continue
        print(f"{name}: {command_of(name)}", flush=True)
        kept[name] = measured(name)
        print(*kept[name]["output"], sep="\n", flush=True)
        KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


def command_of(name: str) -> str:
    """What a reader types to measure a part again."""
    script, threads = PARTS[name]
    settings = " ".join(f"{key}={value}" for key, value in threads.items())
    return f"PYTHONPATH=.:tests/methods {settings} python tests/benchmarks/{' '.join(script)}"


def measured(name: str) -> dict[str, Any]:
    """The lines that a part printed, with when, how long, and on what machine."""
    script, threads = PARTS[name]
    load, begun = os.getloadavg()[0], time.perf_counter()
    paths = os.pathsep.join([str(HERE), str(HERE / "tests/methods")])
    finished = subprocess.run(
        [sys.executable, str(HERE / "tests/benchmarks" / script[0]), *script[1:]],
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE,
        env=os.environ | threads | {"PYTHONPATH": paths},
    )
    if finished.returncode:
        sys.exit(f"{name} ended with {finished.returncode}:\n{finished.stderr[-2000:]}")
    return {
        "command": command_of(name),
        "date": time.strftime("%Y-%m-%d"),
        "load_before": round(load, 1),
        "machine": machine(),
        "output": [line.rstrip() for line in finished.stdout.splitlines() if line.strip()],
        "seconds": round(time.perf_counter() - begun),
    }


def machine() -> dict[str, Any]:
    """The processor, its cores, and the versions that decide speed."""
    model = ""
    if (known := Path("/proc/cpuinfo")).exists():
        lines = [line for line in known.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else ""
    packages = {name: version(name) for name in ("torch", "diffusers", "faiss-cpu")}
    return {
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **packages,
    }


if __name__ == "__main__":
    main()
