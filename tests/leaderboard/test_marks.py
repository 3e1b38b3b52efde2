"""Marks of charts that stay apart: by colour also for those who see fewer, by shape, by dash."""

import re
from itertools import combinations, pairwise

from test_accessible import contrast, luminance, themes
from test_page import board_of, record

from bench.leaderboard import charts
from bench.leaderboard.charts import Look, looks, looks_of, next_look
from bench.leaderboard.templating import package_file

# Machado, Oliveira and Fernandes 2009, severity 1: what linear RGB becomes for those who lack one
# kind of cones.
SEEN = {
    "all": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}
XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
WHITE = (0.95047, 1.0, 1.08883)


def times(matrix, vector):
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def lab(colour, seen):
    """CIE L*a*b* of an sRGB colour as it is seen."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    linear = [min(max(c, 0.0), 1.0) for c in times(SEEN[seen], linear)]
    x, y, z = (value / white for value, white in zip(times(XYZ, linear), WHITE, strict=True))
    x, y, z = (
        value ** (1 / 3) if value > 216 / 24389 else (24389 / 27 * value + 16) / 116
        for value in (x, y, z)
    )
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def hues():
    """The colours of methods in the light and in the dark theme, with the paper of each."""
    light, dark, _ = themes(package_file("charts.css"))
    for theme in (light, dark):
        yield theme["--paper"], [theme[f"--h-{number}"] for number in range(charts.HUES)]


def test_colours_stand_out_from_the_paper():
    """3:1 is asked of what a chart needs to be understood (WCAG 2.2, 1.4.11)."""
    for paper, colours in hues():
        assert min(contrast(colour, paper) for colour in colours) >= 3
        assert all(luminance(colour) > 0 for colour in colours)


def test_colours_stay_apart_for_whoever_sees_fewer():
    """A distance of 2.3 is the least that is noticed; these are at eight times that."""
    for _, colours in hues():
        for seen in SEEN:
            for one, other in combinations(colours, 2):
                a, b = lab(one, seen), lab(other, seen)
                distance = sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5
                assert distance > 18, (seen, one, other, distance)


def test_24_methods_differ_in_colour_and_shape_and_in_colour_and_dash():
    found = list(looks_of(f"method_{number:02d}" for number in range(24)).values())
    assert len({(look.hue, look.shape) for look in found}) == 24
    assert len({(look.hue, look.dash) for look in found}) == 24
    for one, other in pairwise(found):  # neighbours in the alphabet
        assert one.hue != other.hue and one.shape != other.shape
    assert len({look.shape for look in found[:8]}) == 8


def test_rows_of_one_method_share_its_colour_and_nothing_else():
    rows = board_of(
        record("none"),
        *(record("same", 0.1 + place / 100, changed={"a": place}) for place in range(8)),
        record("other", 0.4),
    ).rows
    found = dict(zip((row.label for row in rows), looks(rows), strict=True))
    same = [look for label, look in found.items() if label.startswith("same")]
    assert len({look.hue for look in same}) == 1 and len({look.shape for look in same}) == 8
    assert found["other"].hue != same[0].hue and found["none"] == Look("ref", 0, 1)


def test_looks_do_not_run_out():
    rows = board_of(
        record("none"), *(record("m", place / 99, changed={"a": place}) for place in range(40))
    ).rows
    found = looks(rows)
    assert len(found) == 41
    assert len({look for look in found if look.hue != "ref"}) == charts.SHAPES * charts.DASHES


def test_one_more_method_takes_a_colour_that_is_free():
    taken = list(looks_of(["a", "b", "c"]).values())
    assert next_look(taken).hue not in {look.hue for look in taken}
    full = list(looks_of(f"m{number}" for number in range(8)).values())
    assert next_look(full) not in full


def test_every_look_is_drawn():
    style, marks = package_file("charts.css"), package_file("_marks.html")
    for number in range(charts.HUES):
        assert f".h-{number} {{ --h: var(--h-{number}); }}" in style
    assert re.findall(r'id="m(\d)"', marks) == [str(number) for number in range(charts.SHAPES)]
    for number in range(1, charts.DASHES):
        assert f".d-{number} {{ stroke-dasharray:" in style
