"""How numbers and docstrings are written for people."""

import pytest

from bench.base.text import duration_text, paragraphs, size_text


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("One line.", ["One line."]),
        ("One sentence\n    on two lines.\n    ", ["One sentence on two lines."]),
        ("First.\n\n    Second,\n    long.", ["First.", "Second, long."]),
        ("First.\n   \n    Second.", ["First.", "Second."]),
        ("", [""]),
    ],
)
def test_paragraphs_do_not_depend_on_where_the_source_breaks_them(docstring, expected):
    assert paragraphs(docstring) == expected


def test_sizes_and_durations():
    assert [size_text(count) for count in (12, 2048, 3 * 2**20, 2**31)] == [
        "12 bytes",
        "2.0 KiB",
        "3.0 MiB",
        "2.0 GiB",
    ]
    assert [duration_text(seconds) for seconds in (9, 599, 7200)] == ["9 s", "599 s", "2.0 h"]
