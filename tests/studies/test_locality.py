import json
import math
from contextlib import contextmanager
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from bench.base.errors import UserError
from bench.base.progress import silent
from bench.cli.main import app
from bench.contracts.held import Held, Known
from bench.diffusion.denoiser import trajectory
from bench.diffusion.request import classifier_free_guidance
from bench.features.networks import CopyDescriptor
from bench.store.folders import open_folder
from bench.studies.locality import functions
from bench.studies.locality.distances import Spread, shift, spread_ratio, unrelated_ratio
from bench.studies.locality.functions import HIDDEN, VALUES, activation_spreads, functional_distance
from bench.studies.locality.kept import Kept, name_of
from bench.studies.locality.parts import Ask, by_name
from bench.studies.locality.plan import plan
from bench.studies.locality.populations import NAMES, Member, Population
from bench.studies.locality.transfer import Judge, compared, own_and_others, transfer_matrix
from bench.studies.locality.weights import Finder, agreement
from bench.studies.locality.words import conclusions
from bench.studies.masks import ALL
from bench.suite.load import load_suite
from bench.suite.needs import lenient
from conftest import SIDE

SMALL = ("--members", 2, "--steps", 1, "--images", 1, "--transfer", 2, "--method", "wanda")
WEAK = ("-p", "wanda.sparsity=0.1", "-p", "wanda.calls=1", "-p", "dori.batch=1")


def slow_distance(vectors):
    pairs = [np.square(one - two).sum() for one, two in combinations(vectors, 2)]
    return math.sqrt(sum(pairs) / len(pairs))


@pytest.mark.parametrize("count", [2, 3, 17])
def test_the_spread_from_sums_is_that_of_all_pairs(count):
    vectors = np.random.default_rng(count).normal(3, 2, (count, 4, 5))
    found = Spread.of(vectors)
    assert found.distance == pytest.approx(slow_distance(vectors), rel=1e-12)
    assert found.size == pytest.approx(math.sqrt(np.square(vectors).sum((1, 2)).mean()))
    assert Spread.of(vectors[::-1]).distance == pytest.approx(found.distance, rel=1e-12)


def test_the_spread_of_equal_vectors_is_exactly_nothing_and_of_one_vector_undefined():
    vector = np.full(7, 1e6) + np.random.default_rng(0).normal(size=7)
    assert Spread.of([vector] * 5).distance == 0
    assert math.isnan(Spread.of([vector]).distance)


def test_long_vectors_that_are_close_together_lose_nothing():
    vectors = 1e6 + 1e-4 * np.random.default_rng(0).normal(size=(6, 50))
    assert Spread.of(vectors).distance == pytest.approx(slow_distance(vectors), rel=1e-6)


def test_searches_that_end_at_half_the_distance_have_half_the_ratio_and_no_error():
    starts = np.random.default_rng(0).normal(size=(6, 3, 4))
    ratio, error = spread_ratio(7 + starts / 2, starts)
    assert ratio == pytest.approx(0.5) and error == pytest.approx(0, abs=1e-9)
    assert shift(starts + 0.25, starts) == pytest.approx(0.25)
    ends = starts + np.random.default_rng(1).normal(size=starts.shape)
    ratio, error = spread_ratio(ends, starts)
    assert ratio == pytest.approx(slow_distance(ends) / slow_distance(starts))
    without = [
        slow_distance(np.delete(ends, row, 0)) / slow_distance(np.delete(starts, row, 0))
        for row in range(6)
    ]
    assert error == pytest.approx(math.sqrt(5 / 6 * np.square(without - np.mean(without)).sum()))


def test_moves_that_have_nothing_to_do_with_each_other_have_the_ratio_of_unrelated_ones():
    random = np.random.default_rng(0)
    starts, moves = random.normal(size=(2, 30, 4000))
    ratio, _ = spread_ratio(starts + moves / 2, starts)
    assert ratio == pytest.approx(unrelated_ratio(starts + moves / 2, starts), rel=0.01)
    pulled = 0.5 * starts + 3
    assert spread_ratio(pulled, starts)[0] < 0.2 * unrelated_ratio(pulled, starts)


def masks(count, density, seed=0, shape=(60, 80)):
    random = np.random.default_rng(seed)
    return [
        {name: random.random(shape) < density for name in ("neurons.a", "b")} for _ in range(count)
    ]


def test_equal_sets_agree_fully():
    found = agreement(masks(1, 0.2) * 4)
    assert found.layers[ALL]["mean"] == found.layers["a"]["min"] == 1
    assert found.layers[ALL]["pairs"] == 6 and found.layers[ALL]["undefined"] == 0


@pytest.mark.parametrize("density", [0.05, 0.3])
def test_independent_sets_agree_as_by_chance(density):
    found = agreement(masks(8, density)).layers[ALL]
    expected = density / (2 - density)
    assert found["mean"] == pytest.approx(expected, rel=0.05)
    assert found["chance"] == pytest.approx(expected, rel=0.05)


def test_the_order_of_members_changes_no_agreement():
    sets = [one | {"b": one["b"] & (one["neurons.a"])} for one in masks(5, 0.4)]
    one, other = agreement(sets), agreement([sets[row] for row in (3, 0, 4, 2, 1)])
    assert one.layers == {key: pytest.approx(row) for key, row in other.layers.items()}
    assert one.sizes == other.sizes and one.empty == other.empty


def test_pairs_of_empty_sets_are_counted_apart_and_never_as_agreement():
    empty = {name: np.zeros((60, 80), dtype=bool) for name in ("neurons.a", "b")}
    found = agreement([empty, empty, empty, *masks(1, 0.2)])
    row = found.layers[ALL]
    assert (row["pairs"], row["undefined"], row["mean"]) == (6, 3, 0) and found.empty == 3
    none = agreement([empty, empty]).layers["b"]
    assert none["mean"] is None and none["undefined"] == none["pairs"] == 1


@pytest.fixture
def held(denoiser):
    def plain(request, guide, start):
        with torch.no_grad():
            return trajectory(denoiser, request, guide or classifier_free_guidance, start=start)

    return Held("base", denoiser, SIDE, plain)


@pytest.fixture
def one_picture(tiny_suite):
    prompt = tiny_suite.prompts("memorized")[0]
    return Known(prompt, prompt.references[0], True, (3, 4, 5), 0)


def population(known, rows, noises=None):
    members = tuple(
        Member(known.prompt, row, noise=noise)
        for row, noise in zip(rows, noises or [0] * len(rows), strict=True)
    )
    return Population("same", members, known)


def embeddings(denoiser, count, seed=0):
    size = denoiser.null_embeddings(1).shape[1:]
    return np.random.default_rng(seed).normal(size=(count, *size)).astype(np.float32)


def test_equal_embeddings_act_alike(held, one_picture, monkeypatch):
    monkeypatch.setattr(functions, "BANK", 3)
    row = embeddings(held.denoiser, 1)
    same = population(one_picture, np.repeat(row, 5, 0))
    assert functional_distance(held, same, same.ends) == pytest.approx(0, abs=1e-6)
    for layers in activation_spreads(held.denoiser, same).values():
        for spread in layers.values():
            assert spread.size > 0 and spread.distance < 1e-4 * spread.size


def test_the_order_of_members_changes_no_distance(held, one_picture, monkeypatch):
    """Six members in batches of four and of eight rows, so that others share a batch."""
    monkeypatch.setattr(functions, "BANK", 3)
    rows = embeddings(held.denoiser, 6)
    found = []
    for order in (range(6), (4, 2, 5, 0, 1, 3)):
        group = population(one_picture, rows[list(order)])
        spreads = activation_spreads(held.denoiser, group)
        found.append(
            [
                functional_distance(held, group, group.ends),
                *(spread.distance for layers in spreads.values() for spread in layers.values()),
            ]
        )
    assert found[0] == pytest.approx(found[1], rel=1e-4) and min(found[0]) > 0


def test_predictions_differ_as_those_of_one_after_another(held, one_picture, monkeypatch):
    monkeypatch.setattr(functions, "BANK", 2)
    denoiser, group = held.denoiser, population(one_picture, embeddings(held.denoiser, 3))
    levels, clean = denoiser.pipe.scheduler.alphas_cumprod, held.latents([one_picture])
    times = torch.randint(
        len(levels), (2,), generator=one_picture.random("locality", "bank", "time")
    )
    noises = torch.randn(
        (2, *clean.shape[1:]), generator=one_picture.random("locality", "bank", "noise")
    )
    squares = []
    for time, noise in zip(times, noises, strict=True):
        noised = levels[time].sqrt() * clean + (1 - levels[time]).sqrt() * noise
        with torch.no_grad():
            given = [
                denoiser.epsilon(noised, time, row[None]).numpy() for row in group.tensor(denoiser)
            ]
        squares.append(slow_distance(given) ** 2 / clean.numel())
    assert functional_distance(held, group, group.ends) == pytest.approx(
        math.sqrt(np.mean(squares)), rel=1e-4
    )


def test_value_projections_see_no_noise_and_feed_forwards_do(held, one_picture):
    row = embeddings(held.denoiser, 1)
    noise = population(one_picture, np.repeat(row, 3, 0), [0, 1, 2])
    spreads = activation_spreads(held.denoiser, noise)
    values = [spread.distance / spread.size for spread in spreads[VALUES].values()]
    hidden = [spread.distance / spread.size for spread in spreads[HIDDEN].values()]
    assert max(values) < 1e-5 and min(hidden) > 0.1


def finder(**values):
    return Finder.resolve("wanda", {"calls": 1} | values, [])


def test_a_finder_gives_what_fit_gives_and_follows_embedding_and_noise(held, one_picture):
    denoiser, wanda = held.denoiser, finder(sparsity=0.2)
    rows = embeddings(denoiser, 2)
    one, again, other = (
        wanda.find(denoiser, Member(one_picture.prompt, rows[row])) for row in (0, 0, 1)
    )
    noisy = wanda.find(denoiser, Member(one_picture.prompt, rows[0], noise=1))
    assert agreement([one, again]).layers[ALL]["mean"] == 1
    for different in (other, noisy):
        assert agreement([one, different]).layers[ALL]["mean"] < 1
    with pytest.raises(UserError, match="learned no set of weights"):
        Finder("none", _Nothing(), None, ()).find(denoiser, Member(one_picture.prompt, rows[0]))


class _Nothing:
    seed = 0

    def model_copy(self, update):
        return self

    def fit(self, denoiser, data):
        return {"numbers": torch.zeros(3)}


def test_the_transfer_matrix_is_that_of_pruning_and_generating_one_by_one(
    held, one_picture, tiny_suite, tmp_path
):
    """The descriptor of the tiny suite finds all its pictures alike: the threshold lies between."""
    denoiser, wanda = held.denoiser, finder(sparsity=0.5)
    triggers = [Member(one_picture.prompt, row) for row in embeddings(denoiser, 2)]
    pruned = [wanda.find(denoiser, trigger) for trigger in triggers]
    descriptor = CopyDescriptor(tiny_suite.path("./descriptor.safetensors"), "testbed", "cpu")
    before = {name: value.clone() for name, value in denoiser.pipe.unet.state_dict().items()}
    slow = np.empty((2, 2, 3))
    plain = Judge(descriptor, 0.0)
    for r, masked in enumerate(pruned):
        for s, trigger in enumerate(triggers):
            with wanda.removed(denoiser, masked):
                slow[r, s] = plain.similarity(held, one_picture, trigger.embedding[None], 3)[0]
    judge = Judge(descriptor, float(np.median(slow)))
    kept = Kept(open_folder(tmp_path), "transfer", {}, silent)
    given = (judge, held, wanda, one_picture, pruned, triggers, 3, "transfer")
    matrix = transfer_matrix(kept, *given)
    assert matrix.tolist() == (slow > judge.threshold).mean(2).tolist()
    assert 0 < matrix.mean() < 1
    assert all(
        torch.equal(value, before[n]) for n, value in denoiser.pipe.unet.state_dict().items()
    )
    rows = denoiser.rows
    assert transfer_matrix(kept, *given).tolist() == matrix.tolist() and denoiser.rows == rows


class Oracle:
    """A world in which trigger s works as long as no weight set that is pruned holds its place."""

    denoiser = None
    gone = np.zeros(0, dtype=bool)
    threshold = 0.5

    @contextmanager
    def removed(self, denoiser, masks):
        self.gone = masks["places"]
        try:
            yield
        finally:
            self.gone = np.zeros(0, dtype=bool)

    def similarity(self, held, known, rows, images):
        works = [not self.gone[int(row[0, 0])] for row in rows]
        return np.repeat(np.array(works, dtype=float)[:, None], images, 1)


@pytest.mark.parametrize(("local", "others"), [(True, 0.0), (False, 1.0)])
def test_a_local_world_has_a_matrix_of_nothing_and_another_one_its_diagonal(
    local, others, one_picture, tmp_path
):
    world = Oracle()
    triggers = [Member(one_picture.prompt, np.full((1, 1), float(s))) for s in range(4)]
    pruned = [{"places": np.full(4, local) | (np.arange(4) == r)} for r in range(4)]
    kept = Kept(open_folder(tmp_path), "transfer", {}, silent)
    matrix = transfer_matrix(kept, world, world, world, one_picture, pruned, triggers, 2, "t")
    own, off = own_and_others(matrix)
    assert own.tolist() == [0.0] * 4 and off.tolist() == [others] * 4
    found = compared(off, own)
    assert found.low <= found.value == others <= found.high


def facts(others, different, own=0.0, nothing=1.0):
    """A summary, as far as words read it, with these shares of the transfer matrix."""
    row = {
        "ratio": 0.95,
        "ratio_error": 0.01,
        "ratio_unrelated": 1.1,
        "shift": 1.0,
        "function": 0.1,
        "function_ratio": 0.2,
    }
    agreed = {"mean": 0.5, "undefined": 0, "pairs": 3, "chance": 0.1}

    def less(value):
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    view = {"layers": 2, "same_above_different": 1, "relative": dict.fromkeys(NAMES, 0.5)}
    return {
        "picture": "p",
        "members": dict.fromkeys(NAMES, 4),
        "copied": {"same": 1.0, "different": 1.0, "control": 0.0},
        "spread": dict.fromkeys(NAMES, row),
        "activations": {VALUES: view, HIDDEN: view},
        "agreement": {"wanda": dict.fromkeys(NAMES, agreed)},
        "transfer": {
            "method": "wanda",
            "triggers": 4,
            "nothing": nothing,
            "own": own,
            "same": others,
            "different": different,
            "control": different,
            "clean": different,
            "others_less_own": less(others - own),
            "different_less_same": less(different - others),
        },
    }


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (facts(0.0, 1.0), "By the test that counts, yes"),
        (facts(0.0, 0.0), "neither locality nor its absence follows"),
        (facts(0.9, 1.0), "Not in the weights that this pruning takes"),
        (facts(0.5, 1.0), "too small to decide"),
        (facts(0.0, 1.0, nothing=0.2), "decides nothing at these settings"),
        (facts(0.9, 1.0, own=0.9), "decides nothing at these settings"),
    ],
)
def test_the_verdict_follows_from_the_matrix_and_not_from_distances(given, says):
    assert says in conclusions(given)[-1]
    assert "as much as one trigger does with itself" in conclusions(given)[3]


def test_words_say_what_was_not_found_and_what_was_left_out():
    given = facts(0.0, 1.0)
    del given["transfer"]
    empty = {"mean": None, "undefined": 3, "pairs": 3, "chance": None}
    given["agreement"] = {"nemo": dict.fromkeys(NAMES, empty)}
    given["copied"] = {"same": 0.1, "different": 1.0, "control": 0.0}
    words = conclusions(given)
    assert "says little about memory" in words[0]
    assert "3 of 3 (clean)" in words[3] and "nothing follows" in words[3]
    assert "it was left out" in words[-1]
    given["copied"] = {"same": 1.0, "different": 1.0, "control": 1.0}
    assert "does not show memory here" in conclusions(given)[0]


@pytest.mark.parametrize(
    ("copied", "says"),
    [
        ((1.0, 0.0, 0.8), "does not remove it"),
        ((1.0, 0.1, 0.0), "longer ones may"),
        ((0.2, 0.0, 0.0), "nothing follows"),
    ],
)
def test_rounds_say_whether_a_new_search_wins(copied, says):
    rows = [
        {"round": n, "copied": share, "copied_control": 0.0, "clip_clean": 0.3, "pruned": n / 20}
        for n, share in enumerate(copied)
    ]
    given = conclusions(facts(0.0, 1.0) | {"rounds": rows})
    assert says in given[-2] and "0.300" in given[-2] and "see the rounds" in given[-1]


def test_names_of_findings_follow_shape_type_and_content():
    zeros = np.zeros((2, 3))
    different = {
        name_of(zeros),
        name_of(zeros.reshape(3, 2)),
        name_of(zeros.astype(bool)),
        name_of(zeros + 1),
        name_of({"a": zeros}),
        name_of({"b": zeros}),
    }
    assert len(different) == 6 and name_of(zeros) == name_of(zeros.copy())


def run(suite, *arguments):
    return CliRunner().invoke(
        app, ["analyze", "locality", "--suite", str(suite), *map(str, arguments)]
    )


def test_an_interrupted_analysis_goes_on_and_ends_as_an_undisturbed_one(
    tiny_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(functions, "BANK", 2)
    suite = tiny_folder / "tiny.toml"
    asked = (*SMALL, *WEAK, "--rounds", 1, "--searches", 1)
    done = run(suite, *asked, "--store", tmp_path / "a", "--out", tmp_path / "one", "--json")
    assert done.exit_code == 0, done.output
    whole = json.loads(done.stdout, parse_constant=pytest.fail)
    find, calls = Finder.find, []

    def interrupted(self, denoiser, member):
        calls.append(member)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return find(self, denoiser, member)

    second = ("--store", tmp_path / "b", "--out", tmp_path / "two")
    with monkeypatch.context() as patch:
        patch.setattr(Finder, "find", interrupted)
        assert run(suite, *asked, *second).exit_code == 130
    resumed = json.loads(run(suite, *asked, *second, "--json").stdout)
    assert resumed["spent"]["evaluations"] < whole["spent"]["evaluations"]
    for facts_of in (whole, resumed):
        del facts_of["spent"], facts_of["files"]
    assert resumed == whole
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {path.name for path in (tmp_path / "two").iterdir()} and len(names) == 15
    for name in names - {"summary.json"}:
        one, two = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert one == two, name
        assert not name.endswith(".png") or min(Image.open(tmp_path / "one" / name).size) > 300
    assert [row["round"] for row in whole["rounds"]] == [0, 1]
    assert whole["rounds"][1]["pruned"] > whole["rounds"][0]["pruned"] == 0
    assert whole["spread"]["noise"]["ends"] == 0 and whole["spread"]["clean"]["ratio"] is None
    rows = (tmp_path / "one" / "members.csv").read_text().splitlines()[1:]
    assert [row.partition(",")[0] for row in rows] == [name for name in NAMES for _ in range(2)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--members", 1], "--members must be at least 2"),
        (["--transfer", 1], "--transfer must be 0, for none, or at least 2"),
        (["--picture", "p0"], "memorized picture 'p0'"),
        (["--method", "none"], "method none finds no weights of a prompt"),
        (["--method", "wnda"], "did you mean 'wanda'"),
        (["--init", "zero"], "init"),
        (["-p", "lr=0.1"], "does not say whose it is: write dori.lr"),
        (["-p", "wnda.calls=1"], "did you mean 'wanda'"),
        (["-p", "wanda.sparsty=1"], "did you mean 'sparsity'"),
        ([*SMALL, "--device", "cuda:9"], "device 'cuda:9' cannot be used here"),
        ([*SMALL, "--out", "a-file/below"], "cannot be written"),
    ],
)
def test_bad_input_is_one_line_before_the_model_is_loaded(
    tiny_folder, tmp_path, monkeypatch, arguments, says
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("")
    monkeypatch.setattr(
        "bench.running.engine.load_denoiser", lambda *_, **__: pytest.fail("loaded")
    )
    done = run(tiny_folder / "tiny.toml", *arguments)
    assert isinstance(done.exception, UserError), done.output
    assert says in str(done.exception) and "\n" not in str(done.exception)


@pytest.mark.parametrize("how", ["none", "no number"])
def test_a_suite_that_says_nothing_of_copies_is_one_line(tiny_folder, how):
    before, _, rest = (tiny_folder / "tiny.toml").read_text().partition("[metrics.sscd]")
    section, bracket, after = rest.partition("\n[")
    kept = "" if how == "none" else f'[metrics.sscd]{section}\nthreshold = "x"\n'
    if how != "none":
        kept = "\n".join(line for line in kept.split("\n") if line != "threshold = 0.5")
    file = tiny_folder / "uncopied.toml"
    file.write_text(f"{before}{kept}{bracket.lstrip()}{after}")
    done = run(file)
    assert isinstance(done.exception, UserError), done.output
    said = "no [metrics.sscd]" if how == "none" else "metric sscd"
    assert said in str(done.exception) and "\n" not in str(done.exception)


def test_a_suite_without_controls_is_refused_and_its_plan_says_so(tiny_folder):
    text = (tiny_folder / "tiny.toml").read_text()
    file = tiny_folder / "uncontrolled.toml"
    file.write_text(text.replace('[prompts.control]\nfile = "controls.csv"\n', ""))
    done = run(file)
    assert "give suite tiny a [prompts.control]" in str(done.exception)
    planned = run(file, "--dry-run")
    assert planned.exit_code == 0 and "problem: " in planned.stdout


def test_a_plan_counts_what_an_analysis_evaluates(tiny_suite, tiny_folder, tmp_path, monkeypatch):
    """Beside the plan: the fits of wanda, and two pictures of the latents of a bank, which are no
    evaluations.
    """
    ask = Ask(2, 1, transfer=0, images=1, finders=("wanda",), values=by_name(_values(), ["wanda"]))
    planned = plan(lenient(tiny_suite), ask)
    done = run(
        tiny_folder / "tiny.toml",
        *(*SMALL, *WEAK, "--transfer", 0, "--store", tmp_path, "--out", tmp_path / "out", "--json"),
    )
    spent = json.loads(done.stdout)["spent"]["evaluations"]
    fits = planned["fits"]["wanda"]
    assert spent == planned["total"] + fits * 2 * (1 + 1)


def _values():
    return {"wanda.sparsity": 0.1, "wanda.calls": 1, "dori.batch": 1}


def test_the_plan_of_a_large_suite_needs_none_of_its_files():
    planned = plan(lenient(load_suite("sd14-mem500")), Ask(100))
    assert planned["members"]["same"] == 100 and planned["evaluations"]["searches"] > 100_000
    assert "[prompts.control]" in planned["problems"][0]
