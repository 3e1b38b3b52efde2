"""How many row evaluations NeMo's search takes, against the published sequential procedure on the
same prompts and counter.

    PYTHONPATH=tests/methods python tests/benchmarks/nemo_rows.py --prompts 4

takes four fit prompts of the testbed, evenly spread over the levels. The published procedure is the
transcription in tests/methods/published_nemo.py: two UNet calls of ten rows for every score, a call
for the activations of every try, and one row for every clean prompt of the statistics. The bound is
what an exact search must evaluate at least: one seed of a set that fails, every kept seed of a set
that passes.
"""

from __future__ import annotations

import argparse

import torch
from published_nemo import Published, neurons_of

from bench.contracts.method import FitData
from bench.diffusion.model import load_denoiser
from bench.suite.load import load_suite
from methods._nemo_layers import RowMasks, value_layers
from methods.nemo import Nemo


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=4, help="fit prompts compared")
    parser.add_argument("--calibration", choices=["best", "pairs"], default="best")
    arguments = parser.parse_args()
    suite = load_suite("testbed")
    denoiser, method = (
        load_denoiser(suite, torch.device("cpu")),
        Nemo(calibration=arguments.calibration),
    )
    clean = tuple(prompt.text for prompt in suite.prompts("calibration"))
    state = method.fit(denoiser, FitData(clean_prompts=clean))
    masks, fit = RowMasks(value_layers(denoiser.pipe.unet)), suite.prompts("fit")
    count = min(arguments.prompts, len(fit))
    print(
        f"threshold {float(state['threshold']):.3f} ({arguments.calibration})\nlevel  kept  neurons"
        "  ours  bound  published  ratio"
    )
    totals = [0, 0]
    for prompt in (fit[i * len(fit) // count] for i in range(count)):
        before = denoiser.rows
        with masks.hooked():
            found = method.localise(denoiser, masks, prompt.text, state)
        ours = denoiser.rows - before
        sets = Published(denoiser, method, state)
        kept, *_, blocked = sets(prompt.text)
        if found.neurons != neurons_of(blocked):
            raise SystemExit(
                f"'{prompt.text}': the search found other neurons than the sequential procedure"
            )
        bound = method.seeds + sum(
            len(kept) if passed else 1 for neurons, passed in sets.decisions.items() if neurons
        )
        before = denoiser.rows
        Published(denoiser, method, state, to_the_letter=True)(prompt.text)
        published = denoiser.rows - before
        totals = [totals[0] + ours, totals[1] + published]
        print(
            f"{prompt.group:>5}  {len(kept):>4}  {len(found.neurons):>7}  {ours:>4}  {bound:>5} "
            f" {published:>9}  {published / ours:.1f}",
            flush=True,
        )
    print(
        f"all prompts: {totals[1]} against {totals[0]} rows, {totals[1] / totals[0]:.1f} times"
        " fewer"
    )
    with_statistics = totals[1] + len(clean)
    print(
        f"with the published procedure's statistics on {len(clean)} clean prompts, which cost none"
        f" here: {with_statistics / totals[0]:.1f} times fewer"
    )


if __name__ == "__main__":
    main()
