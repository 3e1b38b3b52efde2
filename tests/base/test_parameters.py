"""TOML and parameters: every value that cannot be kept is one line that says where it stands."""

from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.base.errors import UnknownName, UserError
from bench.base.parameters import (
    configure,
    parse_assignments,
    parse_toml,
    refusal,
    unknown_key,
    validation_line,
)


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    steps: int = 1
    side: int = 2


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    model: Inner | None = None
    roles: dict[Literal["fit", "clean"], Inner] = Field(default_factory=dict)
    pictures: list[Inner] = Field(default_factory=list)
    anything: dict[str, int] = Field(default_factory=dict)


def error_of(**values) -> ValidationError:
    with pytest.raises(ValidationError) as error:
        Outer.model_validate(values)
    return error.value


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"modle": {}}, "unknown key 'modle': did you mean 'model'?"),
        ({"model": {"step": 1}}, "unknown key 'model.step': did you mean 'model.steps'?"),
        ({"roles": {"cleen": {}}}, "unknown key 'roles.cleen': did you mean 'roles.clean'?"),
        ({"roles": {"fit": {"sid": 1}}}, "did you mean 'roles.fit.side'?"),
        ({"pictures": [{}, {"sied": 1}]}, "did you mean 'pictures.1.side'?"),
    ],
)
def test_an_unknown_key_is_told_with_what_was_probably_meant_wherever_it_stands(values, says):
    assert says in str(unknown_key(error_of(**values), Outer, "key"))


def test_other_problems_are_told_after_the_place():
    error = error_of(anything={"a": "many"})
    assert unknown_key(error, Outer, "key") is None
    assert str(refusal(error, Outer, "key", "file x")).startswith("file x: anything.a: input")


def test_an_endless_list_of_problems_and_a_value_of_thousands_of_digits_stay_one_short_line():
    line = validation_line(error_of(anything={str(i): "x" for i in range(50)}))
    assert line.endswith("and 40 more") and len(line) < 3000
    assert "too long to show" in validation_line(error_of(model=10**5000))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a = [", "not valid TOML"),
        ("a = " + "[" * 100_000, "nested too deeply"),
        ("a = " + "[" * 40 + "]" * 40, "nested more than 32 deep"),
        (".".join(["a"] * 5000) + " = 1", "nested more than 32 deep"),
        ("a = " + "9" * 5000, "not valid TOML: Exceeds the limit"),
        ("[b]\na = 0x" + "f" * 5000, "b.a is a whole number beyond 64 bits"),
        ("[b]\na = [1, inf]", "b.a.1 must be a finite number"),
        ("a = nan", "a must be a finite number"),
        ('a = "x\\u0000"', "a holds a NUL character"),
        ('"x\\u0000" = 1', "holds a NUL character"),
        ("a = 2026-11-28", "a is a date or a time"),
    ],
)
def test_toml_that_cannot_be_kept_is_one_line(text, says):
    with pytest.raises(UserError, match=says) as error:
        parse_toml(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_assignments_are_toml_where_they_parse_and_text_otherwise():
    assert parse_assignments(["a=1", "b=0.5", "c=[1, 2]", "d=cond", 'e="1"', "f=x=y", "g="]) == {
        "a": 1,
        "b": 0.5,
        "c": [1, 2],
        "d": "cond",
        "e": "1",
        "f": "x=y",
        "g": "",
    }
    assert parse_assignments(["a=1\nb = 2"]) == {"a": "1\nb = 2"}  # nothing is dropped


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("a=" + "[" * 100_000, "parameter 'a' is nested too deeply"),
        ("a=" + "9" * 5000, "parameter 'a' is not valid TOML: Exceeds"),
        ("a=0x" + "f" * 5000, "parameter 'a' is a whole number beyond 64 bits"),
        ("a=inf", "parameter 'a' must be a finite number"),
        ("a", "not of the form name=value"),
    ],
)
def test_assignments_that_cannot_be_kept_are_one_line(given, says):
    with pytest.raises(UserError, match=says) as error:
        parse_assignments([given])
    assert "\n" not in str(error.value)


def test_parameters_of_plug_ins_are_checked_too():
    class Free(BaseModel):  # takes any key without a word
        steps: int = 1

    with pytest.raises(UnknownName, match="did you mean 'steps'"):
        configure("method", "x", Free, {"step": 1})
    with pytest.raises(UserError, match="method x: steps: input should be a valid integer"):
        configure("method", "x", Free, {"steps": "many"})
