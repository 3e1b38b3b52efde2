"""What several commands share: options, the folders they stand for by default, and what Ctrl-C
says.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

RECORDS, STORE = Path("runs/records"), "runs/store"
Records = Annotated[Path, typer.Option("--records", help="Folder of run records.")]


@contextmanager
def resumable() -> Iterator[None]:
    """Say after Ctrl-C that nothing finished is lost."""
    try:
        yield
    except KeyboardInterrupt:
        print("bench: interrupted; the same command goes on where it stopped", file=sys.stderr)
        raise typer.Exit(130) from None


COMMITTED = Path("leaderboards/records")


Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]
