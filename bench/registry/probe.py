"""Which plug-ins can be imported: tried in a process of its own, for `bench list`.

Only an import tells whether a stranger's module imports, and `bench list` must show a broken one as
broken. Importing it here would cost the seconds that torch takes, and let it print into `--json`,
set seeds, exit or hang. A child process pays and suffers instead; it reports entry by entry, so one
that takes the child down is known, and the rest is tried again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from bench.base.child import answering, ask_child
from bench.base.errors import UserError, one_line
from bench.registry import registry
from bench.registry.registry import Entry

SECONDS = 120.0


def probe(entries: Sequence[Entry], seconds: float = SECONDS) -> dict[Entry, str]:
    """The first line of every class's docstring, or `broken: <reason>`.

    A child that is not through in `seconds` is stopped.
    """
    found: dict[Entry, str] = {}
    waiting = list(entries)
    while waiting:
        lines, code = ask_child(
            "bench.registry.probe",
            [f"{entry.kind}:{entry.plugin.full_name}" for entry in waiting if entry.plugin],
            seconds,
        )
        told = [str(json.loads(line)) for line in lines]
        found |= dict(zip(waiting, told))
        if len(told) < len(waiting):
            end = (
                f"takes longer than {seconds:g} seconds"
                if code is None
                else f"ended Python (exit code {code})"
            )
            found[waiting[len(told)]] = f"broken: importing it {end}"
        waiting = waiting[len(told) + 1 :]
    return found


def _child(names: Sequence[str]) -> None:
    """Import entry after entry."""
    with answering() as told:
        for name in names:
            told.write(json.dumps(_summary(name)) + "\n")
            told.flush()


def _summary(name: str) -> str:
    kind, _, full_name = name.partition(":")
    try:
        return (registry.find(kind, full_name).load().__doc__ or "").strip().partition("\n")[0]
    except UserError as error:
        cause = error.__cause__
        reason = f"{type(cause).__name__}: {one_line(cause)}" if cause else one_line(error)
    except BaseException as error:  # a class whose look-up alone fails
        reason = f"{type(error).__name__}: {one_line(error)}"
    return f"broken: {reason[:300]}"


if __name__ == "__main__":
    _child(sys.argv[1:])
