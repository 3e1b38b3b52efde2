import hashlib
import json
import os
import re
import subprocess
import sys

import pytest

from bench.base.errors import UserError
from bench.base.files import write_atomically
from bench.leaderboard import latex
from bench.leaderboard import leaderboard as board_module
from bench.leaderboard.board import columns_of
from bench.leaderboard.cells import number
from bench.leaderboard.columns import BY_NAME
from bench.leaderboard.leaderboard import check_pages, make_boards, make_pages, write_pages
from bench.records.record import (
    RecordedExhibit,
    RunRecord,
    Score,
    Shown,
    Thumbnail,
    content_digest,
    load_record,
    load_records,
)

SSCD = BY_NAME["sscd"]
HOSTILE = "<script>alert(1)</script>|\"'\n\u202e"


def record(method, sscd, run="0123456789ab", **changes):
    prompts = {f"p{i}": sscd + 0.01 * i for i in range(6)}
    score = Score(
        value=sscd,
        low=sscd - 0.05,
        high=sscd + 0.05,
        n=12,
        prompts=6,
        unit="cosine",
        higher_is_better=False,
        metric="sscd",
        metric_version=1,
        groups={"1": 0.1, "10": 0.9},
    )
    cost = Score(
        value=1.5, n=3, unit="x none", higher_is_better=False, metric="walltime", metric_version=1
    )
    clip = score.model_copy(
        update={"value": 0.3, "low": None, "high": None, "metric": "clip_score", "groups": {}}
    )
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
        "paper": "",
        "parameters": {},
        "scores": {"sscd": score, "memorized_ratio": score, "clip_score": clip},
        "cost": {"time_ratio": cost},
        "per_prompt": {"sscd": prompts},
        "thumbnails": [
            Thumbnail(
                prompt_id="p0", prompt="a fox", group="10", seed=1, png="AAAA", reference="BBBB"
            )
        ],
        "environment": {"device_name": "a machine", "threads": 2},
    }
    return RunRecord(**{**content, **changes})


@pytest.fixture
def records(tmp_path):
    folder = tmp_path / "records"
    record("none", 0.6).save(folder)
    record("better", 0.4, run="b" * 12).save(folder)
    return folder


def test_rows_stand_by_replication_with_paired_differences(records):
    (board,) = make_boards([load_record(path) for path in sorted(records.glob("*/*/*.json"))])
    assert [row.record.method for row in board.rows] == ["better", "none"]
    assert board.rows[0].difference(SSCD) == pytest.approx((-0.2, -0.2, -0.2))
    assert board.rows[1].difference(SSCD) is None


def test_pages_are_the_same_bytes_in_another_environment(records, tmp_path):
    code = (
        "from bench.leaderboard.leaderboard import *; from pathlib import Path;"
        f" write_pages(make_pages(Path({str(records)!r}))[0], Path({str(tmp_path / 'other')!r}))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "77", "LC_ALL": "C", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    pages = make_pages(records)[0]
    assert {
        str(path.relative_to(tmp_path / "other")): path.read_bytes()
        for path in (tmp_path / "other").rglob("*")
        if path.is_file()
    } == pages
    assert set(pages) == {
        "demo.md",
        "demo.csv",
        "demo.json",
        "demo.html",
        "demo.tex",
        "record.schema.json",
        "index.html",
        "pictures/demo.svg",
        "pictures/demo.html",
        "pictures/demo/training.svg",
        "pictures/demo/0123456789ab.svg",
        "pictures/demo/bbbbbbbbbbbb.svg",
    }


def test_a_one_character_change_is_found_and_named(records, tmp_path):
    out = tmp_path / "out"
    write_pages(make_pages(records)[0], out)
    assert check_pages(make_pages(records)[0], out) == []
    (out / "demo.csv").write_text((out / "demo.csv").read_text().replace("0.4", "0.5", 1))
    assert [
        "demo.csv differs" in problem for problem in check_pages(make_pages(records)[0], out)
    ] == [True]
    write_pages(make_pages(records)[0], out)
    (out / "gone.md").write_text("")
    assert any(
        "gone.md belongs to no records" in problem
        for problem in check_pages(make_pages(records)[0], out)
    )


def test_sheets_of_records_that_are_gone_go_with_them(records, tmp_path):
    out = tmp_path / "out"
    write_pages(make_pages(records)[0], out)
    (old,) = records.rglob("bbbbbbbbbbbb.json")
    old.unlink()
    pages = make_pages(records)[0]
    (out / "pictures" / "kept.svg").write_text("")
    assert check_pages(pages, out)
    write_pages(pages, out)
    assert check_pages(pages, out) == [f"{out / 'pictures' / 'kept.svg'} belongs to no records"]


def test_pictures_of_ones_own_beside_the_sheets_stay(records, tmp_path):
    out = tmp_path / "out"
    write_pages(make_pages(records)[0], out)
    own = out / "pictures/demo/figure.svg"
    own.write_text("mine")
    write_pages(make_pages(records)[0], out)
    assert own.read_text() == "mine"


def test_a_folder_of_other_pages_is_not_written_over(records, tmp_path):
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(UserError, match=r"holds index.html, .* another folder with --out"):
        write_pages(make_pages(records)[0], tmp_path)
    assert (tmp_path / "index.html").read_text() == "mine"
    assert not (tmp_path / "demo.html").exists()


def test_pages_that_were_half_written_are_written_again(records, tmp_path, monkeypatch):
    out, pages = tmp_path / "out", make_pages(records)[0]
    written = []

    def write(path, content):
        if len(written) == 3:
            raise UserError("the disk is full")
        written.append(path)
        write_atomically(path, content)

    with monkeypatch.context() as patched, pytest.raises(UserError, match="disk is full"):
        patched.setattr(board_module, "write_atomically", write)
        write_pages(pages, out)
    write_pages(pages, out)
    assert check_pages(pages, out) == []


def test_a_picture_that_drifted_is_named(records, tmp_path):
    pages = make_pages(records)[0]
    assert "pictures/demo.svg" in pages
    write_pages(pages, tmp_path / "out")
    pictures = tmp_path / "out" / "pictures"
    (pictures / "sheet.png").write_bytes(b"one")
    assert check_pages(pages, tmp_path / "out") == [
        f"{pictures / 'sheet.png'} belongs to no records"
    ]
    (pictures / "SHA256SUMS").write_text(
        f"{hashlib.sha256(b'one').hexdigest()}  sheet.png\n{'0' * 64}  lost.png\n"
    )
    assert check_pages(pages, tmp_path / "out") == [
        f"{pictures / 'lost.png'} is missing and stands in {pictures / 'SHA256SUMS'}"
    ]
    (pictures / "sheet.png").write_bytes(b"two")
    (pictures / "demo.svg").write_text((pictures / "demo.svg").read_text().replace("0.4", "0.5", 1))
    found = check_pages(pages, tmp_path / "out")
    assert [
        name in line
        for name, line in zip(
            ("demo.svg differs from its records", "sheet.png differs from", "lost.png"),
            found,
            strict=True,
        )
    ] == [True] * 3


def test_another_protocol_and_unfinished_runs_stand_apart_and_say_what_differs_or_is_missing(
    records,
):
    record("limited", 0.1, run="c" * 12, suite_fingerprint="e" * 16).save(records)
    record("older", 0.1, run="8" * 12, suite_version=0).save(records)
    scores = record("none", 0.1).scores
    newer = {"clip_score": scores["clip_score"].model_copy(update={"metric_version": 0})}
    record("stale", 0.1, run="7" * 12, scores=scores | newer).save(records)
    nothing = Score(
        value=None,
        unit="",
        higher_is_better=None,
        metric="clip_score",
        metric_version=1,
        reason="it broke",
    )
    record(
        "broken",
        0.1,
        run="d" * 12,
        status="failed",
        scores=scores | {"clip_score": nothing},
        errors=["OSError: <b>disk</b> full"],
    ).save(records)
    record("stopped", 0.1, run="5" * 12, status="partial", scores={}, cost={}).save(records)
    (board,) = make_boards([load_record(path) for path in sorted(records.glob("*/*/*.json"))])
    assert [row.record.method for row in board.rows] == ["better", "none"]
    assert {r.method: why for r, why in board.apart} == {
        "limited": (
            "another protocol: another fingerprint: a file or a setting of the suite differs"
        ),
        "older": "another protocol: version 0 of the suite; the table has 1",
        "stale": "another protocol: clip_score 0 instead of 1",
        "broken": "status failed (OSError: <b>disk</b> full); missing: clip_score",
        "stopped": "status partial; missing: every score",
    }
    page = make_pages(records)[0]["demo.md"].decode()
    assert "- broken (run dddddddddddd): status failed (OSError: &lt;b&gt;disk" in page


def test_rows_of_one_table_were_generated_equally_often(records, tmp_path):
    """With more images intervals are narrower and attackers stronger: the effort of most rows that
    have a reference counts, and what has another stands apart with the reason.
    """
    seeds = record("better", 0.42).scores["sscd"].model_copy(update={"by_seed": [0.41, 0.43]})
    more = record("better", 0.42, run="c" * 12, seeds=2)
    more.scores["sscd"] = seeds
    more.save(records)
    (board,) = make_boards(load_records(records)[0])
    once = [("better", 1), ("none", 1)]
    assert [(row.record.method, row.record.seeds) for row in board.rows] == once
    assert [why for _, why in board.apart] == ["generated 2 times; the rows of this table once"]
    record("none", 0.7, run="d" * 12, seeds=2).save(records)
    (board,) = make_boards(load_records(records)[0])  # as many rows: the larger effort
    twice = [("better", 2), ("none", 2)]
    assert [(row.record.method, row.record.seeds) for row in board.rows] == twice
    assert [why for _, why in board.apart] == ["generated once; the rows of this table 2 times"] * 2
    assert board.rows[0].difference(SSCD) == pytest.approx((-0.28,) * 3)
    assert board.rows[0].ranks == (1, 1)
    readme = tmp_path / "README.md"
    readme.write_text("<!-- board demo -->\n<!-- end -->\n")
    pages = make_pages(records, readme)[0]
    short = pages["../README.md"].decode()
    assert "| better |" in short and "seeds" not in short  # the full tables have the spread
    assert (
        "0.410 to 0.430 over 2 seeds" in pages["demo.md"].decode()
        and "0.410 to 0.430 over 2 seeds" in pages["demo.html"].decode()
    )
    assert json.loads(pages["demo.json"])[0]["sscd_by_seed"] == [0.41, 0.43]


def test_an_effort_without_a_reference_is_not_that_of_the_table(records):
    for run, method in (("c" * 12, "thrice"), ("d" * 12, "better"), ("e" * 12, "also")):
        record(method, 0.5, run=run, seeds=3).save(records)
    (board,) = make_boards(load_records(records)[0])
    assert {row.record.seeds for row in board.rows} == {1} and len(board.apart) == 3


def test_rows_of_the_same_name_say_which_run_they_are(records):
    record("better", 0.5, run="c" * 12, sources={"method better": "0" * 64}).save(records)
    (board,) = make_boards(load_records(records)[0])
    assert [row.label for row in board.rows] == [
        "better [run bbbbbbbbbbbb]",
        "better [run cccccccccccc]",
        "none",
    ]


def test_a_difference_over_some_of_the_prompts_says_so(records):
    fewer = {f"p{i}": 0.3 + 0.01 * i for i in range(4)}
    record("some", 0.3, run="c" * 12, per_prompt={"sscd": fewer}).save(records)
    pages = make_pages(records)[0]
    line = next(line for line in pages["demo.md"].decode().splitlines() if "| some |" in line)
    assert (
        "Δ -0.300 [-0.300, -0.300] over 4 prompts" in line
        and "over 4 prompts" in pages["demo.html"].decode()
    )


@pytest.mark.parametrize("name", ["method", "sscd_low", "own_difference_high", "=cmd|x", "a b"])
def test_a_score_cannot_take_the_column_of_something_else(records, name):
    shown = Shown(heading="mine", meaning="what it is")
    own = Score(
        value=0.25,
        n=3,
        unit="share",
        higher_is_better=True,
        metric="sscd",
        metric_version=1,
        shown=shown,
    )
    with pytest.raises(
        ValueError, match="a column of the tables has that name|should match pattern"
    ):
        record("mine", 0.5, scores=record("mine", 0.5).scores | {"own": own, name: own})


def test_a_suite_cannot_take_the_page_of_something_else():
    for name in ("published", "record.schema", "README"):
        with pytest.raises(ValueError, match="a page has that name"):
            record("none", 0.5, suite=name)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[" * 200_000, "cannot be read: maximum recursion depth"),
        ('{"schema_version": 2, "paper": "\\ud800"}', "cannot be read: 'utf-8' codec"),
        ('{"schema_version": 2, "parameters": ' + '{"a":' * 5000 + "1" + "}" * 5001, "record"),
        ("9" * 5000, "cannot be read: exceeds the limit"),
        ('{"schema_version": 2}', "field required"),
        ("\x00", "cannot be read"),
    ],
)
def test_whatever_a_file_holds_costs_one_line_and_its_own_row(records, content, says):
    bad = records / "demo" / "none" / "bad.json"
    bad.write_text(content)
    pages, (problem,) = make_pages(records)
    assert (
        says.lower() in problem.lower()
        and problem.startswith("record demo/none/bad.json")
        and len(problem) < 2100
    )
    assert len(json.loads(pages["demo.json"])) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"n": 10**400},
        {"value": 1e300},
        {"value": 10**400},
        {"metric_version": -1},
        {"groups": {"a": 1e101}},
        {"shown": {"haeding": "x"}},
    ],
)
def test_numbers_that_no_table_can_hold_are_refused(records, change):
    path = next(records.glob("demo/better/*.json"))
    content = json.loads(path.read_text())
    content["scores"]["sscd"] |= change
    content["content_sha256"] = content_digest(content)
    path.write_text(json.dumps(content))
    pages, (problem,) = make_pages(records)
    assert "scores.sscd" in problem and len(json.loads(pages["demo.json"])) == 1
    assert "shown" not in change or "did you mean 'scores.sscd.shown.heading'" in problem


def test_infinity_in_a_free_field_is_refused(records):
    path = next(records.glob("demo/better/*.json"))
    path.write_text(path.read_text().replace('"parameters": {}', '"parameters": {"x": 1e999}'))
    assert "Out of range float" in make_pages(records)[1][0]


def test_a_record_without_a_digest_is_refused_unless_it_is_of_schema_1(records):
    path = next(records.glob("demo/better/*.json"))
    content = json.loads(path.read_text()) | {"content_sha256": ""}
    path.write_text(json.dumps(content))
    assert "has no sha256 of its content" in make_pages(records)[1][0]


def test_a_folder_with_a_hostile_name_gets_no_page(records):
    place = records / "<img src=x onerror=alert(1)>" / "none"
    place.mkdir(parents=True)
    (place / "x.json").write_text("{}")
    pages, (problem,) = make_pages(records)
    assert "x.json" in problem and all(
        name.removeprefix("pictures/").replace(".", "/").split("/")[0]
        in ("demo", "record", "published", "index")
        for name in pages
    )


def test_what_others_measured_stands_in_a_table_of_its_own(records):
    reported = records.parent / "self-reported"
    record("theirs", 0.1, run="c" * 12).save(reported)
    record("elsewhere", 0.1, run="d" * 12, suite_fingerprint="e" * 16).save(reported)
    pages, problems = make_pages(records)
    assert problems == []
    before, _, after = pages["demo.md"].decode().partition("## Self-reported")
    assert "theirs" not in before and "| theirs | weights |" in after and "Δ -0.500" in after
    assert "elsewhere (run dddddddddddd): another protocol" in after
    assert [row["measured_by"] for row in json.loads(pages["demo.json"])] == [
        "the board",
        "the board",
        "self-reported",
    ]
    assert "theirs" in pages["demo.html"].decode() and "theirs" not in pages["demo.tex"].decode()
    (board,) = make_boards(load_records(records)[0], load_records(reported)[0])
    assert [row.pareto for row in board.reported] == [False]


def test_a_column_that_a_plug_in_declares_stands_after_the_built_in_ones_of_its_part(records):
    shown = Shown(heading="mine|<b>", decimals=1, meaning="what it is")
    own = Score(
        value=0.25,
        n=3,
        unit="share",
        higher_is_better=True,
        metric="sscd",
        metric_version=1,
        shown=shown,
    )
    hidden = own.model_copy(update={"shown": None})
    more = record("mine", 0.5, run="c" * 12)
    more.scores |= {"own": own, "hidden": hidden}
    more.save(records)
    (board,) = make_boards(load_records(records)[0])
    assert [column.name for column in columns_of(board)] == [
        "sscd",
        "memorized_ratio",
        "clip_score",
        "own",
        "time_ratio",
    ]
    pages = make_pages(records)[0]
    line = next(
        line
        for line in pages["demo.md"].decode().splitlines()
        if line.startswith("| rank | method")
    )
    assert "mine\\|&lt;b&gt; ↑ |" in line and "| 0.2 |" in pages["demo.md"].decode()
    assert (
        "mine|&lt;b&gt; ↑" in pages["demo.html"].decode()
        and "hidden" not in pages["demo.csv"].decode()
    )


def test_limited_runs_and_old_versions_of_a_method_are_never_ranked(records):
    record("none", 0.1, run="c" * 12, suite_fingerprint="e" * 16, limit=4).save(records)
    record("also", 0.1, run="a" * 12, suite_fingerprint="e" * 16, limit=4).save(records)
    record("third", 0.1, run="9" * 12, suite_fingerprint="e" * 16, limit=4).save(records)
    record("better", 0.3, run="d" * 12, method_version=2).save(records)
    (board,) = make_boards([load_record(path) for path in sorted(records.glob("*/*/*.json"))])
    assert [(row.record.method, row.record.method_version) for row in board.rows] == [
        ("better", 2),
        ("none", 1),
    ]
    assert {why for _, why in board.apart} == {
        "limited to 4 prompts of every role",
        "version 1 of the method; 2 is the newest",
    }


def test_a_record_in_anothers_place_is_named_and_not_used(records):
    path = next(records.glob("demo/none/*.json"))
    (path.parent / "copy.json").write_text(path.read_text())
    (records / "stray.json").write_text(path.read_text())
    pages, problems = make_pages(records)
    assert problems == [
        "record demo/none/copy.json says that it belongs at demo/none/0123456789ab.json",
        "record stray.json says that it belongs at demo/none/0123456789ab.json",
    ]
    assert (
        len(json.loads(pages["demo.json"])) == 2
        and "- record demo/none/copy.json says" in pages["demo.md"].decode()
    )
    with pytest.raises(ValueError, match="should match pattern"):
        record("none", 0.1, suite="../../x")


def test_hostile_text_stays_text(records):
    record(
        "evil",
        0.5,
        run="e" * 12,
        parameters={"x": HOSTILE},
        changed={"x": HOSTILE},
        paper=HOSTILE,
        thumbnails=[Thumbnail(prompt_id="q", prompt=HOSTILE, group="1", seed=2, png="AAAA")],
    ).save(records)
    pages = make_pages(records)[0]
    assert b"<script>" not in pages["demo.html"] and b"&lt;script&gt;" in pages["demo.html"]
    assert b"<script>" not in pages["demo.md"]
    for block in pages["demo.md"].decode().split("\n\n"):  # as many cells in every row of a table
        assert (
            len(
                {
                    line.replace("\\|", "").count("|")
                    for line in block.splitlines()
                    if line.startswith("|")
                }
            )
            <= 1
        )
    assert len(json.loads(pages["demo.json"])) == 3


def test_the_page_asks_nothing_of_the_network(records):
    page = make_pages(records)[0]["demo.html"].decode()
    assert "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in page


def test_a_record_that_was_changed_after_it_was_made_is_refused_and_named(records):
    path = next(records.glob("demo/better/*.json"))
    text = path.read_text()
    for old, new in [
        ("0.4", "0.3"),
        ("a machine", "another machine"),
        ('"errors": []', '"errors": ["none"]'),
    ]:
        path.write_text(text.replace(old, new, 1))
        pages, (problem,) = make_pages(records)
        assert "demo/better/bbbbbbbbbbbb.json was changed after it was made" in problem
        # the good one is still used
        assert problem in pages["demo.md"].decode() and len(json.loads(pages["demo.json"])) == 1
    path.write_text(json.dumps(json.loads(text)))  # another layout of the same content
    assert make_pages(records)[1] == []
    old = json.loads(text)
    del old["content_sha256"], old["exhibits"]  # as a version before both fields wrote it
    old["schema_version"] = 1
    path.write_text(json.dumps(old))
    assert load_record(path).save(records) == path and load_record(path).content_sha256


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("}", "", "cannot be read"),
        ('"n": 12', '"n": NaN', "it holds NaN"),
        ('"schema_version": 2', '"schema_version": 9', "schema_version is 9"),
        ('"status"', '"statsu"', "unknown field 'statsu': did you mean 'status'"),
        ('"n": 12', '"n": "many"', "n: input should be"),
    ],
)
def test_a_damaged_record_is_named_in_one_line(records, old, new, says):
    path = next(records.glob("demo/none/*.json"))
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=says) as error:
        load_record(path)
    assert path.name in str(error.value) and "\n" not in str(error.value)
    pages, (problem,) = make_pages(records)
    assert (
        says in problem
        and problem.startswith(f"record demo/none/{path.name}")
        and "\n" not in problem
    )
    assert [row["method"] for row in json.loads(pages["demo.json"])] == ["better"]
    for good in records.glob("demo/better/*.json"):
        good.unlink()
    with pytest.raises(UserError, match="none of the 1 records below"):
        make_pages(records)


def test_an_empty_folder_of_records_says_how_to_make_one(tmp_path):
    with pytest.raises(
        UserError, match="no records below .*; make one with `bench run --method none --records .*`"
    ):
        make_pages(tmp_path)


def test_every_older_schema_is_read(records):
    path = next(records.glob("demo/better/*.json"))
    old = json.loads(path.read_text())
    for field in ("seeds", "intervals", "holds_against", "samples", "content_sha256"):
        del old[field]
    for scores in (old["scores"], old["cost"]):
        for score in scores.values():
            for field in ("by_seed", "threat", "shown"):
                del score[field]
    old["schema_version"] = 1
    old["content_sha256"] = content_digest(old)
    path.write_text(json.dumps(old))
    read = load_record(path)
    assert (
        read.seeds == 1
        and read.intervals == "percentile bootstrap over prompts"
        and read.holds_against is None
    )
    assert read.scores == record("better", 0.4).scores
    old["method"] = "other"  # the digest is of the content as it was written
    path.write_text(json.dumps(old))
    with pytest.raises(UserError, match="was changed after it was made"):
        load_record(path)
    for version, says in [
        (3, "a newer version of the bench made it"),
        (True, "reads 1 to 2"),
        ("2", "reads 1 to 2"),
        (None, "reads 1 to 2"),
        (0, "reads 1 to 2"),
    ]:
        path.write_text(json.dumps(old | {"schema_version": version}))
        with pytest.raises(UserError, match=says):
            load_record(path)


def test_the_committed_schema_describes_records(records):
    schema = json.loads(make_pages(records)[0]["record.schema.json"])
    assert (
        schema["$schema"].startswith("https://json-schema.org/")
        and schema["additionalProperties"] is False
    )
    assert set(json.loads(next(records.glob("demo/none/*.json")).read_text())) == set(
        schema["properties"]
    )


def test_a_score_without_value_needs_a_reason_and_nan_is_no_value():
    with pytest.raises(ValueError, match="without a reason"):
        Score(value=None, unit="", higher_is_better=None, metric="m", metric_version=1)
    with pytest.raises(ValueError, match="finite number"):
        Score(value=float("nan"), unit="", higher_is_better=None, metric="m", metric_version=1)


def test_numbers_for_people():
    assert [number(v, 5) for v in (159.91267, -28.8, 2.5, 0.00123456, 123456.7)] == [
        "159.9",
        "-28.80",
        "2.500",
        "0.00123",
        "123457",
    ]
    assert [number(-0.0001, 2), number(None, 2), number(0.126, 2, True)] == ["0.00", "–", "+0.13"]


def test_a_readme_gets_the_table_it_marks_and_keeps_every_other_word(records, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(
        "before\n<!-- board demo -->\nold\n<!-- end -->\nafter\n<!-- board other -->\nkept\n<!--"
        " end -->\n"
    )
    pages = make_pages(records, readme)[0]
    out = tmp_path / "leaderboards"
    write_pages(pages, out)
    text = readme.read_text()
    assert (
        text.startswith("before\n<!-- board demo -->\n| rank | method |")
        and "| better |" in text
        and "old" not in text
    )
    assert text.endswith("<!-- end -->\nafter\n<!-- board other -->\nkept\n<!-- end -->\n")
    assert check_pages(make_pages(records, readme)[0], out) == []
    readme.write_text(text.replace("better", "worse", 1))
    assert any(
        "README.md differs" in problem
        for problem in check_pages(make_pages(records, readme)[0], out)
    )


CLIQUES = {"metric": "clique_extraction", "metric_version": 1}


def attacked(method, sscd, run, unknown=0, **details):
    share = Score(
        value=0.25,
        low=0.1,
        high=0.4,
        n=12,
        prompts=12,
        unit="share of prompts",
        higher_is_better=False,
        metric="clique_extraction",
        metric_version=1,
    )
    share = share.model_copy(
        update={
            "groups": {"1": 0.0, "10": 0.5},
            "details": {"unknown": unknown, "training": "9 reference pictures"} | details,
        }
    )
    unmeasured = Score(
        value=None, unit="", higher_is_better=None, **CLIQUES, reason="there are no clean prompts"
    )
    plain = record(method, sscd, run)
    scores = {
        "clique_identified": share,
        "clique_extracted": share,
        "clique_clean_flagged": unmeasured,
    }
    shown = RecordedExhibit(
        attack="clique_extraction",
        prompt_id="p0",
        prompt=HOSTILE,
        group="10",
        caption=HOSTILE,
        pictures=["AAAA"],
        reference="BBBB",
    )
    return plain.model_copy(
        update={"attacks": scores, "suite_fingerprint": "e" * 16, "exhibits": [shown]}
    )


def test_the_extraction_table_stands_before_and_after_and_escapes_what_records_say(tmp_path):
    folder = tmp_path / "records"
    attacked("better", 0.4, "b" * 12, unknown=2).save(folder)
    attacked("none", 0.6, "a" * 12, training="<b>x</b> <!-- end --> |").save(folder)
    pages = make_pages(folder)[0]
    markdown = pages["demo.md"].decode()
    table = markdown.partition("## Extraction attack")[2].splitlines()
    assert table[4].startswith("| none | 3 of 12: 25 % [10, 40] |") and "| – |" in table[4]
    assert table[5].startswith("| better | 3 of 12: 25 % [10, 40], 2 undecided |")
    assert "| better | 0 % | 50 % |" in markdown
    assert "<b>" not in markdown and "<!--" not in markdown
    for name in ("demo.html", "pictures/demo.html"):
        assert "<script>alert" not in pages[name].decode()
    assert "What the attacker gets" in pages["pictures/demo.html"].decode()


def test_a_protocol_that_measures_more_is_the_newer_one(records):
    attacked("none", 0.6, "c" * 12).save(records)
    (board,) = make_boards([load_record(path) for path in sorted(records.glob("*/*/*.json"))])
    assert [row.record.run for row in board.rows] == ["c" * 12] and len(board.apart) == 2


def test_readme_tables_of_extraction_are_filled_in_and_stay(tmp_path):
    attacked("none", 0.6, "a" * 12).save(tmp_path / "records")
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- extraction demo -->\n<!-- end -->\nafter\n")
    once = make_pages(tmp_path / "records", readme)[0]["../README.md"]
    assert b"| none | 3 of 12" in once and once.endswith(b"<!-- end -->\nafter\n")
    readme.write_bytes(once)
    assert make_pages(tmp_path / "records", readme)[0]["../README.md"] == once


def test_latex_has_a_cell_for_every_column_and_prints_hostile_names_as_they_are(tmp_path):
    record(
        "none",
        0.6,
        parameters={},
        changed={"name": "\\input{/etc/passwd} 50% a_b & $x$ ^~#{}\n\u202e<>|"},
    ).save(tmp_path / "records")
    lines = make_pages(tmp_path / "records")[0]["demo.tex"].decode().splitlines()
    rows = [line for line in lines if line.endswith("\\\\")]
    columns = lines[1].partition("{ll")[2].rstrip("}")
    cells = [re.split(r"(?<!\\)&", row) for row in rows]
    assert len(rows) == 3 and all(len(row) == len(columns) + 2 for row in cells)
    assert (
        r"\textbackslash{}input\{/etc/passwd\} 50\% a\_b \& \$x\$"
        r" \textasciicircum{}\textasciitilde{}\#\{\} ?\textless{}\textgreater{}\textbar{}"
        in rows[1]
    )
    assert cells[1][2].strip() == "0.600" and "[0.550, 0.650]" in cells[2][2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Erdős", r"Erd{\H{o}}s"),
        ("nai\u0308ve Löß", r"na{\"\i}ve L{\"o}{\ss}"),  # a letter and its accent apart
        ("α≥½", r"{\ensuremath{\alpha}}{\ensuremath{\geq}}?"),
        ("x²…", r"x{\texttwosuperior}{\textellipsis}"),
        # no command that needs a package, another encoding, or that exists nowhere
        ("Ж你😀ℝĄ\u202e\u2a6e", "???????"),
    ],
)
def test_letters_of_other_languages_become_latex_where_it_needs_no_package(text, expected):
    assert latex.escape(text) == expected


def test_what_the_choice_of_parameters_took_is_a_column_where_a_row_is_tuned(records):
    def pages(tuning):
        record("better", 0.4, run="b" * 12, tuning=tuning).save(records)
        made = make_pages(records)[0]
        return [made[f"demo.{form}"].decode() for form in ("md", "html", "csv", "tex")]

    assert not any("tuning NFE" in page or "tuning_nfe" in page for page in pages(None))
    markdown, page, table, latex_table = pages({"kept": 3, "evaluations": 12345})
    for text in (markdown, page, latex_table):
        assert "tuning NFE" in text and "12345" in text
    assert "tuning_nfe" in table.splitlines()[0] and "12345" in table
    for claimed in ("12345", -1, True, 1.5, ["x"], 10**400):
        made = pages({"kept": 3, "evaluations": claimed})
        assert not any("tuning NFE" in page or "tuning_nfe" in page for page in made), claimed
