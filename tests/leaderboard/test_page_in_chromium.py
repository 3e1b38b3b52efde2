"""The page of a suite in a browser: sorting, filters, themes, narrow screens, and that nothing of a
record runs or asks the network.
"""

import shutil

import pytest
from test_page import HOSTILE, hostile_board, record

from bench.leaderboard.board import Board, Row, make_boards
from bench.leaderboard.leaderboard import write_pages
from bench.leaderboard.page import html
from bench.leaderboard.pictures_page import files
from bench.records.record import RecordedExhibit, Thumbnail

playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright (pip install playwright)"
)
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")

PNG = record("none").thumbnails[0].png
ADDRESS = "http://board.test/page.html"


def pictures(first):
    places = [("p0", "a red fox", "10"), ("p1", "a blue whale", "1"), ("p2", "red balloon", "1")]
    return [
        Thumbnail(prompt_id=name, prompt=prompt, group=group, seed=1, png=first, reference=first)
        for name, prompt, group in places
    ]


@pytest.fixture(scope="module")
def pages():
    """A board of six methods, and one of hostile records, as HTML."""
    rows = [
        record("none", 0.5, thumbnails=pictures(PNG)),
        record(
            "alpha",
            0.09,
            where="weights",
            holds_against=["api", "weights"],
            fit=9.0,
            clip=0.51,
            paper="Ada 1843",
            thumbnails=pictures(PNG),
        ),
        record("beta", 0.3, nfe=100.0, time=2.0, clip=0.4, thumbnails=pictures(PNG)),
        record("gamma", 0.4, extracted=None, time=3.0, clip=0.3),
        record("delta", 10.5, extracted=0.05, where="prompt", clip=0.2, fit=100.0),
        record(
            "epsilon",
            0.45,
            changed={"with_a_rather_long_name": 0.123456, "and_another_one": "permanent"},
            clip=0.2,
            time=4.0,
        ),
    ]
    for row in rows:
        row.exhibits = [
            RecordedExhibit(
                attack="a",
                prompt_id="p0",
                prompt="a red fox",
                group="10",
                caption="found",
                pictures=[PNG],
                reference=PNG,
            )
        ]
    (board,) = make_boards([row for row in rows if row.method != "gamma"])
    # it lacks an attack, so that one value is missing, and would be of another protocol
    gamma = Row(rows[3], rows[0])
    whole = Board(board.suite, (*board.rows, gamma), ())
    made = files(whole)
    sheets = {name.removeprefix("pictures/"): text for name, text in made.items()}
    return {
        "board": html(whole),
        "hostile": html(hostile_board()),
        "pictures": made["pictures/demo.html"],
        "sheets": sheets,
    }


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, pages):
    """Open a page; at the end there were no messages on the console, no errors and no request but
    for the page itself and its pictures.
    """
    contexts, said, asked = [], [], []

    def answer(route, name):
        url = route.request.url
        sheet = next((text for key, text in pages["sheets"].items() if url.endswith(key)), None)
        if sheet is not None and url.endswith(".svg"):
            route.fulfill(body=sheet, content_type="image/svg+xml")
            return
        asked.append(url)
        route.fulfill(body=pages[name], content_type="text/html; charset=utf-8")

    def visit(name="board", fragment="", quiet=True, **settings):
        context = browser.new_context(**settings)
        contexts.append(context)
        context.route("**/*", lambda route: answer(route, name))
        page = context.new_page()
        if quiet:
            page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(ADDRESS + fragment)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert said == []
    assert {address.partition("#")[0] for address in asked} == {ADDRESS} and len(asked) == len(
        contexts
    )


def shown(page):
    """Names of the rows in sight, in their order."""
    return page.evaluate(
        "[...document.querySelectorAll('#board tbody tr:not(.off) th .key + bdi')].map(e =>"
        " e.textContent.split(' ')[0])"
    )


def press(page, heading):
    page.locator("#board tr.names th button").filter(has_text=heading).first.click()


def sort_of(page, name):
    return page.evaluate(
        f"document.querySelector('#board th[data-name={name}]').getAttribute('aria-sort')"
    )


def test_sorting_is_by_number_with_missing_values_last_and_back(visit):
    page = visit()
    original = ["alpha", "beta", "epsilon", "none", "delta", "gamma"]
    assert shown(page) == original
    press(page, "extracted")
    assert (
        shown(page)[0] == "delta"
        and shown(page)[-1] == "gamma"
        and sort_of(page, "clique_extracted") == "ascending"
    )
    press(page, "extracted")
    assert (
        shown(page)[-2:] == ["delta", "gamma"] and sort_of(page, "clique_extracted") == "descending"
    )
    press(page, "extracted")
    assert shown(page) == original and page.locator("#board [aria-sort]").count() == 0
    press(page, "SSCD")
    # 10.5 after 0.5: numbers, not texts
    assert shown(page) == ["alpha", "beta", "gamma", "epsilon", "none", "delta"]
    press(page, "fit NFE")
    assert (
        shown(page)[-2:] == ["alpha", "delta"] and page.locator("#board [aria-sort]").count() == 1
    )
    page.locator("#board tr.names th button").first.focus()
    page.keyboard.press("Enter")
    assert shown(page) == ["alpha", "beta", "delta", "epsilon", "gamma", "none"]
    page.keyboard.press("Space")
    assert shown(page)[0] == "none"


FILTERS = [
    (lambda page: page.fill("#table [name=q]", "ALP"), {"alpha"}),
    (lambda page: page.fill("#table [name=q]", "ada 1843"), {"alpha"}),
    (lambda page: page.select_option("#table [name=where]", "prompt"), {"delta"}),
    (lambda page: page.check("[name=nofit]"), {"beta", "epsilon", "gamma"}),
    (lambda page: page.check("[name=noextra]"), {"alpha", "delta", "epsilon", "gamma"}),
    (lambda page: page.check("[name=weights]"), {"alpha"}),
    (lambda page: page.check("[name=pareto]"), {"alpha"}),
]


def test_a_filter_leaves_its_rows_and_none_everywhere(visit):
    page = visit()
    assert page.text_content("output[name=count]") == "6 of 6 shown"
    for act, left in FILTERS:
        act(page)
        assert set(shown(page)) == left | {"none"}
        assert page.text_content("output[name=count]") == f"{len(left) + 1} of 6 shown"
        for part in (
            "#scatter svg:not(.off) .point",
            "#costs .cost[data-row]",
            ".legend button",
            "#groups .line",
            ".shot.head .cell[data-row]",
        ):
            assert page.locator(f"{part}:not(.off)").count() == len(left) + 1, part
        page.click("#table button[type=reset]")
        # A reset gives the count its first words back at once, and the rows a moment later.
        for _ in range(100):
            if len(shown(page)) == 6 and "#" not in page.url:
                break
            page.wait_for_timeout(20)
        assert len(shown(page)) == 6 and "#" not in page.url


def test_the_address_keeps_the_view(visit):
    page = visit()
    page.check("[name=nofit]")
    press(page, "SSCD")
    page.select_option("#scatter [name=y]", "clip_score_clean")
    page.click("[data-columns=key]")
    again = visit(fragment="#" + page.url.partition("#")[2])
    assert (
        shown(again) == shown(page) == ["beta", "gamma", "epsilon", "none"]
        and sort_of(again, "sscd") == "ascending"
    )
    assert again.locator("#scatter svg:not(.off)").get_attribute("data-y") == "clip_score_clean"
    assert not again.is_visible("#board tbody td.wrap")
    odd = visit(
        fragment="#where=%3Cscript%3E&sort=99999&x=none"
        "&q=%22%3E%3Cimg%20src=x%20onerror=window.hacked=1%3E"
    )
    assert (
        shown(odd) == ["none"]
        and odd.evaluate("window.hacked") is None
        and odd.locator("#scatter svg:not(.off)").count() == 1
    )


def test_the_theme_follows_the_system_until_it_is_switched_and_is_remembered(visit):
    def background(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light, dark = visit(color_scheme="light"), visit(color_scheme="dark")
    assert background(light) != background(dark)
    white, black = background(light), background(dark)
    light.click("button[data-theme=dark]")
    dark.click("button[data-theme=light]")
    assert (background(light), background(dark)) == (black, white)
    assert light.evaluate("localStorage.getItem('leaderboard-theme')") == "dark"
    light.click("button[data-theme=auto]")
    assert (
        background(light) == white
        and light.get_attribute("button[data-theme=auto]", "aria-pressed") == "true"
    )
    light.emulate_media(color_scheme="dark")
    assert background(light) == black


def test_a_remembered_theme_is_there_when_the_page_comes_again(browser, pages):
    context = browser.new_context(color_scheme="light")
    context.route(
        "**/*",
        lambda route: route.fulfill(body=pages["board"], content_type="text/html; charset=utf-8"),
    )
    page = context.new_page()
    page.goto(ADDRESS)
    page.click("button[data-theme=dark]")
    page.reload()
    assert (
        page.evaluate("document.documentElement.dataset.theme") == "dark"
        and page.get_attribute("button[data-theme=dark]", "aria-pressed") == "true"
    )
    context.close()


def test_pictures_are_filtered_by_group_words_and_method(visit):
    page = visit("pictures")
    lines = "#gallery .shot:not(.head):not(.off)"
    assert (
        page.inner_text("output[name=lines]") == "3 of 3 prompts"
        and page.locator(lines).count() == 3
    )
    page.fill("[name=words]", "red")
    assert page.locator(lines).count() == 2
    page.select_option("[name=group]", label="1")
    assert (
        page.locator(lines).count() == 1
        and "red balloon" in page.locator(lines).text_content()
        and page.inner_text("output[name=lines]") == "1 of 3 prompts"
    )
    page.click("#gallery button[type=reset]")
    page.fill("[name=method]", "alph")
    names = page.locator(".shot.head .cell[data-row]:not(.off)")
    assert names.count() == page.locator("#exhibits details:not(.off)").count() == 2
    assert [name.split(" ")[0] for name in names.all_text_contents()] == ["none", "alpha"]
    again = visit("pictures", fragment="#" + page.url.partition("#")[2])
    assert again.locator(".shot.head .cell[data-row]:not(.off)").count() == 2


def colour_at(page, selector):
    """The colour in the middle of an element, as it is on the screen."""
    import io

    from PIL import Image

    found = page.locator(selector).first
    found.scroll_into_view_if_needed()
    image = Image.open(io.BytesIO(found.screenshot())).convert("RGB")
    return image.getpixel((image.width // 2, image.height // 2))


def test_pictures_are_there_from_a_file_and_without_scripts(browser, pages, tmp_path):
    """Each cell shows its own picture of the sheet: red above green."""
    import base64
    import io

    from PIL import Image

    def png(colour):
        stream = io.BytesIO()
        Image.new("RGB", (32, 32), colour).save(stream, "PNG")
        return base64.b64encode(stream.getvalue()).decode()

    thumbnails = [
        Thumbnail(prompt_id=f"p{n}", prompt=f"prompt {n}", group="1", seed=1, png=png(colour))
        for n, colour in enumerate(("red", "lime"))
    ]
    (board,) = make_boards([record("none", 0.5, thumbnails=thumbnails)])
    made = {name: text.encode() for name, text in files(board).items()}
    write_pages(made | {"demo.html": html(board).encode()}, tmp_path)
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    for name in ("pictures/demo.html", "demo.html"):
        page.goto((tmp_path / name).as_uri())
        assert colour_at(page, ".shot:not(.head) >> nth=0 >> img") == (255, 0, 0), name
        assert colour_at(page, ".shot:not(.head) >> nth=1 >> img") == (0, 255, 0), name
    context.close()


def test_a_method_under_the_pointer_stands_out_in_every_chart(visit):
    page = visit()
    page.locator(".legend button").first.click()
    page.mouse.move(0, 0)
    assert (
        page.locator(".focused .hot").count() >= 4
        and page.get_attribute(".legend button", "aria-pressed") == "true"
    )
    page.locator(".legend button").first.click()
    page.locator("#board tbody tr").nth(1).hover()
    assert {part.get_attribute("data-row") for part in page.locator(".hot").all()} == {"1"}


@pytest.mark.parametrize("name", ["board", "hostile"])
def test_a_narrow_screen_scrolls_tables_and_never_the_page(visit, name):
    page = visit(name, viewport={"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.click("[data-columns=all]")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.evaluate("document.querySelector('.scroll.tall').scrollLeft = 400")
    box = page.locator("#board tbody th.name").first.bounding_box()
    assert box and 0 <= box["x"] < 40  # the method stays in sight, and nothing shows through it
    above = """() => {
        const name = document.querySelector("#board tbody th.name");
        name.scrollIntoView({block: "center"});
        const box = name.getBoundingClientRect();
        const shown = (a, b) => document.elementFromPoint(
            box.x + a * box.width, box.y + b * box.height)?.closest("th") === name;
        return [0.1, 0.3, 0.5, 0.7, 0.9].flatMap(a => [0.2, 0.35, 0.5, 0.65].map(b => shown(a, b)));
    }"""
    assert all(page.evaluate(above))


def test_headings_stay_in_sight_when_a_long_table_scrolls(visit):
    page = visit(viewport={"width": 900, "height": 400})
    page.evaluate("document.querySelector('.scroll.tall').scrollTop = 150")
    scroll, head = (
        page.locator(".scroll.tall").first.bounding_box(),
        page.locator("#board tr.names th").first.bounding_box(),
    )
    assert scroll and head and scroll["y"] <= head["y"] < scroll["y"] + 60


def test_hostile_records_run_nothing_and_break_nothing(visit):
    page = visit("hostile")
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None and page.locator("script").count() == 1
    page.fill("#table [name=q]", "evil")
    assert set(shown(page)) == {"none", "evil"}
    for button in page.locator("#board tr.names th button").all():
        button.click()
    assert page.evaluate("window.hacked") is None
    assert HOSTILE.split("\n")[0] in page.text_content("#apart")


def test_the_policy_refuses_a_script_that_was_put_in(visit):
    page = visit(quiet=False)
    page.evaluate(
        """() => {
        const s = document.createElement("script");
        s.textContent = "window.hacked = 1";
        document.body.append(s);
        const i = document.createElement("img");
        i.setAttribute("onerror", "window.hacked = 1");
        i.src = "http://elsewhere.test/x.png";
        document.body.append(i); }"""
    )
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None


def test_without_scripts_everything_but_the_controls_is_there(visit):
    page = visit(java_script_enabled=False)
    assert (
        page.is_visible("#board")
        and page.is_visible("#scatter svg >> nth=0")
        and not page.is_visible("#table form.filters")
    )
