"""What runs inside a Ray task: a function sent by value, and errors that travel back as text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.base.errors import Unmeasurable, UserError, one_line
from bench.registry import registry

# how `bench.registry.registry` calls the modules of files that a user named
FROM_FILE = "bench_file_"


@dataclass(frozen=True)
class Refusal:
    """An error that a person must put right, or an attack that has nothing to measure: sent as its
    line, and never tried again.
    """

    line: str
    unmeasurable: bool = False

    def error(self) -> Exception:
        return Unmeasurable(self.line) if self.unmeasurable else UserError(self.line)


def apply(sent: bytes, files: Sequence[str], item: Any) -> Any:
    """A pickled function of one item, in a process that has imported the files whose classes it
    holds.
    """
    import pickle

    torch.set_num_threads(1)
    for file in files:
        if FROM_FILE + Path(file).stem not in sys.modules:
            registry.import_file(Path(file))
    try:
        return pickle.loads(sent)(item)
    except (UserError, Unmeasurable) as error:
        return Refusal(one_line(error), isinstance(error, Unmeasurable))


def files_in_use() -> list[str]:
    """The files of a user's that this process imported as methods, metrics or attacks."""
    return [
        str(module.__file__)
        for name, module in list(sys.modules.items())
        if name.startswith(FROM_FILE)
    ]
