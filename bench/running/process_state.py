"""Settings of the process that code of others may not leave changed: every number measured after
it would be made under another setting, and nobody would know.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch

from bench.base.errors import UserError


class _Environment(dict[str, str]):
    """The environment, equal to a later one that only has more, and nothing more of ours: libraries
    add to it when they are imported.
    """

    def __eq__(self, later: object) -> bool:
        if not isinstance(later, dict):
            return False
        added = later.keys() - self.keys()
        return self.items() <= later.items() and not any(n.startswith("BENCH_") for n in added)

    def __ne__(self, later: object) -> bool:
        return not self == later

    __hash__ = None  # type: ignore[assignment]


def _set_search_path(values: list[str]) -> None:
    sys.path[:] = values


def _set_environment(values: dict[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith("BENCH_") and name not in values]:
        del os.environ[name]
    os.environ.update(values)


# By the name in messages: how a setting is read, and how it is set back.
_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "torch's default number type": (torch.get_default_dtype, torch.set_default_dtype),
    "torch's default device": (torch.get_default_device, torch.set_default_device),
    "torch's recording of gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    "torch's choice of deterministic algorithms": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "torch's precision of products": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    "cuDNN's choice of algorithms": (
        lambda: torch.backends.cudnn.benchmark,
        lambda kept: setattr(torch.backends.cudnn, "benchmark", kept),
    ),
    "NumPy's treatment of floating-point errors": (np.geterr, lambda kept: np.seterr(**kept)),
    "the working folder": (os.getcwd, os.chdir),
    "the environment": (lambda: _Environment(os.environ), _set_environment),
    "Python's search path": (lambda: list(sys.path), _set_search_path),
    "the answer to Ctrl-C": (
        lambda: signal.getsignal(signal.SIGINT),
        lambda kept: signal.signal(signal.SIGINT, kept),
    ),
}


def _read(name: str) -> Any:
    """A setting now; one that cannot be read is equal to itself and to nothing else."""
    try:
        return _SETTINGS[name][0]()
    except Exception as error:  # of torch, where two ways to set one thing disagree; no folder
        return f"unreadable: {type(error).__name__}"


@contextmanager
def process_kept(whose: str) -> Iterator[None]:
    """Raises `UserError` when the block left a setting of the process changed. It is set back, also
    when the block itself raised. `whose`: the code and its door, for the message.
    """
    before = {name: _read(name) for name in _SETTINGS}
    try:
        yield
    finally:
        changed = [name for name in _SETTINGS if before[name] != _read(name)]
        for name in changed:
            with suppress(Exception):  # one that cannot be set back is named all the same
                _SETTINGS[name][1](before[name])
    if changed:
        raise UserError(f"{whose} left {', '.join(changed)} changed; it is set back")
