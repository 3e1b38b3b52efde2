"""Calls in the background, as futures whose threads never hold up the end of the program.

The threads of a `ThreadPoolExecutor` are joined when Python ends: after Ctrl-C, one that waits 30
seconds for a silent server keeps the command alive for as long. These are daemons.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_background(call: Callable[[], T]) -> Future[T]:
    """Start a call in a daemon thread of its own."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # whoever asks for the result gets it, whatever it is
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future
