"""All campaigns in their short forms, one after the other, in one process that imports everything
once. Ends with an exit code other than 0 when one of them failed.
"""

from __future__ import annotations

import sys

import full_disks
import kills
import mutations
import pairs
from cases import CASES, on_stage


def short_forms() -> int:
    """Carry all of them out; how many failed."""
    failed = 0
    for module in (kills, full_disks):
        with on_stage() as folder:
            failed += module.campaign(1, 0, folder, CASES)
    for module, count in ((pairs, 1), (mutations, 10)):
        with on_stage() as folder:
            failed += module.campaign(count, 0, folder)
    return failed


if __name__ == "__main__":
    sys.exit(short_forms())
