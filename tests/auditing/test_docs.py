"""docs/audit.md, taken at its word."""

import json
import re
import shlex
from collections import Counter
from pathlib import Path

from bench.auditing.page import percent
from conftest import bench

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs/audit.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "docs/example-audit"


def commands():
    found = re.findall(r"^    (bench .*)$", DOCS, re.MULTILINE)
    return found + re.findall(r"`(bench audit [^`]*)`", DOCS)


def test_every_command_exists_with_its_options():
    assert len(commands()) >= 4
    for command in commands():
        words = shlex.split(command)[1:]
        name = words[:2] if words[0] in ("testbed", "lora") else words[:1]
        shown = bench(*name, "--help").stdout
        for option in (word for word in words if word.startswith("--")):
            assert option in shown, f"{command}: no {option}"


def test_every_option_that_the_text_names_exists():
    named = (("audit",), ("run",), ("lora", "scale"), ("lora", "filter"))
    shown = "".join(bench(*name, "--help").stdout for name in named)
    for option in set(re.findall(r"`(--[a-z-]+)", DOCS)):
        assert option in shown, option


def test_the_example_is_the_one_that_the_page_shows():
    """Its table is the card that the audit wrote, and the card's numbers are those of its JSON."""
    block = DOCS.partition("<!-- example -->")[2].partition("<!-- end -->")[0].strip()
    card = (EXAMPLE / "audit.md").read_text(encoding="utf-8").strip()
    assert block == card
    told = json.loads((EXAMPLE / "audit.json").read_text(encoding="utf-8"))
    assert card.startswith(f"**{told['answer']}**")
    for kind in told["kinds"]:
        assert f"| {kind['kind']} | {kind['images']} | {kind['copies']} |" in card
    for row in told["rows"]:
        assert f"| {row['name']} | {percent(row['copies'])} |" in card
    page = (EXAMPLE / "index.html").read_text(encoding="utf-8")
    assert told["answer"] in page


def test_what_the_text_says_of_the_example_stands_in_it():
    told = json.loads((EXAMPLE / "audit.json").read_text(encoding="utf-8"))
    copied = Counter(
        one["name"].partition("_")[0] for one in told["pictures"] if one["verdict"] == "copied"
    )
    words = ["none", "one", "two", "three", "four", "five", "six"]
    assert copied["64"] == 6
    assert "All six pictures that were shown 3,200 times come back" in DOCS
    assert f"{words[copied['16']]} of six shown 800 times" in DOCS
    assert f"{words[copied['4']]} of six shown 200 times" in DOCS
    assert not copied["1"]
    tags = next(one for one in told["kinds"] if one["kind"] == "tags")
    assert tags["copies"] == tags["images"]  # "gives a copy in every image"
    against = {row["name"]: row["against"] for row in told["rows"]}
    better = [name for name, words in against.items() if words.startswith("better than weight")]
    assert better == ["subject-000040"]  # "the epoch before the last"
    for control in ("", ", control random", ", control reverse"):
        assert against[f"baf (q 0.5{control})"].startswith("not told apart")
    scores = told["attack"]["scores"]
    assert scores["model_guidance_extracted"] <= scores["model_guidance_plain"]


def test_the_example_finds_what_was_shown_often_and_nothing_else():
    """Acceptance: at least five of six pictures that were shown 64 times an epoch, ranked on top;
    none of those shown once, of the base, and of the held-out ones.
    """
    told = json.loads((EXAMPLE / "audit.json").read_text(encoding="utf-8"))
    verdicts = {one["name"]: one["verdict"] for one in told["pictures"]}
    often = [name for name in verdicts if name.startswith("64_")]
    assert sum(verdicts[name] == "copied" for name in often) >= 5
    once = [name for name in verdicts if name.startswith("1_")]
    assert {verdicts[name] for name in once} == {"not seen"}
    assert told["base"]["count"] == told["held_out"]["count"] == 0
    weights = {row["weight"]: row["copies"] for row in told["rows"] if row["weight"] is not None}
    assert weights[0.0] == 0


def test_what_is_said_of_a_calibrated_threshold_is_what_that_audit_found():
    ours, calibrated = (
        json.loads((EXAMPLE / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("audit", "calibrated")
    )
    assert calibrated["copy_threshold"]["origin"] == "calibrated"
    assert f"gives [{calibrated['threshold']}]" in DOCS
    assert f"in place of the suite's {ours['threshold']}" in DOCS
    copied, before = (one["yours"] for one in (calibrated, ours))
    assert f"{copied['count']} of {copied['total']} pictures instead of {before['count']}" in DOCS
    held = calibrated["held_out"]
    assert ours["held_out"]["count"] == 0
    assert f"and {held['count']} of {held['total']} held-out pictures instead of none" in DOCS
