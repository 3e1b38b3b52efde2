"""Every option of every command: a value it does not know is one line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rule import DEEP, keeps_the_rule, numbers, words
from typer.main import get_command

from bench.cli.main import app
from conftest import examples

texts = st.one_of(words, numbers.map(str)).filter(lambda text: "\ud800" not in text)


def commands(command, before=()):
    """Every command with its options and how many arguments it takes, by its name."""
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from commands(inner, (*before, name))
    else:
        yield before, command.params


COMMANDS = dict(commands(get_command(app)))
# `doctor` looks at the machine in child processes for seconds, so it is tried with one bad suite.
WORKING = [name for name in COMMANDS if name != ("doctor",)]
# Named with something that there is not, so that none begins work of minutes, whatever else it is
# given.
IDLE = {
    ("testbed", "build"): ["--plan", "nowhere"],
    ("testbed", "info"): ["--bundle", "./nowhere"],
    ("testbed", "scenes"): ["--count", "0"],
    ("testbed", "subject"): ["--out", "./subject", "--rank", "0"],
    ("fetch",): ["--suite", "./nowhere.toml"],
    ("verify",): ["./nowhere.json"],
    ("tune",): ["wanda", "--grid", "sparsity=0.1", "--suite", "./nowhere.toml"],
    ("calibrate",): ["clique_extraction", "--suite", "./nowhere.toml"],
    ("analyze", "locality"): ["--suite", "./nowhere.toml"],
    ("analyze", "masks"): ["--method", "wanda", "--suite", "./nowhere.toml"],
    ("analyze", "subsets"): ["--suite", "./nowhere.toml"],
    ("experiment", "memorization-by-size"): ["--model", "./nowhere"],
    ("experiment", "solidmark"): ["--model", "./nowhere"],
    ("run",): ["--suite", "./nowhere.toml"],
}
# These take seconds whatever they are given.
QUICK = {("leaderboard",), ("list",), ("suite", "new")}


def test_every_command_that_begins_work_unasked_is_kept_idle_here():
    unasked = {name for name in WORKING if not any(option.required for option in COMMANDS[name])}
    assert unasked <= set(IDLE) | QUICK


@pytest.mark.parametrize("name", WORKING, ids=" ".join)
@examples(10)
@given(data=st.data())
def test_a_value_that_an_option_does_not_know_is_one_line(name, data):
    given = list(IDLE.get(name, []))
    options = [
        option
        for option in COMMANDS[name]
        if option.param_type_name == "option" and option.opts[-1] not in (*given, "--help")
    ]
    for option in data.draw(st.lists(st.sampled_from(options), max_size=3)):
        given.append(option.opts[-1])
        if not option.is_flag:
            given.append(data.draw(texts))
    if name not in IDLE:
        given += [data.draw(texts) for _ in range(data.draw(st.integers(0, 2)))]
    keeps_the_rule(*name, *given, codes=(0, 1, 2) if name == ("check",) else (0, 2))


def test_doctor_says_what_is_wrong_with_a_suite(fuzz_folder):
    (fuzz_folder / "doctor.toml").write_text("extends = " + "[" * DEEP)
    keeps_the_rule("doctor", "--suite", fuzz_folder / "doctor.toml", codes=(0, 1, 2))
