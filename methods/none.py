"""The reference row."""

from typing import Any, ClassVar

from bench import Method


class NoMitigation(Method):
    """No mitigation: plain classifier-free guidance, with the same initial noise as every other
    row.
    """

    families: ClassVar = ("sd", "sdxl")
    neutral: ClassVar[dict[str, Any] | None] = {}
