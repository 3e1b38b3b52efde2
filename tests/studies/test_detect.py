"""`bench detect` on the tiny suite: what the run records, what is scored, what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from bench.base.errors import Unmeasurable, UserError
from bench.base.pictures import encode_png
from bench.contracts.detector import Detector, Moment, Recorder
from bench.records.detection import load_detection, load_detections
from bench.registry import registry
from bench.running.prepare import prepare
from bench.running.run import run
from bench.studies.detection import Study, detect, of_pictures, plan, plan_in_words, scored
from bench.suite.detection import Judged
from bench.suite.load import load_suite
from bench.suite.needs import lenient
from bench.suite.schema import protocol
from bench.suite.suite import Suite
from conftest import bench
from metrics.detectors.wen_score import WenScore

CPU = torch.device("cpu")


def recording(suite: Suite, *names: str) -> Suite:
    """The suite whose ordinary run keeps what these detectors read."""
    detection = suite.settings.detection.model_copy(update={"record": names})
    return Suite(suite.settings.model_copy(update={"detection": detection}), suite.file)


def test_scores_stand_with_their_prompts_and_the_file_is_read_again(tiny_suite, tmp_path):
    found = detect(tiny_suite, "wen_score", {"steps": 2}, tmp_path / "store", CPU)
    assert set(found.scores) == {"memorized", "clean", "hard", "calibration"}
    for kind, prompts in Judged(tiny_suite).kinds.items():
        assert list(found.scores[kind]) == [prompt.id for prompt in prompts]
        assert all(len(row) == found.images == 2 for row in found.scores[kind].values())
        for prompt, row in found.scores[kind].items():
            assert found.of_prompt[kind][prompt] == pytest.approx(np.mean(row), rel=1e-6)
            assert found.of_first[kind][prompt] == pytest.approx(row[0], rel=1e-6)
    assert found.label == "wen_score (steps=2)" and found.kept_bytes == 4 * 3
    path = found.save(tmp_path / "detections")
    assert load_detection(path) == found
    assert load_detections(tmp_path / "detections") == ([found], [])


def test_the_file_says_which_prompts_hang_together(tiny_suite, tmp_path):
    """Groups are strata where the suite fixed their numbers; no score is another for it."""
    plain = detect(tiny_suite, "length", {}, tmp_path / "store", CPU)
    settings = tiny_suite.settings.model_copy(update={"stratified": True})
    found = detect(Suite(settings, tiny_suite.file), "length", {}, tmp_path / "store", CPU)
    memorized = Judged(tiny_suite).kinds["memorized"]
    assert found.design["memorized"].strata == {prompt.id: prompt.group for prompt in memorized}
    assert plain.design == {} and plain.scores == found.scores
    assert plain.protocol == found.protocol


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_ordinary_run_records_and_what_is_recorded_is_what_detect_samples(
    tiny_suite, tmp_path, batch_size
):
    """Bit for bit where the batches are the same; within rounding where they are not."""
    model = tiny_suite.settings.model.model_copy(update={"batch_size": batch_size})
    tiny_suite = Suite(tiny_suite.settings.model_copy(update={"model": model}), tiny_suite.file)
    asked = recording(tiny_suite, "wen_score")
    prepared = prepare(asked, "none", {}, tmp_path / "run", CPU)
    run(*prepared, tmp_path / "records")
    study = Study.of(asked, WenScore(), None, tmp_path / "run", CPU)
    names = list(study.recorders)
    own = study.run.images.recorded.traces(names[0])
    made = [key for key in study.keys["memorized"] if key in study.run.images.store]
    assert made and own.missing(made) == []
    study.make()
    alone = Study.of(tiny_suite, WenScore(), None, tmp_path / "alone", CPU)
    alone.make()
    for kind in study.keys:
        recorder = WenScore().recorders()[0]
        both = (study.observe(kind).trace(recorder), alone.observe(kind).trace(recorder))
        assert np.allclose(*both, rtol=1e-5)
        assert batch_size > 1 or np.array_equal(*both)


def test_a_run_that_nobody_asks_records_nothing(tiny_suite, tmp_path):
    prepared = prepare(tiny_suite, "none", {}, tmp_path / "store", CPU)
    run(*prepared, tmp_path / "records")
    assert not list((tmp_path / "store").rglob("traces"))


def test_recording_changes_no_picture(tiny_suite, tmp_path):
    pictures = []
    for name, suite in (
        ("plain", tiny_suite),
        ("watched", recording(tiny_suite, "wen_score", "attention_entropy", "bright_ending")),
    ):
        prepared = prepare(suite, "none", {}, tmp_path / name, CPU)
        run(*prepared, tmp_path / f"records {name}")
        keys = prepared.experiment.keys("memorized")
        pictures.append(prepared.images.store.pixel_digests(keys))
    assert pictures[0] == pictures[1]


def test_images_that_are_there_are_sampled_again_only_for_what_was_not_recorded(
    tiny_suite, tmp_path, monkeypatch
):
    from bench.running import generating

    made = []
    batch = generating.make_batch
    monkeypatch.setattr(
        generating, "make_batch", lambda *args: made.append(len(args[1])) or batch(*args)
    )
    for name, sampled in (("wen_score", True), ("energy", False), ("dsm", True)):
        made.clear()
        detect(tiny_suite, name, {"pair": "01"} if name == "dsm" else {}, tmp_path, CPU)
        assert bool(made) == sampled, name


def test_what_detectors_are_judged_on_changes_no_number_of_a_method(tiny_suite):
    without = tiny_suite.settings.model_copy(update={"detection": None})
    assert protocol(without) == protocol(tiny_suite.settings)
    assert Suite(without, tiny_suite.file).fingerprint == tiny_suite.fingerprint
    more = tiny_suite.settings.detection.model_copy(update={"images": 3})
    changed = Suite(tiny_suite.settings.model_copy(update={"detection": more}), tiny_suite.file)
    assert Judged(changed).fingerprint != Judged(tiny_suite).fingerprint


def test_captions_are_memorized_or_something_else(tiny_suite):
    kinds = Judged(tiny_suite).kinds
    memorized = {prompt.text for prompt in kinds["memorized"]}
    for kind in kinds.keys() - {"memorized"}:
        texts = [prompt.text for prompt in kinds[kind]]
        assert len(set(texts)) == len(texts) and memorized.isdisjoint(texts)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (lambda seen: [1.0], "not list"),
        (lambda seen: np.zeros(3), r"shape \(\d+, 2\)"),
        (lambda seen: np.full((len(seen.prompts), 1), np.nan), "no finite number"),
        (lambda seen: 1 / 0, "score raised ZeroDivisionError"),
        (lambda seen: exit(), "score raised SystemExit"),
    ],
)
def test_what_is_no_score_costs_one_line_that_names_the_detector(tiny_suite, tmp_path, given, says):
    class Mine(Detector):
        needs = "text"

        def score(self, seen):
            return given(seen)

    study = Study.of(tiny_suite, Mine(), None, tmp_path, CPU)
    with pytest.raises(UserError, match=f"detector mine: .*{says}"):
        scored("mine", Mine(), study.observe("clean"))


def test_recorders_are_held_to_finite_rows(tiny_suite, tmp_path):
    class Broken(Recorder):
        def saw(self, moment: Moment, memory):
            memory["rows"] = moment.difference.flatten(1) / 0

        def result(self, memory):
            return memory["rows"]

    class Mine(Detector):
        def recorders(self):
            return (Broken(),)

    study = Study.of(tiny_suite, Mine(), "source", tmp_path, CPU)
    with pytest.raises(UserError, match="recorder Broken kept NaN or infinity"):
        study.make()


def test_a_run_says_before_its_work_what_is_wrong_with_the_detectors_of_its_suite(
    tiny_suite, tmp_path
):
    prepared = prepare(recording(tiny_suite, "nobody"), "none", {}, tmp_path / "store", CPU)
    with pytest.raises(UserError, match="detector 'nobody'"):
        run(*prepared, tmp_path / "records")
    assert not (tmp_path / "records").exists()


def test_a_suite_without_the_section_says_what_is_missing(tiny_suite, tmp_path):
    plain = Suite(tiny_suite.settings.model_copy(update={"detection": None}), tiny_suite.file)
    with pytest.raises(UserError, match=r"add a section \[detection\]"):
        detect(plain, "wen_score", {}, tmp_path, CPU)


def test_a_plan_says_what_it_costs_and_makes_nothing(tiny_suite, tmp_path):
    found = plan(tiny_suite, "geometry_gap", {"directions": 4})
    images = sum(found["prompts"].values()) * 2
    assert found["images"] == images and found["sampling_rows"] == images * 2 * 3
    assert found["rows_on_top"] == round(images * found["rows_on_top_an_image"]) > 0
    assert f"{images:,} images" in plan_in_words(found)
    assert "model is not evaluated" in plan_in_words(plan(tiny_suite, "length", {}))
    sd = plan(lenient(load_suite("sd14-mem500")), "wen_score", {})
    assert sd["prompts"]["memorized"] > 0 and sd["protocol"] is None


def test_pictures_of_any_origin_are_scored_where_no_caption_is_needed(tiny_suite, tmp_path):
    files = []
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        files.append(tmp_path / f"{number}.png")
        files[-1].write_bytes(encode_png(noise))
    found = of_pictures(tiny_suite, "plaplace", {"directions": 4}, files, CPU)
    assert list(found) == [str(path) for path in files]
    assert all(-1 <= score <= 1 for score in found.values())
    with pytest.raises(UserError, match="a picture alone cannot be scored"):
        of_pictures(tiny_suite, "wen_score", {}, files, CPU)
    with pytest.raises(UserError, match="cannot be read"):
        of_pictures(tiny_suite, "plaplace", {}, [tmp_path / "none.png"], CPU)


def test_the_command_scores_and_the_board_is_made_of_its_file(tiny_suite, tmp_path):
    out = tmp_path / "leaderboards/detections"
    places = ["--suite", tiny_suite.file, "--store", tmp_path / "store", "--out", out]
    for name in ("wen_score", "length"):
        done = bench("detect", "--detector", name, *places)
        assert done.returncode == 0 and "AUC" in done.stdout, done.stderr
    told = bench("detect", "--detector", "tiled_l2", "--json", *places)
    assert json.loads(told.stdout)["detector"] == "tiled_l2"
    assert bench("detect", "--detector", "tiled", *places).returncode == 2
    records = tmp_path / "leaderboards/records"
    assert bench("run", *places[:4], "--method", "none", "--records", records).returncode == 0
    made = bench("leaderboard", "--records", records, "--out", tmp_path / "leaderboards")
    assert made.returncode == 0, made.stderr
    page = (tmp_path / "leaderboards/detectors-tiny.html").read_text()
    assert "wen_score" in page and "(floor)" in page and "nan" not in page.lower()
    check = ["leaderboard", "--check", "--records", records, "--out", tmp_path / "leaderboards"]
    assert bench(*check).returncode == 0
    (file,) = out.glob("tiny/length-*.json")
    file.write_text(file.read_text().replace('"images":2', '"images":"many"'))
    again = bench(*check)
    assert again.returncode == 1 and "detection" in again.stdout + again.stderr


def test_a_detector_without_a_score_here_is_one_line(tiny_suite, tmp_path):
    one = tmp_path / "one.toml"
    one.write_text(f'extends = "{tiny_suite.file}"\nname = "one"\n[detection]\nimages = 1\n')
    places = ["--store", tmp_path / "store", "--out", tmp_path / "out"]
    told = bench("detect", "--detector", "tiled_l2", "--suite", one, *places)
    assert told.returncode == 2 and "has no score here: tiled_l2 compares" in told.stderr
    assert "Traceback" not in told.stderr and not (tmp_path / "out").exists()


def test_labels_that_lack_a_prompt_are_noticed_before_any_work(tiny_suite, tmp_path):
    folder = tmp_path / "suite"
    shutil.copytree(tiny_suite.file.parent, folder)
    (folder / "shares.json").write_text('{"share_of_copies": {}}')
    file = folder / "tiny.toml"
    file.write_text(file.read_text().replace("[detection]", '[detection]\nlabels = "shares.json"'))
    with pytest.raises(UserError, match="no label for prompt"):
        detect(load_suite(str(file)), "wen_score", {}, tmp_path / "store", CPU)
    assert not (tmp_path / "store").exists()


def test_labels_lie_where_the_suite_may_read(tiny_suite, tmp_path, monkeypatch):
    monkeypatch.delenv("BENCH_ALLOW")
    folder = tmp_path / "suite"
    shutil.copytree(tiny_suite.file.parent, folder)
    (tmp_path / "labels.json").write_text('{"share_of_copies": {}}')
    file = folder / "tiny.toml"
    file.write_text(
        file.read_text().replace("[detection]", '[detection]\nlabels = "../labels.json"')
    )
    with pytest.raises(UserError, match="outside"):
        detect(load_suite(str(file)), "length", {}, tmp_path / "store", CPU)


@pytest.mark.parametrize("name", sorted(registry.entries("detector")))
def test_every_detector_scores_the_tiny_suite(tiny_suite, tmp_path, name):
    try:
        found = detect(tiny_suite, name, {}, tmp_path, CPU)
    except Unmeasurable as reason:
        pytest.skip(str(reason))
    assert found.needs in ("text", "api", "trajectory", "picture", "model")
    assert 0 <= found.rows_on_top <= found.rows_alone
