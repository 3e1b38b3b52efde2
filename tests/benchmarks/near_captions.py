"""How many prompts to learn from have near-duplicates among the judged ones: as a suite cuts its
list, and as it would by rows alone (`together = false`).

    bench fetch --suite sd14-mem500        # or the lists alone: bench fetch nemo_memorized
    PYTHONPATH=. python tests/benchmarks/near_captions.py sd14-mem500 sd20-mem219

Near-duplicates are captions with half of their words in common (`bench.suite.near`).
"""

from __future__ import annotations

import argparse
from typing import Any

from bench.suite.load import load_suite
from bench.suite.near import near_pairs
from bench.suite.suite import Suite

SIDES = ("fit", "memorized")
BY_ROWS = {"together": False, "expected": None}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suites", nargs="+")
    for name in parser.parse_args().suites:
        suite = load_suite(name)
        cut, rows = across(texts_of(suite, {})), across(texts_of(suite, BY_ROWS))
        print(f"{name}: {cut}; by rows alone: {rows}")


def texts_of(suite: Suite, changed: dict[str, Any]) -> Suite:
    """The same suite with other settings of its lists, and without their pictures, which are not
    needed here.
    """
    lists = {
        role: given.model_copy(update={"references": "", **changed})
        for role, given in suite.settings.prompts.items()
        if role in SIDES
    }
    return Suite(suite.settings.model_copy(update={"prompts": lists}), suite.file)


def across(suite: Suite) -> str:
    """The near-duplicates on both sides of the split, in words."""
    fit, judged = ([prompt.text for prompt in suite.prompts(role)] for role in SIDES)
    pairs = [
        (one, other - len(fit))
        for one, other in near_pairs([*fit, *judged])
        if one < len(fit) <= other
    ]
    return (
        f"{len({one for one, _ in pairs})} of {len(fit)} prompts to learn from have near-duplicates"
        f" among {len({other for _, other in pairs})} of {len(judged)} judged"
    )


if __name__ == "__main__":
    main()
