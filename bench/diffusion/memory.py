"""Peak memory, of a process and of a GPU: for records, and for finding out what a batch takes."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

MIB = 2**20
# The kernel forgets a process's peak when it is asked to; what it was before is kept here, for
# records.
_forgotten = {"host": 0, "device": 0}


def host_peak() -> int:
    """Bytes of main memory that this process held at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
    return max(peak, _forgotten["host"])


def device_peak(device: torch.device) -> int | None:
    """Bytes of GPU memory that tensors held at most; None on a processor."""
    return (
        max(torch.cuda.max_memory_allocated(device), _forgotten["device"])
        if device.type == "cuda"
        else None
    )


def peak_memory_mib(device: torch.device) -> dict[str, int | None]:
    """Both peaks of this process as records have them, in MiB."""
    on_device = device_peak(device)
    return {
        "host": round(host_peak() / MIB),
        "device": None if on_device is None else round(on_device / MIB),
    }


@contextmanager
def peak_within(device: torch.device) -> Iterator[Callable[[], int]]:
    """Gives a function: the peak in bytes since the block began, of the GPU or of the process, what
    was held already included.

    Where the system cannot forget the process's peak, it is the peak so far, which is never too
    small.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        _forgotten["device"] = max(_forgotten["device"], torch.cuda.max_memory_allocated(device))
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
        return
    _forgotten["host"] = host_peak()
    forgot = _forget_host_peak()

    def peak() -> int:
        return _peak_since_forgotten() if forgot else host_peak()

    yield peak


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process could take besides what it holds; None where that is not known."""
    if device.type == "cuda":
        return (
            int(torch.cuda.mem_get_info(device)[0])
            + torch.cuda.memory_reserved(device)
            - torch.cuda.memory_allocated(device)
        )
    return int(psutil.virtual_memory().available) or None


def held_memory(device: torch.device) -> int:
    """Bytes that this process holds now."""
    return (
        int(torch.cuda.memory_allocated(device))
        if device.type == "cuda"
        else psutil.Process().memory_info().rss
    )


def _forget_host_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return _peak_since_forgotten() > 0


def _peak_since_forgotten() -> int:
    """The kernel's own peak (VmHWM) in bytes, which psutil does not give; 0 where there is none."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
