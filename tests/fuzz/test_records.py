"""Records and what reads them: tables, comparisons, reports, submissions."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rule import DEEP, DIGITS, changed, damaged, keeps_the_rule, refused_or_given

from bench.records.record import load_record
from conftest import examples

FOLDER = Path(__file__).parents[2] / "leaderboards/records/testbed-quick/none"


@pytest.fixture(scope="module")
def content():
    return next(FOLDER.glob("*.json")).read_bytes()


@examples(60)
@given(data=st.data())
def test_a_record(fuzz_folder, content, data):
    if data.draw(st.booleans()):
        content = json.dumps(data.draw(changed(json.loads(content)))).encode()
    else:
        content = data.draw(damaged(content))
    file = fuzz_folder / "record.json"
    file.write_bytes(content)
    refused_or_given(load_record, file)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"null", b"\xff", b"[" * DEEP, b'{"a": ' * DEEP),
        *(b'{"schema_version": "x"}', b'{"schema_version": ' + b"9" * DIGITS + b"}"),
        b'{"schema_version": 10e999}',
    ],
)
def test_a_file_that_is_no_record(fuzz_folder, content):
    records = fuzz_folder / "records" / "tiny" / "none"
    records.mkdir(parents=True, exist_ok=True)
    file = records / "0123456789ab.json"
    file.write_bytes(content)
    refused_or_given(load_record, file)
    for command in (["compare", file, file], ["report", file], ["submit", file], ["verify", file]):
        keeps_the_rule(*command)
    keeps_the_rule(
        *("leaderboard", "--records", fuzz_folder / "records", "--out", fuzz_folder / "out"),
        codes=(1, 2),
    )
