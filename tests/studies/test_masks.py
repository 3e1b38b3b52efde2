import csv
import io
import json
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from bench.base.errors import UserError
from bench.cli.main import app
from bench.contracts.masked import MaskedMethod
from bench.contracts.method import FitData, Method
from bench.studies.mask_plots import calls_picture, density_picture, layers_picture, subsets_picture
from bench.studies.masks import (
    ALL,
    UNDEFINED,
    UNION,
    MaskFacts,
    Overlap,
    analyze_masks,
    by_layer,
    call_table,
    density_table,
    draw_subsets,
    mask_facts,
    subset_table,
)
from conftest import CAPTIONS
from methods.wanda import Wanda

CALLS = 3


def quiet(what, done, total):
    pass


def positions(mask):
    """A mask as the set of its weights' positions."""
    return {tuple(place) for place in mask.nonzero().tolist()}


def random_functions(density=0.3, prompts=6):
    """Two layers whose masks are random and grow with the prompts chosen; candidates are a
    superset.
    """
    torch.manual_seed(0)
    functions = {}
    for layer, shape in {"a": (5, 7), "b": (4, 11)}.items():
        by_prompt = torch.rand(prompts, CALLS, *shape) < density / 3
        extra = torch.rand(CALLS, *shape) < 0.2

        def masks_of(chosen, by_prompt=by_prompt, extra=extra):
            masked = by_prompt[list(chosen)].any(0)
            return masked | extra, masked

        functions[layer] = masks_of
    return functions


SUBSETS = [(0, 1, 2), (1, 2, 3), (3, 4, 5)]


def test_densities_equal_counting_sets():
    functions = random_functions()
    table = density_table(mask_facts(functions, range(6), SUBSETS, quiet), [900, 800, 700])
    found = {(row["layer"], row["call"]): row for row in table}
    assert len(found) == len(table) == 3 * (CALLS + 1)
    for call, timestep in [(0, 900), (1, 800), (2, 700), (UNION, None)]:
        whole = {"candidates": 0, "masked": 0, "weights": 0}
        for layer, masks_of in functions.items():
            counted = {"weights": masks_of([0])[1][0].numel()}
            for name, masks in zip(("candidates", "masked"), masks_of(range(6)), strict=True):
                wanted = masks if call == UNION else masks[call : call + 1]
                counted[name] = len(set().union(*(positions(mask) for mask in wanted)))
            whole = {name: whole[name] + counted[name] for name in whole}
            row = found[layer, call]
            assert {name: row[name] for name in counted} == counted
            assert (
                row["density"] == counted["masked"] / counted["weights"]
                and row["timestep"] == timestep
            )
        assert {name: found[ALL, call][name] for name in whole} == whole


def test_ious_of_subsets_and_calls_equal_those_of_sets():
    functions = random_functions()
    facts = mask_facts(functions, range(6), SUBSETS, quiet)
    common, either = np.zeros((2, 3, 3)), np.zeros((2, 3, 3))
    for layer, masks_of in functions.items():
        of_subsets = [
            set().union(*(positions(mask) for mask in masks_of(subset)[1])) for subset in SUBSETS
        ]
        of_calls = [positions(mask) for mask in masks_of(range(6))[1]]
        for kind, sets in enumerate((of_subsets, of_calls)):
            overlap = (facts[layer].subsets, facts[layer].calls)[kind]
            for i, j in combinations(range(3), 2):
                assert overlap.iou(i, j) == len(sets[i] & sets[j]) / len(sets[i] | sets[j])
                common[kind, i, j] += len(sets[i] & sets[j])
                either[kind, i, j] += len(sets[i] | sets[j])
    for i, j in combinations(range(3), 2):
        assert facts[ALL].subsets.iou(i, j) == common[0, i, j] / either[0, i, j]
        assert facts[ALL].calls.iou(i, j) == common[1, i, j] / either[1, i, j]


def test_counts_stay_exact_when_masks_are_compared_in_parts(monkeypatch):
    torch.manual_seed(0)
    masks = torch.rand(4, 9, 13) < 0.4
    whole = Overlap.of(masks)
    monkeypatch.setattr("bench.studies.masks.CHUNK", 10)
    assert np.array_equal(Overlap.of(masks).shared, whole.shared)
    assert [whole.shared[i, i] for i in range(4)] == [len(positions(mask)) for mask in masks]


def test_chance_iou_is_what_shuffled_masks_have():
    """Two layers of different density, each mask shuffled inside its layer."""
    random = np.random.default_rng(0)
    sizes = {(40, 50): (200, 500), (30, 30): (450, 90)}
    overlaps, simulated = [], []
    for shape, (first, second) in sizes.items():
        flat = torch.zeros(2, shape[0] * shape[1], dtype=torch.bool)
        flat[0, :first], flat[1, -second:] = True, True
        overlaps.append(Overlap.of(flat.reshape(2, *shape)))
    for _ in range(400):
        common = either = 0
        for (rows, columns), (first, second) in sizes.items():
            a = set(random.permutation(rows * columns)[:first].tolist())
            b = set(random.permutation(rows * columns)[:second].tolist())
            common, either = common + len(a & b), either + len(a | b)
        simulated.append(common / either)
    assert (overlaps[0] + overlaps[1]).chance_iou(0, 1) == pytest.approx(
        np.mean(simulated), rel=0.01
    )


def test_the_iou_of_empty_masks_is_none_and_of_one_empty_mask_zero():
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[2, 0, 0] = True
    overlap = Overlap.of(masks)
    assert overlap.iou(0, 1) is None and overlap.chance_iou(0, 1) is None
    assert overlap.iou(0, 2) == 0 and overlap.chance_iou(0, 2) == 0
    rows = [
        {"layer": "a", "iou": None, "chance_iou": None},
        {"layer": "a", "iou": 0.5, "chance_iou": 0.1},
        {"layer": "b", "iou": None, "chance_iou": None},
    ]
    found = by_layer(rows, ["a", "b", "c"])
    assert found["a"] == {
        "pairs": 2,
        "undefined": 1,
        "mean": 0.5,
        "min": 0.5,
        "max": 0.5,
        "chance": 0.1,
    }
    assert found["b"]["mean"] is None and found["b"]["reason"] == UNDEFINED
    assert found["c"]["mean"] is None and "single call" in found["c"]["reason"]


def test_subsets_are_different_sorted_repeat_nothing_and_follow_their_seed():
    drawn = draw_subsets(12, 10, 6, seed=3)
    assert len(set(drawn)) == 10
    assert all(
        len(set(subset)) == 6 and list(subset) == sorted(subset) and set(subset) <= set(range(12))
        for subset in drawn
    )
    assert drawn == draw_subsets(12, 10, 6, seed=3) != draw_subsets(12, 10, 6, seed=4)
    assert sorted(draw_subsets(4, 6, 2, seed=0)) == list(combinations(range(4), 2))


@pytest.mark.parametrize(
    ("available", "count", "size", "says"),
    [
        (12, 1, 6, "--subsets must be at least 2"),
        (12, 10, 13, "--size must be between 1 and the number of fit prompts, 12, not 13"),
        (12, 10, 0, "--size must be between 1"),
        (12, 2, 12, "only 1 different subsets of 12"),
        (3, 10, 1, "only 3 different subsets of 1, not 10: choose another"),
    ],
)
def test_impossible_subsets_are_refused(available, count, size, says):
    with pytest.raises(UserError, match=says):
        draw_subsets(available, count, size, 0)


@pytest.mark.parametrize(("branch", "token_norm"), [("both", "l2"), ("cond", "none")])
def test_masks_from_summed_energies_equal_fitting_on_the_subset(denoiser, branch, token_norm):
    """Batches of four, six prompts: the sums run over two batches and in another order than in
    `fit`.
    """
    method = Wanda(sparsity=0.1, calls=CALLS, branch=branch, token_norm=token_norm)
    functions = method.mask_functions(denoiser, CAPTIONS, quiet)
    for chosen in [(0, 5), (1, 3, 4), tuple(range(6))]:
        fitted = method.fit(denoiser, FitData(fit_prompts=tuple(CAPTIONS[i] for i in chosen)))
        assert fitted.keys() == functions.keys()
        for layer, masks_of in functions.items():
            candidates, masked = masks_of(chosen)
            assert candidates.shape == masked.shape == (CALLS, *fitted[layer].shape)
            assert not (masked & ~candidates).any()
            assert (candidates.sum(2) == int(0.1 * candidates.shape[2])).all()
            both = Overlap.of(torch.stack([masked.any(0), fitted[layer]]))
            assert both.iou(0, 1) > 0.995, layer  # equal up to scores that are ties within rounding


def test_energies_by_prompt_add_up_to_those_of_all(denoiser):
    method = Wanda(calls=CALLS)
    total = method.column_energies(denoiser, CAPTIONS, CALLS)
    alone = {i: method.column_energies(denoiser, [CAPTIONS[i]], CALLS) for i in (0, 5)}
    for layer, energies in method.column_energies(
        denoiser, CAPTIONS, CALLS, per_prompt=True
    ).items():
        assert energies.shape == (len(CAPTIONS), *total[layer].shape)
        torch.testing.assert_close(energies.sum(0), total[layer])
        for i in (0, 5):
            torch.testing.assert_close(energies[i], alone[i][layer], rtol=1e-3, atol=1e-3)


def test_more_subsets_cost_no_more_evaluations_than_one_fit_on_all_prompts(denoiser):
    found = analyze_masks(
        denoiser, Wanda(sparsity=0.1, calls=CALLS), CAPTIONS, draw_subsets(6, 10, 3, 0), quiet
    )
    assert found.summary["row_evaluations"] == 2 * CALLS * (len(CAPTIONS) + 1)


def test_density_is_that_of_the_masks_which_fit_makes(denoiser):
    """`fit` uses three of the six prompts here, and so does the table."""
    method = Wanda(sparsity=0.1, calls=CALLS, prompts=3)
    state = method.fit(denoiser, FitData(fit_prompts=tuple(CAPTIONS)))
    found = analyze_masks(denoiser, method, CAPTIONS, SUBSETS, quiet)
    for layer, mask in state.items():
        assert found.summary["density"][layer] == pytest.approx(
            mask.float().mean().item(), rel=0.01
        )
    assert found.summary["fitted_on"] == 3


def read_table(path):
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def run(tiny_folder, *arguments):
    return CliRunner().invoke(
        app, ["analyze", "masks", "--suite", str(tiny_folder / "tiny.toml"), *map(str, arguments)]
    )


TWO = ("--subsets", 2, "--size", 1)


def test_the_command_writes_tables_and_plots_that_agree_with_its_summary(tiny_folder, tmp_path):
    done = run(tiny_folder, *TWO, "-p", "sparsity=0.1", "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["method"], facts["parameters"]["sparsity"], facts["row_evaluations"]) == (
        "wanda",
        0.1,
        2 * 3 * (2 + 1),
    )
    assert facts["subsets"] == {"count": 2, "size": 1, "mean_shared_prompts": 0, "seed": 0}
    files = {path.name: path for path in (tmp_path / "out").iterdir()}
    del files[".analysis"]  # the mark of whose folder it is
    assert (
        sorted(facts["files"]) == sorted(map(str, files.values()))
        and json.loads(files["summary.json"].read_text()) == facts
    )
    density, subsets, calls = (
        read_table(files[name]) for name in ("density.csv", "iou_subsets.csv", "iou_calls.csv")
    )
    layers = list(facts["density"])
    assert [row["layer"] for row in subsets] == layers and layers[-1] == ALL
    assert [(row["layer"], row["call"]) for row in density] == [
        (layer, call) for layer in layers for call in ("0", "1", "2", UNION)
    ]
    assert all(
        float(row["density"]) == pytest.approx(int(row["masked"]) / int(row["weights"]), abs=1e-8)
        for row in density
    )
    assert all(
        int(row["masked"]) <= int(row["candidates"]) <= int(row["weights"]) for row in density
    )
    assert [float(row["density"]) for row in density if row["call"] == UNION] == pytest.approx(
        list(facts["density"].values()), abs=1e-8
    )
    times = [int(row["timestep"]) for row in density[:3]]
    assert times == sorted(times, reverse=True) and density[3]["timestep"] == ""
    assert [(int(row["timestep"]), int(row["next_timestep"])) for row in calls[:2]] == list(
        pairwise(times)
    )
    assert [float(row["iou"]) for row in subsets] == pytest.approx(
        [facts["iou_between_subsets"][layer]["mean"] for layer in layers], abs=1e-8
    )
    assert {row["prompt"] for row in read_table(files["subsets.csv"])} == set(CAPTIONS[:2])
    for path in files.values():
        assert path.suffix != ".png" or min(Image.open(path).size) > 300


def test_empty_masks_give_null_with_the_reason_and_never_zero_or_nan(tiny_folder, tmp_path):
    text = run(tiny_folder, *TWO, "-p", "sparsity=0", "--out", tmp_path).stdout
    assert (
        f"null: {UNDEFINED}" in text and "nan" not in text and str(tmp_path / "density.png") in text
    )
    facts = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    assert facts["density"][ALL] == 0
    for kind in ("iou_between_subsets", "iou_between_consecutive_calls"):
        assert facts[kind][ALL]["mean"] is None and facts[kind][ALL]["reason"] == UNDEFINED
    assert {
        (row["iou"], row["chance_iou"], row["reason"])
        for row in read_table(tmp_path / "iou_subsets.csv")
    } == {("", "", UNDEFINED)}


def test_a_single_call_has_no_consecutive_one(tiny_folder, tmp_path):
    facts = json.loads(
        run(
            tiny_folder, *TWO, "-p", "calls=1", "-p", "sparsity=0.1", "--out", tmp_path, "--json"
        ).stdout
    )
    assert "single call" in facts["iou_between_consecutive_calls"][ALL]["reason"]
    assert (
        facts["iou_between_subsets"][ALL]["mean"] is not None
        and not (tmp_path / "iou_calls.csv").exists()
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--subsets", 1], "--subsets must be at least 2"),
        (["--size", 3], "--size must be between 1 and the number of fit prompts, 2, not 3"),
        (["--suite", "testbet"], "did you mean 'testbed'"),
        (["--method", "none"], "method none has no masks to analyze"),
        (["--method", "wnda"], "did you mean 'wanda'"),
        (["-p", "sparsty=0.1"], "did you mean 'sparsity'"),
        ([*TWO, "--device", "cuda:9"], "device 'cuda:9' cannot be used here"),
        ([*TWO, "--out", "a-file/below"], "cannot be written"),
    ],
)
def test_bad_input_is_one_line_before_the_model_is_loaded(
    tiny_folder, tmp_path, monkeypatch, arguments, says
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("")
    monkeypatch.setattr("bench.diffusion.model.load_denoiser", lambda *_: pytest.fail("loaded"))
    done = run(tiny_folder, *arguments)
    assert isinstance(done.exception, UserError)
    assert says in str(done.exception) and "\n" not in str(done.exception)


def test_a_suite_without_fit_prompts_is_refused(tiny_folder, tmp_path):
    text = (tiny_folder / "tiny.toml").read_text()
    start = text.index("[prompts.fit]")
    (tiny_folder / "unfit.toml").write_text(
        text[:start] + text[text.index("[prompts.memorized]") :]
    )
    done = CliRunner().invoke(
        app,
        ["analyze", "masks", "--suite", str(tiny_folder / "unfit.toml"), "--out", str(tmp_path)],
    )
    assert str(done.exception) == "suite tiny has no fit prompts to make masks from"


def test_help_shows_an_example():
    assert (
        "bench analyze masks --suite testbed"
        in CliRunner().invoke(app, ["analyze", "masks", "--help"]).stdout
    )


def test_a_method_offers_masks_by_having_the_protocol_and_needs_no_name():
    class Other(Method):
        def fitted_on(self, available):
            return [0]

        def mask_functions(self, denoiser, prompts, report):
            return random_functions()

    assert (
        isinstance(Wanda(), MaskedMethod)
        and isinstance(Other(), MaskedMethod)
        and not isinstance(Method(), MaskedMethod)
    )


def test_pictures_of_many_layers_calls_and_subsets_stay_readable_in_size():
    """Sixteen layers, fifty calls: cells lose their numbers, the picture does not grow without
    bound.
    """
    torch.manual_seed(0)
    calls, subsets = Overlap.of(torch.rand(50, 8, 8) < 0.3), Overlap.of(torch.rand(20, 8, 8) < 0.3)
    counts = np.full(51, 7)
    facts = {
        f"down_blocks.{i}.attentions.0.transformer_blocks.0.ff.net.2": MaskFacts(
            64, counts, counts, calls, subsets
        )
        for i in range(16)
    }
    facts[ALL] = MaskFacts(64, counts, counts, calls, subsets)
    times = list(range(1000, 0, -20))
    pairs, consecutive = subset_table(facts, [(i,) for i in range(20)]), call_table(facts, times)
    pictures = [
        density_picture(density_table(facts, times), "d"),
        subsets_picture(pairs, 20, "s"),
        calls_picture(consecutive, "c"),
    ]
    pictures.append(
        layers_picture(by_layer(pairs, list(facts)), by_layer(consecutive, list(facts)), "l")
    )
    for picture in pictures:
        width, height = Image.open(io.BytesIO(picture)).size
        assert width < 2500 and height < 2500
