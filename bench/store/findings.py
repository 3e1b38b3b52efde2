"""What the stages of attacks found out, picture by picture, beside the images of the model that
they worked on.

    <root>/<suite>/<method>-<key>/attacks/<stage>-<key>/key.json          what the key was made of
                                                        <picture>.npz     the arrays of one picture

A file that is damaged counts as absent, and what was in it is found again.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from bench.base.digests import digest_of
from bench.store.folders import Folder

SHA256 = 32  # bytes behind the arrays


class Findings:
    """The findings of one stage; `identity` is everything that decides them besides the picture and
    the model.
    """

    def __init__(self, images: Folder, stage: str, identity: Mapping[str, Any]) -> None:
        self.key = digest_of(dict(identity))[:16]
        self.files = images.at("attacks").at(f"{stage}-{self.key}")
        self._identity = identity

    def prepare(self) -> None:
        """Make the folder. Raises `UserError` when it cannot be written."""
        self.files.tidy()
        content = json.dumps(dict(self._identity), indent=1, sort_keys=True)
        self.files.write("key.json", content.encode())

    def write(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep the arrays of one picture. Raises `UserError` when the folder cannot be written."""
        buffer = io.BytesIO()
        given: dict[str, Any] = dict(arrays)
        np.savez_compressed(buffer, **given)
        content = buffer.getvalue()
        self.files.write(f"{name}.npz", content + hashlib.sha256(content).digest())

    def read(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays of one picture; None where there are none, or they are damaged."""
        if not self.files.exists(f"{name}.npz"):
            return None
        content = self.files.read(f"{name}.npz")
        arrays, digest = content[:-SHA256], content[-SHA256:]
        if hashlib.sha256(arrays).digest() != digest:
            return None
        try:
            with np.load(io.BytesIO(arrays), allow_pickle=False) as found:
                return {key: found[key] for key in found.files}
        except (ValueError, OSError, zipfile.BadZipFile):
            return None
