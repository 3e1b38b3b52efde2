"""`bench doctor`: in one screen what this machine can run, what is missing, and how to get it.

Here the checks are put together: slow ones in the background, each guarded, all within a time that
is promised.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from bench.base.background import in_background
from bench.base.errors import one_line
from bench.doctor import machine
from bench.doctor.report import Fact, Gpu, Report, odd, quietly
from bench.doctor.slow_facts import ask_classes
from bench.doctor.suites import Room, judged, look, suite_names

T = TypeVar("T")
SECONDS = 10.0  # after which a report is given, whatever is not known by then


class _Facts(list[Fact]):
    def take(self, name: str, check: Callable[[], Iterable[Fact]]) -> None:
        """Add the facts that a check finds, or the error that it ends with."""
        try:
            self.extend(list(check()))
        except Exception as error:
            self.append(Fact("warn", name, odd(error)))


def _result(future: Future[T], seconds: float) -> T:
    """The result of a call in the background. Raises `TimeoutError` when it is not there within so
    many seconds; the call itself goes on.
    """
    try:
        return future.result(max(seconds, 0.0))
    except TimeoutError as error:
        if future.done():  # the call's own
            raise
        raise TimeoutError("takes too long; repeat the command, or give it more time") from error
    except Exception:
        raise
    except BaseException as error:  # a call that wanted to end the program
        raise RuntimeError(f"{type(error).__name__}: {one_line(error)}") from error


def examine(
    suites: Sequence[str] | None = None,
    store: Path = Path("runs/store"),
    records: Path = Path("runs/records"),
    seconds: float = SECONDS,
) -> Report:
    """Look at this machine and at suites (names or TOML files; by default all that are known).

    Takes about `seconds` at most.
    """
    start = time.monotonic()
    end = start + seconds - 0.5

    def left() -> float:
        return end - time.monotonic()

    facts = _Facts()
    try:
        names = list(dict.fromkeys(suite_names() if suites is None else suites))
    except Exception as error:
        names = []
        facts.append(Fact("warn", "suites", odd(error)))
    asked = in_background(lambda: ask_classes(names, left()))
    commit = in_background(machine.git_facts)
    broken = in_background(machine.name_facts)
    facts.take("python", machine.python_facts)
    facts.take("packages", machine.package_facts)
    looked = [look(name) for name in names]
    try:
        answers = _result(asked, left() + 0.3)
    except Exception as error:
        answers = {"torch": {"late": odd(error)}}
    torch = answers.get("torch") or {
        "late": f"not known within {seconds:g} s (a first import is slow): repeat the command"
    }
    facts.take("torch", lambda: machine.torch_facts(torch))
    facts.take("processor", lambda: machine.processor_facts(torch.get("threads")))
    memory = quietly(machine.main_memory)
    facts.take("memory", lambda: machine.memory_facts(memory))
    facts.take("store", lambda: machine.folder_facts("store", store))
    facts.take("records", lambda: machine.folder_facts("records", records))
    facts.take("git", lambda: _result(commit, left()))
    facts.take("names", lambda: _result(broken, left()))
    gpus = quietly(lambda: tuple(Gpu(**gpu) for gpu in torch.get("gpus", ()))) or ()
    blocked = "; ".join(f"{fact.name}: {fact.text}" for fact in facts if fact.mark == "missing")
    disk = quietly(lambda: shutil.disk_usage(machine.nearest_folder(store)).free)
    room = Room(
        gpus,
        memory[1] if memory else None,
        disk,
        blocked,
        bool(torch.get("late")) and machine.has_gpu_device(),
    )
    verdicts = tuple(judged(found, answers.get(found.name) or {}, room, store) for found in looked)
    return Report(tuple(facts), gpus, verdicts, round(time.monotonic() - start, 2))
