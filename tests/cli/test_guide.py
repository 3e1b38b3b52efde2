"""The five-minute guide of CONTRIBUTING.md, taken at its word."""

import re
from pathlib import Path

import torch
from typer.testing import CliRunner

from bench.checks.check import check
from bench.cli.main import app
from bench.registry import registry
from bench.suite.load import load_suite
from one_run import Run

GUIDE = (
    Path(__file__)
    .parents[2]
    .joinpath("CONTRIBUTING.md")
    .read_text(encoding="utf-8")
    .partition("## A method in five minutes")[2]
    .partition("\n## ")[0]
)


def test_the_method_of_the_guide_keeps_all_contracts_and_gets_its_row(tmp_path, tiny_folder):
    code = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    assert len(code) == 1 and len(code[0].splitlines()) < 60
    file = tmp_path / "mine.py"
    file.write_text(code[0])
    assert "broken" not in {
        result.verdict for result in check(registry.find("method", str(file)), {}, tiny_folder)
    }
    suite = load_suite(str(tiny_folder / "tiny.toml"))
    run = Run(
        suite,
        str(file),
        {"steps": 2},
        tmp_path / "records",
        tmp_path / "store",
        torch.device("cpu"),
    )
    record = run.execute()
    assert (
        record.status == "complete"
        and record.method == "mine"
        and record.changed == {"steps": 2}
        and record.sources
    )


def test_every_command_of_the_guide_exists_with_its_options():
    runner = CliRunner()
    commands = re.findall(r"^    bench (\w+) (.*)$", GUIDE, re.MULTILINE)
    assert len(commands) >= 5
    for command, words in commands:
        shown = runner.invoke(
            app, [command, "--help"], env={"COLUMNS": "300", "TERM": "dumb"}
        ).output
        for option in re.findall(r"(?<!\S)(--?[a-z]+)", words):
            assert option in shown, f"bench {command} has no {option}"
