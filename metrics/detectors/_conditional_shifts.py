"""How much the conditional prediction changes from one of the first steps to the next."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import Moment, Observation, Recorder, Unmeasurable

KEPT = 2  # differences: of the first three steps


class ConditionalShifts(Recorder):
    """`|e_c(x_1) - e_c(x_0)|^2` and `|e_c(x_2) - e_c(x_1)|^2` along the guided path, float32
    `[B, 2]`; fewer columns in a run of fewer than three steps.
    """

    def saw(self, moment: Moment, memory: dict[str, Any]) -> None:
        if moment.index > KEPT:
            memory.pop("before", None)
            return
        now = moment.conditional.float()
        shifts = memory.setdefault("shifts", [])
        if moment.index:
            # In float64, because squares of 16,384 numbers are added up.
            shifts.append((now - memory["before"]).double().square().flatten(1).sum(1).float())
        memory["before"], memory["count"] = now, len(now)

    def result(self, memory: dict[str, Any]) -> Tensor:
        """Float32 `[B, 2]`, or fewer columns."""
        shifts = memory["shifts"]
        return torch.stack(shifts, 1) if shifts else torch.zeros(memory["count"], 0)


def shift_number(seen: Observation, number: int) -> np.ndarray:
    """Column `number` of `ConditionalShifts`, `[P, n]`.

    Raises `Unmeasurable` where sampling has too few steps.
    """
    shifts = seen.trace(ConditionalShifts())
    if shifts.shape[-1] <= number:
        raise Unmeasurable(f"needs a run of at least {number + 2} steps")
    return shifts[..., number].astype(np.float64)
