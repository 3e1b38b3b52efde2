"""The way in to all boards: what stands there is what they say, and every link leads somewhere."""

import re
from pathlib import Path

import pytest

from bench.leaderboard import index
from bench.leaderboard.leaderboard import make_pages

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages():
    return make_pages(ROOT / "leaderboards" / "records")[0]


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


def test_an_answer_that_an_attacker_turns_says_so(pages):
    """Whose copies come back clearly: of uce's they do, of wanda's the interval has 0 in it."""
    said = "an embedding searched for a known picture brings copies back"
    assert said in pages["testbed-removal.html"].decode()
    assert said not in pages["testbed.html"].decode()


def test_a_board_that_nobody_answers_says_so():
    found = index.Finding("Which?", "", "", "None of them.")
    entry = index.Entry(index.METHODS, "x", "<x>", "about", (found,))
    content = index.html([entry], published=False)
    assert "None of them." in content and "&lt;x&gt;" in content and "published" not in content
