"""How often the 95 % intervals of bench/statistics cover the truth, on simulated data whose truth
is known; what docs/intervals.md says of them is kept in docs/intervals.json.

    PYTHONPATH=. python tests/benchmarks/coverage.py           # about ten minutes on one core
    PYTHONPATH=. python tests/benchmarks/coverage.py --only ranks --simulations 200 --out try.json

A line that is there stays, so that an interrupted run goes on where it stopped; `--again` simulates
it anew. Simulation `i` draws from the seed `[7, i]`, so numbers are the same every time.

Tables `[prompts, images]` with an effect of the prompt and one of the image, of three shapes:
normal; skewed (exponential prompt effect); two groups (a sixth of the prompts near 0.95, the others
near 0.35, as SSCD of a memorizing model). For proportions each prompt has a chance of its own; the
95th percentile is of the normal shape. What is left at equal utility is of a straight curve, areas
under the ROC curve are of two normal distributions; both once with prompts in clusters of four that
share most of their effect. An interval is right when it covers the truth in 95 of 100 simulations;
93.6 to 96.4 is what 1,000 simulations of a right one give.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy import stats

from bench.base.files import write_atomically
from bench.statistics.claims import holm, rank_intervals, sign_flip_p
from bench.statistics.curves import at_equal_utility
from bench.statistics.detection import area_interval
from bench.statistics.intervals import (
    clopper_pearson,
    cluster_bootstrap,
    difference_of_shares,
    independent_shares,
    paired_difference,
    proportion_interval,
)
from bench.statistics.recovered import recovered_share
from bench.statistics.units import Design, Units

KEPT = Path(__file__).resolve().parents[2] / "docs/intervals.json"

FEW = (8, 16, 48)  # prompts of what attackers are asked to bring back
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


@dataclass(frozen=True)
class Line:
    """One kind of interval on one kind of data, at several numbers of prompts.

    `covers` says of one simulation with so many prompts whether the interval has the truth; None
    where the data allow no interval, which counts nowhere.
    """

    what: str
    covers: Callable[[np.random.Generator, int], bool | None]
    prompts: tuple[int, ...] = (18, 48, 200)


def lines() -> list[Line]:
    """All lines, in the order of the page."""
    found = [
        *(
            Line(f"mean, {name}", partial(_mean, draw, truth))
            for name, (draw, truth) in MEANS.items()
        ),
        Line("mean, three generations of four images", _generations),
        Line("mean, strata of unequal means", _strata),
        Line("mean, two of three prompts in clusters", _clusters),
        Line("95th percentile", _percentile, (200,)),
        Line("share of images", _proportion),
        *(
            Line(f"share of twelve images, {truth:g}{of}", partial(_many_images, truth, of), FEW)
            for truth in (0.02, 0.2, 0.95)
            for of in ("", ", levels")
        ),
        Line("share of prompts, exact", _exact),
        Line("share of prompts, strata", _strata_of_shares),
        Line("paired difference", _paired),
    ]
    for name, better, worse in (
        ("no effect", 0.05, 0.05),
        ("an effect", 0.2, 0.02),
        ("few changes", 0.02, 0.02),
        ("few changes, all for the better", 0.03, 0.0),
    ):
        covers = partial(_changed, better, worse)
        found.append(Line(f"paired difference of shares, {name}", covers))
    found += [
        Line("difference of differences of shares", _excess),
        Line("difference of shares of other pictures", _independent),
    ]
    for back in (0.02, 0.5, 1.0):
        found.append(Line(f"share recovered, {back:g}", partial(_recovered, back), FEW))
    for size in (1, 4):
        which = "" if size == 1 else f", clusters of {size}"
        found.append(Line(f"left at equal utility{which}", partial(_equal_utility, size)))
        for name, shift in (("usual", 1.0), ("nearly separated", 2.5)):
            found.append(Line(f"area under the curve, {name}{which}", partial(_area, size, shift)))
    return [
        *found,
        Line("ranks of six rows, all together", _ranks),
        Line("no false difference among twelve rows", _family),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--only", default="", help="lines whose name has these letters")
    parser.add_argument("--again", action="store_true", help="simulate anew what is there")
    parser.add_argument("--out", type=Path, default=KEPT)
    given = parser.parse_args()
    kept = json.loads(given.out.read_text()) if given.out.exists() else {}
    for line in lines():
        for prompts in line.prompts:
            there = str(prompts) in kept.get(line.what, {})
            if given.only not in line.what or (there and not given.again):
                continue
            answers = [
                line.covers(np.random.default_rng([7, run]), prompts)
                for run in range(given.simulations)
            ]
            said = [answer for answer in answers if answer is not None]
            cell = {"covered": int(sum(said)), "of": len(said)}
            kept.setdefault(line.what, {})[str(prompts)] = cell
            print(f"{line.what}, {prompts} prompts: {sum(said) / len(said):.3f} of {len(said)}")
            write_atomically(given.out, (json.dumps(kept, indent=1) + "\n").encode())


def _inside(interval: tuple[float, float], truth: float) -> bool:
    return interval[0] <= truth <= interval[1]


def _mean(draw: Draw, truth: float, rng: np.random.Generator, prompts: int) -> bool:
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


def _equal_utility(size: int, rng: np.random.Generator, prompts: int) -> bool:
    """Six strengths, along which replication falls from 0.8 to 0.4 and utility of 40 prompts from
    0.70 to 0.66, both evenly: 0.6 is left half way.
    """
    clusters = prompts // size
    numbers, units = _together(clusters, size)
    strengths = np.linspace(0, 1, 6)[:, None]
    levels, slopes = rng.standard_normal((2, clusters))[:, numbers]
    replication = 0.8 - 0.4 * strengths + 0.2 * levels + 0.15 * slopes * strengths
    replication = replication + 0.05 * rng.standard_normal((6, len(numbers)))
    utility = 0.7 - 0.04 * strengths + 0.1 * rng.standard_normal((1, 40))
    utility = utility + 0.01 * rng.standard_normal((6, 40))
    (at,) = at_equal_utility(replication, utility, [0.02], units=(units, None))
    return at is not None and _inside(at[1:], 0.6)


def _area(size: int, shift: float, rng: np.random.Generator, prompts: int) -> bool:
    """Positives in clusters that share four fifths of their variance, `shift` above negatives."""
    clusters = prompts // size
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


def _many_images(truth: float, levels: str, rng: np.random.Generator, prompts: int) -> bool:
    """Three generations of four images. A prompt gives copies with a chance of its own, mostly
    near 0 or 1; with `levels` one half of the prompts has twice the chance to fail (or to give any,
    which is rarer) of the other half, and the halves are strata.
    """
    rare = min(truth, 1 - truth)
    of_prompts = np.full(prompts, rare)
    units = None
    if levels:
        of_prompts = rare * np.repeat([2 / 3, 4 / 3], prompts // 2)
        ids = [str(i) for i in range(prompts)]
        strata = dict(zip(ids, np.repeat(["one", "other"], prompts // 2), strict=True))
        units = Design({}, strata).units(ids)
    chance = rng.beta(of_prompts, 1 - of_prompts)
    events = rng.random((prompts, 12)) < chance[:, None]
    table = events if truth == rare else ~events
    return _inside(proportion_interval(table.astype(float), units=units), truth)


def _exact(rng: np.random.Generator, prompts: int) -> bool:
    return _inside(clopper_pearson(int(rng.binomial(prompts, 0.2)), prompts), 0.2)


def _paired(rng: np.random.Generator, prompts: int) -> bool:
    base = two_groups(rng, prompts, 1)[:, 0]
    values = {str(i): float(b - 0.05 + 0.04 * rng.standard_normal()) for i, b in enumerate(base)}
    found = paired_difference(values, {str(i): float(b) for i, b in enumerate(base)})
    assert found is not None
    return found[1] <= -0.05 <= found[2]


def _changed(better: float, worse: float, rng: np.random.Generator, prompts: int) -> bool:
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


def _generations(rng: np.random.Generator, prompts: int) -> bool:
    """Prompts, generations within prompts, and images within generations each have an effect; the
    interval knows prompts only.
    """
    table = (
        0.5
        + 0.1 * rng.standard_normal((prompts, 1, 1))
        + 0.05 * rng.standard_normal((prompts, 3, 1))
        + 0.05 * rng.standard_normal((prompts, 3, 4))
    )
    return _inside(cluster_bootstrap(table.reshape(prompts, 12)), 0.5)


def _excess(rng: np.random.Generator, prompts: int) -> bool:
    """Two differences of two 0/1 answers each, of which a tenth and a twentieth change."""
    plain = rng.random((2, prompts)) < 0.3
    changes = rng.random((2, prompts)) < np.array([[0.1], [0.05]])
    asked = np.where(changes, True, plain)
    values = (asked[0].astype(float) - plain[0]) - (asked[1].astype(float) - plain[1])
    truth = 0.7 * (0.1 - 0.05)
    return _inside(difference_of_shares(values, largest=2.0), truth)


def _independent(rng: np.random.Generator, prompts: int) -> bool:
    """Memorized pictures with a chance each, beside half as many controls that nearly never are."""
    memorized = rng.random((prompts, 4)) < rng.beta(2.0, 1.0, (prompts, 1))
    controls = rng.random((prompts // 2, 4)) < 0.02
    found = independent_shares(memorized.astype(float), controls.astype(float))
    return _inside(found, 2 / 3 - 0.02)


def _recovered(back: float, rng: np.random.Generator, pictures: int) -> bool | None:
    """Of pictures that were copied in nine of ten images and are in one of twenty, a probe brings
    `back` this share of what was removed, in four images each.
    """

    def shares(mean: float) -> np.ndarray:
        chance = rng.beta(4 * mean, 4 * (1 - mean), pictures)
        return np.asarray(rng.binomial(4, chance) / 4)

    whole, edited = shares(0.9), shares(0.05)
    found = recovered_share(shares(0.05 + 0.85 * back), edited, whole)
    return None if found is None else _inside(found[1:], back)


def _ranks(rng: np.random.Generator, prompts: int) -> bool:
    """Three rows that are equal, and three that are worse by a tenth each: whether the interval of
    every row has every rank that it may have.
    """
    means = np.array([0.3, 0.3, 0.3, 0.4, 0.5, 0.6])[:, None]
    of_prompts, own = rng.standard_normal((1, prompts)), rng.standard_normal((6, prompts))
    intervals = rank_intervals(means + 0.2 * of_prompts + 0.1 * own)
    truths = [(1, 3), (1, 3), (1, 3), (4, 4), (5, 5), (6, 6)]
    return all(
        low <= least and most <= high
        for (low, high), (least, most) in zip(intervals, truths, strict=True)
    )


def _family(rng: np.random.Generator, prompts: int) -> bool:
    """Twelve rows that do not differ from `none`: whether none of them is called better or worse
    once all twelve are counted (Holm).
    """
    of_prompts = 0.5 * rng.standard_normal(prompts)  # what rows share beside `none`
    differences = of_prompts + rng.standard_normal((12, prompts))
    return min(holm([sign_flip_p(row, flips=999) for row in differences])) > 0.05


if __name__ == "__main__":
    main()
