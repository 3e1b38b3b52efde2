"""What the wheel holds, by the rules of pyproject.toml: whatever is committed below the packages.

Building one takes a network or packages that a new environment lacks, so the rules are applied the
slow, obvious way.
"""

import subprocess
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("bench", "methods", "metrics", "attacks")
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
    "setuptools"
]


def committed():
    """What git knows below the packages, as paths from the root."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--", *PACKAGES], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip("not a checkout")
    return [PurePosixPath(name) for name in done.stdout.split("\0") if name]


def is_package(folder):
    """Whether setuptools finds a folder: it and those above are packages, and a name matches."""
    chain = [folder, *folder.parents][:-1]
    name = ".".join(folder.parts)
    return all((ROOT / each / "__init__.py").is_file() for each in chain) and any(
        fnmatchcase(name, pattern) for pattern in SETUPTOOLS["packages"]["find"]["include"]
    )


def data_files():
    """What the patterns of package data find, as paths from the root."""
    return {
        PurePosixPath(path.relative_to(ROOT).as_posix())
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
        if path.is_file() and is_package(PurePosixPath(package.replace(".", "/")))
    }


def test_every_committed_file_of_the_packages_is_in_the_wheel():
    data = data_files()
    missing = [
        str(path)
        for path in committed()
        if not (path.suffix == ".py" and is_package(path.parent)) and path not in data
    ]
    assert missing == []


def test_licences_of_what_ships_are_named():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert all((ROOT / name).is_file() for name in project["license-files"])
