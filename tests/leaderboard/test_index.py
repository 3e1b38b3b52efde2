"""The way in to all boards: what stands there is what they say, and every link leads somewhere."""

import html
import re
from pathlib import Path

import pytest

from bench.leaderboard import index
from bench.leaderboard.board import make_boards
from bench.leaderboard.leaderboard import make_pages
from bench.leaderboard.measured import measured
from bench.records.record import load_record, load_records
from bench.suite.load import load_suite

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "leaderboards" / "records"


@pytest.fixture(scope="module")
def pages():
    return make_pages(RECORDS)[0]


def test_every_page_is_linked_and_every_link_leads_to_one(pages):
    content = pages["index.html"].decode()
    links = set(re.findall(r'(?:href|src)="([^"#]+)"', content))
    assert links <= pages.keys()
    others = {name for name in pages if name.endswith(".html")} - {"index.html"}
    pictures = {name for name in others if name.startswith("pictures/")}
    assert others - pictures <= links and "pictures/testbed.html" in pictures
    for name in others - pictures:
        assert 'href="index.html"' in pages[name].decode(), name
    for name in pictures:  # of a board, which leads to them
        board = name.removeprefix("pictures/")
        assert f'href="{name}"' in pages[board].decode() and board in links
        assert 'href="../index.html"' in pages[name].decode()
        assert f'href="../{board}"' in pages[name].decode()


def test_findings_are_the_boards_own_words(pages):
    content = pages["index.html"].decode()
    for question in (
        "Which is best against an attacker with the API?",
        "Who gives least to an attacker who hands such an embedding to the served model?",
        "Which detector is best against pristine prompts?",
    ):
        assert question in content
    assert "no number of one board may be compared" in content
    assert "http://" not in content and "https://" not in content and "<script" not in content


def rows_of(suite):
    """The committed records of a suite that hold against somebody with the weights, and none's."""
    records = [load_record(file) for file in (RECORDS / suite).rglob("*.json")]
    edited = [one for one in records if one.method != "none" and "weights" in one.holds_against]
    return edited, next(one for one in records if one.method == "none")


def known(record):
    """What attacks on known pictures get beyond their controls."""
    return {
        name: score
        for name, score in record.attacks.items()
        if name.endswith("_excess") and name != "paraphrase_excess"
    }


@pytest.mark.parametrize("suite", ["testbed", "testbed-attackers", "testbed-removal"])
def test_who_holds_against_somebody_with_the_weights_is_said_with_the_strongest_attacker(
    pages, suite
):
    edited, none = rows_of(suite)
    least = min(edited, key=lambda one: (one.scores["copies"].value, one.run))
    name, score = max(known(least).items(), key=lambda item: item[1].value)
    content = " ".join(pages[f"{suite}.html"].decode().split())
    said = content.partition('data-card="weights"')[2].partition("</article>")[0]
    back = [any(score.low > 0 for score in known(one).values()) for one in edited]
    lead = "fewest copies by sampling"
    if all(back):
        lead = f"None holds; {lead}"
    elif back[edited.index(least)]:
        lead = f"Does not hold; {lead}"
    assert lead.lower() in said.lower() and ("holds;" in said) == all(back)
    assert ("not hold;" in said) == (back[edited.index(least)] and not all(back))
    shown = f"{score.value:.2f} [{score.low:.2f}, {score.high:.2f}] more than of controls"
    assert f"{shown} (none: {none.attacks[name].value:.2f} [" in said


def test_the_row_with_edited_weights_is_followed_to_the_board_with_more_attackers(pages):
    """What only Dori judges would be called safe."""
    entry = pages["index.html"].decode().partition('href="testbed.html"')[2]
    said = entry.partition("Which edits the weights")[2].partition("<dt>")[0]
    (row,) = (
        one
        for one in rows_of("testbed-attackers")[0]
        if one.method == "wanda" and one.parameters["sparsity"] == 0.1
    )
    most = max(score.value for score in known(row).values())
    assert "No other such attack was run here" in said
    assert f"More of them on testbed-attackers. The strongest of the {len(known(row))}" in said
    assert f"gets {most:.2f} [" in said


def test_harm_and_alignment_stand_beside_every_row_that_is_named(pages):
    content = pages["index.html"].decode()
    for board in ("testbed", "testbed-removal"):
        entry = content.partition(f'href="{board}.html"')[2].partition("</article>")[0]
        named = re.findall(r"<dd><b>.*?</dd>", entry, re.DOTALL)
        assert len(named) >= 4 and all("CLIP clean Δ" in one for one in named)
    entry = content.partition('href="testbed.html"')[2].partition("</article>")[0]
    free = entry.partition("which costs nothing at inference?")[2].partition("<dt>")[0]
    assert "cfg_" in free and "clearly worse than none in CLIP clean" in free


def test_the_first_of_rows_that_are_not_clearly_better_is_no_answer(pages):
    entry = pages["index.html"].decode().partition('href="testbed-quick.html"')[2]
    entry = entry.partition("</article>")[0]
    assert "<b><bdi>None clearly</bdi></b>" in entry and "<b><bdi>wanda" not in entry
    assert "None clearly; " in pages["testbed-quick.html"].decode()


def test_which_model_was_measured_is_said_on_the_index_and_on_every_board(pages):
    """Of the suites' own words; a suite of another model says nothing of the embedded one."""
    said = "trained so that it memorizes some of its training pictures"
    settings = load_suite("testbed").settings
    for name in ("index.html", "testbed.html", "testbed.md", "detectors-testbed.md"):
        assert (
            said in pages[name].decode() and "nothing of Stable Diffusion" in pages[name].decode()
        )
        if not name.startswith("detectors"):
            assert settings.description in html.unescape(pages[name].decode())
    assert "All boards measure one model" in pages["index.html"].decode()
    assert f"{settings.model.side}x{settings.model.side} pixels" in pages["index.html"].decode()
    other = load_suite("sd14-removal").settings
    found = measured("sd14-removal", other.version)
    assert found.sentences == f"{other.description}." and not found.embedded
    assert measured("of-mine", 1) is None
    assert measured("testbed", settings.version + 1).description == ""


def test_only_where_all_boards_are_of_it_the_index_says_so():
    boards = make_boards([one for one in load_records(RECORDS)[0] if one.suite == "testbed-quick"])
    mine = make_boards([row.record.model_copy(update={"suite": "mine"}) for row in boards[0].rows])
    assert index.lead(boards, []).startswith("All boards measure one model.")
    assert index.lead([*boards, *mine], []).startswith("testbed-quick measure")
    assert index.lead(mine, []) == ""


def test_words_are_explained_where_they_are_used(pages):
    content = pages["index.html"].decode()
    for word in ("NFE", "fit NFE", "AUC", "pristine", "controls", "Δ"):
        assert content.count(f"<dt>{word}</dt>") == 1, word
    nothing = index.html([index.Entry(index.METHODS, "x", "x", "", ())], published=False)
    assert "NFE" not in nothing and "AUC" not in nothing


def test_the_way_to_the_documents_is_shown_where_they_lie_beside_the_pages(pages, tmp_path):
    committed = make_pages(RECORDS, ROOT / "README.md")[0]["index.html"].decode()
    assert 'href="../docs/reading.md"' in committed
    assert "reading.md" not in pages["index.html"].decode()
    (tmp_path / "README.md").touch()  # of somebody's own work, which has no such documents
    own = make_pages(RECORDS, tmp_path / "README.md")[0]["index.html"]
    assert own == pages["index.html"]


def test_a_board_that_nobody_answers_says_so():
    found = index.Finding("Which?", "", "", "None of them.")
    entry = index.Entry(index.METHODS, "x", "<x>", "about", (found,))
    content = index.html([entry], published=False)
    assert "None of them." in content and "&lt;x&gt;" in content and "published" not in content
