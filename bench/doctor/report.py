"""What `bench doctor` reports: facts about the machine, its GPUs and the suites, as data.

Every check is guarded with `odd` and `quietly`: what is absent or unexpected becomes a line of the
report, and never ends it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from bench.base.errors import UserError, one_line

PROGRAM = 2**30  # bytes of Python, its libraries and the scorers

T = TypeVar("T")
Mark = Literal["ok", "warn", "missing"]


@dataclass(frozen=True)
class Fact:
    """One line about the machine. With a fact that is marked `missing` no suite can run; `get` says
    how to put it right.
    """

    mark: Mark
    name: str
    text: str
    get: str = ""


@dataclass(frozen=True)
class Gpu:
    """A GPU as torch sees it, bytes of memory; `problem` where it does not compute."""

    name: str
    total: int
    free: int
    capability: str
    bf16: bool
    fp16: bool
    problem: str = ""


@dataclass(frozen=True)
class FileFact:
    """A file or folder that a suite names: what it is for, and the place where it is expected.
    `problem` is empty when it is there and complete.
    """

    what: str
    path: str
    problem: str = ""


@dataclass(frozen=True)
class SuiteFact:
    """What one suite needs, and whether it can run here.

    Numbers are None where they could not be found out; bytes and hours are estimates.
    """

    name: str
    mark: Mark
    verdict: str
    problems: tuple[str, ...] = ()
    files: tuple[FileFact, ...] = ()
    get: str = ""
    parameters: int | None = None
    # times the parameters' bytes, which makes room for activations
    memory_factor: float | None = None
    memory_bytes: int | None = None
    images: int | None = None  # of the method `none`
    # or about so many: without what attacks ask for, or without a list that is missing
    images_exact: bool = False
    row_evaluations: int | None = None
    disk_bytes: int | None = None
    hours: float | None = None  # to make the images, from a timing that the store holds
    # what its detectors are judged on, or why they cannot be; empty where it has no [detection]
    detectors: str = ""


@dataclass(frozen=True)
class Report:
    """Everything that was found, in `seconds`."""

    facts: tuple[Fact, ...]
    gpus: tuple[Gpu, ...]
    suites: tuple[SuiteFact, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether some suite can run, fast or slowly."""
        return any(suite.mark != "missing" for suite in self.suites)

    def as_json(self) -> dict[str, Any]:
        return {"ok": self.ok} | asdict(self)


def odd(error: BaseException) -> str:
    """The words for a check that failed: a user's error as it stands, any other exception with its
    type.
    """
    return (
        one_line(error, 300)
        if isinstance(error, UserError | TimeoutError)
        else f"could not be looked at: {type(error).__name__}: {one_line(error, 300)}"
    )


def quietly(call: Callable[[], T]) -> T | None:
    """The result of a call; None where it raises an exception."""
    try:
        return call()
    except Exception:
        return None


def gib(size: float) -> str:
    """Bytes for people: GiB, and MiB below a tenth of one."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"
