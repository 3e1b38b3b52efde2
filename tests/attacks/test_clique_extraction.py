"""The clique extraction attack as a whole: against a slow, literal one; calibration; early stop;
what it reports and refuses.
"""

import csv
import json
from itertools import combinations
from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest
import torch

from attacks._calibration import read_calibration
from attacks._candidates import candidates, once, spread
from attacks._exact import normalised, squared_limit
from attacks._findings import examine
from attacks._tiles import distances
from attacks._verification import different_pictures
from attacks.clique_extraction import CliqueExtraction
from bench.base.errors import Unmeasurable, UserError
from bench.base.parameters import configure
from bench.cli.main import main
from bench.contracts.target import Target
from bench.leaderboard.leaderboard import make_pages
from bench.records.record import load_record
from bench.running.judging import target_of
from bench.statistics import Design
from bench.statistics.intervals import clopper_pearson, proportion_interval
from bench.store.store import encode_png, read_picture
from bench.suite.load import load_suite
from bench.suite.prompts import Prompt
from bench.suite.suite import Suite
from conftest import SIDE, SUITE, write_csv
from one_run import Run

SETTINGS = {"images": 8, "clique": 4, "tiles": 4, "threshold": 0.1}


def noise(count, seed=0, side=SIDE):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def near(picture, count, seed=0, strength=6):
    shift = np.random.default_rng(seed).integers(-strength, strength + 1, (count, *picture.shape))
    return np.clip(picture.astype(int) + shift, 0, 255).astype(np.uint8)


def prompt(name="p", references=()):
    return Prompt(name, f"text of {name}", "", tuple(references))


class Served:
    """Generations from a table: what a store would give."""

    def __init__(self, rows):
        self.rows = rows

    def pictures_of(self, row):
        return list(self.rows[row])


@pytest.fixture
def scene(tiny_folder, tmp_path):
    """Six memorized prompts: three with copies of their training picture, one whose copies are of
    nothing, one chain, one of noise; two clean ones.
    """
    pictures = noise(8, seed=3)
    for number in range(3):
        (tmp_path / f"r{number}.png").write_bytes(encode_png(pictures[number]))
    rows = [["id", "prompt", "group", "reference"]]
    rows += [
        [f"m{i}", f"memorized {i}", "1" if i > 2 else "10", f"r{i}.png" if i < 3 else "r0.png"]
        for i in range(6)
    ]
    write_csv(tmp_path / "memorized.csv", rows)
    write_csv(tmp_path / "clean.csv", [["id", "prompt"], ["c0", "clean 0"], ["c1", "clean 1"]])
    text = SUITE.replace(
        'file = "prompts.csv"\nwhere = { split = "memorized" }\nimages_per_prompt = 2',
        'file = "memorized.csv"',
    )
    text = text.replace('[prompts.fit]\nfile = "prompts.csv"\nwhere = { split = "fit" }\n', "")
    text = text.replace('[prompts.control]\nfile = "controls.csv"\n', "")
    for name in (
        "pipeline",
        "descriptor.safetensors",
        "features.safetensors",
        "frechet_reference.npz",
        "clip",
        "calibration.csv",
    ):
        (tmp_path / name).symlink_to(tiny_folder / name)
    (tmp_path / "tiny.toml").write_text(text)
    given = {
        f"memorized {i}": np.concatenate(
            [near(pictures[i], 5 + i, seed=i), noise(3 - i, seed=20 + i)]
        )
        for i in range(3)
    }
    given["memorized 2"] = near(pictures[2], 8, seed=2)
    given["memorized 3"] = near(pictures[5], 8, seed=5)  # a clique, and a copy of nothing
    # each near the next one only
    given["memorized 4"] = np.stack([np.full((SIDE, SIDE, 3), 20 * i, np.uint8) for i in range(8)])
    given["memorized 5"] = noise(8, seed=40)
    given["clean 0"] = noise(8, seed=41)
    # three alike are one too few
    given["clean 1"] = np.concatenate([near(pictures[6], 3), noise(5, seed=42)])
    return load_suite(str(tmp_path / "tiny.toml")), given


def attack_on(suite, given, asked=None, **settings):
    def generate(prompts, images):
        if asked is not None:
            asked.append((len(prompts), images))
        return Served([given[prompt.text][:images] for prompt in prompts])

    attack = configure("attack", "clique_extraction", CliqueExtraction, SETTINGS | settings)
    attack.fits(suite)
    target = Target(suite, torch.device("cpu"), "api", generate, None)
    return attack.run(target), target


def literal(pictures, tiles, threshold):
    """Size of the largest clique by the book: every pair, every tile, floating point, all maximal
    cliques.
    """
    graph = nx.Graph()
    graph.add_nodes_from(range(len(pictures)))
    side = pictures.shape[1] // tiles
    for a, b in combinations(range(len(pictures)), 2):
        worst = 0.0
        for y in range(0, pictures.shape[1], side):
            for x in range(0, pictures.shape[2], side):
                one, other = (
                    pictures[i, y : y + side, x : x + side].astype(np.float64) / 255 for i in (a, b)
                )
                worst = max(worst, float(np.sqrt(((one - other) ** 2).mean())))
        if worst <= threshold:
            graph.add_edge(a, b)
    return max(len(clique) for clique in nx.find_cliques(graph))


@pytest.mark.parametrize("tiles", [1, 2, 4])
@pytest.mark.parametrize("threshold", [0.02, 0.045, 0.1, 0.3])
def test_an_examined_prompt_has_the_largest_clique_of_the_literal_attack(tiles, threshold):
    pictures = np.concatenate(
        [near(noise(1, 1)[0], 6, seed=1), near(noise(1, 2)[0], 4, seed=2, strength=30), noise(3, 3)]
    )
    limit = squared_limit(threshold, 3 * (SIDE // tiles) ** 2)
    largest = literal(pictures, tiles, threshold)
    for size in range(2, 9):
        finding = examine(prompt(), pictures, tiles, limit, size, 10_000)
        assert finding.flagged is (largest >= size)
        if finding.flagged:
            assert len(finding.members) == finding.upper_bound == largest
            assert literal(pictures[list(finding.members)], tiles, threshold) == largest
            assert finding.mean_distance <= threshold


def test_ten_alike_among_five_hundred_are_found_and_nine_are_not():
    pictures = noise(500, side=16)
    pictures[[3 * i + 7 for i in range(10)]] = near(noise(1, seed=1, side=16)[0], 10)
    finding = examine(prompt(), pictures, 4, squared_limit(0.1, 48), 10, 10_000)
    assert finding.flagged and finding.members == tuple(3 * i + 7 for i in range(10))
    pictures[7] = 255 - pictures[7]
    assert examine(prompt(), pictures, 4, squared_limit(0.1, 48), 10, 10_000).flagged is False


def test_the_representative_is_the_medoid_and_ranks_by_mean_distance():
    """Integer sums of squared tile distances: the grey in the middle; pairs of greys differ by
    their difference / 255.
    """
    greys = (100, 104, 112)
    pictures = np.stack([np.full((16, 16, 3), grey, np.uint8) for grey in greys])
    finding = examine(prompt(), pictures, 2, squared_limit(0.1, 192), 3, 1000)
    assert int(finding.representative[0, 0, 0]) == 104 and finding.medoid == 1
    assert finding.mean_distance == pytest.approx((4 + 8 + 12) / 3 / 255)


def test_the_account_of_a_scene_with_known_truth(scene):
    suite, given = scene
    # a clean prompt that is flagged, surest of all: an error
    given["clean 1"] = near(noise(1, seed=77)[0], 8, strength=1)
    # copies that are not one clique
    given["memorized 4"] = np.concatenate(
        [noise(4, seed=90), near(given["memorized 0"][0], 4, seed=4, strength=40)]
    )
    scores, target = attack_on(suite, given, clean_prompts=2)
    assert set(scores) == set(CliqueExtraction.names)
    identified, extracted = scores["clique_identified"], scores["clique_extracted"]
    assert identified.table[:, 0].tolist() == [1, 1, 1, 1, 0, 0]
    assert extracted.table[:, 0].tolist() == [1, 1, 1, 0, 0, 0]
    assert (scores["clique_precision"].value, scores["clique_precision"].n) == (0.6, 5)
    assert (scores["clique_recall"].value, scores["clique_recall"].n) == (0.75, 4)
    assert scores["clique_unique"].value == 3
    assert (scores["clique_clean_flagged"].value, scores["clique_clean_flagged"].n) == (0.5, 2)
    assert scores["clique_clean_flagged"].interval == pytest.approx((0.0126, 0.9874), abs=1e-4)
    assert isinstance(scores["clique_extracted_sscd"], Unmeasurable)
    told = identified.details["flagged"]
    assert sorted(one["match"] for one in told if one["match"]) == ["m0", "m1", "m2"] and {
        one["clique"] for one in told
    } == {5, 6, 8}
    assert told[0]["prompt"] == "c1" and told[0]["match"] is None
    assert [one["mean_distance"] for one in told] == sorted(one["mean_distance"] for one in told)
    curve = scores["clique_precision"].details["by_rank"]
    assert [row["flagged"] for row in curve] == [1, 2, 3, 4, 5] and [
        curve[0]["copies"],
        curve[-1]["copies"],
    ] == [0, 3]
    assert (curve[0]["low"], curve[0]["high"]) == (0.0, 0.975)
    # m0 and m3 have one training picture, so that five prompts are four units
    together = Design({"m0": 0, "m3": 0}).units(["c1", "m0", "m1", "m2", "m3"])
    low, high = proportion_interval(np.array([[0.0], [1], [1], [1], [0]]), together)
    assert (curve[-1]["low"], curve[-1]["high"]) == pytest.approx((low, high), abs=1e-4)
    assert low < clopper_pearson(3, 5)[0] and high > clopper_pearson(3, 5)[1]
    assert scores["clique_precision"].interval == pytest.approx((low, high))
    assert scores["clique_precision"].details["before_first_error"] == 0
    assert (
        identified.details["threshold"] == 0.1
        and identified.details["unknown"] == 0
        and identified.details["exact"] == 8
    )
    assert (
        len(target.exhibits) == 5
        and sum(exhibit.reference is not None for exhibit in target.exhibits) == 3
    )


def test_copies_of_one_training_picture_by_two_prompts_count_once(scene):
    suite, given = scene
    given["memorized 3"] = near(given["memorized 0"][0], 8, seed=9)
    scores, _ = attack_on(suite, given)
    assert scores["clique_extracted"].table.sum() == 4 and scores["clique_unique"].value == 3
    assert scores["clique_unique"].details["matched"] == 3


def test_one_picture_under_two_names_in_the_training_set_counts_once(scene):
    """m5 has a training file of its own that is m0's picture but for a pixel; each prompt replays
    its own file.
    """
    suite, given = scene
    picture = given["memorized 0"][0].copy()
    (suite.file.parent / "r0.png").write_bytes(encode_png(picture))
    picture[0, 0, 0] ^= 64
    (suite.file.parent / "r5.png").write_bytes(encode_png(picture))
    rows = list(csv.reader((suite.file.parent / "memorized.csv").open()))
    rows[6][3] = "r5.png"
    write_csv(suite.file.parent / "memorized.csv", rows)
    given |= {
        "memorized 0": np.stack([read_picture(suite.file.parent / "r0.png")] * 8),
        "memorized 5": np.stack([picture] * 8),
    }
    scores, _ = attack_on(load_suite(str(suite.file)), given)
    assert scores["clique_unique"].details["matched"] == 4 and scores["clique_unique"].value == 3
    assert scores["clique_precision"].details["before_first_error"] >= 2


def test_early_stop_decides_the_same_with_fewer_generations(scene):
    suite, given = scene
    asked = []
    whole, _ = attack_on(suite, given)
    stopped, _ = attack_on(suite, given, asked, early_stop=True)
    for name in ("clique_identified", "clique_extracted"):
        assert np.array_equal(whole[name].table, stopped[name].table)
    assert isinstance(stopped["clique_recall"], Unmeasurable)
    assert asked[:2] == [(6, 4), (2, 8)]  # four are flagged by half of their generations
    assert (
        stopped["clique_identified"].details["images_used"]
        == 4 * 4 + 2 * 8
        < whole["clique_identified"].details["images_used"]
        == 48
    )


def test_a_search_that_runs_out_of_its_budget_is_counted_nowhere(scene, monkeypatch):
    suite, given = scene
    import attacks._findings as findings

    real = findings.has_clique
    unsure = iter([True] + [False] * 10)
    monkeypatch.setattr(
        findings,
        "has_clique",
        lambda *args: SimpleNamespace(answer=None, members=()) if next(unsure) else real(*args),
    )
    scores, _ = attack_on(suite, given)
    assert [p.id for p in scores["clique_identified"].prompts] == ["m1", "m2", "m3", "m4", "m5"]
    assert (
        scores["clique_identified"].details["unknown"] == 1
        and scores["clique_identified"].details["exact"] == 5
    )
    monkeypatch.setattr(
        findings, "has_clique", lambda *args: SimpleNamespace(answer=None, members=())
    )
    with pytest.raises(Unmeasurable, match="budget"):
        attack_on(suite, given)


def test_a_real_search_that_runs_out_says_so():
    """At the median distance half of all pairs are edges, as if at random: neither bounds nor a
    greedy clique decide.
    """
    pictures = noise(60, seed=8, side=8)
    limit = int(np.median(distances(pictures, 1)[np.triu_indices(60, 1)]))
    largest = examine(prompt(), pictures, 1, limit, 2, 10**6)
    assert largest.upper_bound == len(largest.members)
    size = len(largest.members) + 1
    assert examine(prompt(), pictures, 1, limit, size, 1).flagged is None
    assert examine(prompt(), pictures, 1, limit, size, 10**6).flagged is False


def test_ids_and_texts_that_roles_share_are_kept_apart(scene):
    suite, given = scene
    folder = suite.file.parent
    rows = list(csv.reader((folder / "memorized.csv").open()))
    write_csv(
        folder / "clean.csv",
        [
            ["id", "prompt", "reference"],
            ["m0", "clean 0", "r1.png"],
            ["m5", "clean 1", ""],
            ["m2", "memorized 2", ""],
        ],
    )
    rows += [["m6", "memorized 0", "10", "r2.png"]]  # a text twice, with another training picture
    write_csv(folder / "memorized.csv", rows)
    suite = load_suite(str(folder / "tiny.toml"))
    memorized, clean = candidates(suite, 2)
    assert [p.text for p in clean] == ["clean 0", "clean 1"] and len(memorized) == 6
    assert [path.name for path in memorized[0].references] == ["r0.png", "r2.png"]
    # gives back the second of its two pictures
    given["memorized 0"] = near(given["memorized 2"][0], 8, seed=1)
    scores, _ = attack_on(suite, given, clean_prompts=2)
    assert (
        scores["clique_identified"].table[:, 0].tolist() == [1, 1, 1, 1, 0, 0]
        and scores["clique_clean_flagged"].value == 0
    )
    assert scores["clique_recall"].n == 3 and scores["clique_extracted"].table.sum() == 3


def test_pictures_beside_clean_and_quality_prompts_are_no_training_pictures(scene):
    suite, given = scene
    folder = suite.file.parent
    (folder / "real.png").write_bytes(encode_png(given["memorized 3"][0]))
    write_csv(
        folder / "clean.csv",
        [["id", "prompt", "reference"], ["m3", "clean 0", "real.png"], ["c1", "clean 1", ""]],
    )
    scores, _ = attack_on(load_suite(str(suite.file)), given)
    assert scores["clique_extracted"].table[:, 0].tolist() == [1, 1, 1, 0, 0, 0]


def test_an_exhibit_shows_no_reference_for_a_match_in_another_training_set(scene, tmp_path):
    suite, given = scene
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "m1").with_suffix(".png").write_bytes(
        encode_png(given["memorized 3"][0])
    )
    _, target = attack_on(suite, given, training="training")
    assert all(exhibit.reference is None for exhibit in target.exhibits) and any(
        "m1.png" in exhibit.caption for exhibit in target.exhibits
    )


def test_a_limited_run_takes_the_clean_prompts_that_are_left(scene):
    suite, _ = scene
    limited = load_suite(str(suite.file), 1)
    assert [len(part) for part in candidates(limited, 2)] == [1, 1]


def test_findings_do_not_keep_a_prompts_pictures_alive():
    finding = examine(prompt(), near(noise(1)[0], 4), 4, squared_limit(0.1, 192), 3, 1000)
    assert finding.representative.base is None and finding.representative.shape == (SIDE, SIDE, 3)


def test_no_flag_leaves_precision_without_a_number_and_its_reason(scene):
    suite, given = scene
    scores, target = attack_on(
        suite, {text: noise(8, seed=len(text) + i) for i, text in enumerate(given)}
    )
    assert scores["clique_identified"].table.sum() == 0 and scores["clique_unique"].value == 0
    assert "no flagged prompts" in str(scores["clique_precision"]) and not target.exhibits


def test_a_suite_without_training_pictures_still_says_what_is_identified(scene, tmp_path):
    suite, given = scene
    rows = list(csv.reader((tmp_path / "memorized.csv").open()))
    write_csv(tmp_path / "memorized.csv", [row[:3] for row in rows])
    scores, _ = attack_on(load_suite(str(suite.file)), given)
    assert scores["clique_identified"].table.sum() == 4
    assert "no training pictures" in str(
        scores["clique_extracted"]
    ) and "no training pictures" in str(scores["clique_precision"])


def test_verification_against_a_folder_of_training_pictures(scene, tmp_path):
    suite, given = scene
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "five.png").write_bytes(encode_png(given["memorized 3"][0]))
    scores, _ = attack_on(suite, given, training="training")
    assert scores["clique_extracted"].table[:, 0].tolist() == [0, 0, 0, 1, 0, 0]
    assert [
        one["match"] for one in scores["clique_identified"].details["flagged"] if one["match"]
    ] == ["five.png"]


def test_different_pictures_joins_over_others():
    greys = np.stack([np.full((4, 4, 3), grey, np.uint8) for grey in (0, 30, 60, 200)])
    assert different_pictures(greys, squared_limit(0.12, 48)) == 2
    assert different_pictures(greys, 0) == 4 and different_pictures(greys[:0], 0) == 0


def test_calibrate_writes_what_a_run_then_uses_and_refuses_another_operating_point(
    scene, tmp_path, capsys, monkeypatch
):
    suite, _ = scene
    text = (
        suite.file.read_text()
        + '\n[attacks.clique_extraction]\nimages = 4\nclique = 3\ncalibration = "./tau.json"\nrate'
        " = 0.34\ncalibration_prompts = 6\n"
    )
    suite.file.write_text(text)
    with pytest.raises(UserError, match=r"tau\.json is not there yet; make it: bench calibrate"):
        Run(
            load_suite(str(suite.file)),
            "none",
            {},
            tmp_path / "records",
            tmp_path / "store",
            torch.device("cpu"),
        )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "sys.argv",
        [
            "bench",
            "calibrate",
            "clique_extraction",
            "--suite",
            str(suite.file),
            "--store",
            "store",
            "--device",
            "cpu",
        ],
    )
    with pytest.raises(SystemExit) as code:
        main()
    assert code.value.code == 0 and "calibration: " in capsys.readouterr().out
    content = json.loads((tmp_path / "tau.json").read_text())
    assert (
        content["prompts"] == 6
        and content["joined"] <= 2
        and len(content["nearest_pairs"]) == 6
        and content["operating_point"]["images"] == 4
    )
    loaded = load_suite(str(suite.file))
    run = Run(loaded, "none", {}, tmp_path / "records", tmp_path / "store", torch.device("cpu"))
    record = run.execute()
    details = record.attacks["clique_identified"].details
    assert details["threshold"] == content["threshold"] and details["calibration"]["prompts"] == 6
    saved = load_record(record.path(tmp_path / "records"))
    assert (
        saved.attacks.keys() == set(CliqueExtraction.names)
        and saved.attacks["clique_precision"].metric == "clique_extraction"
    )
    assert "Extraction attack" in make_pages(tmp_path / "records")[0]["tiny.md"].decode()
    suite.file.write_text(text.replace("images = 4", "images = 5"))
    with pytest.raises(UserError, match=r"made for images 4 and not 5; make it again"):
        Run(
            load_suite(str(suite.file)),
            "none",
            {},
            tmp_path / "records",
            tmp_path / "store",
            torch.device("cpu"),
        )
    (tmp_path / "tau.json").write_text("{")
    with pytest.raises(UserError, match=r"tau\.json"):
        read_calibration(tmp_path / "tau.json", {})


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": 0.0}, "threshold"),
        ({"budget": 0}, "budget"),
        ({"images": 1}, "images"),
        ({"images": 3, "clique": 4}, "cannot hold a clique"),
        ({"tiles": 5}, "tiles"),
        ({"threshold": None}, "needs a threshold"),
        ({"calibration": "./x.json"}, "exclude each other"),
        ({"clean_prompts": 3}, "3 prompts of the role clean"),
        ({"profile": "nemoo"}, "did you mean 'nemo'"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_line_before_any_work(scene, settings, line):
    suite, given = scene
    asked = []
    with pytest.raises(UserError, match=line) as error:
        attack_on(suite, given, asked, **settings)
    assert "\n" not in str(error.value) and not asked


def test_generations_of_unequal_size_are_refused(scene):
    suite, given = scene
    broken = {text: [*pictures[:7], noise(1, side=16)[0]] for text, pictures in given.items()}
    with pytest.raises(UserError, match="unequal size: picture 0 is 32x32 and picture 7 is 16x16"):
        attack_on(suite, broken)


def test_the_same_text_twice_is_asked_once():
    first, second = Prompt("a", "x", "", ()), Prompt("b", "x", "", ())
    assert once([first, second]) == [first]
    assert [
        p.id for p in spread([Prompt(str(i), str(i), "", ()) for i in range(5)], 2, "clean")
    ] == ["0", "2"]


def test_a_run_keeps_exhibits_and_hides_training_pictures_that_may_not_be_shared(
    tiny_folder, tmp_path, monkeypatch
):
    suite = load_suite(str(tiny_folder / "tiny.toml"))
    attacks = {
        "clique_extraction": {"images": 2, "clique": 2, "threshold": 1.0, "verification": 1.0}
    }
    for share in (True, False):
        settings = suite.settings.model_copy(
            update={
                "attacks": attacks,
                "metrics": {"sscd": suite.settings.metrics["sscd"]},
                "share_references": share,
            }
        )
        run = Run(
            Suite(settings, suite.file),
            "none",
            {},
            tmp_path / "records",
            tmp_path / "store",
            torch.device("cpu"),
        )
        record = run.execute()
        assert record.attacks["clique_identified"].value == 1.0 and len(record.exhibits) == 4
        assert all(
            (exhibit.reference is not None) is share and len(exhibit.pictures) == 2
            for exhibit in record.exhibits
        )
        page = make_pages(tmp_path / "records")[0]["pictures/tiny.html"].decode()
        assert "What the attacker gets" in page
        (tmp_path / "records" / "tiny" / "none" / f"{record.run}.json").unlink()


def test_an_exact_limit_is_an_edge_and_one_less_is_none():
    one, other = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3), np.uint8)
    other[:, 0, 0, 0] = 3
    pictures = np.concatenate([one[:1], other[:1]])
    assert examine(prompt(), pictures, 2, 9, 2, 100).flagged is True
    assert examine(prompt(), pictures, 2, 8, 2, 100).flagged is False
    assert normalised(9, 48) == pytest.approx(3 / 255 / 48**0.5)


def test_generations_of_an_attack_are_the_first_ones_of_the_metrics(tiny_suite, tmp_path):
    run = Run(tiny_suite, "none", {}, tmp_path / "records", tmp_path / "store", torch.device("cpu"))
    target = target_of(*run, CliqueExtraction(threshold=0.5, images=3, clique=2), {})
    samples = target.generate(tiny_suite.prompts("memorized"), 3)
    assert samples.keys[:2] == run.samples("memorized").keys[:2]
    assert all(
        np.array_equal(a, b)
        for a, b in zip(samples.pictures_of(1), samples.pictures()[3:6], strict=True)
    )
