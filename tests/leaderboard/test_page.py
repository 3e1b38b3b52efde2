"""The page of a suite: well-formed, inert to hostile records, the same bytes everywhere; the
answers and charts by hand-made records.
"""

import base64
import hashlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.leaderboard.board import Board, Row, columns_of, make_boards
from bench.leaderboard.charts import bars, groups, looks, place_labels, scatters, step_line, ticks
from bench.leaderboard.columns import BY_NAME, COLUMNS
from bench.leaderboard.glance import (
    CLEARLY_BETTER,
    CLEARLY_WORSE,
    NO_INTERVAL,
    NO_REFERENCE,
    NOT_CLEARLY_BETTER,
    glance,
    no_extra,
    no_fitting,
    verdict,
)
from bench.leaderboard.page import html
from bench.leaderboard.pictures_page import files
from bench.leaderboard.sheets import Sheet, is_picture, is_small
from bench.leaderboard.templating import plain, short
from bench.records.record import RecordedExhibit, RunRecord, Score, Shown, Thumbnail

HOSTILE = (
    "</script></style><script>window.hacked=1</script><img src=x onerror=window.hacked=1>\"'"
    " onmouseover='window.hacked=1' \n|\u202e\u200bevil"
)
VOID = {"meta", "input", "img", "br", "wbr", "link", "hr"}
PNG = base64.b64encode(
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (32).to_bytes(4, "big") * 2 + b"\x08\x02" + bytes(18)
).decode()
SSCD, EXTRACTED = BY_NAME["sscd"], BY_NAME["clique_extracted"]


def score(value, metric="m", spread=0.05, **changes):
    given = {
        "value": value,
        "unit": "cosine",
        "higher_is_better": False,
        "metric": metric,
        "metric_version": 1,
        "n": 8,
        "prompts": 4,
    }
    if value is not None and spread:
        given |= {"low": value - spread, "high": value + spread}
    return Score(**{**given, **changes})


def record(
    method,
    sscd=0.5,
    *,
    extracted=0.3,
    clip=0.5,
    clean=0.6,
    nfe=50.0,
    fit=0.0,
    time=1.0,
    change=None,
    **changes,
):
    """A record whose scores by prompt vary around its means; `change` is what each prompt adds to
    that, by score.
    """
    values = {
        "sscd": sscd,
        "clip_score": clip,
        "clip_score_clean": clean,
        "clique_extracted": extracted,
    }
    wobble = [-0.03, -0.01, 0.01, 0.03]
    by_prompt = {
        name: {
            f"p{i:02d}": value + (change or {}).get(name, [0, 0, 0, 0])[i % 4] + wobble[i % 4]
            for i in range(12)
        }
        for name, value in values.items()
        if value is not None
    }
    scores = {
        name: score(values[name], name)
        for name in ("sscd", "clip_score", "clip_score_clean")
        if values[name] is not None
    }
    if "sscd" in scores:
        scores["sscd"] = scores["sscd"].model_copy(update={"groups": {"1": 0.2, "10": sscd}})
    content = {
        "run": hashlib.sha256(repr((method, changes.get("changed"))).encode()).hexdigest()[:12],
        "status": "complete",
        "suite": "demo",
        "suite_version": 3,
        "suite_fingerprint": "f" * 16,
        "method": method,
        "method_version": 1,
        "where": "nothing" if method == "none" else "guidance",
        "needs": [],
        "paper": "",
        "parameters": {},
        "scores": scores,
        "per_prompt": by_prompt,
        "holds_against": [] if method == "none" else ["api"],
        "attacks": (
            {"clique_extracted": score(extracted, "clique", threat="api")}
            if extracted is not None
            else {}
        ),
        "cost": {
            name: score(value, "walltime", 0)
            for name, value in (("nfe_per_image", nfe), ("fit_nfe", fit), ("time_ratio", time))
            if value is not None
        },
        "thumbnails": [
            Thumbnail(prompt_id="p0", prompt="a fox", group="10", seed=1, png=PNG, reference=PNG)
        ],
        "environment": {"device_name": "a machine", "threads": 2},
        "images": {"memorized": 8},
    }
    return RunRecord(**{**content, **changes})


def board_of(*records):
    (board,) = make_boards(list(records))
    return board


class Walk(HTMLParser):
    """Every tag, text and attribute; raises where a tag closes what is not open."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.attributes, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        self.ids += [value for name, value in attributes if name == "id"]
        assert len({name for name, _ in attributes}) == len(attributes), (tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:], self.getpos())
        self.open.pop()

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def hostile():
    return record(
        "evil",
        0.4,
        where=HOSTILE,
        needs=[HOSTILE],
        paper=HOSTILE * 200,
        changed={HOSTILE: HOSTILE},
        parameters={HOSTILE: 1},
        group_name=HOSTILE,
        thumbnails=[
            Thumbnail(
                prompt_id=HOSTILE,
                prompt="x" * 10_000 + HOSTILE,
                group=HOSTILE,
                seed=2,
                png='AAAA" onerror="window.hacked=1',
                reference=HOSTILE,
            ),
            Thumbnail(prompt_id="p0", prompt=HOSTILE, group=HOSTILE, seed=3, png=PNG),
        ],
        exhibits=[
            RecordedExhibit(
                attack="a",
                prompt_id="p",
                prompt=HOSTILE,
                group=HOSTILE,
                caption=HOSTILE,
                pictures=[PNG, HOSTILE],
                reference=HOSTILE,
            )
        ],
        environment={"device_name": HOSTILE, "threads": HOSTILE},
        images={HOSTILE: 3},
        intervals=HOSTILE,
        seeds=2,
        tuning={"kept": False},
        scores={
            "sscd": score(
                0.4,
                "sscd",
                groups={HOSTILE: 0.4, "²": 0.1, "9" * 5000: 0.3},
                details={HOSTILE: HOSTILE, "sha256": HOSTILE},
                unit=HOSTILE,
            ),
            "own": score(
                1.0, HOSTILE, shown=Shown(heading=HOSTILE, meaning=HOSTILE), by_seed=[0.3, 0.5]
            ),
            "gone": score(None, reason=HOSTILE, shown=Shown(heading="g", meaning=HOSTILE)),
        },
        attacks={
            "clique_identified": score(
                0.5,
                HOSTILE,
                groups={HOSTILE: 1.0},
                details={"images": HOSTILE, "training": HOSTILE, "unknown": HOSTILE},
            )
        },
    )


def hostile_board():
    evil = hostile()
    plain_board = board_of(record("none"), record("good", 0.3))
    row = Row(evil, plain_board.rows[0].record)
    return Board(
        "demo", (*plain_board.rows, row), ((evil, HOSTILE),), (row,), (HOSTILE, "y" * 10_000)
    )


def test_the_page_is_well_formed_with_unique_ids_and_places_that_exist():
    walk = Walk(html(hostile_board()))
    assert len(set(walk.ids)) == len(walk.ids)
    links = {value for _, name, value in walk.attributes if name == "href"}
    targets = {link[1:] for link in links - {"index.html", "pictures/demo.html"}}
    assert (
        targets <= set(walk.ids)
        and {"table", "charts", "pictures", "reported", "apart", "legend"} <= targets
    )
    beside = Walk(files(hostile_board())["pictures/demo.html"])
    links = {value for _, name, value in beside.attributes if name == "href"}
    links = {link for link in links if not re.fullmatch(r"#m\d", link)}
    assert links == {"../index.html", "../demo.html", "#main", "#gallery", "#exhibits"}
    assert {"main", "gallery", "exhibits"} <= set(beside.ids)


def test_hostile_records_stay_text():
    page = html(hostile_board())
    walk = Walk(page)
    assert (
        walk.tags.count("script") == 1
        and "\u202e" not in page
        and "\u200b" not in page
        and "\\u202e" in page
    )
    assert not [found for found in walk.attributes if found[1].startswith("on")]
    assert "<script>" not in page and "http" not in page.replace("http-equiv", "")
    made = files(hostile_board())
    for before, text in (("pictures/", page), ("", made["pictures/demo.html"])):
        sources = [v for tag, name, v in Walk(text).attributes if tag == "img" and name == "src"]
        assert sources
        for source in sources:
            assert re.fullmatch(before + r"demo/([0-9a-f]{12}(-finds)?|training)\.svg", source)
            assert "pictures/" + source.removeprefix("pictures/") in made
    for name, text in made.items():
        if name.endswith(".svg"):
            assert set(re.findall(r'href="([^"]*)"', text)) == {f"data:image/png;base64,{PNG}"}
    assert "hacked" not in "".join(text for name, text in made.items() if name.endswith(".svg"))
    assert made["pictures/demo.html"].count("<script") == 1
    assert "<script>" not in made["pictures/demo.html"]
    assert (
        max(len(value) for _, name, value in walk.attributes if name not in ("content", "points"))
        < 1000
    )
    assert max(map(len, walk.words)) < 1500


def test_the_policy_allows_the_one_script_by_its_digest_and_nothing_else():
    page = html(board_of(record("none"), record("good", 0.3)))
    (script,) = re.findall(r'<script id="behaviour">(.*?)</script>', page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert {
        "default-src 'none'",
        "img-src 'self'",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'",
    } <= set(policy.split("; "))


def test_the_same_bytes_in_another_environment():
    code = (
        "import sys; sys.path.insert(0, 'tests/leaderboard'); import test_page;"
        " sys.stdout.buffer.write(test_page.html(test_page.hostile_board()).encode())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "77", "LC_ALL": "C", "TZ": "Asia/Tokyo"}
    there = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, env=environment
    ).stdout
    assert there == html(hostile_board()).encode()


@pytest.mark.parametrize(
    "rows",
    [
        (),
        (record("good"),),
        (record("none"),),
        (
            record("none", thumbnails=[], extracted=None),
            record("good", 0.3, thumbnails=[], extracted=None, scores={"sscd": score(0.3, "sscd")}),
        ),
        (
            record(
                "none",
                scores={},
                attacks={},
                cost={},
                per_prompt={},
                thumbnails=[],
                images={},
                environment={},
            ),
        ),
        (
            record(
                "none",
                scores={"sscd": score(None, reason="no prompts")},
                attacks={},
                cost={"nfe_per_image": score(None, reason="x")},
            ),
        ),
        (
            record("none", 1e99, clip=-1e99, nfe=1e99, time=1e99),
            record("good", 5e-324, clip=1e99, nfe=1e-300, time=5e-324),
        ),
        (
            record("none", 0.0, clip=0.0, extracted=0.0, time=0.0, nfe=0.0),
            record("good", 0.0, clip=0.0, extracted=0.0, time=0.0, nfe=0.0),
        ),
    ],
)
def test_a_board_that_lacks_parts_gives_a_page_without_them(rows):
    reference = next((row for row in rows if row.method == "none"), None)
    board = Board(
        "demo",
        tuple(Row(row, reference) for row in rows),
        ((record("late", status="partial"), "status partial"),),
        (),
        ("x.json is damaged",),
    )
    walk = Walk(html(board))
    assert (
        "Not ranked" in walk.text
        and "status partial" in walk.text
        and "x.json is damaged" in walk.text
    )
    assert ("can be ranked yet" in walk.text) == (not rows)
    assert "pictures" in walk.ids or not any(row.thumbnails for row in rows)
    Walk(html(Board("demo", board.rows, ())))


def test_a_cell_shows_value_interval_difference_and_seeds():
    several = record("good", 0.3, seeds=3)
    several.scores["sscd"].by_seed = [0.31, 0.28, 0.32]
    text = Walk(html(board_of(record("none", seeds=3), several))).text
    assert (
        "0.300 [0.250, 0.350]" in text
        and "Δ -0.200 [-0.200, -0.200]" in text
        and "0.280 to 0.320 over 3 seeds" in text
    )
    assert (
        "every prompt of every row, each time from other seeds" in text
        and "attacker with the API" in text
    )


def test_definitions_show_the_operating_point_shortened_and_only_what_is_one_value():
    details = {
        "threshold": 0.85061234567,
        "weights_sha256": "ab" * 32,
        "calibration": {"rate": 0.01},
        "flagged": [{"x": 1}],
        "exact": True,
    }
    reference = record("none")
    reference.scores["sscd"].details = details
    other = record("good", 0.3)
    other.scores["sscd"].details = {"threshold": 99}
    text = Walk(html(board_of(reference, other))).text
    assert (
        "threshold 0.850612" in text
        and "abababababab" in text
        and "ab" * 7 not in text
        and "calibration.rate 0.01" in text
        and "exact yes" in text
    )
    assert "flagged" not in text and "99" not in text


def test_texts_are_cut_with_more_in_the_tooltip():
    assert short("a<b") == "<bdi>a&lt;b</bdi>"
    cut = short("x" * 5000, 10)
    assert cut.startswith('<bdi title="x') and cut.endswith(">xxxxxxxxxx…</bdi>") and len(cut) < 700
    assert plain("a\u202eb\nc") == "a\\u202eb c"


@pytest.mark.parametrize("text", [None, "", "AAA", 'AAAA"', "AA=A", "AAAA\n", "====", "AA A"])
def test_what_is_no_base64_is_no_picture(text):
    assert not is_picture(text)
    assert Sheet("x.svg").add([text]) is None


def test_small_pictures_are_enlarged_without_smoothing():
    large = base64.b64encode(
        base64.b64decode(PNG)[:16] + (512).to_bytes(4, "big") * 2 + bytes(12)
    ).decode()
    assert is_small(PNG) and not is_small(large)
    sheet = Sheet("x.svg")
    sheet.add([PNG])
    sheet.add([large])
    assert [' class="dots"' in line for line in sheet.svg().split("\n")[2:4]] == [True, False]


# The answers.


def cards(*records):
    return {card.name: card for card in glance(board_of(*records))}


def leads(card):
    return [(answer.lead, answer.row.record.method) for answer in card.answers]


def test_the_best_against_the_api_is_by_extracted_then_sscd_and_again_with_clean_alignment():
    found = cards(
        record("none", 0.5, extracted=0.4),
        record("tied", 0.45, extracted=0.1, clean=0.3),
        record("best", 0.35, extracted=0.1, clean=0.5),
        record("kept", 0.4, extracted=0.2, clean=0.5801),
        record("kept_later", 0.1, extracted=0.3, clean=0.7),
    )
    assert leads(found["api"]) == [
        ("Fewest prompts extracted", "best"),
        ("Fewest, clean alignment kept", "kept"),
    ]
    assert [row.record.method for row in found["api"].answers[0].others] == [
        "tied",
        "kept",
        "kept_later",
    ]
    assert [answer.verdict for answer in found["api"].answers] == [CLEARLY_BETTER] * 2
    none_keeps = cards(record("none"), record("a", extracted=0.1, clean=0.5))["api"]
    assert len(none_keeps.answers) == 1 and none_keeps.nothing == (
        "None of them keeps clean CLIP within 0.02 of none.",
    )


def test_whoever_is_best_against_the_api_is_said_with_what_other_words_get():
    """A method that only knows the prompt it was asked for may give copies to any other."""
    best = record("best", 0.35, extracted=0.0)
    assert cards(record("none"), best)["api"].told == ()
    for name, value in (("paraphrase_extracted", 0.229), ("paraphrase_plain", 0.0)):
        best.attacks[name] = score(value, name, spread=0)
    assert cards(record("none"), best)["api"].told == (
        "best asked in other words: 0.23 of the prompts give a copy; asked as often in the same"
        " words, 0.00.",
    )


def test_an_interval_around_zero_is_not_clearly_better():
    base = record("none", extracted=0.3)
    rows = board_of(
        base,
        record("unsure", extracted=0.28, change={"clique_extracted": [-0.2, 0.2, -0.1, 0.1]}),
        record("better", extracted=0.2),
        record("worse", extracted=0.4),
    ).rows
    by_method = {row.record.method: row for row in rows}
    assert verdict(by_method["unsure"], EXTRACTED) == NOT_CLEARLY_BETTER
    assert (
        verdict(by_method["better"], EXTRACTED) == CLEARLY_BETTER
        and verdict(by_method["worse"], EXTRACTED) == CLEARLY_WORSE
    )
    assert (
        verdict(by_method["better"], EXTRACTED)
        in Walk(html(board_of(base, by_method["better"].record))).text
    )
    assert verdict(Row(by_method["better"].record, None), EXTRACTED) == NO_REFERENCE
    assert verdict(Row(record("x", per_prompt={}), base), SSCD) == NO_INTERVAL
    higher = next(column for column in COLUMNS if column.name == "clip_score")
    assert (
        verdict(Row(record("x", clip=0.9), base), higher) == CLEARLY_BETTER
        and verdict(Row(record("x", clip=0.1), base), higher) == CLEARLY_WORSE
    )


def test_free_methods_do_no_more_evaluations_and_fitting_stands_apart():
    free = cards(
        record("none", nfe=50),
        record("slow", 0.1, nfe=51),
        record("second", 0.4),
        record("first", 0.3, nfe=38),
        record("fitted", 0.2, fit=10),
        record("unknown", 0.1, fit=None),
    )["free"]
    assert leads(free) == [
        ("Nothing at inference, without fitting", "first"),
        ("Nothing at inference, after fitting once", "fitted"),
    ]
    assert [row.record.method for row in free.answers[0].others] == ["second"]
    assert (
        cards(record("none", nfe=50), record("slow", 0.1, nfe=51))["free"]
        .nothing[0]
        .startswith("None of them runs at the cost of none")
    )
    unknown = board_of(record("none"), record("x", fit=None, nfe=None)).rows
    assert not any(
        no_fitting(row) or no_extra(row, unknown[0]) for row in unknown if row.record.method == "x"
    )


def test_weights_and_kept_pictures():
    found = cards(
        record("none"),
        record("hooks", 0.1),
        record("pruned", 0.4, holds_against=["api", "weights"], clean=0.5),
        record("later", 0.45, holds_against=["weights"], clean=0.61),
    )
    assert leads(found["weights"]) == [("Lowest SSCD by sampling", "pruned")]
    assert leads(found["keeps"]) == [("Lowest replication", "hooks")]
    assert cards(record("none"), record("hooks", 0.1))["weights"].nothing == (
        "None of them: whoever holds the weights goes without the method.",
    )
    # it changed them as well
    assert cards(record("none"), record("more", 0.1, clean=0.63))["keeps"].nothing == (
        "None of them.",
    )


def attacked(name, value, low, threat="weights"):
    return {
        f"{name}_excess": score(value, "clique", spread=0).model_copy(
            update={"low": low, "high": 1.0, "threat": threat, "details": {"curve": {}}}
        )
    }


def test_edited_weights_from_which_copies_come_back_do_not_hold():
    """The lead says so of the first row, and of all where it is so of all."""
    none, pruned, later = (
        record("none"),
        record("pruned", 0.4, holds_against=["weights"]),
        record("later", 0.45, holds_against=["weights"]),
    )
    none.attacks |= attacked("dori", 0.9, 0.8)
    pruned.attacks |= attacked("dori", 0.05, -0.1) | attacked("inversion", 0.8, 0.3, "inputs")
    later.attacks |= attacked("dori", 0.02, -0.2)
    card = cards(none, pruned, later)["weights"]
    assert leads(card) == [
        ("Does not hold; lowest SSCD by sampling", "pruned"),
        ("Fewest with nothing clearly brought back here", "later"),
    ]
    assert "gets copies 0.05 [-0.10, 1.00] more than of controls (none: 0.90" in card.told[0]
    assert "strongest of the 2 such attacks here, inversion, gets 0.80 [0.30" in card.told[0]
    assert "No other such attack was run here" in card.told[1]
    later.attacks |= attacked("hole", 0.7, 0.5)
    assert leads(cards(none, pruned, later)["weights"]) == [
        ("None holds; lowest SSCD by sampling", "pruned")
    ]
    pruned.attacks |= attacked("inversion", 0.8, -0.1)
    assert leads(cards(none, pruned, later)["weights"]) == [("Lowest SSCD by sampling", "pruned")]


def test_what_costs_nothing_at_inference_is_judged_by_clean_pictures_too():
    page = " ".join(html(board_of(record("none"), record("grey", 0.1, clean=0.3))).split())
    card = page.partition('data-card="free"')[2].partition("</article>")[0]
    assert "clearly worse than none in CLIP clean" in card and "CLIP clean Δ -0.3" in card


def test_cards_without_their_scores_are_left_out():
    assert glance(Board("demo", (), ())) == [] and cards(record("none")) == {}
    unattacked = cards(record("none", extracted=None), record("a", extracted=None))
    assert list(unattacked) == ["api", "weights", "free", "sure", "keeps"]
    assert leads(unattacked["api"]) == [("Least by plain sampling, clean alignment kept", "a")]
    # nothing to compare with
    assert list(cards(record("a"))) == ["api", "weights", "free", "sure"]
    without = cards(record("none", clean=None, nfe=None), record("a", clean=None))
    assert list(without) == ["api", "weights", "free", "sure"]
    assert without["free"].answers == () and "Not measured" in without["free"].nothing[0]


def test_what_the_answering_rows_cost_stands_beside_none():
    free = cards(
        record("none", nfe=50, time=1.0),
        record("slow", 0.1, extracted=0.1, nfe=317.8, time=13.15, fit=1000, clean=0.4),
        record("light", 0.3, nfe=38, time=0.8),
    )["free"]
    found = {row.record.method: cells for row, cells in free.costs}
    assert found == {
        "slow": ("–", "13.15", "–", "317.8", "1000"),
        "light": ("–", "0.80", "–", "38.0", "0"),
        "none": ("–", "1.00", "–", "50.0", "0"),
    }


def test_how_sure_it_is_counts_rows_and_says_who_may_be_first():
    told = " ".join(
        cards(record("none", 0.5), record("good", 0.2), record("also", 0.20001))["sure"].told
    )
    assert "of 2 rows clearly better than none in SSCD" in told
    assert "4 prompts and 8 images a row decide on SSCD" in told
    assert "every prompt was asked once from seeds of its own." in told
    wide = record("wide", 0.5, change={"sscd": [-0.1, 0.1, -0.1, 0.1]})
    (row,) = (row for row in board_of(record("none", 0.5), wide).rows if row.record is wide)
    _, low, high = row.difference(SSCD)
    power = f"A difference to none of {(high - low) / 2 * 2.802 / 1.96:.2f} in SSCD would be clear"
    assert power in " ".join(cards(record("none", 0.5), wide)["sure"].told)
    several = cards(record("none", seeds=3), record("good", 0.2, seeds=3))["sure"].told
    assert "asked 3 times from seeds of its own" in " ".join(several)
    assert "there is no row of it" in cards(record("a"))["sure"].told[0]


def test_a_board_of_none_alone_says_what_there_is_to_mitigate():
    page = Walk(html(board_of(record("none")))).text
    assert "No method has been measured on this suite yet." in page
    assert "SSCD 0.500 [0.450, 0.550]" in page and "none yet" in page
    assert not re.search(r"methods\s+0", page)
    assert (
        "No method has been measured" not in Walk(html(board_of(record("none"), record("a")))).text
    )


# The charts.

POINTS = st.lists(
    st.tuples(st.integers(0, 12).map(float), st.integers(1, 12).map(float)), min_size=1, max_size=12
)


@given(POINTS)
def test_the_step_line_is_the_most_that_any_point_reaches(points):
    line = step_line(points, right=14.0, bottom=0.0)
    assert line[-1][0] == 14.0 and all(a[0] == b[0] or a[1] == b[1] for a, b in pairwise(line))
    for x in [i / 2 for i in range(28)]:
        reached = max((b for a, b in points if a <= x), default=0.0)
        assert max([level for at, level in line if at <= x], default=0.0) == reached


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_hold_the_range_in_few_steps(low, span):
    marks = ticks(low, low + span)
    assert (
        marks[0] <= low + 1e-6 * max(1, span)
        and marks[-1] >= low + span - 1e-6 * max(1, span)
        and 2 <= len(marks) <= 9
    )


@given(st.lists(st.tuples(st.floats(60, 600), st.floats(30, 400)), max_size=15))
def test_names_beside_points_never_overlap(points):
    boxes = []
    for x, y, anchor, text in place_labels(
        points, dict.fromkeys(range(len(points)), "a name"), (58, 12, 664, 410)
    ).values():
        wide = 6.1 * len(text)
        left = x - {"start": 0, "end": wide, "middle": wide / 2}[anchor]
        boxes.append((left, y - 10.4, left + wide, y + 2.4))
    assert not any(
        a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
        for i, a in enumerate(boxes)
        for b in boxes[:i]
    )


def test_marks_stand_where_their_values_are():
    board = board_of(
        record("none", 0.5, clip=0.5),
        record("good", 0.3, clip=0.45, time=3.0),
        record("good", 0.4, clip=0.4, changed={"a": 1}),
    )
    drawn = scatters(board, lambda row: row.label)
    assert (drawn[0]["x"], drawn[0]["y"]) == ("sscd", "clip_score_clean")
    first = next(chart for chart in drawn if chart["y"] == "clip_score")
    assert first["x"] == "sscd" and [point["front"] for point in first["points"]] == [
        True,
        False,
        True,
    ]
    good, changed, none = first["points"]
    # downwards, as SVG counts
    assert good["x"] < changed["x"] < none["x"] and none["y"] < good["y"] < changed["y"]
    assert (
        good["across"][0] < good["x"] < good["across"][1]
        and good["up"][1] < good["y"] < good["up"][0]
    )
    assert looks(board.rows) == [("0", 0, 0), ("0", 1, 1), ("ref", 0, 1)]
    time = next(column for column in bars(board)["columns"] if column["name"] == "time × memorized")
    assert (
        time["lines"][0]["value"] == pytest.approx(3 * time["lines"][1]["value"], abs=0.1)
        and time["base"] == time["lines"][1]["value"]
    )
    lines = groups(board, lambda row: row.label)
    # none is drawn last
    assert [name for _, name in lines["names"]] == ["1", "10"] and lines["lines"][-1]["row"] == 2


def test_columns_stand_under_their_headings():
    board = board_of(record("none"), record("good", 0.3))
    walk = html(board)
    head = re.search(r'<tr class="parts">(.*?)</tr>', walk, re.DOTALL).group(1)
    assert (
        sum(int(number) for number in re.findall(r'colspan="(\d+)"', head)) + 2
        == len(columns_of(board)) + 5
    )
    assert re.findall(r'data-part="(\w+)"', head) == [
        "mitigation",
        "replication",
        "quality",
        "attacks",
        "cost",
    ]
