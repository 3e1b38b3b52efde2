"""The track `removal`: named prompts are learned from and judged, and what stands beside them is
kept apart.
"""

from __future__ import annotations

import hashlib

import pytest

from bench.base.errors import UserError
from bench.running.experiment import Experiment
from bench.suite.leaks import refuse_leaks
from bench.suite.load import load_suite
from conftest import CAPTIONS, write_csv
from removal_suite import removal_folder


@pytest.fixture
def file(tiny_folder, tmp_path):
    return removal_folder(tiny_folder, tmp_path / "suite")


def refused(file, match):
    with pytest.raises(UserError, match=match) as error:
        refuse_leaks(load_suite(str(file)))
    assert "\n" not in str(error.value)


def test_methods_learn_from_the_named_prompts_which_are_judged(file):
    suite = load_suite(str(file))
    refuse_leaks(suite)
    assert suite.removes
    assert suite.prompts("fit") == suite.prompts("memorized")
    experiment = Experiment.resolve(suite, "adv_finetune", {})
    assert experiment.fit_data.fit_prompts == tuple(CAPTIONS[:2])
    assert experiment.fit_data.anchors == {CAPTIONS[0]: "an apple"}
    assert list(experiment.fit_data.training_images) == list(CAPTIONS[:2])
    assert experiment.roles == ("memorized", "unnamed", "neighbours", "clean", "quality")
    assert len(suite.training_pictures) == 6


def test_only_what_a_method_declares_comes_to_it(file, tiny_suite):
    suite = load_suite(str(file))
    assert Experiment.resolve(suite, "wanda", {}).fit_data.anchors == {}
    # Images that were made before anchors came stay where they are.
    pruned = Experiment.resolve(tiny_suite, "wanda", {})
    assert pruned.store_identity["fit"]
    with_anchors, without = (
        Experiment.resolve(suite, "uce", {"erase": erase}).store_identity["fit"]
        for erase in (1.0, 2.0)
    )
    assert with_anchors == without
    text = (file.parent / "named.csv").read_text()
    (file.parent / "named.csv").write_text(text.replace("an apple", "apple clip art"))
    again = Experiment.resolve(load_suite(str(file)), "uce", {}).store_identity["fit"]
    assert again != with_anchors


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ('track = "removal"\n', "", r"\[prompts.unnamed\] is of the track removal"),
        ("[prompts.unnamed]", "[prompts.fit]", r"leave \[prompts.fit\] out"),
        ('track = "removal"', 'track = "other"', "track"),
    ],
)
def test_roles_belong_to_their_track(file, old, new, match):
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(UserError, match=match):
        load_suite(str(file))


def test_a_removal_without_unnamed_prompts_is_refused(file):
    head, _, rest = file.read_text().partition("[prompts.unnamed]")
    file.write_text(head + rest[rest.index("[prompts.neighbours]") :])
    with pytest.raises(UserError, match=r"needs \[prompts.unnamed\]"):
        load_suite(str(file))


def test_an_unnamed_prompt_is_none_of_the_named_ones(file):
    text = (file.parent / "prompts.csv").read_text()
    (file.parent / "prompts.csv").write_text(text.replace(CAPTIONS[3], CAPTIONS[0]))
    refused(file, "'p3' of the role unnamed has the same text as a named one")
    (file.parent / "prompts.csv").write_text(text.replace("reference-3", "reference-1"))
    refused(file, "'p3' of the role unnamed has the same training picture as a named one")


def test_neither_neighbours_nor_clean_prompts_are_trained_on(file):
    write_csv(file.parent / "neighbours.csv", [["id", "prompt"], ["p0", "an apple"]])
    refused(file, "'p0' of the role neighbours is the anchor of a named prompt")
    write_csv(file.parent / "neighbours.csv", [["id", "prompt"], ["p0", f"{CAPTIONS[2]} too"]])
    refused(file, "'p0' of the role neighbours has the same text as one of the role calibration")


def test_a_control_is_no_unnamed_picture(file):
    content = (file.parent / "reference-4.png").read_bytes()
    (file.parent / "control-1.png").write_bytes(content)
    refused(file, "'n1' of the role control has the same training picture")


def test_what_is_learned_from_and_judged_stays_refused_in_the_other_track(tiny_suite, tiny_folder):
    assert not tiny_suite.removes
    assert set(tiny_suite.prompts("fit")).isdisjoint(tiny_suite.prompts("memorized"))


def drawn(folder, part, ids):
    write_csv(folder / "drawn.csv", [["id", "prompt"], *([i, f"caption {i}"] for i in ids)])
    text = f'[prompts.clean]\nfile = "drawn.csv"\ndrawn = [{part}, 3]\n'
    suite = (folder / "tiny.toml").read_text()
    (folder / "d.toml").write_text(suite.replace('[prompts.clean]\nfile = "clean.csv"\n', text))
    return [prompt.id for prompt in load_suite(str(folder / "d.toml")).prompts("clean")]


def test_parts_are_drawn_by_the_id_alone(file):
    """So that rows that are added, or stand elsewhere, move no other."""
    ids = [f"q{i}" for i in range(40)]
    parts = [drawn(file.parent, part, ids) for part in range(3)]
    assert sorted(id for part in parts for id in part) == sorted(ids)
    for part, chosen in enumerate(parts):
        for id in chosen:
            digest = hashlib.sha256(id.encode()).hexdigest()
            assert int(digest[:16], 16) % 3 == part
        more = ["zz", *reversed(ids), "new"]
        assert set(drawn(file.parent, part, more)) - {"zz", "new"} == set(chosen)


def test_what_is_drawn_has_ids(file):
    (file.parent / "clean.csv").write_text("prompt\na kite\n")
    text = file.read_text().replace('"clean.csv"', '"clean.csv"\ndrawn = [0, 2]', 1)
    file.write_text(text)
    with pytest.raises(UserError, match="`drawn` goes by ids, and line 2 of .*clean.csv has none"):
        load_suite(str(file)).prompts("clean")
