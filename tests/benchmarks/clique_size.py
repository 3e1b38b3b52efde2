"""Which clique size flags what among fit prompts, at the calibrated threshold: how the suite's size
was chosen, without held-out prompts.

    PYTHONPATH=. python tests/benchmarks/clique_size.py --store runs/store      # a few minutes
    where the images are not there yet

Prints for every size how many fit prompts are flagged and how many of these are copies of a
training picture. The size of the suite is the largest that flags as many copies as the smallest
does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from attacks._exact import squared_distances, squared_limit, stacked
from attacks._findings import examine
from attacks._tiles import tile_elements
from attacks._verification import References
from attacks.clique_extraction import CliqueExtraction
from bench.base.parameters import configure
from bench.base.progress import reporter
from bench.running.generating import generate
from bench.running.prepare import prepare
from bench.suite.load import load_suite
from bench.suite.suite import Suite

SIZES = (3, 4, 5, 6, 8, 10)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", default="testbed")
    parser.add_argument("--store", type=Path, default=Path("runs/store"))
    arguments = parser.parse_args()
    suite = load_suite(arguments.suite)
    attack = configure(
        "attack", "clique_extraction", CliqueExtraction, suite.settings.attacks["clique_extraction"]
    )
    threshold = attack._calibration(suite).threshold
    bare = Suite(suite.settings.model_copy(update={"metrics": {}, "attacks": {}}), suite.file)
    prompts, references = suite.prompts("fit"), References(suite)
    pictures = np.concatenate([batch for _, batch in references.training])
    training = pictures.reshape(len(pictures), -1)
    with reporter() as report:
        run = prepare(bare, "none", {}, arguments.store, torch.device("cpu"))
        run.images.store.prepare()
        samples = run.images.sample_set(prompts, attack.images)
        generate(*run, {}, run.images.units.of(samples.keys), report=report)
    print(f"{len(prompts)} fit prompts, {attack.images} generations, threshold {threshold}")
    for size in SIZES:
        flagged = copies = 0
        for row, prompt in enumerate(prompts):
            pictures = stacked(samples.pictures_of(row))
            limit = squared_limit(threshold, tile_elements(pictures.shape, attack.tiles))
            finding = examine(prompt, pictures, attack.tiles, limit, size, attack.budget)
            if finding.flagged:
                nearest = int(
                    squared_distances(finding.representative.reshape(1, -1), training).min()
                )
                flagged, copies = (
                    flagged + 1,
                    copies
                    + int(nearest <= squared_limit(attack.verification, references.elements)),
                )
        print(
            f"clique of {size:2d}: {flagged} flagged, {copies} of them copies of a training picture"
        )


if __name__ == "__main__":
    main()
