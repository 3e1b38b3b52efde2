"""Features made while pictures are in memory, pictures dropped afterwards, and what a later run
finds of them.
"""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from bench.base.errors import UserError
from bench.contracts.attack import Attack
from bench.contracts.metric import Metric, PerSet
from bench.running.kept_pictures import keep_images_of
from bench.store.store import decode_png, pixel_digest
from bench.submission.submit import submit
from bench.submission.verify import verify
from bench.suite.load import load_suite
from conftest import SUITE
from one_run import Run

CPU = torch.device("cpu")


class Brightness(Metric):
    """Reads pictures, and says nothing of extractors."""

    names = ("brightness",)
    roles = ("clean",)

    def measure(self, evaluation):
        return {
            "brightness": PerSet(
                float(np.mean(evaluation.samples("clean").pictures())), 6, "grey", None
            )
        }


class Reader(Attack):
    """Reads the pictures of memorized prompts, announced or not."""

    names = ("read",)
    announced: bool = True

    def asks(self, suite):
        return [(suite.prompts("memorized"), 1)] if self.announced else []

    def run(self, target):
        return {
            "read": PerSet(
                float(np.mean(target.generate(target.suite.prompts("memorized"), 1).pictures())),
                4,
                "grey",
                None,
            )
        }


def resolve(suite, root, keep="all", store=None, **more):
    store = store or root / "store"
    return Run(suite, "none", {}, root / "records", store, CPU, keep=keep, **more)


@pytest.fixture(scope="module")
def suite(tiny_folder):
    """The tiny suite without a stopwatch; its clean prompts, which the role quality has too, are
    none of the memorized ones.
    """
    (tiny_folder / "streamed.toml").write_text(
        SUITE.partition("[metrics.walltime]")[0].replace("clean.csv", "calibration.csv")
    )
    return load_suite(str(tiny_folder / "streamed.toml"))


@pytest.fixture(scope="module")
def whole(suite, tmp_path_factory):
    """A run that keeps everything: its folder and its record."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, resolve(suite, folder).execute()


@pytest.fixture(scope="module")
def bare(suite, tmp_path_factory):
    """A run that keeps no picture: its folder and its record."""
    folder = tmp_path_factory.mktemp("bare")
    return folder, resolve(suite, folder, "none").execute()


@pytest.fixture
def copied(bare, tmp_path):
    shutil.copytree(bare[0], tmp_path / "copy")
    return tmp_path / "copy"


def compared(record):
    return record.model_dump(exclude={"environment", "content_sha256", "warnings", "thumbnails"})


def shards_of(folder):
    return {
        path.name: path.read_bytes()
        for path in sorted((folder / "store").rglob("*"))
        if path.suffix in (".parquet", ".npy")
    }


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_run_whose_store_is_behind_a_url_gives_the_same_record(suite, whole, tmp_path, kind):
    store = f"memory://{tmp_path.name}" if kind == "memory" else f"file://{tmp_path}/there"
    record = resolve(suite, tmp_path, store=store).execute()
    assert (
        compared(record) == compared(whole[1])
        and record.thumbnails == whole[1].thumbnails
        and record.status == "complete"
    )
    again = resolve(suite, tmp_path / "again", store=store)
    assert again.missing() == [] and again.plan()["images_missing"] == 0


def test_features_are_there_as_soon_as_the_pictures_and_are_those_made_later(suite, tmp_path):
    run = resolve(suite, tmp_path)
    run.generate({}, run.missing())
    found = {
        path.relative_to(run.store.folder / "features"): path
        for path in run.store.folder.rglob("*.npy")
    }
    assert {path.parts[0].partition("-")[0] for path in found} == {"sscd", "clip", "clean"}
    contents = {name: path.read_bytes() for name, path in found.items()}
    shutil.rmtree(run.store.folder / "features")
    for role, name in (("memorized", "sscd"), ("clean", "clip_score"), ("quality", "fid")):
        (extractor,) = run.metrics[name].extractors(suite, CPU)[role]
        blocks = list(run.samples(role).feature_blocks(extractor, 3))
        assert [len(block) for block in blocks] == [3] * (len(run.samples(role)) // 3) + [
            len(run.samples(role)) % 3
        ] * (len(run.samples(role)) % 3 > 0)
        assert np.array_equal(
            np.concatenate(blocks),
            run.samples(role).features(extractor).reshape(len(run.samples(role)), -1),
        )
    assert {
        name: (run.store.folder / "features" / name).read_bytes() for name in contents
    } == contents


def test_every_network_is_loaded_once_a_run(suite, tmp_path, monkeypatch):
    import bench.features.networks as extractors

    loads = Counter()

    def counted(path, device, load=extractors.load_network):
        loads[path.name] += 1
        return load(path, device)

    monkeypatch.setattr(extractors, "load_network", counted)
    monkeypatch.setattr("bench.running.units.IMAGES_PER_UNIT", 4)
    resolve(suite, tmp_path).execute()
    assert set(loads.values()) == {1}


@pytest.mark.parametrize("name", ["descriptor.safetensors", "features.safetensors"])
def test_a_cut_network_is_named_before_anything_is_generated(suite, tmp_path, name):
    folder = tmp_path / "suite"
    shutil.copytree(suite.file.parent, folder)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    run = resolve(load_suite(str(folder / suite.file.name)), tmp_path / "runs")
    with pytest.raises(UserError, match=name):
        run.execute()
    assert not run.engine.is_loaded and not list((tmp_path / "runs").rglob("*.json"))


def test_without_pictures_every_number_and_digest_is_the_same(whole, bare, suite):
    folder, record = bare
    assert compared(record) == compared(whole[1])
    assert (
        record.environment["keep_images"] == "none" and whole[1].environment["keep_images"] == "all"
    )
    assert record.thumbnails == [] and any(
        "no thumbnails" in warning and "--keep-images none" in warning
        for warning in record.warnings
    )
    assert len(whole[1].thumbnails) == 4 and whole[1].warnings == []
    table = pq.read_table(resolve(suite, folder).store.shards()[0])
    assert table["png"].null_count == table.num_rows > 0
    kept = pq.read_table(resolve(suite, whole[0]).store.shards()[0]).to_pydict()
    assert {
        name: values for name, values in table.to_pydict().items() if name not in ("png", "pixels")
    } == {name: values for name, values in kept.items() if name != "png"}
    again = resolve(suite, folder, "none")
    assert again.missing() == [] and not again.engine.is_loaded


def test_a_sample_keeps_the_first_images_of_each_role_and_those_that_records_show(
    suite, whole, tmp_path, monkeypatch
):
    monkeypatch.setattr("bench.running.kept_pictures.SAMPLE", 1)
    monkeypatch.setattr("bench.running.units.PROMPTS", 2)
    monkeypatch.setattr("bench.running.units.THUMBNAILS", 2)
    run = resolve(suite, tmp_path, "sample")
    record = run.execute()
    memorized, clean = run.samples("memorized").keys, run.samples("clean").keys
    assert set(run.store.dropped) == {*memorized[2:4], *memorized[6:], *clean[1:3], *clean[4:]}
    assert len(record.thumbnails) == 2 and record.warnings == []
    assert {name: score.value for name, score in record.scores.items()} == {
        name: score.value for name, score in whole[1].scores.items()
    }


def test_roles_whose_metrics_read_pictures_keep_theirs(suite, tmp_path):
    run = resolve(suite, tmp_path, "none")
    run.metrics["brightness"] = Brightness()
    record = run.execute()
    assert record.scores["brightness"].value > 0
    # quality asks for the images of clean
    assert set(run.store.dropped) == set(run.samples("memorized").keys)


def test_what_an_attack_reads_stays(suite, tmp_path):
    run = resolve(suite, tmp_path, "none")
    run.attacks["reader"] = Reader()
    assert run.plan()["disk_mib"] <= resolve(suite, tmp_path).plan()["disk_mib"]
    record = run.execute()
    assert record.attacks["read"].value > 0
    assert set(run.store.dropped) == {*run.keys("memorized"), *run.keys("clean")} - set(
        run.sample_set(suite.prompts("memorized"), 1).keys
    )
    assert run.missing() == []


@pytest.mark.parametrize("reader", ["attack", "surprise", "metric", "all"])
def test_who_needs_dropped_pictures_later_gets_them_and_nothing_that_was_there_changes(
    suite, copied, reader, monkeypatch
):
    before, run = shards_of(copied), resolve(suite, copied, "all" if reader == "all" else "none")
    if reader == "metric":
        run.metrics["brightness"] = Brightness()
    elif reader != "all":
        run.attacks["reader"] = Reader(announced=reader == "attack")
    wanted = {"metric": run.keys("clean"), "all": [*run.keys("memorized"), *run.keys("clean")]}.get(
        reader, run.sample_set(suite.prompts("memorized"), 1).keys
    )
    run.generate({}, run.missing())
    if reader in ("attack", "surprise"):
        assert run.missing() == []
        record = run.execute()
        assert record.attacks["read"].value > 0
    elif reader == "metric":
        assert run.execute().scores["brightness"].value > 0
    after = shards_of(copied)
    assert before.items() <= after.items()
    assert set(wanted).isdisjoint(run.store.dropped) and (len(run.store.dropped) > 0) == (
        reader != "all"
    )
    kept = resolve(suite, copied, "none").store
    assert np.array_equal(
        kept.pixel_digests(wanted), [pixel_digest(decode_png(png)) for png in kept.png(wanted)]
    )


def test_a_new_extractor_makes_dropped_images_again_and_drops_them_again(
    suite, copied, tiny_folder
):
    other = suite.settings.model_copy(
        update={
            "metrics": (
                suite.settings.metrics | {"fid": suite.settings.metrics["fid"] | {"size": 16}}
            )
        }
    )
    changed = type(suite)(other, suite.file)
    run = resolve(changed, copied, "none")
    assert run.missing() == run.keys("clean")  # which quality asks for, too
    run.generate({}, run.missing())
    assert run.missing() == [] and set(run.store.dropped) == {
        *run.keys("memorized"),
        *run.keys("clean"),
    }
    assert resolve(suite, copied, "none").missing() == []


def test_an_extractor_that_breaks_keeps_the_pictures_and_costs_only_its_metric(
    suite, tmp_path, monkeypatch
):
    from bench.features.networks import CleanFeatures

    tried = []

    def breaks(self, pictures):
        tried.append(len(pictures))
        raise RuntimeError("out of order")

    monkeypatch.setattr(CleanFeatures, "__call__", breaks)
    monkeypatch.setattr("bench.running.units.IMAGES_PER_UNIT", 4)
    run = resolve(suite, tmp_path, "none")
    with pytest.raises(RuntimeError, match="out of order"):
        run.execute()
    # A trial before anything is made; once while pictures are made; once for the score.
    assert len(tried) == 3 and tried[0] == 1
    assert set(run.store.dropped) == set(run.keys("memorized"))
    monkeypatch.undo()
    assert resolve(suite, tmp_path, "none").execute().status == "complete"


def test_ctrl_c_while_features_are_made_loses_no_picture(suite, tmp_path, monkeypatch):
    from bench.features.networks import CopyDescriptor

    def interrupted(self, pictures):
        raise KeyboardInterrupt

    monkeypatch.setattr(CopyDescriptor, "__call__", interrupted)
    run = resolve(suite, tmp_path, "none")
    with pytest.raises(KeyboardInterrupt):
        run.generate({}, run.missing())
    assert len(run.store) == 14 and not run.store.dropped
    monkeypatch.undo()
    record = resolve(suite, tmp_path, "none").execute()
    # pictures that are there are not taken away
    assert record.status == "complete" and len(record.thumbnails) == 4


def test_whoever_checks_a_store_hears_that_pictures_were_dropped(
    suite, bare, whole, copied, tmp_path
):
    (path,) = (whole[0] / "records").rglob("*.json")
    found = submit(path, tmp_path / "out", str(copied / "store"), tmp_path / "committed", suite)
    assert any(
        "the pictures of 20 of 20 images were dropped" in finding.text
        for finding in found.findings
        if finding.verdict == "note"
    )
    assert not any(
        "agree" in finding.text and "were compared" in finding.text for finding in found.findings
    )
    again = verify(whole[1], suite, 1, 0, str(copied / "store"), CPU)
    assert again.verdict == "identical" and any(
        "pictures of 14 of these were dropped" in note for note in again.notes
    )
    (path,) = (bare[0] / "records").rglob("*.json")
    refused = submit(path, tmp_path / "out", None, tmp_path / "committed", suite)
    assert any(
        "no thumbnails" in failure and "--keep-images sample" in failure
        for failure in refused.failures
    )


def test_an_unknown_choice_of_pictures_is_one_line():
    with pytest.raises(UserError, match="unknown --keep-images 'most': .*known: all, none, sample"):
        keep_images_of("most")


def test_plans_count_the_disk_of_kept_pictures_only(suite, tmp_path):
    plans = {keep: resolve(suite, Path(tmp_path), keep).plan() for keep in ("all", "none")}
    assert plans["all"]["images_missing"] == plans["none"]["images_missing"] == 14
    assert plans["none"]["disk_mib"] == 0
