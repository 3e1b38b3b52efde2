"""Units of a run: the same for everybody, whole batches, and shards that together are the run."""

import json
import sys
from collections import Counter
from contextlib import nullcontext

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from bench.base.errors import UserError
from bench.cli.main import app
from bench.contracts.method import Method
from bench.diffusion.model import load_denoiser
from bench.features.extractor import in_whole_batches
from bench.features.networks import CleanFeatures, CopyDescriptor, OpenClip
from bench.records.record import load_record
from bench.running import fitting
from bench.running.shard import Shard
from bench.running.units import Units, cut, to_sample
from bench.store.store import SampleKey
from bench.suite.load import load_suite
from conftest import SUITE
from one_run import Run

CPU = torch.device("cpu")
WITHOUT_TIMING = SUITE.replace("[metrics.walltime]\nrounds = 2\nimages = 2\n", "")
ATTACKED = (
    WITHOUT_TIMING
    + "\n[attacks.clique_extraction]\nimages = 3\nclique = 2\nthreshold = 0.2\nclean_prompts ="
    " 2\nearly_stop = STOP\n"
    "\n[attacks.dori]\ntargets = 3\nimages = 1\ncurve = [0, 1]\n"
    "\n[attacks.dori_inputs]\ntargets = 3\nimages = 1\ncurve = [0, 1]\n"
)
MIXING = """
from bench import Method
class Mixing(Method):
    "Every image gets a little of all images of its batch."
    def mixes_images(self):
        return True
    def adjust(self, denoiser, request, state):
        mean = request.latents.mean(0, keepdim=True)
        return request.replace(latents=request.latents + 0.1 * mean)
"""


@pytest.fixture(scope="module", autouse=True)
def _one_model(tiny_folder):
    """Loaded once for all runs of this module."""
    denoiser = load_denoiser(load_suite(str(tiny_folder / "tiny.toml")), CPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.running.engine.load_denoiser", lambda *_, **__: denoiser)
        patch.setattr("bench.running.units.IMAGES_PER_UNIT", 8)
        patch.setattr("bench.running.pieces.PICTURES", 1)
        yield


@pytest.fixture
def attacked(tiny_folder):
    (tiny_folder / "attacked.toml").write_text(ATTACKED.replace("STOP", "false"))
    return load_suite(str(tiny_folder / "attacked.toml"))


def new_run(suite, place, method="none", seeds=1, **parameters):
    return Run(suite, method, parameters, place / "records", place / "store", CPU, seeds=seeds)


def all_keys(run):
    return [key for unit in run.planned() for key in unit]


def stored(run):
    return dict(zip(all_keys(run), run.store.png(all_keys(run)), strict=True))


def rows_of(run):
    """How often each image stands in the store's files."""
    tables = [
        pq.read_table(shard, columns=["prompt", "seed"]).to_pylist() for shard in run.store.shards()
    ]
    return Counter(SampleKey(row["prompt"], row["seed"]) for table in tables for row in table)


@given(asks=st.lists(st.lists(st.integers(0, 40))), batch=st.integers(1, 12))
def test_every_image_lies_in_one_unit_in_the_batches_of_its_first_ask(asks, batch):
    work, seen, expected = Units(batch), set(), []
    for ask in asks:
        keys = [SampleKey("p", seed) for seed in ask]
        fresh = [key for key in dict.fromkeys(keys) if key not in seen]
        seen |= set(fresh)
        expected += [fresh[start : start + batch] for start in range(0, len(fresh), batch)]
        assert set(keys) <= {key for unit in work.of(keys) for key in unit}
    units = work.of([SampleKey("p", seed) for ask in asks for seed in ask])
    assert [
        list(unit[start : start + batch]) for unit in units for start in range(0, len(unit), batch)
    ] == expected
    assert all(len(unit) <= max(8, batch) for unit in units)


@given(count=st.integers(0, 60), of=st.integers(1, 9))
def test_shards_share_all_units_among_them(count, of):
    units = cut([SampleKey("p", seed) for seed in range(count)], 2)
    shares = [Shard.parse(f"{number}/{of}").units(units) for number in range(1, of + 1)]
    assert Counter(unit for share in shares for unit in share) == Counter(units)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    "text",
    ["0/2", "3/2", "x", "", "1", "1/0", "-1/2", "1/2/3", "1.0/2", " 1/2", "²/3", "9" * 5000 + "/1"],
)
def test_a_wrong_shard_is_one_line(text):
    with pytest.raises(UserError, match="--shard must be i/n") as error:
        Shard.parse(text)
    assert "\n" not in str(error.value)


def test_the_cut_does_not_depend_on_what_is_stored(attacked, tmp_path):
    before = new_run(attacked, tmp_path, seeds=2).planned()
    new_run(attacked, tmp_path, seeds=2).shard(2, 3)
    assert new_run(attacked, tmp_path, seeds=2).planned() == before


def test_shards_and_the_command_that_joins_them_give_what_one_process_gives(attacked, tmp_path):
    alone = new_run(attacked, tmp_path / "alone", seeds=2)
    record = alone.execute()
    for number in (3, 1, 2):
        told = new_run(attacked, tmp_path / "joined", seeds=2).shard(number, 3)
        assert told["images_made"] == told["shard_images"] > 0
    assert told["images_left"] == 0 and not (tmp_path / "joined" / "records").exists()
    joined = new_run(attacked, tmp_path / "joined", seeds=2)
    assert not joined.store.missing(all_keys(alone))
    together = joined.execute()
    assert "denoiser" not in vars(joined), "nothing was left to sample"
    assert stored(joined) == stored(alone) and set(rows_of(joined).values()) == {1}
    assert (together.scores, together.attacks, together.samples) == (
        record.scores,
        record.attacks,
        record.samples,
    )


def test_a_shard_that_is_repeated_makes_nothing(attacked, tmp_path):
    new_run(attacked, tmp_path).shard(1, 2)
    again = new_run(attacked, tmp_path)
    told = again.shard(1, 2)
    assert told["images_made"] == 0 and told["images_left"] > 0 and "denoiser" not in vars(again)


def test_images_of_an_attack_that_decides_as_it_goes_are_not_made_ahead(
    tiny_folder, attacked, tmp_path
):
    (tiny_folder / "early.toml").write_text(ATTACKED.replace("STOP", "true"))
    early = new_run(load_suite(str(tiny_folder / "early.toml")), tmp_path)
    assert early.planned() == early.planned(ahead=False)
    assert len(new_run(attacked, tmp_path).planned()) > len(
        new_run(attacked, tmp_path).planned(ahead=False)
    )


@pytest.mark.parametrize("kept", [slice(1, 2), slice(3, 6), slice(0, 13, 3), slice(2, None)])
def test_a_method_that_mixes_images_goes_on_as_if_it_had_never_stopped(tiny_suite, tmp_path, kept):
    (tmp_path / "mixing.py").write_text(MIXING)
    calm, hit = (
        new_run(tiny_suite, tmp_path / place, str(tmp_path / "mixing.py"))
        for place in ("calm", "hit")
    )
    calm.make({}, calm.planned())
    some = all_keys(calm)[kept]
    hit.store.append(some, np.stack(calm.store.pictures(some)))
    hit.make({}, hit.planned())
    assert stored(hit) == stored(calm)
    assert set(rows_of(hit).values()) == {1}, "what was there is not stored again"


def test_only_batches_with_a_missing_image_are_sampled_again(tiny_suite, tmp_path):
    run = new_run(tiny_suite, tmp_path)
    run.make({}, run.planned()[:1])
    first, unit = (
        run.planned()[0],
        (*run.planned()[0], *(SampleKey("new", seed) for seed in range(3))),
    )
    lacking = set(run.images.lacking(unit))
    assert to_sample(first, lacking, 4, True) == to_sample(first, lacking, 4, False) == []
    assert to_sample(unit, lacking, 5, True) == list(unit[5:]) and to_sample(
        unit, lacking, 5, False
    ) == list(unit[8:])


@pytest.mark.parametrize("method", ["none", "mixing"])
def test_ctrl_c_in_the_middle_of_a_unit_changes_no_picture(tiny_suite, tmp_path, method):
    (tmp_path / "mixing.py").write_text(MIXING)
    name = str(tmp_path / "mixing.py") if method == "mixing" else method
    calm, hit = (new_run(tiny_suite, tmp_path / place, name) for place in ("calm", "hit"))
    calm.make({}, calm.planned())

    def stop(what, done, total):
        if done == 4:
            raise KeyboardInterrupt

    hit.report = stop
    with pytest.raises(KeyboardInterrupt):
        hit.make({}, hit.planned())
    assert len(hit.store) == 4
    again = new_run(tiny_suite, tmp_path / "hit", name)
    again.make({}, again.planned())
    assert stored(again) == stored(calm)


@pytest.mark.parametrize("name", ["descriptor", "clip", "features"])
def test_features_of_a_picture_do_not_depend_on_what_it_is_extracted_with(tiny_folder, name):
    extractor = {
        "descriptor": lambda: CopyDescriptor(
            tiny_folder / "descriptor.safetensors", "testbed", CPU, 16
        ),
        "clip": lambda: OpenClip("clip", tiny_folder / "clip", None, CPU, 16),
        "features": lambda: CleanFeatures(tiny_folder / "features.safetensors", 32, CPU, 16),
    }[name]()
    pictures = list(np.random.default_rng(0).integers(0, 256, (37, 32, 32, 3), dtype=np.uint8))
    together = in_whole_batches(extractor)(pictures)
    for size in (1, 3, 16, 33):
        alone = [
            in_whole_batches(extractor)(pictures[start : start + size])
            for start in range(0, len(pictures), size)
        ]
        assert np.array_equal(np.concatenate(alone), together)


class Racing(Method):
    """What it learns differs every time; while it learns, another process does the same and is
    faster.
    """

    def fit(self, denoiser, data):
        if others:
            others.pop().fitted()
        return {"drawn": torch.rand(3)}


others: list[Run] = []


def test_two_that_fit_at_once_sample_with_the_same_state(tiny_suite, tmp_path, monkeypatch):
    """Where no lock keeps them apart, as on two machines with one store behind a URL."""
    monkeypatch.setattr(fitting, "_checkpoints", lambda store: nullcontext())
    one, other = (new_run(tiny_suite, tmp_path).replaced(method=Racing()) for _ in range(2))
    others.append(other)
    state = one.fitted().state
    assert torch.equal(state["drawn"], other.fitted().state["drawn"])


def test_a_store_sees_what_others_stored_and_keeps_what_it_has(tiny_suite, tmp_path):
    one, other = new_run(tiny_suite, tmp_path), new_run(tiny_suite, tmp_path)
    unit = one.planned()[0]
    assert len(one.store) == 0
    other.make({}, [unit])
    assert one.store.missing(unit) == list(unit)
    one.store.refresh()
    assert not one.store.missing(unit)
    one.store.append(unit, other.store.pictures(unit))
    assert set(rows_of(one).values()) == {1}


def test_the_command_line_makes_shards_and_says_how_to_join_them(
    tiny_folder, tmp_path, monkeypatch
):
    (tiny_folder / "short.toml").write_text(WITHOUT_TIMING)
    common = [
        "run",
        "--method",
        "none",
        "--suite",
        str(tiny_folder / "short.toml"),
        "--records",
        str(tmp_path / "r"),
        "--store",
        str(tmp_path / "s"),
    ]

    def bench(*words):
        monkeypatch.setattr(sys, "argv", ["bench", *common, *words])
        return CliRunner().invoke(app, [*common, *words], catch_exceptions=False).stdout

    assert "shard 2/2 makes 2 of them, in 1 of 2 units" in bench("--shard", "2/2", "--dry-run")
    told = bench("--shard", "1/2")
    assert (
        "shard 1/2 of none on tiny: 1 of 2 units, 8 images, 8 of them made now" in told
        and "2 images of the run are missing" in told
    )
    assert not (tmp_path / "r").exists()
    assert bench("--shard=2/2").strip().splitlines()[-1].strip() == "bench " + " ".join(common)
    assert json.loads(bench("--shard", "2/2", "--json"))["images_left"] == 0
    bench()
    assert load_record(next((tmp_path / "r").glob("*/*/*.json"))).status == "complete"
