"""Small JSON files that lie beside the shards of a store, each with a digest of what it says.

A damaged one is named on standard error and counts as absent, so that it is made again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from bench.base.digests import digest_of
from bench.base.errors import UserError
from bench.store.folders import Folder

DIGEST = "sha256"  # the key of the digest of everything else


def write_note(files: Folder, name: str, facts: Mapping[str, Any]) -> None:
    """Write facts, which JSON must be able to hold, under a name.

    Raises `UserError` when the folder cannot be written.
    """
    plain = json.loads(json.dumps(dict(facts)))
    files.write(name, json.dumps(plain | {DIGEST: digest_of(plain)}, indent=1).encode())


def read_note(files: Folder, name: str) -> dict[str, Any] | None:
    """The facts under a name; None where there are none or the file is damaged. One without a
    digest is of before there was one.
    """
    if not files.exists(name):
        return None
    try:
        found = json.loads(files.read(name))
        digest = found.pop(DIGEST, None) if isinstance(found, dict) else ""
        if digest in (None, digest_of(found)):
            return dict(found)
    except (UserError, ValueError, RecursionError):
        pass
    print(f"bench: {files}/{name} is damaged and is made again", file=sys.stderr)
    return None
