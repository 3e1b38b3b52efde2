"""How often the 95 % intervals of bench/statistics cover the truth, on simulated data whose truth
is known.

    PYTHONPATH=. python tests/benchmarks/coverage.py --simulations 1000     # some minutes

Tables `[prompts, images]` with an effect of the prompt and one of the image, of three shapes:
normal; skewed (exponential prompt effect); two groups (a sixth of the prompts near 0.95, the others
near 0.35, as SSCD of a memorizing model). For proportions each prompt has a chance of its own; the
95th percentile is of the normal shape. What is left at equal utility is of a straight curve, areas
under the ROC curve are of two normal distributions; both once with prompts in clusters of four that
share most of their effect. An interval is right when it covers the true mean in 95 of
100 simulations; 93 to 97 is what 1,000 simulations can tell.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from scipy import stats

from bench.statistics.curves import at_equal_utility
from bench.statistics.detection import area_interval
from bench.statistics.intervals import (
    clopper_pearson,
    cluster_bootstrap,
    paired_difference,
    proportion_interval,
)
from bench.statistics.units import Design, Units

Draw = Callable[[np.random.Generator, int, int], np.ndarray]


def normal(rng: np.random.Generator, prompts: int, images: int) -> np.ndarray:
    return (
        0.5
        + 0.1 * rng.standard_normal((prompts, 1))
        + 0.05 * rng.standard_normal((prompts, images))
    )


def skewed(rng: np.random.Generator, prompts: int, images: int) -> np.ndarray:
    return 0.4 + rng.exponential(0.1, (prompts, 1)) + 0.05 * rng.standard_normal((prompts, images))


def two_groups(rng: np.random.Generator, prompts: int, images: int) -> np.ndarray:
    centre = np.where(rng.random((prompts, 1)) < 1 / 6, 0.95, 0.35)
    return (
        centre
        + 0.03 * rng.standard_normal((prompts, 1))
        + 0.05 * rng.standard_normal((prompts, images))
    )


def chances(rng: np.random.Generator, prompts: int, images: int) -> np.ndarray:
    return (rng.random((prompts, images)) < rng.beta(0.5, 2.0, (prompts, 1))).astype(float)


MEANS: dict[str, tuple[Draw, float]] = {
    "normal": (normal, 0.5),
    "skewed": (skewed, 0.5),
    "two groups": (two_groups, 0.95 / 6 + 0.35 * 5 / 6),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulations", type=int, default=1000)
    arguments = parser.parse_args()
    runs = arguments.simulations

    def share(covers: Callable[..., bool], *settings: object) -> float:
        return float(
            np.mean([covers(np.random.default_rng([7, run]), *settings) for run in range(runs)])
        )

    print(f"{runs} simulations; coverage of 95 % intervals")
    for prompts in (18, 48, 200):
        for name, (draw, truth) in MEANS.items():
            print(
                f"mean, {name:10s} {prompts:4d} prompts x 4:"
                f" {share(_mean, draw, truth, prompts):.3f}"
            )
        print(
            f"95th percentile, normal {prompts:4d} prompts x 4: {share(_percentile, prompts):.3f}"
        )
        print(f"proportion of images {prompts:4d} prompts x 4: {share(_proportion, prompts):.3f}")
        print(
            f"proportion of prompts, exact {prompts:4d}: {share(_exact, prompts):.3f} (conservative"
            " by construction)"
        )
        print(f"paired difference {prompts:4d} prompts: {share(_paired, prompts):.3f}")
        print(
            f"mean, strata of unequal means {prompts:4d} prompts x 4: {share(_strata, prompts):.3f}"
        )
        print(
            f"proportion of prompts, strata {prompts:4d}: {share(_strata_of_shares, prompts):.3f}"
        )
        print(
            f"mean, two of three in clusters {prompts:4d} prompts x 4:"
            f" {share(_clusters, prompts):.3f}"
        )
        for size in (1, 4):
            print(
                f"left at equal utility, {prompts // size:4d} clusters of {size}:"
                f" {share(_equal_utility, prompts // size, size):.3f}"
            )
            for name, shift in (("usual", 1.0), ("nearly separated", 2.5)):
                print(
                    f"area, {name}, {prompts // size:4d} clusters of {size} against 100:"
                    f" {share(_area, prompts // size, size, shift):.3f}"
                )
        for name, better, worse in (
            ("no effect", 0.05, 0.05),
            ("an effect", 0.2, 0.02),
            ("few changes", 0.02, 0.02),
            ("few changes, all for the better", 0.03, 0.0),
        ):
            print(
                f"paired difference of proportions, {name}, {prompts:4d} prompts:"
                f" {share(_changed, prompts, better, worse):.3f}"
            )


def _inside(interval: tuple[float, float], truth: float) -> bool:
    return interval[0] <= truth <= interval[1]


def _mean(rng: np.random.Generator, draw: Draw, truth: float, prompts: int) -> bool:
    return _inside(cluster_bootstrap(draw(rng, prompts, 4)), truth)


def _strata(rng: np.random.Generator, prompts: int) -> bool:
    """Six levels of unequal size, of fixed numbers of prompts, with means from 0 to 1."""
    sizes = np.maximum((np.array([1, 2, 3, 3, 2, 1]) * prompts / 12).round().astype(int), 2)
    levels = np.repeat(np.arange(6), sizes)
    table = 0.2 * levels[:, None] + normal(rng, len(levels), 4) - 0.5
    ids = [str(i) for i in range(len(levels))]
    design = Design({}, dict(zip(ids, map(str, levels), strict=True)))
    return _inside(cluster_bootstrap(table, units=design.units(ids)), float(0.2 * levels.mean()))


def _strata_of_shares(rng: np.random.Generator, prompts: int) -> bool:
    """Levels of views of which the first give no copies and the last nothing else."""
    chances = np.array([0.005, 0.03, 0.2, 0.6, 0.93, 0.995])
    levels = np.repeat(np.arange(6), max(prompts // 6, 2))
    drawn = (rng.random(len(levels)) < chances[levels]).astype(float)
    ids = [str(i) for i in range(len(levels))]
    design = Design({}, dict(zip(ids, map(str, levels), strict=True)))
    interval = proportion_interval(drawn[:, None], units=design.units(ids))
    return _inside(interval, float(chances[levels].mean()))


def _clusters(rng: np.random.Generator, prompts: int) -> bool:
    """A third stands alone, the others in clusters of two to four that share their effect."""
    clusters: list[int] = []
    while len(clusters) < prompts:
        size = 1 if rng.random() < 0.5 else int(rng.integers(2, 5))
        clusters += [len(set(clusters))] * size
    effects = rng.standard_normal(len(set(clusters)))[clusters]
    table = 0.1 * effects[:, None] + 0.05 * rng.standard_normal((len(clusters), 4))
    ids = [str(i) for i in range(len(clusters))]
    design = Design(dict(zip(ids, clusters, strict=True)), {})
    return _inside(cluster_bootstrap(table, units=design.units(ids)), 0.0)


def _together(clusters: int, size: int) -> tuple[np.ndarray, Units | None]:
    """The number of the cluster of each prompt, and what varies independently."""
    numbers = np.repeat(np.arange(clusters), size)
    ids = [str(i) for i in range(len(numbers))]
    return numbers, Design(dict(zip(ids, numbers.tolist(), strict=True)), {}).units(ids)


def _equal_utility(rng: np.random.Generator, clusters: int, size: int) -> bool:
    """Six strengths, along which replication falls from 0.8 to 0.4 and utility of 40 prompts from
    0.70 to 0.66, both evenly: 0.6 is left half way.
    """
    numbers, units = _together(clusters, size)
    strengths = np.linspace(0, 1, 6)[:, None]
    levels, slopes = rng.standard_normal((2, clusters))[:, numbers]
    replication = 0.8 - 0.4 * strengths + 0.2 * levels + 0.15 * slopes * strengths
    replication = replication + 0.05 * rng.standard_normal((6, len(numbers)))
    utility = 0.7 - 0.04 * strengths + 0.1 * rng.standard_normal((1, 40))
    utility = utility + 0.01 * rng.standard_normal((6, 40))
    (at,) = at_equal_utility(replication, utility, [0.02], units=(units, None))
    return at is not None and _inside(at[1:], 0.6)


def _area(rng: np.random.Generator, clusters: int, size: int, shift: float) -> bool:
    """Positives in clusters that share four fifths of their variance, `shift` above negatives."""
    numbers, units = _together(clusters, size)
    common, own = rng.standard_normal(clusters)[numbers], rng.standard_normal(len(numbers))
    positives = shift + np.sqrt(0.8) * common + np.sqrt(0.2) * own
    interval = area_interval(positives, rng.standard_normal(100), (units, None))
    return _inside(interval, float(stats.norm.cdf(shift / np.sqrt(2))))


def _percentile(rng: np.random.Generator, prompts: int) -> bool:
    truth = 0.5 + 1.6448536 * float(np.hypot(0.1, 0.05))
    return _inside(
        cluster_bootstrap(
            normal(rng, prompts, 4), lambda values: np.percentile(values, 95, axis=-1)
        ),
        truth,
    )


def _proportion(rng: np.random.Generator, prompts: int) -> bool:
    return _inside(proportion_interval(chances(rng, prompts, 4)), 0.2)


def _exact(rng: np.random.Generator, prompts: int) -> bool:
    return _inside(clopper_pearson(int(rng.binomial(prompts, 0.2)), prompts), 0.2)


def _paired(rng: np.random.Generator, prompts: int) -> bool:
    base = two_groups(rng, prompts, 1)[:, 0]
    values = {str(i): float(b - 0.05 + 0.04 * rng.standard_normal()) for i, b in enumerate(base)}
    found = paired_difference(values, {str(i): float(b) for i, b in enumerate(base)})
    assert found is not None
    return found[1] <= -0.05 <= found[2]


def _changed(rng: np.random.Generator, prompts: int, better: float, worse: float) -> bool:
    """Each prompt is extracted or not, before and after: a share changes for the better, another
    for the worse.
    """
    drawn = rng.random(prompts)
    after = np.where(drawn < better, 0.0, np.where(drawn > 1 - worse, 1.0, 0.5))
    before = np.where(drawn < better, 1.0, np.where(drawn > 1 - worse, 0.0, 0.5))
    found = paired_difference(
        {str(i): float(value) for i, value in enumerate(after)},
        {str(i): float(value) for i, value in enumerate(before)},
        share=True,
    )
    assert found is not None
    return found[1] - 1e-12 <= worse - better <= found[2] + 1e-12


if __name__ == "__main__":
    main()
