"""The application: the order and the panels of `bench --help`, and what every command has in
common.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from bench.base.distribution import package_version

# The panels of `bench --help` from the top, and in each its commands in the order in which a
# newcomer meets them. A command that stands in none of them is not shown.
PANELS = {
    "Measure": ("run", "detect", "compare", "report", "fetch"),
    "Look": ("list", "show", "doctor"),
    "Bring your own": ("audit", "lora", "check", "suite", "statistics"),
    "Study a method": ("tune", "sweep", "calibrate", "analyze", "finetune", "experiment"),
    "Maintain the leaderboard": ("leaderboard", "submit", "verify", "testbed"),
}
LARGEST_INTEGER = 2**63 - 1  # torch, NumPy and Arrow hold no larger ones


class Commands(TyperGroup):
    """The commands of `bench`, listed in the order of `PANELS` and under its titles."""

    def list_commands(self, ctx: Any) -> list[str]:
        listed = []
        for panel, names in PANELS.items():
            for name in names:
                if name in self.commands:
                    self.commands[name].rich_help_panel = panel  # type: ignore[attr-defined]
                    listed.append(name)
        return listed


class Command(TyperCommand):
    """A command that refuses numbers which no computation can use: infinities, NaN, and integers
    of more than 63 bits.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        for parameter in self.params:
            if reason := _unusable_number(ctx.params.get(str(parameter.name))):
                ctx.fail(f"{parameter.opts[-1]} {reason}")
        return rest


def _unusable_number(value: object) -> str | None:
    """What the number of an option must be and is not; None where it can be used, and for what is
    no number.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, not {value}"
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        return f"must lie between -{LARGEST_INTEGER} and {LARGEST_INTEGER}"
    return None


class Application(typer.Typer):
    """A Typer application whose commands are of the class `Command`."""

    def command(self, *args: Any, **settings: Any) -> Callable[[Any], Any]:
        return super().command(*args, **{"cls": Command} | settings)


def examples(*lines: str) -> str:
    """The epilog of a command: its examples, one on each line."""
    title = "Example:" if len(lines) == 1 else "Examples:"
    return "\n\n".join([title, *lines])  # an empty line is what typer takes for a line break


app = Application(
    help="Benchmark of mitigations against memorization in text-to-image diffusion models.",
    epilog="Begin with: bench run --method none --suite testbed-quick",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _say_version(asked: bool) -> None:
    if asked:
        print(f"bench {package_version() or 'of unknown version: it is not installed'}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Say which version this is.", callback=_say_version, is_eager=True
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    allow: Annotated[
        list[Path] | None,
        typer.Option(
            "--allow",
            help=(
                "A folder besides its own that a suite may read lists, pictures and code from"
                " (docs/security.md). May be repeated; BENCH_ALLOW holds such folders for good."
            ),
        ),
    ] = None,
) -> None:
    if debug:
        os.environ["BENCH_DEBUG"] = "1"
    if allow:
        from bench.suite.reach import allow as let

        let(allow)
