"""Seconds that `bench` takes to say something: `--help` and the lists import no torch.

    python tests/benchmarks/start.py

The least of five starts each, so that what else the machine does counts little.
"""

import subprocess
import sys
import time

COMMANDS = (["--help"], ["list"], ["list", "methods"], ["run", "--help"], ["show", "wanda"])


def main() -> None:
    for arguments in COMMANDS:
        seconds = []
        for _ in range(5):
            begun = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "bench", *arguments], capture_output=True, check=True
            )
            seconds.append(time.perf_counter() - begun)
        print(f"bench {' '.join(arguments)}: {min(seconds):.2f} s")


if __name__ == "__main__":
    main()
