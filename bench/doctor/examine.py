"""`bench doctor`: in one screen what this machine can run, what is missing, and how to get it.

Here the checks are put together: slow ones in the background, each guarded, all within a time that
is promised.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.base.errors import one_line
from bench.doctor import machine
from bench.doctor.child import ask_classes
from bench.doctor.report import Fact, Gpu, Report, odd, quietly
from bench.doctor.suites import Room, judged, look, suite_names

SECONDS = 10.0  # after which a report is given, whatever is not known by then


class _Facts(list[Fact]):
    def take(self, name: str, check: Callable[[], Iterable[Fact]]) -> None:
        """Add what a check finds, or the error that it ends with."""
        try:
            self.extend(list(check()))
        except Exception as error:
            self.append(Fact("warn", name, odd(error)))


class _Later:
    """A call in the background.

    `result` waits; what is not there in time is a `TimeoutError`, and the call is left to itself.
    """

    def __init__(self, call: Callable[[], Any]) -> None:
        self._found: list[tuple[Any, BaseException | None]] = []
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self._found.append((call(), None))
        except BaseException as error:
            self._found.append((None, error))

    def result(self, seconds: float) -> Any:
        self._thread.join(max(seconds, 0.0))
        if not self._found:
            raise TimeoutError("takes too long; repeat the command, or give it more time")
        value, error = self._found[0]
        if error:
            raise (
                error
                if isinstance(error, Exception)
                else RuntimeError(f"{type(error).__name__}: {one_line(error)}")
            )
        return value


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
    asked, commit, broken = (
        _Later(lambda: ask_classes(names, left())),
        _Later(machine.git_facts),
        _Later(machine.name_facts),
    )
    facts.take("python", machine.python_facts)
    facts.take("packages", machine.package_facts)
    looked = [look(name) for name in names]
    try:
        told = asked.result(left() + 0.3)
    except Exception as error:
        told = {"torch": {"late": odd(error)}}
    torch = told.get("torch") or {
        "late": f"not known within {seconds:g} s (a first import is slow): repeat the command"
    }
    facts.take("torch", lambda: machine.torch_facts(torch))
    facts.take("processor", lambda: machine.processor_facts(torch.get("threads")))
    memory = quietly(machine.main_memory)
    facts.take("memory", lambda: machine.memory_facts(memory))
    facts.take("store", lambda: machine.folder_facts("store", store))
    facts.take("records", lambda: machine.folder_facts("records", records))
    facts.take("git", lambda: commit.result(left()))
    facts.take("names", lambda: broken.result(left()))
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
    verdicts = tuple(judged(one, told.get(one.name) or {}, room, store) for one in looked)
    return Report(tuple(facts), gpus, verdicts, round(time.monotonic() - start, 2))
