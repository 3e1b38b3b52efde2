"""Near-duplicates stay on one side of a split."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.base.errors import UserError
from bench.suite import prompts
from bench.suite.load import load_suite
from bench.suite.near import NEAR, components, near_pairs
from conftest import write_csv

WORDS = st.lists(st.sampled_from("red fox blue sea green hill old tree".split()), max_size=6)
CAPTIONS = st.lists(WORDS.map(" ".join), max_size=12)


@given(CAPTIONS)
def test_near_pairs_are_those_of_a_slow_count(captions):
    found = set()
    for i, one in enumerate(captions):
        for j in range(i + 1, len(captions)):
            a, b = (set(re.findall(r"\w+", text)) for text in (one, captions[j]))
            if a & b and len(a & b) / len(a | b) >= NEAR:
                found.add((i, j))
    assert near_pairs(captions) == found


@given(st.integers(1, 12), st.data())
def test_components_are_those_of_walking_and_numbered_by_their_first(count, data):
    number = st.integers(0, count - 1)
    pairs = {tuple(sorted(pair)) for pair in data.draw(st.lists(st.tuples(number, number)))}
    labels = list(range(count))
    for _ in range(count):
        for i, j in pairs:
            labels[i] = labels[j] = min(labels[i], labels[j])
    order = list(dict.fromkeys(labels))
    np.testing.assert_array_equal(components(count, pairs), [order.index(one) for one in labels])


def split_suite(folder, tiny_folder, captions, together="together = true"):
    write_csv(
        folder / "list.csv",
        [["id", "prompt", "split"], *([str(i), one, "all"] for i, one in enumerate(captions))],
    )
    roles = "".join(
        f'[prompts.{role}]\nfile = "list.csv"\nwhere = {{ split = "all" }}\n{part}\n{together}\n'
        for role, part in (("fit", "part = [0, 2]"), ("memorized", "without = [0, 2]"))
    )
    extended = f'extends = "{tiny_folder / "tiny.toml"}"\nname = "mine"\n'
    (folder / "mine.toml").write_text(extended + roles)
    return load_suite(str(folder / "mine.toml"))


CHAIN = [
    "a rug of wool in grey",
    "the sea",
    "a rug of wool in blue",
    "a rug of silk in blue",
    "green hills",
    "old trees by night",
]


def test_groups_of_near_duplicates_are_counted_as_one_row(tmp_path, tiny_folder, monkeypatch):
    monkeypatch.setenv("BENCH_ALLOW", str(tiny_folder))
    suite = split_suite(tmp_path, tiny_folder, CHAIN)
    by_role = {role: [p.id for p in suite.prompts(role)] for role in ("fit", "memorized")}
    assert by_role == {"fit": ["0", "2", "3", "4"], "memorized": ["1", "5"]}
    plain = split_suite(tmp_path, tiny_folder, CHAIN, together="")
    assert [p.id for p in plain.prompts("fit")] == ["0", "2", "4"]


def test_more_captions_than_can_be_compared_are_refused(tmp_path, tiny_folder, monkeypatch):
    monkeypatch.setenv("BENCH_ALLOW", str(tiny_folder))
    monkeypatch.setattr(prompts, "LARGEST", 3)
    with pytest.raises(UserError, match="has 6 captions, of which near-duplicates are to stay"):
        split_suite(tmp_path, tiny_folder, CHAIN).prompts("fit")
