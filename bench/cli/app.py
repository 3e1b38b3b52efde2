"""The application that every command module adds its commands to."""

from __future__ import annotations

import os
from typing import Annotated

import typer

app = typer.Typer(
    help="Benchmark of mitigations against memorization in text-to-image diffusion models.",
    epilog="Begin with: bench run --method none --suite testbed-quick",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if debug:
        os.environ["BENCH_DEBUG"] = "1"
