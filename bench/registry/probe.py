"""Which plug-ins can be imported: tried in a child process, for `bench list`.

Only an import shows whether a stranger's module imports, and `bench list` must show a broken one as
broken. In this process the import would cost the seconds that torch takes, and the module could
print into `--json`, set seeds, exit or hang. The child answers entry by entry. When an entry ends
it, or takes too long, that entry is known by the missing answer, and a new child goes on with the
next one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from bench.base.child import answering, ask_child
from bench.base.errors import UserError, one_line
from bench.base.text import paragraphs
from bench.registry import registry
from bench.registry.registry import Entry

SECONDS = 120.0  # for the imports of all entries that are left
LONGEST_REASON = 300  # characters


def probe(entries: Sequence[Entry], seconds: float = SECONDS) -> dict[Entry, str]:
    """The first paragraph of every class's docstring, or `broken: <reason>`.

    A child that is not through in `seconds` is stopped, and the entry that it was at is broken.
    """
    found: dict[Entry, str] = {}
    waiting = list(entries)
    while waiting:
        lines, code = ask_child(
            "bench.registry.probe",
            [f"{entry.kind}:{entry.plugin.full_name}" for entry in waiting if entry.plugin],
            seconds,
        )
        summaries = [str(json.loads(line)) for line in lines]
        found |= dict(zip(waiting, summaries))
        if len(summaries) < len(waiting):
            end = (
                f"takes longer than {seconds:g} seconds"
                if code is None
                else f"ended Python (exit code {code})"
            )
            found[waiting[len(summaries)]] = f"broken: importing it {end}"
        waiting = waiting[len(summaries) + 1 :]
    return found


def _child(names: Sequence[str]) -> None:
    """In the child: import entry after entry, and answer with one line of JSON for each."""
    with answering() as answers:
        for name in names:
            answers.write(json.dumps(_summary(name)) + "\n")
            answers.flush()


def _summary(name: str) -> str:
    """The summary of `kind:distribution/name`, imported here, or why there is none."""
    kind, _, full_name = name.partition(":")
    try:
        return paragraphs(registry.find(kind, full_name).load().__doc__ or "")[0]
    except UserError as error:
        cause = error.__cause__
        reason = f"{type(cause).__name__}: {one_line(cause)}" if cause else one_line(error)
    except BaseException as error:  # a docstring that is no text, say
        reason = f"{type(error).__name__}: {one_line(error)}"
    return f"broken: {reason[:LONGEST_REASON]}"


if __name__ == "__main__":
    _child(sys.argv[1:])
