"""Prompt lists: what is read is read to the letter, what would have to be guessed is refused."""

import pytest

from bench.base.errors import UserError
from bench.base.prompt_lists import filled_in, read_list, scan_list


def read(folder, content, format="csv", delimiter=","):
    file = folder / f"list.{format}"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_list(file, format, delimiter)


def texts(folder, content, format="csv", column="prompt"):
    return [row.text(column) for row in read(folder, content, format).rows]


def refused(call) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_prompts_are_kept_to_the_letter(tmp_path):
    content = '\ufeffid,prompt\r\na,"one ""two"", \nthree "\r\n\r\nb, four\n'
    assert texts(tmp_path, content) == ['one "two", \nthree ', " four"]
    assert [row.line for row in read(tmp_path, content).rows] == [2, 5]
    assert texts(tmp_path, 'one  \r\n\n"two"\n', "lines") == ["one  ", '"two"']
    assert texts(tmp_path, '{"prompt": "a\\nb"}\n\n{"prompt": " "}', "jsonl") == ["a\nb", " "]
    assert [dict(row) for row in read(tmp_path, "a\tb\n1\t2", "csv", "\t").rows] == [
        {"a": "1", "b": "2"}
    ]


def test_whole_numbers_are_ids_but_no_prompts(tmp_path):
    (row,) = read(tmp_path, '{"prompt": 5, "id": 7}', "jsonl").rows
    assert row["id"] == "7"
    said = refused(lambda: row.text("prompt"))
    assert "line 1: the column 'prompt' holds a number and no text" in said


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("null", "holds null and no text"),
        ('["a", "b"]', "holds a list and no text"),
        ('{"a": "b"}', "holds an object and no text"),
        ("1.5", "holds a number and no text"),
        ("NaN", "holds a number and no text"),
        ("true", "holds a truth value and no text"),
        ('"a\\u0000b"', "holds a NUL character"),
        ('"\\ud800"', "holds half a character"),
    ],
)
def test_values_of_json_that_are_no_texts_are_refused_where_they_are_used(tmp_path, value, says):
    found = read(tmp_path, f'{{"prompt": "a", "x": "b"}}\n{{"prompt": {value}, "x": "c"}}', "jsonl")
    assert [row["x"] for row in found.rows] == ["b", "c"]  # nobody is hurt by what nobody asks for
    said = refused(lambda: [row.text("prompt") for row in found.rows])
    assert f"line 2: the column 'prompt' {says}" in said


def test_a_key_that_is_missing_in_some_rows_is_refused(tmp_path):
    found = read(tmp_path, '{"prompt": "a", "kind": "x"}\n\n{"prompt": "b"}', "jsonl")
    said = refused(lambda: [row["kind"] for row in found.rows])
    assert "line 3: the column 'kind' is missing" in said
    assert [row.get("other") for row in found.rows] == [None, None]


def test_of_two_equal_columns_none_is_taken(tmp_path):
    found = read(tmp_path, "id,prompt,prompt,,\na,first,second,,\n")
    assert found.rows[0]["id"] == "a"
    said = refused(lambda: found.rows[0]["prompt"])
    assert "line 1: the column 'prompt' stands more than once" in said
    assert "a key stands more than once" in refused(
        lambda: read(tmp_path, '{"prompt": "a", "prompt": "b"}', "jsonl")
    )


@pytest.mark.parametrize(
    ("content", "format", "says"),
    [
        ("prompt,id\na,1\nb, 2, 3\n", "csv", "line 3: 3 cells, and the heading has 2 columns"),
        ("prompt,id\na,1\nb\n", "csv", "line 3: 1 cells, and the heading has 2 columns"),
        ('prompt\na\n"b\nc\n', "csv", "the row that begins in line 3: a quote is never closed"),
        ('prompt\n"a" b\n', "csv", "the row that begins in line 2"),
        (b"prompt\ncaf\xe9\n", "csv", "is not UTF-8 (byte 0xe9 in line 2)"),
        ("prompt\na\0b\n", "csv", "line 2 holds a NUL character"),
        ("a\nb\0\n", "lines", "line 2 holds a NUL character"),
        ('{"a": "\0"}', "jsonl", "line 1 holds a NUL character"),
        ("prompt\nhello\n".encode("utf-16"), "csv", "it is UTF-16"),
        ('{"a": 1}\n{"a": ', "jsonl", "line 2: no valid JSON: Expecting value (character 7)"),
        ('{"a": 1}\n[1]', "jsonl", "line 2: it holds no object"),
        ('{"a": ' + "[" * 100_000, "jsonl", "line 1: no valid JSON: it is nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "jsonl", "line 1: no valid JSON: Exceeds the limit"),
        ("prompt\n" + "a" * 200_000, "csv", "field larger than field limit"),
    ],
)
def test_what_would_have_to_be_guessed_is_one_line(tmp_path, content, format, says):
    assert says in refused(lambda: read(tmp_path, content, format))


@pytest.mark.parametrize("delimiter", ['"', "\n", "\r", "\0", ""])
def test_a_list_is_not_cut_at_quotes_and_line_ends(tmp_path, delimiter):
    assert "the delimiter must be" in refused(lambda: read(tmp_path, "a,b", "csv", delimiter))


@pytest.mark.parametrize("name", ["gone.csv", ".", "a\0b", "x" * 5000, "/dev/zero"])
def test_what_is_no_file_is_one_line(tmp_path, name):
    assert "cannot be read" in refused(lambda: read_list(tmp_path / name))


def test_all_faulty_rows_are_there_for_whoever_tells_them_together(tmp_path):
    (tmp_path / "a.csv").write_text("id;prompt\na;b\nc\nd;e;f\n")
    found = scan_list(tmp_path / "a.csv", delimiter=None)
    assert [(fault.line, fault.surplus) for fault in found.faults] == [(3, False), (4, True)]
    assert found.columns == ("id", "prompt")


def test_a_path_is_filled_in_from_cells_that_lead_nowhere_else(tmp_path):
    (row,) = read(tmp_path, "id,prompt,up\n7,a,..\n").rows
    assert filled_in("pictures/{id}.png", row) == "pictures/7.png"
    for template in ("{up}/x", "{ID}.png"):
        with pytest.raises(UserError):
            filled_in(template, row)
