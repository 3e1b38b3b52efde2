"""Strength curves: what is measured, what is kept, and what a page makes of them."""

import json
import re
from pathlib import Path

import pytest
import torch

import methods
from bench.base.errors import UserError
from bench.leaderboard.leaderboard import make_pages
from bench.records.sweep import Measured, Point, Sweep, load_sweep
from bench.registry import registry
from bench.studies.sweep import sweep
from bench.suite.load import load_suite
from conftest import CAPTIONS, SUITE, bench, write_csv
from one_run import Run

CPU = torch.device("cpu")


def measure(suite, tmp_path, name, values=(), **parameters):
    return sweep(suite, name, values, parameters, tmp_path / "work", tmp_path / "store", CPU)


def test_every_strength_is_an_ordinary_run_without_attacks(tiny_suite, tmp_path):
    found = measure(tiny_suite, tmp_path, "guidance", [0.9, 0.5])
    run = Run(tiny_suite, "guidance", {"share": 0.5}, tmp_path / "r", tmp_path / "store", CPU)
    assert not run.images.lacking(run.keys("memorized"))  # its images are there already
    record = run.execute()
    assert [point.strength for point in found.points] == [0.9, 0.5]
    point = found.points[1]
    assert (found.replication, found.utility) == ("sscd", "clip_score_clean")
    for name in ("sscd", "clip_score_clean"):
        score = record.scores[name]
        assert point.scores[name] == Measured(value=score.value, low=score.low, high=score.high)
        assert point.per_prompt[name] == record.per_prompt[name]
    assert found.suite_fingerprint == tiny_suite.fingerprint and found.none.strength is None


def test_the_order_in_which_strengths_are_asked_for_changes_nothing(tiny_suite, tmp_path):
    """`share` falls as guidance does more, whatever is typed, and once where it is typed twice."""
    given = measure(tiny_suite, tmp_path, "guidance", [0.5, 0.9, 0.2, 0.5])
    assert [point.strength for point in given.points] == [0.9, 0.5, 0.2]
    assert given == measure(tiny_suite, tmp_path, "guidance", [0.9, 0.5, 0.2])
    rising = measure(tiny_suite, tmp_path, "wanda", [0.4, 0.1])
    assert [point.strength for point in rising.points] == [0.1, 0.4]


def test_a_file_whose_strengths_go_to_and_fro_is_refused(tiny_suite, tmp_path):
    found = measure(tiny_suite, tmp_path, "guidance", [0.9, 0.5, 0.2]).model_dump(mode="json")
    found["points"] = [found["points"][place] for place in (2, 0, 1)]
    (tmp_path / "curve.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match="strengths must rise or fall"):
        load_sweep(tmp_path / "curve.json")


def test_several_seeds_are_another_sweep(tiny_suite, tmp_path):
    once = measure(tiny_suite, tmp_path, "guidance", [0.5])
    places = (tmp_path / "work", tmp_path / "store", CPU)
    twice = sweep(tiny_suite, "guidance", [0.5], {}, *places, seeds=2)
    record = Run(
        tiny_suite, "guidance", {"share": 0.5}, tmp_path / "r", tmp_path / "store", CPU, seeds=2
    ).execute()
    assert (once.seeds, twice.seeds) == (1, 2)
    assert (once.file_name, twice.file_name) == ("guidance.json", "guidance-2-seeds.json")
    assert twice.points[0].scores["sscd"].value == record.scores["sscd"].value
    assert twice.points[0].per_prompt["sscd"] == record.per_prompt["sscd"]
    assert twice.points[0].per_prompt != once.points[0].per_prompt
    old = {name: value for name, value in once.model_dump(mode="json").items() if name != "seeds"}
    assert Sweep.model_validate(old) == once


def test_committed_curves_lie_where_the_command_writes_them():
    """Otherwise measuring one again would put a second one on the board."""
    folder = Path(__file__).resolve().parents[2] / "leaderboards/sweeps"
    for file in folder.glob("*/*.json"):
        assert file.name == load_sweep(file).file_name, file


def test_a_curve_keeps_which_prompts_hang_together(tiny_folder, tmp_path):
    """The first two held-out captions have one training picture."""
    rows = [["id", "prompt", "group", "split", "reference"]]
    for number, caption in enumerate(CAPTIONS):
        split, picture = ("fit", number) if number < 3 else ("memorized", max(number, 4))
        rows.append([f"p{number}", caption, "1", split, f"reference-{picture}.png"])
    write_csv(tiny_folder / "shared.csv", rows)
    text = SUITE.replace('"prompts.csv"', '"shared.csv"').replace('"tiny"', '"shared"')
    (tiny_folder / "shared.toml").write_text(text)
    suite = load_suite(str(tiny_folder / "shared.toml"))
    found = measure(suite, tmp_path, "guidance", [0.5])
    assert list(found.design) == ["sscd"]
    assert found.design["sscd"].clusters == {"p3": 0, "p4": 0}


def test_finished_strengths_are_found_again(tiny_suite, tmp_path, monkeypatch):
    first = measure(tiny_suite, tmp_path, "guidance", [0.5])
    monkeypatch.setattr(
        "bench.running.engine.load_denoiser", lambda *_: pytest.fail("the model was loaded again")
    )
    again = measure(tiny_suite, tmp_path, "guidance", [0.5])
    assert again.points == first.points


def test_what_cannot_be_measured_costs_only_its_point(tiny_suite, tmp_path, monkeypatch):
    from methods.guidance import Guidance

    plain = Guidance.guide

    def breaks(self, step, state):
        if self.share == 0.25:
            raise RuntimeError("out of order")
        return plain(self, step, state)

    monkeypatch.setattr(Guidance, "guide", breaks)
    found = measure(tiny_suite, tmp_path, "guidance", [0.5, 0.25])
    assert [bool(point.scores) for point in found.points] == [True, False]
    assert "out of order" in found.points[1].error and len(found.measured()) == 2


def test_a_strength_outside_its_range_is_refused_before_any_work(tiny_suite, tmp_path):
    with pytest.raises(UserError, match="share"):
        measure(tiny_suite, tmp_path, "guidance", [0.5, 3])
    with pytest.raises(UserError, match="is the strength of guidance; give its values"):
        measure(tiny_suite, tmp_path, "guidance", [0.5], share=0.2)
    with pytest.raises(UserError, match="does not say which parameter is its strength"):
        measure(tiny_suite, tmp_path, "none")
    assert not (tmp_path / "store").exists()


def test_every_built_in_with_parameters_names_its_strength():
    for path in sorted(Path(methods.__file__).parent.glob("[a-z]*.py")):
        cls = registry.find("method", path.stem).load()
        if path.stem == "none":
            continue
        field, values = cls.swept
        built = [getattr(cls(**{field: value}), field) for value in values]
        assert len(set(built)) == len(built) >= 4
        assert built in (sorted(built), sorted(built, reverse=True)), "from least to most"
        assert (cls.neutral or {}).get(field) not in built


def test_the_command_writes_a_file_that_can_be_read(tiny_suite, tmp_path):
    out = tmp_path / "curve.json"
    words = ["sweep", "guidance", "--suite", tiny_suite.file, "--values", "0.8,0.4"]
    places = ["--work", tmp_path / "w", "--store", tmp_path / "s", "--device", "cpu"]
    done = bench(*words, *places, "--out", out)
    assert done.returncode == 0 and "share" in done.stdout
    assert [point.strength for point in load_sweep(out).points] == [0.8, 0.4]
    wrong = bench(*words[:-1], "0.8,x", *places)
    assert wrong.returncode == 2 and "--values are numbers" in wrong.stderr


def curve(record, method, left):
    """A made-up curve of four strengths on the suite of a record."""
    points = []
    for number, (copies, clip) in enumerate(left):
        per_prompt = {
            "sscd": {f"p{i}": copies + 0.01 * (i % 3 - 1) for i in range(12)},
            "clip_score_clean": {f"c{i}": clip for i in range(9)},
        }
        scores = {
            "sscd": Measured(value=copies, low=copies - 0.02, high=copies + 0.02),
            "clip_score_clean": Measured(value=clip, low=clip - 0.01, high=clip + 0.01),
        }
        strength = number / 10 if number else None
        points.append(Point(strength=strength, scores=scores, per_prompt=per_prompt))
    return Sweep(
        suite=record.suite,
        suite_version=record.suite_version,
        suite_fingerprint=record.suite_fingerprint,
        method=method,
        method_version=record.method_version,
        source=None,
        field="share",
        parameters={},
        replication="sscd",
        utility="clip_score_clean",
        none=points[0],
        points=points[1:],
        environment={},
    )


def test_a_page_draws_curves_and_says_what_is_left_at_equal_utility(tiny_suite, tmp_path):
    records = tmp_path / "leaderboards" / "records"
    record = Run(tiny_suite, "none", {}, records, tmp_path / "store", CPU).execute()
    folder = tmp_path / "leaderboards" / "sweeps" / record.suite
    curve(record, "wanda", [(0.8, 0.7), (0.5, 0.68), (0.2, 0.66)]).save(folder / "wanda.json")
    curve(record, "guidance", [(0.8, 0.7), (0.7, 0.68), (0.6, 0.66)]).save(folder / "guidance.json")
    other = curve(record, "wen", [(0.8, 0.7), (0.7, 0.6)])
    foreign = other.model_copy(update={"suite_fingerprint": "other"})
    foreign.save(folder / "wen.json")
    pages, problems = make_pages(records)
    assert problems == []
    text, page = pages[f"{record.suite}.md"].decode(), pages[f"{record.suite}.html"].decode()
    rows = [line for line in text.splitlines() if "(share)" in line]
    assert [row.split(" | ")[0] for row in rows] == [
        "| wanda (share)",
        "| guidance (share) (control)",
    ]
    # at 0.02 below none: exactly the first strength
    assert "0.500 [" in rows[0] and "0.700 [" in rows[1] and "–" in rows[0]
    assert page.count('class="curve h-') == 2 and 'class="curve h-ref control"' in page
    assert "wanda, share 0.1: SSCD 0.500" in page and "wen (share)" not in page


def test_a_page_says_where_curves_are_of_fewer_generations_than_rows(tiny_suite, tmp_path):
    records = tmp_path / "leaderboards" / "records"
    places = (records, tmp_path / "store", CPU)
    record = Run(tiny_suite, "none", {}, *places, seeds=2).execute()
    folder = tmp_path / "leaderboards" / "sweeps" / record.suite
    once = curve(record, "wanda", [(0.8, 0.7), (0.5, 0.68)])
    once.save(folder / "wanda.json")

    def said():
        pages, _ = make_pages(records)
        texts = [pages[f"{record.suite}.{kind}"].decode() for kind in ("md", "html")]
        return [re.findall(r"Points of curves are [^.]*\.", text) for text in texts]

    of_one = "Points of curves are of 1 generation; rows of the table of 2 generations."
    assert said() == [[of_one], [of_one, of_one]]
    other = curve(record, "guidance", [(0.8, 0.7), (0.7, 0.68)])
    other.model_copy(update={"seeds": 2}).save(folder / "guidance.json")
    mixed = (
        "Points of curves are wanda (share) of 1 generation; guidance (share) of 2 generations;"
        " rows of the table of 2 generations."
    )
    assert said() == [[mixed], [mixed, mixed]]
    # Of as many generations as the rows, the new file of wanda stands in place of the old one.
    more = once.model_copy(update={"seeds": 2})
    more.save(folder / "wanda-2-seeds.json")
    assert said() == [[], []]
    assert make_pages(records)[0][f"{record.suite}.md"].decode().count("| wanda (share)") == 1


def test_a_damaged_curve_costs_itself_only_and_the_page_says_so(tiny_suite, tmp_path):
    records = tmp_path / "leaderboards" / "records"
    record = Run(tiny_suite, "none", {}, records, tmp_path / "store", CPU).execute()
    folder = tmp_path / "leaderboards" / "sweeps" / record.suite
    curve(record, "guidance", [(0.8, 0.7), (0.7, 0.68)]).save(folder / "guidance.json")
    (folder / "wanda.json").write_text("{")
    pages, problems = make_pages(records)
    assert len(problems) == 1 and "wanda.json" in problems[0]
    page = pages[f"{record.suite}.html"].decode()
    assert "wanda.json" in page and page.count('class="curve h-') == 1


def test_a_damaged_curve_is_named(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"schema_version": 1}))
    with pytest.raises(UserError, match="curve .*x.json"):
        load_sweep(path)
