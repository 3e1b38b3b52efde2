"""`bench analyze subsets`, against slow and obvious ways to the same numbers on the tiny model."""

import csv
import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from bench.base.errors import UserError
from bench.base.pictures import read_picture
from bench.contracts.method import FitData, Method
from bench.diffusion.model import load_denoiser
from bench.features.networks import CopyDescriptor
from bench.running import generating
from bench.running.engine import Engine
from bench.running.images import Images
from bench.running.prepare import prepare
from bench.running.sampling import sample
from bench.statistics.intervals import cluster_bootstrap, difference_of_shares
from bench.statistics.units import Design
from bench.studies.masks import ALL, UNION
from bench.studies.random_masks import moved, with_random_masks
from bench.studies.subset_masks import (
    call_rows,
    default_sizes,
    draw_by_size,
    pair_rows,
    shared_prompts,
    size_facts,
)
from bench.studies.subset_models import (
    RANDOM,
    Asked,
    Measured,
    judged_models,
    measured,
    models_of,
    of_whole_subsets,
    outside,
)
from bench.studies.subset_study import SubsetStudy
from bench.studies.subset_tables import (
    against,
    agreement_rows,
    between_models,
    between_seeds,
    model_rows,
    size_rows,
)
from bench.studies.subset_words import conclusions
from bench.suite.load import load_suite
from bench.suite.prompts import Prompt
from conftest import CAPTIONS, SUITE, bench, write_csv
from methods.wanda import Wanda

CPU = torch.device("cpu")
VALUES = {"sparsity": 0.3, "calls": 2}
ASKED = Asked(held_out=2, left_out=1, images=2, clean=3)


def quiet(what, done, total):
    pass


@pytest.fixture
def suite(tiny_folder):
    """The tiny suite with four fit prompts, of which the last two share a training picture."""
    rows = [["id", "prompt", "group", "split", "reference"]]
    for number, caption in enumerate(CAPTIONS):
        split = "fit" if number < 4 else "memorized"
        picture = f"reference-{2 if number == 3 else number}.png"
        rows.append([f"p{number}", caption, "1", split, picture])
    write_csv(tiny_folder / "four.csv", rows)
    text = SUITE.replace('file = "prompts.csv"', 'file = "four.csv"').replace('"tiny"', '"four"')
    (tiny_folder / "four.toml").write_text(text)
    return load_suite(str(tiny_folder / "four.toml"))


def judge(suite, store, subsets, asked=ASKED, control=False):
    models, _ = models_of(suite, "wanda", VALUES, subsets, asked, control, 0)
    engine = Engine(next(m for m in models if m.size is not None).experiment, CPU)
    return models, judged_models(models, engine, store, CPU, quiet)


# Subsets and masks


def test_default_sizes_are_the_papers_where_there_are_so_many_prompts():
    assert default_sizes(50) == default_sizes(400) == [10, 20, 30, 40, 50]
    assert default_sizes(28) == [4, 8, 12, 16] and default_sizes(13) == [4, 8, 12]
    with pytest.raises(UserError, match="only 3 fit prompts: say with --sizes"):
        default_sizes(3)


def test_subsets_are_different_sorted_and_as_many_as_there_can_be():
    drawn = draw_by_size(6, [6, 2, 1], 10, 0)
    assert list(drawn) == [1, 2, 6]
    assert drawn[1] == [(i,) for i in range(6)] and drawn[6] == [tuple(range(6))]
    assert len(set(drawn[2])) == 10 and drawn[2] == sorted(drawn[2])
    assert drawn == draw_by_size(6, [1, 2, 6], 10, 0) != draw_by_size(6, [1, 2, 6], 10, 1)
    assert shared_prompts(drawn[1]) == 0 and shared_prompts(drawn[6]) is None


def test_density_and_iou_equal_those_of_sets_and_identical_subsets_agree_wholly(denoiser):
    functions = Wanda(**VALUES).mask_functions(denoiser, CAPTIONS, quiet)
    subsets = {2: [(0, 1), (0, 1), (2, 5)], 3: [(1, 2, 3), (3, 4, 5)]}
    facts = size_facts(functions, subsets, quiet)
    found = {(row["size"], row["layer"], row["call"]): row for row in call_rows(facts, [900, 500])}
    assert len(found) == 2 * (len(functions) + 1) * 3
    for size, drawn in subsets.items():
        for call in (0, 1, UNION):
            weights, sets = 0, [set() for _ in drawn]
            for layer, masks_of in functions.items():
                masks = [masks_of(subset)[1] for subset in drawn]
                weights += masks[0][0].numel()
                for own, mask in zip(sets, masks, strict=True):
                    chosen = mask.any(0) if call == UNION else mask[call]
                    own |= {(layer, *place) for place in chosen.nonzero().tolist()}
            row = found[size, ALL, call]
            assert row["density_mean"] == pytest.approx(np.mean([len(s) for s in sets]) / weights)
            ious = [len(a & b) / len(a | b) for a, b in combinations(sets, 2)]
            assert row["iou_mean"] == pytest.approx(np.mean(ious))
            assert (row["iou_min"], row["iou_max"]) == pytest.approx((min(ious), max(ious)))
            assert row["timestep"] == {0: 900, 1: 500, UNION: None}[call]
    pairs = {
        (row["size"], row["layer"], row["first"], row["second"]): row
        for row in pair_rows(facts, subsets)
    }
    assert pairs[2, ALL, 0, 1]["iou"] == 1 and pairs[2, ALL, 0, 1]["shared_prompts"] == 2
    assert pairs[2, ALL, 0, 2]["iou"] < 1 and pairs[3, ALL, 0, 1]["shared_prompts"] == 1


# Random masks


def test_random_masks_have_the_density_of_the_methods_in_every_layer(denoiser):
    method, data = Wanda(**VALUES), FitData(fit_prompts=tuple(CAPTIONS[:3]))
    control = with_random_masks(method, 0)
    own, random = method.fit(denoiser, data), control.fit(denoiser, data)
    assert own.keys() == random.keys()
    for layer, mask in own.items():
        assert random[layer].sum() == mask.sum() > 0 and random[layer].shape == mask.shape
        assert not torch.equal(random[layer], mask)
    again = control.fit(denoiser, FitData(fit_prompts=tuple(reversed(CAPTIONS[:3]))))
    other = with_random_masks(method, 1).fit(denoiser, data)
    layer = max(own, key=lambda name: own[name].numel())
    assert torch.equal(again[layer], random[layer]) and not torch.equal(other[layer], random[layer])


def test_random_places_are_spread_evenly():
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[0] = True
    total = sum(moved(mask, [seed]).float() for seed in range(400))
    assert float(total.mean()) == pytest.approx(400 * 30 / 600)
    assert float(total.std()) == pytest.approx(np.sqrt(400 * 0.05 * 0.95), rel=0.15)


def test_the_control_is_another_row_of_the_same_method(suite, tmp_path):
    models, _ = models_of(suite, "wanda", VALUES, {2: [(0, 1)]}, ASKED, True, 0)
    own, control = (m.experiment for m in models if m.size)
    assert control.method_name == own.method_name and control.fit_data == own.fit_data
    assert control.store_identity["code"] == own.store_identity["code"]
    assert control.store_identity != own.store_identity
    other, _ = models_of(suite, "wanda", VALUES, {2: [(0, 1)]}, ASKED, True, 1)
    assert other[-1].experiment.store_identity != control.store_identity


class Weighted(Method):
    """A method that keeps no masks."""

    def fit(self, denoiser, data):
        return {"layer": torch.ones(3)}


def test_a_method_that_keeps_no_masks_has_no_control(denoiser):
    with pytest.raises(UserError, match="leave the control out with --no-control"):
        with_random_masks(Weighted(), 0).fit(denoiser, FitData())


# Models


def test_no_judged_prompt_is_in_the_subset_or_shares_a_picture_with_it(suite):
    subsets = draw_by_size(4, [1, 2, 3], 10, 0)
    asked = replace(ASKED, held_out=9, left_out=9)
    models, _ = models_of(suite, "wanda", VALUES, subsets, asked, True, 0)
    held_out = suite.prompts("memorized")
    for model in models:
        experiment = model.experiment
        judged, learned = experiment.suite.prompts("memorized"), experiment.suite.prompts("fit")
        assert judged == (*held_out, *model.left_out)
        assert experiment.fit_data.fit_prompts == tuple(prompt.text for prompt in learned)
        assert not {p.text for p in judged} & {p.text for p in learned}
        assert not {r for p in judged for r in p.references} & {
            r for p in learned for r in p.references
        }
        if model.size:
            assert len(learned) == model.size
    last = suite.prompts("fit")[3]
    assert outside(suite.prompts("fit"), [last]) == list(suite.prompts("fit")[:2])


def test_every_prompt_of_a_subset_is_used():
    assert of_whole_subsets("wanda", Wanda, {}, 8) == {}
    assert of_whole_subsets("wanda", Wanda, {}, 16) == {"prompts": 16}
    with pytest.raises(UserError, match="not learn from all 4 prompts.*leave -p prompts out"):
        of_whole_subsets("wanda", Wanda, {"prompts": 3}, 4)


def test_what_cannot_stand_beside_is_left_out_with_the_reason(suite):
    prompts = {r: p for r, p in suite.settings.prompts.items() if r != "calibration"}
    settings = suite.settings.model_copy(update={"prompts": prompts})
    changed = replace(suite, settings=settings)
    models, reasons = models_of(changed, "wanda", VALUES, {2: [(0, 1)]}, ASKED, False, 0)
    assert [model.kind for model in models] == ["none", "wanda"]
    assert len(reasons) == 1 and reasons[0].startswith("wen is left out: method wen needs clean")


def test_images_of_none_are_those_of_the_ordinary_run(suite, tmp_path):
    models, _ = models_of(suite, "wanda", VALUES, {2: [(0, 1)]}, ASKED, False, 0)
    ordinary = prepare(suite, "none", {}, tmp_path, CPU)
    images = Images(models[0].experiment, ordinary.engine, tmp_path)
    assert models[0].kind == "none" and images.store.name == ordinary.images.store.name
    keys = models[0].experiment.keys("memorized")
    assert set(ordinary.experiment.keys("memorized")) <= set(keys)


def test_scores_equal_a_model_that_is_fitted_sampled_and_compared_by_hand(suite, tmp_path):
    _, found = judge(suite, tmp_path, {2: [(0, 1), (1, 2)]})
    rows = model_rows(found)
    descriptor = CopyDescriptor(suite.path("./descriptor.safetensors"), "testbed", CPU)
    method, fit = Wanda(**VALUES), suite.prompts("fit")
    denoiser = load_denoiser(suite, CPU)
    described = []
    for subset, row in zip([(0, 1), (1, 2)], rows[2:], strict=True):
        learned = FitData(fit_prompts=tuple(fit[place].text for place in subset))
        state = method.fit(denoiser, learned)
        vectors, similarities = {}, {}
        with method.attach(denoiser.pipe, state):
            for prompt in [*suite.prompts("memorized"), *fit]:
                own = descriptor([read_picture(prompt.references[0])])[0]
                for index in range(2):
                    seed = suite.image_seed(prompt.text, index)
                    request = denoiser.request([prompt.text], [seed])
                    picture = denoiser.decode(sample(denoiser, request, method, state))[0]
                    vectors[prompt.id, index] = descriptor([picture])[0]
                    similarities[prompt.id, index] = float(vectors[prompt.id, index] @ own)
        held_out = [similarities[f"p{i}", index] for i in (4, 5) for index in range(2)]
        # One pixel may be rounded otherwise in a batch of another size.
        assert row["sscd"] == pytest.approx(np.mean(held_out), abs=1e-3)
        assert row["copies"] == np.mean([value > 0.5 for value in held_out])
        (left_out,) = found[rows.index(row)].left_out
        expected = np.mean([similarities[left_out.id, index] for index in range(2)])
        assert row["sscd_left_out"] == pytest.approx(expected, abs=1e-3)
        described.append(vectors)
    alike = next(row for row in agreement_rows(found) if row["kind"] == "wanda")
    first, second = described
    same_seed = [first[key] @ second[key] for key in first if key[0] in ("p4", "p5")]
    seeds = [vectors[p, 0] @ vectors[p, 1] for vectors in described for p in ("p4", "p5")]
    assert alike["models"] == pytest.approx(np.mean(same_seed), abs=1e-3)
    assert alike["seeds"] == pytest.approx(np.mean(seeds), abs=1e-3)
    assert rows[2]["clip_clean"] == pytest.approx(np.mean(list(found[2].clip_clean.values())))
    assert len(found[2].clip_clean) == 3


def test_identical_subsets_give_identical_models(suite, tmp_path):
    _, found = judge(suite, tmp_path, {2: [(0, 1), (0, 1)]}, control=True)
    for row in agreement_rows(found):
        if row["size"]:
            assert row["models"] == pytest.approx(1, abs=1e-6)
    assert {row["copies_std"] for row in size_rows(found) if row["size"]} == {0}


def test_permuting_subsets_changes_nothing(suite, tmp_path):
    asked = replace(ASKED, fid=True)
    subsets = [(0, 1), (0, 2), (1, 3)]
    _, found = judge(suite, tmp_path, {2: subsets}, asked, control=True)
    _, again = judge(suite, tmp_path, {2: subsets[::-1]}, asked, control=True)
    for table in (size_rows, agreement_rows):
        for one, other in zip(table(found), table(again), strict=True):
            assert one == {
                key: pytest.approx(value, abs=1e-9) if isinstance(value, float) else value
                for key, value in other.items()
            }
    fids = [model.fid for model in found if model.kind == "wanda"]
    assert fids[0] is not None and fids[1:] == [None, None]  # once for the size


def test_fid_of_too_few_images_is_left_out_with_the_reason(suite, tmp_path):
    settings = suite.settings.model_copy(deep=True)
    settings.metrics["fid"]["images"] = 100
    models, _ = models_of(
        replace(suite, settings=settings),
        "wanda",
        VALUES,
        {2: [(0, 1)]},
        replace(ASKED, fid=True),
        False,
        0,
    )
    found = measured(models[0], Engine(models[0].experiment, CPU), tmp_path)
    assert found.fid is None and "100 images asked for and only 6" in found.fid_reason


# Agreement and words


def test_agreement_equals_loops_over_pairs():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(3, 5, 4, 8))
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    for p in range(5):
        models = [
            vectors[a, p, i] @ vectors[b, p, i]
            for a, b in combinations(range(3), 2)
            for i in range(4)
        ]
        seeds = [
            vectors[m, p, i] @ vectors[m, p, j]
            for i, j in combinations(range(4), 2)
            for m in range(3)
        ]
        none = [vectors[m, p, i] @ vectors[0, p, i] for m in range(3) for i in range(4)]
        assert between_models(vectors)[p] == pytest.approx(np.mean(models))
        assert between_seeds(vectors)[p] == pytest.approx(np.mean(seeds))
        assert against(vectors, vectors[0])[p] == pytest.approx(np.mean(none))
    assert between_models(vectors[:1]) is None and between_seeds(vectors[:, :, :1]) is None


def invented(kind, size, number, copied, vectors):
    """What a model came to, with every n-th prompt copied as `copied` says."""
    prompts = tuple(Prompt(f"p{i}", f"prompt {i}", "", ()) for i in range(len(copied)))
    copies = {p: np.array([share, share]) for p, share in zip(prompts, copied, strict=True)}
    clean = [Prompt(f"c{i}", f"clean {i}", "", ()) for i in range(12)]
    clip = {prompt: np.array([0.7 + 0.01 * i]) for i, prompt in enumerate(clean)}
    return Measured(
        kind, size, number, prompts, (), copies, copies, vectors, clip, None, "", 5, 100.0
    )


def said(own, random, none=1.0):
    """The conclusions for twelve prompts of which these shares are copies."""
    noise = np.random.default_rng(0)

    def vectors(kind):
        base = np.random.default_rng(1).normal(size=(12, 2, 16))
        common = np.random.default_rng(2).normal(size=(12, 2, 16))
        own_part = noise.normal(size=(12, 2, 16))
        mixed = base + (kind == "wanda") * common + (kind != "none") * 0.3 * own_part
        return mixed / np.linalg.norm(mixed, axis=-1, keepdims=True)

    shares = {"none": none, "wanda": own, RANDOM: random}
    found = [invented("none", None, None, [none] * 12, vectors("none"))]
    for kind in ("wanda", RANDOM):
        for number in range(3):
            copied = [shares[kind]] * 11 + [none]
            found.append(invented(kind, 4, number, copied, vectors(kind)))
    calls = [{"layer": ALL, "call": UNION, "iou_mean": 0.6, "chance_iou": 0.01, "reason": None}]
    return " ".join(conclusions(calls, size_rows(found), agreement_rows(found)))


def test_words_say_which_claims_hold_and_which_do_not():
    good = said(own=0.0, random=1.0)
    assert "different prompts do choose common weights" in good
    assert "most copies are gone with 4 prompts" in good
    assert "which weights are pruned matters at every size" in good
    assert "wanda of different subsets changes pictures in the same way" in good
    assert "what they change is not the same" in good
    assert "no loss of alignment" in good
    useless = said(own=1.0, random=1.0)
    assert "does not hold here" in useless and "cannot be said" in useless
    no_better = said(own=0.0, random=0.0)
    assert "that chosen weights do better than random ones cannot be said" in no_better


def test_intervals_follow_what_hangs_together_and_copies_are_shares():
    """Twelve prompts, three captions of each of four pictures, which are copied or not together."""
    vectors = np.random.default_rng(0).normal(size=(12, 2, 8))
    before, after = [1.0] * 9 + [0.0] * 3, [0.0] * 3 + [1.0] * 6 + [0.0] * 3
    found = [
        invented("none", None, None, before, vectors),
        invented("wen", None, None, after, vectors + 0.2),
    ]
    alone = size_rows(found)[1]
    assert (alone["copies_minus_none_low"], alone["copies_minus_none_high"]) == pytest.approx(
        difference_of_shares(np.array([-1.0] * 3 + [0.0] * 9))
    )
    design = Design({f"p{i}": i // 3 for i in range(12)}, {})
    together = size_rows(found, {"memorized": design})[1]
    assert (together["copies_minus_none_low"], together["copies_minus_none_high"]) == (
        pytest.approx(difference_of_shares(np.array([-1.0, 0.0, 0.0, 0.0])))
    )
    assert together["copies_minus_none"] == alone["copies_minus_none"] == -0.25
    assert together["clip_clean_minus_none"] == 0
    by_prompt = against(vectors[None] + 0.2, vectors)
    units = design.units([f"p{i}" for i in range(12)])
    row = agreement_rows(found, {"memorized": design})[1]
    assert (row["none_low"], row["none_high"]) == cluster_bootstrap(by_prompt[:, None], units=units)


# The command


def command(suite, tmp_path, *words):
    places = ["--store", tmp_path / "store", "--out", tmp_path / "out", "--device", "cpu"]
    values = [word for name, value in VALUES.items() for word in ("-p", f"{name}={value}")]
    asked = ["--held-out", 2, "--left-out", 1, "--clean", 3, "--sizes", "1,2", "--subsets", 2]
    return bench("analyze", "subsets", "--suite", suite.file, *places, *values, *asked, *words)


TABLES = ("subsets", "masks", "mask_pairs", "models", "sizes", "agreement")


def tables(folder):
    return {name: (folder / "out" / f"{name}.csv").read_bytes() for name in TABLES}


def test_an_interrupted_study_goes_on_to_the_same_tables_and_the_plan_was_right(
    suite, tmp_path, monkeypatch
):
    planned = json.loads(command(suite, tmp_path / "a", "--dry-run", "--json").stdout)
    done = command(suite, tmp_path / "a", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    rows = list(csv.DictReader((tmp_path / "a/out/models.csv").read_text().splitlines()))
    assert len(rows) == planned["models"] == 2 + 2 * 2 * 2
    pruned = [row for row in rows if row["size"]]
    learning = sum(int(row["fit_evaluations"]) for row in pruned)
    assert planned["row_evaluations"]["learning"] == learning
    assert planned["row_evaluations"]["masks"] == facts["row_evaluations"]["masks"]
    each = 2 * 3  # rows of an image
    of_pruned = sum(float(row["image_evaluations"]) for row in pruned)
    assert of_pruned == each * len(pruned) * (2 * (2 + 1) + 3)
    assert planned["row_evaluations"]["images"] == each * planned["images_missing"]
    assert json.loads(command(suite, tmp_path / "a", "--dry-run", "--json").stdout) == planned | {
        "images_missing": 0,
        "row_evaluations": planned["row_evaluations"] | {"images": 0, "learning": 0},
    }
    whole, batches = generating.make_batch, []

    def stopped(*arguments):
        batches.append(1)
        if len(batches) in (5, 12):
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(generating, "make_batch", stopped)
    codes = [command(suite, tmp_path / "b").returncode for _ in range(3)]
    assert codes == [130, 130, 0]
    assert tables(tmp_path / "a") == tables(tmp_path / "b")
    left = json.loads((tmp_path / "b/out/summary.json").read_text(), parse_constant=pytest.fail)
    changing = ("seconds", "files")
    assert {k: v for k, v in left.items() if k not in changing} == {
        k: v for k, v in facts.items() if k not in changing
    }
    assert left["conclusions"] and left["left_out"] == ["FID was not asked for (--fid)"]
    pictures = {path.stem for path in (tmp_path / "b/out").glob("*.png")}
    assert pictures == {"density", "iou_calls", "iou_sizes", "held_out", "agreement", "pictures"}


@pytest.mark.parametrize("name", ["sd15-mem500", "sd20-mem219"])
def test_a_plan_needs_no_weights(name):
    done = bench("analyze", "subsets", "--suite", name, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["images_missing"] == plan["images"] == plan["models"] * (2 * 24 + 32)
    assert plan["row_evaluations"]["images"] == 100 * plan["images"]
    # Captions and pictures of FID are not asked for.
    assert plan["gpu_hours"] > 0 and not any("coco" in asset for asset in plan["missing"])
    text = bench("analyze", "subsets", "--suite", name, "--dry-run").stdout
    assert "row evaluations" in text and "bench fetch" in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--sizes", "3,9"], "the number of fit prompts, 4, not 9"),
        (["--sizes", "0"], "--sizes must lie between 1 and"),
        (["--sizes", "few"], "--sizes are whole numbers separated by commas, not 'few'"),
        (["--subsets", 1], "--subsets must be at least 2"),
        (["--held-out", 0], "--held-out must be at least 1, not 0"),
        (["--images", 0], "--images must be at least 1"),
        (["--method", "none"], "method none has no masks to analyze"),
        (["--method", "wnda"], "did you mean 'wanda'"),
        (["-p", "sparsty=1"], "did you mean 'sparsity'"),
        (["-p", "prompts=1", "--sizes", "2"], "would not learn from all 2 prompts"),
        (["--suite", "testbet"], "did you mean 'testbed'"),
        (["--out", "a-file/below"], "cannot be written"),
    ],
)
def test_bad_input_is_one_line_before_the_model_is_loaded(
    suite, tmp_path, monkeypatch, words, says
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("")
    monkeypatch.setattr("bench.diffusion.model.load_denoiser", lambda *_: pytest.fail("loaded"))
    done = bench("analyze", "subsets", "--suite", suite.file, "--device", "cpu", *words)
    assert done.returncode == 2 and says in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("bench: ")]) == 1


def test_a_suite_without_descriptor_or_fit_prompts_is_refused(suite):
    text = suite.file.read_text()
    unfit = suite.file.with_name("four-unfit.toml")
    start = text.index("[prompts.fit]")
    unfit.write_text(text[:start] + text[text.index("[prompts.calibration]") :])
    with pytest.raises(UserError, match="no fit prompts to make masks from"):
        SubsetStudy(load_suite(str(unfit)), "wanda", {}).subsets()
    settings = suite.settings.model_copy(update={"metrics": {}})
    unjudged = SubsetStudy(replace(suite, settings=settings), "wanda", {}, [2])
    with pytest.raises(UserError, match=r"no \[metrics.sscd\] to judge copies with"):
        unjudged.models(unjudged.subsets())
