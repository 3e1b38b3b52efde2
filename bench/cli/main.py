"""The entry point: every command module adds its commands to the application, in the order of
`bench --help`.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

from bench.base.errors import UserError, one_line
from bench.cli import (
    analyze,
    check,
    fetch,
    finetune,
    leaderboard,
    records,
    run,
    show,
    statistics,
    study,
    suite,
    testbed,
)
from bench.cli.app import app

COMMANDS = (
    run,
    fetch,
    testbed,
    analyze,
    suite,
    finetune,
    records,
    statistics,
    show,
    study,
    check,
    leaderboard,
)


def main() -> None:
    """Entry point: an error is one line on standard error, with exit code 2 for what the user can
    put right.
    """
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        _fail(error, one_line(error), 2)
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        usage = getattr(error, "format_message", None)  # what typer raises for wrong options
        if usage is None:
            _fail(
                error,
                f"unexpected {type(error).__name__}: {one_line(error)[:300]} (bench --debug ..."
                " shows where)",
                1,
            )
        text = usage()
        if "\n" in text:  # a command group without a command: its help
            print(text)
            sys.exit(2)
        _fail(error, f"{text} (see bench --help)", 2)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(error: Exception, line: str, code: int) -> NoReturn:
    if os.environ.get("BENCH_DEBUG"):
        raise error
    print(f"bench: {line}", file=sys.stderr)
    sys.exit(code)
