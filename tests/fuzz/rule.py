"""The rule for whatever a user hands in, and odd things to hand in.

The rule: `bench` does what it was asked (exit code 0) or says on one line what is wrong (exit code
2; 1 where a command reports what it found). No traceback, nothing "unexpected", nothing that goes
on for ever. Code that is called from Python raises `UserError`.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import struct
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from bench.base.errors import Unmeasurable, UserError
from conftest import bench

DEEP = 3000  # levels: more than Python's own limit of recursion
DIGITS = 5000  # more than Python reads or writes as an integer


def keeps_the_rule(*arguments: object, codes: tuple[int, ...] = (0, 2)) -> str:
    """Run `bench` in this process and hold it to the rule; what it said on standard error."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        done = bench(*arguments)
    said = [line for line in done.stderr.splitlines() if line.startswith("bench: ")]
    told = f"bench {' '.join(map(str, arguments))[:300]} ended with {done.returncode}: "
    told += done.stderr[-600:]
    assert done.returncode in codes, told
    assert "Traceback" not in done.stderr and "bench: unexpected " not in done.stderr, told
    assert len(said) == (done.returncode == 2), told
    return done.stderr


def refused_or_given(function: Any, *arguments: Any) -> Any:
    """What the function gives, or None where it refuses in one line."""
    try:
        return function(*arguments)
    except (UserError, Unmeasurable) as error:
        assert str(error) and "\n" not in str(error), repr(str(error))
        return None


def deep_list(levels: int = DEEP) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


numbers = st.one_of(
    st.sampled_from([0, -1, 1, 2, 10**6, -(10**9), 2**31, 2**63 - 1, 2**63, 10**30]),
    st.sampled_from([0.0, -0.0, 1e-320, 1.5, 1e308, math.inf, -math.inf, math.nan]),
)
WORDS = (
    *("", " ", ".", "..", "/", "~", "nowhere", "/dev/null", "a/b", "\n", "\0", "a\0b", "x" * 300),
    *("é", "\u202e", "\ud800", "🦊", "0", "1e999", "nan", "true", "null", "[", "{}", "="),
    *("none", "wanda", "testbed", "tiny", "prompts.csv", "pipeline", "loop", "asset:sd14"),
    *("file:///etc/hostname", "http://[", "--help", "-1", "1/0", "1/2", "a,b", "$HOME", "%s"),
)
CHUNKS = (b"", b"\0", b'"', b"[", b"{", b"\n", b",", b"9" * DIGITS, b"\xff")
words = st.one_of(st.sampled_from(WORDS), st.text(max_size=12))
values = st.recursive(
    st.one_of(numbers, words, st.booleans()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(words.filter(bool), inner, max_size=3)
    ),
    max_leaves=4,
)


def places(table: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value of nested dictionaries and lists."""
    keys: list[Any] = []
    if isinstance(table, dict):
        keys = list(table)
    elif isinstance(table, list):
        keys = list(range(min(len(table), 3)))
    return [
        place for key in keys for place in [(*before, key), *places(table[key], (*before, key))]
    ]


@st.composite
def changed(draw: Any, table: Any) -> Any:
    """A table of which one to three values are another one, gone, or under another name."""
    table = copy.deepcopy(table)
    for _ in range(draw(st.integers(1, 3))):
        if not (ways := places(table)):
            break
        *way, last = draw(st.sampled_from(ways))
        inside = table
        for key in way:
            inside = inside[key]
        what = draw(st.sampled_from(["other", "other", "gone", "renamed", "beside"]))
        if what == "other":
            inside[last] = draw(values)
        elif what == "gone":
            del inside[last]
        elif isinstance(inside, dict):
            value = inside[last] if what == "beside" else inside.pop(last)
            inside[draw(words.filter(bool))] = value
    return table


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """A file that was cut, or of which some bytes are others, twice there or gone."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(len(content), start + 40)))
        middle = draw(
            st.one_of(
                st.binary(max_size=8),
                st.sampled_from(
                    [b"", b"\0", b'"', b"[", b"{", b"\n", b",", b"9" * DIGITS, b"\xff"]
                ),
                st.just(content[start:end] * 2),
            )
        )
        content = content[:start] + middle + (b"" if draw(st.booleans()) else content[end:])
    return content


def toml(table: dict[str, Any]) -> str:
    """The table as TOML, one line for each of its keys."""
    return "".join(f"{_key(key)} = {_toml(value)}\n" for key, value in table.items())


def _key(text: str) -> str:
    return json.dumps(text.encode("utf-8", "replace").decode()).replace("\x7f", "\\u007f")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{_key(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, (int, float)) else _key(value)


def header_and_data(file: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file and the bytes behind it."""
    content = file.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def with_header(header: Any, data: bytes) -> bytes:
    """A safetensors file."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data
