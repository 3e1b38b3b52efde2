"""The lists of the suite testbed-removal are what the command writes and what they say they are."""

from __future__ import annotations

import csv
import json
import re

import pytest

from bench.registry.registry import SUITES
from bench.running.experiment import Experiment
from bench.suite.load import load_suite
from bench.testbed.bundle import BUNDLE
from bench.testbed.removal import COPIED, NEIGHBOURS, PROMPTS, write_removal_lists
from bench.testbed.sprites import concept_names
from conftest import bench


@pytest.fixture(scope="module")
def suite():
    return load_suite("testbed-removal")


def rows(name):
    with (SUITES / name).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def objects(text):
    """The objects that a caption names, longest names first."""
    found = []
    for name in sorted(concept_names(), key=len, reverse=True):
        if re.search(rf"\b{re.escape(name)}\b", text):
            found.append(name)
            text = text.replace(name, " ")
    return sorted(found)


def test_the_command_writes_the_committed_lists(tmp_path):
    for file in write_removal_lists(BUNDLE, tmp_path):
        assert file.read_bytes() == (SUITES / file.name).read_bytes()
    ended = bench("testbed", "removal", "--out", tmp_path / "again")
    assert ended.returncode == 0 and PROMPTS in ended.stdout and NEIGHBOURS in ended.stdout


def test_anchors_and_neighbours_name_the_objects_and_nothing_else():
    listed, near = rows(PROMPTS), {row["id"]: row["prompt"] for row in rows(NEIGHBOURS)}
    shares = json.loads((BUNDLE / "prompts/labels.json").read_text())["share_of_copies"]
    allowed = set("a picture of an illustration drawing clip art sticker and with next to".split())
    for row in listed:
        assert shares[row["id"]] >= COPIED
        for caption in (row["anchor"], near[row["id"]]):
            assert objects(caption) == objects(row["prompt"])
            rest = caption
            for name in objects(caption):
                rest = rest.replace(name, " ")
            assert set(rest.split()) <= allowed
    assert not {row["anchor"] for row in listed} & set(near.values())


def test_the_suite_shares_its_images_with_the_testbed(suite):
    """By prompt and seed: what `none` made there is not made again."""
    ours = Experiment.resolve(suite, "none", {})
    theirs = Experiment.resolve(load_suite("testbed"), "none", {})
    assert suite.store_name == "testbed"
    assert ours.store_identity == theirs.store_identity
    there = set(theirs.keys("memorized")) | set(theirs.keys("clean"))
    assert {*ours.keys("memorized"), *ours.keys("unnamed"), *ours.keys("clean")} <= there


def test_halves_are_about_equal_and_each_named_prompt_has_a_neighbour(suite):
    counts = {role: len(suite.prompts(role)) for role in suite.settings.prompts}
    assert (counts["memorized"], counts["unnamed"], counts["neighbours"]) == (29, 32, 29)
    assert all(prompt.anchor and prompt.references for prompt in suite.prompts("memorized"))
