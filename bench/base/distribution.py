"""What is installed: the name of this distribution, its version, and how its optional sets of
packages are had. A checkout on the path and an installed wheel answer alike.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

NAME = "diffusion-memorization-bench"
ROOT = Path(__file__).resolve().parents[2]  # what holds `bench`: a checkout, or site-packages


def checkout() -> Path | None:
    """The root of the checkout that this code is from; None where it is an installed wheel."""
    return ROOT if (ROOT / "pyproject.toml").is_file() else None


def package_version(name: str = NAME) -> str | None:
    """The version of an installed distribution; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def command_for(*extras: str) -> str:
    """The command that installs optional sets of packages, in a checkout as for a wheel: pip takes
    the distribution that is installed, and adds what its extras ask for.
    """
    return f"pip install '{NAME}[{','.join(extras)}]'"
