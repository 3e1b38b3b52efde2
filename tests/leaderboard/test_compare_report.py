"""`bench compare` and `bench report`: differences by hand, what forbids a comparison, and pages
that hold whatever a record says.
"""

import json
import re
import sys
from html.parser import HTMLParser
from io import StringIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from bench.base.errors import BLANK, UserError
from bench.cli import main as cli
from bench.leaderboard.comparing import (
    ABSENT,
    Field,
    compare,
    compare_files,
    decimals_of,
    shown,
    visible,
)
from bench.leaderboard.report import page, write_report
from bench.records.parts import flat, protocol
from bench.records.record import RecordedExhibit, RunRecord, Score, Thumbnail

HOSTILE = (
    "<script>alert(1)</script>\"'><img src=x onerror=y>\n[/red][bold]\u202e\x1b[31m\ud800{{ 7*7 }}"
    + "x" * 10_000
)


def score(value, metric="sscd", **changes):
    content = {
        "value": value,
        "n": 12,
        "prompts": 3,
        "unit": "cosine",
        "higher_is_better": False,
        "metric": metric,
        "metric_version": 1,
    }
    return Score(**{**content, **changes})


def record(method="none", run="a" * 12, sscd=0.6, **changes):
    content = {
        "run": run,
        "status": "complete",
        "suite": "demo",
        "suite_version": 1,
        "suite_fingerprint": "f" * 16,
        "method": method,
        "method_version": 1,
        "where": "weights",
        "needs": [],
        "paper": "A Paper",
        "parameters": {"strength": 0.5},
        "images": {"memorized": 12},
        "scores": {
            "sscd": score(
                sscd,
                low=sscd - 0.1,
                high=sscd + 0.1,
                groups={"10": 0.75, "2": -0.1},
                details={"threshold": 0.85, "model": {"hash": "abc"}},
            ),
            "fid": score(40.0 * sscd, "fid", unit="distance"),
        },
        "cost": {
            "seconds_per_image": score(sscd, "walltime", unit="s"),
            "nfe_per_image": score(50.0, "walltime", unit="row evaluations"),
        },
        "per_prompt": {"sscd": {"p0": sscd, "p1": sscd + 0.1, "p2": sscd + 0.2}},
        "environment": {
            "python": "3.11",
            "packages": {"torch": "2.0", "numpy": "2.0"},
            "device_name": "one",
            "threads": 2,
        },
    }
    return RunRecord(**{**content, **changes})


def pairs(comparison):
    return {pair.name: pair for pair in comparison.numbers}


def printed(comparison, width=200):
    console = Console(file=StringIO(), width=width, color_system=None)
    for part in shown(comparison):
        print(part, file=console.file) if isinstance(part, str) else console.print(part)
    return console.file.getvalue()


@pytest.fixture
def bench(monkeypatch, capsys):
    """The command line without another process: returns the exit code, standard output and standard
    error.
    """

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return (stopped.value.code, *capsys.readouterr())

    return call


def test_differences_are_b_minus_a_and_paired_where_prompts_have_values():
    b = record("mine", "b" * 12, 0.4, per_prompt={"sscd": {"p0": 0.5, "p1": 0.3, "other": 9.0}})
    found = pairs(compare(record(), b))
    # p0: 0.5 - 0.6; p1: 0.3 - 0.7; of two prompts the bootstrap draws one twice often enough that
    # the interval is both of them.
    assert (
        found["sscd"].difference == pytest.approx((-0.25, -0.4, -0.1))
        and found["sscd"].prompts == 2
    )
    assert found["fid"].difference == (pytest.approx(-8), None, None) and found["fid"].prompts == 0
    assert found["nfe_per_image"].difference == (0, None, None)
    assert [pair.name for pair in compare(record(), b).numbers] == [
        "sscd",
        "fid",
        "nfe_per_image",
        "seconds_per_image",
    ]


def test_the_protocol_decides_and_every_cause_is_named():
    assert (
        compare(record(), record("mine", "b" * 12)).verdict
        == "may be compared: same protocol, demo version 1 (ffffffffffffffff)"
    )
    limited = record(suite_fingerprint="e" * 16, limit=4)
    found = compare(record(), limited)
    assert (
        found.verdict
        == "not to be compared: fingerprint ffffffffffffffff and eeeeeeeeeeeeeeee, limit none and 4"
    )
    assert (
        pairs(found)["sscd"].difference is None
        and pairs(found)["sscd"].reason == "the suites differ"
    )
    assert compare(record(), record(suite="else", suite_version=2)).forbids == (
        "suite demo and else",
        "suite version 1 and 2",
    )
    attacked = record(attacks={"x": score(1.0, "clique")})
    assert compare(attacked, record()).forbids == ("only A has clique",)
    assert compare(record(), attacked).forbids == ("only B has clique",)
    newer = record(
        scores={"sscd": score(0.6, metric_version=2), "fid": score(1.0, "fid", unit="distance")}
    )
    assert compare(record(), newer).forbids == ("sscd version 1 and 2",)
    assert pairs(compare(record(), newer))["sscd"].reason == "sscd version 1 and sscd version 2"
    assert pairs(compare(record(), newer))["fid"].difference == (-23, None, None)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_what_forbids_is_empty_exactly_when_suite_and_protocol_agree(data):
    def drawn():
        metrics = data.draw(st.dictionaries(st.sampled_from("abc"), st.integers(1, 2)))
        return record(
            suite=data.draw(st.sampled_from(["demo", "else"])),
            suite_version=data.draw(st.integers(1, 2)),
            suite_fingerprint=data.draw(st.sampled_from("ef")),
            scores={
                name: score(1.0, name, metric_version=version) for name, version in metrics.items()
            },
            cost={},
        )

    a, b = drawn(), drawn()
    assert (compare(a, b).forbids == ()) == (protocol(a) == protocol(b) and a.suite == b.suite)
    back = compare(b, a)
    for pair in compare(a, b).numbers:
        assert (pairs(back)[pair.name].difference is None) == (pair.difference is None)


def test_no_difference_where_it_means_nothing():
    null = {"value": None, "reason": "no pictures"}
    b = record(
        scores={
            "sscd": score(0.5).model_copy(update=null),
            "fid": score(9.0, "fid", unit="distance", n=13),
            "new": score(1.0),
        },
        environment={"device_name": "two", "threads": 2},
    )
    found = pairs(compare(record(), b))
    assert {name: pair.reason for name, pair in found.items()} == {
        "sscd": "B: no pictures",
        "fid": "at 12 and 13 images",
        "new": "not in A",
        "seconds_per_image": "seconds of different machines or threads",
        "nfe_per_image": "",
    }
    assert "– (B: no pictures)" in printed(compare(record(), b))
    units = record(cost={"nfe_per_image": score(1.0, "walltime", unit="x")})
    assert pairs(compare(record(), units))["nfe_per_image"].reason == "units row evaluations and x"
    assert pairs(compare(record(), units))["seconds_per_image"].reason == "not in B"


def test_fields_that_differ_and_only_those():
    b = record(
        "mine",
        "b" * 12,
        parameters={"strength": 0.75, "seed": None},
        tuning={"kept": 1},
        environment={"packages": {"torch": "2.1", "numpy": "2.0"}},
    )
    b.scores["sscd"].details = {
        "threshold": 0.9,
        "model": {"hash": "abc"},
        "flagged": [{"prompt": "p"}],
    }
    found = compare(record(), b)
    assert found.protocol == (
        Field("method", "none", "mine"),
        Field("parameters.strength", 0.5, 0.75),
        Field("parameters.seed", ABSENT, None),
        Field("tuning.kept", ABSENT, 1),
        Field("sscd: threshold", 0.85, 0.9),
    )
    assert [field.name for field in found.environment] == [
        "python",
        "packages.torch",
        "device_name",
        "threads",
    ]
    assert found.protocol[2].as_json() == {"name": "parameters.seed", "b": None}
    assert compare(record(parameters={"x": 1}), record(parameters={"x": 1.0})).protocol == ()
    assert compare(record(parameters={"x": 1}), record(parameters={"x": True})).protocol == (
        Field("parameters.x", 1, True),
    )


def test_details_are_said_once_a_metric_where_its_scores_agree():
    def attacked(threshold, other):
        return record(
            attacks={
                name: score(0.5, "clique", details={"threshold": t})
                for name, t in (("u", threshold), ("v", threshold), ("w", other))
            }
        )

    assert compare(attacked(1, 1), attacked(2, 2)).protocol == (Field("clique: threshold", 1, 2),)
    assert compare(attacked(1, 1), attacked(2, 3)).protocol == tuple(
        Field(f"clique: {n}.threshold", 1, v) for n, v in (("u", 2), ("v", 2), ("w", 3))
    )


@given(
    st.recursive(
        st.integers() | st.text(max_size=3),
        lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=3),
        max_leaves=8,
    )
)
def test_flat_keeps_every_value_under_its_dotted_name(value):
    def leaves(inner, path):
        return (
            {path: inner}
            if not isinstance(inner, dict) or not inner
            else {k: v for name in inner for k, v in leaves(inner[name], (*path, name)).items()}
        )

    assert flat({"top": value}) == {
        ".".join(path): leaf for path, leaf in leaves(value, ("top",)).items()
    }


@given(st.text(alphabet=st.characters()))
def test_visible_text_is_one_line_without_hidden_characters(text):
    assert visible(text).isprintable() and visible(visible(text)) == visible(text)
    assert (visible(text) == text) == all(c.isprintable() and not BLANK.match(c) for c in text)
    assert visible("a\u202eb\nc\x1b\u2066é") == "a\\u202eb c\\x1b\\u2066é"


def test_decimals():
    assert [
        decimals_of("fid"),
        decimals_of("x", score(4.0)),
        decimals_of("x", score(4.0, low=3.0, high=5.0)),
        decimals_of("x", score(4.5), None),
    ] == [2, 0, 3, 3]
    assert decimals_of("x", score(0.00012)) == 5


@pytest.fixture
def files(tmp_path):
    return record().save(tmp_path / "r"), record(
        "mine", "b" * 12, 0.4, status="partial", errors=["no attack:\nout of memory"]
    ).save(tmp_path / "r")


def test_compare_on_the_command_line(files, bench):
    a, b = files
    text = bench("compare", a, b)[1]
    assert text.startswith(
        "may be compared: same protocol, demo version 1 (ffffffffffffffff) (but B is partial)\n"
    )
    assert "B: mine on demo, run bbbbbbbbbbbb, partial; no attack: out of memory" in " ".join(
        text.split()
    )
    found = json.loads(bench("compare", a, b, "--json")[1])
    assert found["comparable"] and not found["identical"] and found["b"]["status"] == "partial"
    assert found["protocol"] == [
        {"name": "method", "a": "none", "b": "mine"},
        {"name": "status", "a": "complete", "b": "partial"},
    ]
    sscd = next(number for number in found["numbers"] if number["name"] == "sscd")
    assert sscd["difference"] == pytest.approx(
        {"value": -0.2, "low": -0.2, "high": -0.2, "paired_prompts": 3}
    )
    assert sscd["a"]["value"] == 0.6 and sscd["a"]["low"] == 0.5 and sscd["reason"] == ""
    same = bench("compare", a, a)[1]
    assert (
        same.startswith("identical: the two records agree in every field\n")
        and len(same.splitlines()) == 3
    )


def test_unreadable_records_are_one_line(files, tmp_path, bench):
    a, b = files
    b.write_text(b.read_text()[:300])
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "latin.json").write_bytes(b"\xff\xfe")
    damaged = [
        (path, "cannot be read")
        for path in (b, tmp_path / "no.json", tmp_path, tmp_path / "latin.json")
    ]
    for bad, says in [*damaged, (tmp_path / "list.json", "holds no object but list")]:
        for call in (
            lambda bad=bad: compare_files(a, bad),
            lambda bad=bad: compare_files(bad, a),
            lambda bad=bad: write_report(bad, tmp_path / "x.html"),
        ):
            with pytest.raises(UserError, match=says) as error:
                call()
            assert bad.name in str(error.value)
    for arguments in (
        ["compare", a, b],
        ["report", b],
        ["report", a, "--out", tmp_path],
        ["report", a, "--out", a],
    ):
        code, _, said = bench(*arguments)
        assert code == 2 and len(said.splitlines()) == 1 and said.startswith("bench: "), said
    assert json.loads(a.read_text())["method"] == "none"


class Seen(HTMLParser):
    """The tags with their attributes, and the text outside of tags."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def full(text, **changes):
    """A record that says `text` wherever it may say anything."""
    details = score(
        0.5,
        low=0.25,
        high=0.75,
        unit=text,
        metric=text,
        details={text: {text: [text]}},
        groups={text: 0.5, "3": 0.25},
    )
    null = score(None, reason=text)
    return record(
        "mine",
        status="partial",
        paper=text,
        where=text,
        needs=[text],
        parameters={text: text},
        changed={text: text},
        tuning={text: text},
        group_name=text,
        sources={text: text},
        images={text: 1},
        scores={"sscd": details, "gone": null},
        cost={"own": details},
        attacks={"found": details},
        facts={text: {text: 1.5}},
        thumbnails=[
            Thumbnail(prompt_id=text, prompt=text, group=text, seed=1, png="AAAA", reference="BBBB")
        ],
        exhibits=[
            RecordedExhibit(
                attack=text,
                prompt_id=text,
                prompt=text,
                group=text,
                caption=text,
                pictures=["CCCC", text],
                reference=text,
            )
        ],
        environment={text: {text: text}},
        warnings=[text],
        errors=[text],
        **changes,
    )


def test_nothing_hostile_reaches_the_page_or_the_terminal():
    seen, tame = Seen(page(full(HOSTILE))), Seen(page(full("tame")))
    assert [tag for tag, _ in seen.tags] == [tag for tag, _ in tame.tags]
    assert [sorted(attributes) for _, attributes in seen.tags] == [
        sorted(attributes) for _, attributes in tame.tags
    ]
    text = page(full(HOSTILE))
    assert (
        "<script" not in text
        and "<img src=x" not in text
        and "&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&gt;" in text
    )
    assert (
        not {"\u202e", "\x1b", "\ud800"} & set(text)
        and "\\u202e\\x1b[31m\\ud800{{ 7*7 }}" in text
        and "x" * 10_000 in text
    )
    text.encode()
    told = printed(compare(full(HOSTILE), full(HOSTILE, run="b" * 12))) + printed(
        compare(record(), full(HOSTILE))
    )
    assert (
        not {"\u202e", "\x1b", "\ud800"} & set(told)
        and "[bold]" in told
        and "x" * 500 not in told.replace("\n", "")
    )
    json.dumps(compare(record(), full(HOSTILE)).as_json()).encode()


@settings(deadline=None, max_examples=15)
@given(
    st.text(
        alphabet=st.sampled_from("<>&\"'{%}#\n\u202e\u2028\ud800\x00]-/ab "),
        min_size=1,
        max_size=12,
    )
)
def test_no_text_changes_the_structure_of_the_page(text):
    seen, tame = Seen(page(full(text))), Seen(page(full("tame" if text.strip() != "3" else "3")))
    assert [tag for tag, _ in seen.tags] == [tag for tag, _ in tame.tags]


def test_the_page_says_what_the_record_says():
    shown_record = record(
        "mine",
        parameters={"strength": 0.5, "seed": 3},
        changed={"seed": 3},
        facts={"memorized": {"updates": 1.25}, "clean": {"steps": 2}},
        group_name="views",
        warnings=["slow clock"],
        needs=["clean_prompts"],
        attacks={"knn": score(None, "knn", reason="no pictures to look at")},
        thumbnails=[
            Thumbnail(
                prompt_id="p7", prompt="a fox", group="10", seed=1, png="AAAA", reference="BBBB"
            )
        ],
        exhibits=[
            RecordedExhibit(
                attack="knn",
                prompt_id="p8",
                prompt="a cow",
                group="2",
                caption="8 agree",
                pictures=["CCCC", "DDDD"],
                reference="EEEE",
            )
        ],
    )
    html = page(shown_record)
    seen = Seen(html)
    for expected in (
        "mine (seed=3) on demo",
        "warnings:slow clock",
        "12 memorized",
        (
            "Suite demo, version 1, fingerprint ffffffffffffffff; every prompt of it; generations"
            " of every prompt: 1."
        ),
        "Method mine, version 1 (A Paper); acts on: weights. It was given: clean_prompts.",
        "fid 1, knn 1, sscd 1, walltime 1",
        "0.600[0.500,0.700]123cosinesscd1",
        "not measured: no pictures to look at",
        "a cow",
        "8 agree",
        "a fox",
        "model.hashabc",
        "packages.torch2.0",
        "SSCD by views",
        "1.25",
    ):
        assert expected in seen.text or expected in seen.text.replace(" ", ""), expected
    assert (
        '>seed</div></th><td><div class="long">3</div></td><td>changed</td>' in html
        and '>strength</div></th><td><div class="long">0.5</div></td><td>default</td>' in html
    )
    pictures = [
        attributes["src"].partition("base64,")[2] for tag, attributes in seen.tags if tag == "img"
    ]
    assert pictures == ["AAAA", "BBBB", "CCCC", "DDDD", "EEEE"]
    # groups as numbers, 2 before 10; a similarity below 0 has no bar
    assert re.findall(r"width: ([\d.]+)%\"", html) == ["0", "75.0"]
    assert html.index("complete</b>") < html.index("Protocol</h2>")
    assert (
        "http" not in html.replace("http-equiv", "")
        and "default-src 'none'" in html
        and "prefers-color-scheme: dark" in html
    )


def test_the_page_says_how_parameters_were_chosen():
    assert "† Chosen on" in page(record(tuning={"kept": 2, "rule": "lowest"})) and "lowest" in page(
        record(tuning={"kept": 2, "rule": "lowest"})
    )
    assert "no setting met its rule" in page(
        record(tuning={"kept": 0})
    ) and "bench tune" not in page(record())


def test_unfinished_records_say_so_first():
    html = page(
        record(status="partial", errors=["fid: out of memory"], warnings=["a & b"], limit=4)
    )
    first = Seen(html[: html.index("Protocol</h2>")]).text
    assert (
        "partial: a part of this run failed" in first
        and "errors:fid: out of memory" in first
        and "warnings:a & b" in first
    )
    assert "limited to 4 prompts of every role" in html
    assert "failed: what stands below" in page(
        record(status="failed")
    ) and "running: this record" in page(record(status="running"))
    empty = page(
        record(status="failed", scores={}, cost={}, per_prompt={}, environment={}, parameters={})
    )
    assert "Nothing was measured." in empty and "Environment" not in empty


def test_report_on_the_command_line(files, tmp_path, monkeypatch, bench):
    a, b = files
    out = tmp_path / "new/page.html"
    assert bench("report", b, "--out", out) == (0, f"{out}\n", "")
    assert out.read_text().startswith("<!doctype html>") and "partial:" in out.read_text()
    monkeypatch.chdir(tmp_path)
    assert str(write_report(a)) == f"{'a' * 12}.html" and (
        tmp_path / f"{'a' * 12}.html"
    ).read_text() == page(record())
