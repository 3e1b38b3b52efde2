"""Guards against hidden effects of what is checked: connections, and global random states."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch

from bench.checks.contract import Broken


@contextmanager
def network_refused() -> Iterator[list[str]]:
    """Refuse every connection and name look-up while the block lasts.

    Yields the list of the addresses that were asked for, which grows meanwhile.
    """
    attempts: list[str] = []

    def refuse(*args: Any, **kwargs: Any) -> Any:
        place = next((arg for arg in args if isinstance(arg, (str, tuple))), "the network")
        attempts.append(str(place))
        raise OSError("the network is closed during `bench check`")

    with (
        mock.patch.object(socket.socket, "connect", refuse),
        mock.patch.object(socket.socket, "connect_ex", refuse),
        mock.patch.object(socket, "getaddrinfo", refuse),
    ):
        yield attempts


@contextmanager
def random_state_untouched(doing: str) -> Iterator[None]:
    """Raises `Broken` when the block moved a global generator of torch, NumPy or Python.

    `doing` names what the block does, for the message.
    """

    def states() -> dict[str, Any]:
        kind, keys, *rest = np.random.get_state(legacy=True)
        return {
            "torch": torch.get_rng_state().tolist(),
            "NumPy": (kind, np.asarray(keys).tolist(), rest),
            "Python": random.getstate(),
        }

    before = states()
    yield
    moved = [name for name, state in states().items() if state != before[name]]
    if moved:
        raise Broken(
            f"{doing} moved the global random state of {', '.join(moved)}",
            "draw from a generator of your own, seeded by a parameter",
        )
