"""How numbers and docstrings are written for people."""

import pytest

from bench.base.text import duration_text, paragraphs, rate_text, size_text


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


def test_rates_are_never_written_with_an_exponent():
    shares = (0.0, 0.00128, 0.0213, 0.0996, 0.66, 0.999, 1.0)
    written = ["0 %", "0.13 %", "2.1 %", "10 %", "66 %", "100 %", "100 %"]
    assert [rate_text(share) for share in shares] == written
