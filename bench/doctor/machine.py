"""What `bench doctor` says of the machine itself: Python and packages, torch and GPUs, cores,
memory, disk, git, and names that are broken.

Each check gives one `Fact` or a few, and asks nothing that takes long; what torch knows was asked
in a child process (`bench.doctor.slow_facts`). Packages are imported where they are used: one that
is missing costs its own line only.
"""

from __future__ import annotations

import math
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.base.distribution import NAME, ROOT, command_for
from bench.base.errors import one_line
from bench.doctor.report import PROGRAM, Fact, Mark, gib

OLDEST, NEWEST = (3, 11, 4), (3, 13)  # Pythons that the project supports


def python_facts() -> Iterator[Fact]:
    """Whether this Python is one that the project was tried with."""
    running = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:3] < OLDEST:
        oldest, newest = (".".join(map(str, version)) for version in (OLDEST, NEWEST))
        yield Fact("missing", "python", f"{running}, too old", f"install {oldest} to {newest}")
    elif sys.version_info[:2] > NEWEST:
        yield Fact(
            "warn",
            "python",
            f"{running}, newer than the project was tried with",
            f"install Python {NEWEST[0]}.{NEWEST[1]} if something fails",
        )
    else:
        yield Fact("ok", "python", running)


def _requirements() -> tuple[list[str], str]:
    """What the installed distribution requires, extras included, and a note. For a checkout that is
    not installed, what its pyproject.toml says.
    """
    try:
        return list(metadata.requires(NAME) or ()), ""
    except metadata.PackageNotFoundError:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [
        f"{line}; extra == '{extra}'"
        for extra, lines in project.get("optional-dependencies", {}).items()
        for line in lines
    ]
    return [
        *project["dependencies"],
        *extras,
    ], "the project is not installed; ranges are from pyproject.toml"


def package_facts() -> Iterator[Fact]:
    """Required packages and extras, compared with the installed versions; `get` is the pip command
    that puts it right.
    """
    try:
        from packaging.requirements import Requirement
    except ImportError:  # it comes with several of the required packages, and pip has its own
        from pip._vendor.packaging.requirements import Requirement  # type: ignore[assignment]
    lines, note = _requirements()
    parsed = [Requirement(line) for line in lines]
    required = [req for req in parsed if not req.marker or req.marker.evaluate({"extra": ""})]
    absent = [req for req in required if _installed(req.name) is None]
    unfit = [req for req in required if req not in absent and not _fits(req)]
    if absent:
        names = ", ".join(f"{req.name} is not installed" for req in absent)
        yield Fact("missing", "packages", names, _pip(absent))
    if unfit:
        names = ", ".join(
            f"{req.name} {_installed(req.name)} is not {req.specifier}" for req in unfit
        )
        yield Fact("warn", "packages", names, _pip(unfit))
    if note:
        yield Fact("warn", "project", note, "pip install -e . in its folder")
    if not absent and not unfit:
        yield Fact("ok", "packages", f"all {len(required)} required ones fit")
    extras = sorted(set(re.findall(r"""extra\s*==\s*["']([^"']+)["']""", "\n".join(lines))))
    if extras:
        yield _extras_fact(extras, parsed)


def _extras_fact(extras: Sequence[str], requirements: Sequence[Any]) -> Fact:
    """Which of the optional sets of packages are installed."""
    lacking = {
        extra: [req for req in _required_by(extra, requirements) if not _fits(req)]
        for extra in extras
    }
    states = [
        f"{extra} not installed ({', '.join(req.name for req in missing)})"
        if missing
        else f"{extra} installed"
        for extra, missing in lacking.items()
    ]
    absent = [extra for extra, missing in lacking.items() if missing]
    get = command_for(*absent) if absent else ""
    return Fact("ok", "extras", "; ".join(states), get)


def _required_by(extra: str, requirements: Sequence[Any]) -> list[Any]:
    """What an extra requires, through other extras of this project too."""
    chosen = [
        req
        for req in requirements
        if req.marker
        and not req.marker.evaluate({"extra": ""})
        and req.marker.evaluate({"extra": extra})
    ]
    through_others = [
        inner
        for req in chosen
        if req.name == NAME
        for other in sorted(req.extras)
        if other != extra
        for inner in _required_by(other, requirements)
    ]
    return [req for req in chosen if req.name != NAME] + through_others


def _fits(requirement: Any) -> bool:
    version = _installed(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _installed(name: str) -> str | None:
    try:
        return str(metadata.version(name) or "0")
    except Exception:  # absent, or its metadata is damaged
        return None


def _pip(requirements: Iterable[Any]) -> str:
    return "pip install " + " ".join(f"'{req.name}{req.specifier}'" for req in requirements)


def torch_facts(answer: Mapping[str, Any]) -> Iterator[Fact]:
    """What the child process found of torch and of every GPU. Where torch sees no GPU, whether the
    machine has one that torch cannot use.
    """
    if answer.get("late"):
        yield Fact("warn", "torch", f"{_installed('torch') or 'not installed'}; {answer['late']}")
        return
    if answer.get("error"):
        yield Fact(
            "missing",
            "torch",
            str(answer["error"]),
            "pip install torch (pytorch.org/get-started says which for this GPU)",
        )
        return
    yield Fact(
        "ok", "torch", f"{answer['version']}, {answer['build']} build, threads: {answer['threads']}"
    )
    for number, gpu in enumerate(answer.get("gpus", ())):
        halves = f"bf16 {'yes' if gpu['bf16'] else 'no'}, fp16 {'yes' if gpu['fp16'] else 'no'}"
        sizes = f"{gib(gpu['free'])} free of {gib(gpu['total'])}"
        text = f"{gpu['name']}, {sizes}, compute capability {gpu['capability']}, {halves}"
        yield (
            Fact("warn", f"gpu {number}", f"{text}; does not compute: {gpu['problem']}")
            if gpu["problem"]
            else Fact("ok", f"gpu {number}", text)
        )
    if not answer.get("gpus"):
        seen, get = (
            has_gpu_device(),
            "install the torch build that pytorch.org/get-started gives for it",
        )
        why = answer.get("why") or ("torch is a CPU build" if answer["build"] == "CPU" else "")
        yield (
            Fact(
                "warn",
                "gpu",
                f"one is there that torch cannot use ({why or 'no reason given'})",
                get,
            )
            if seen
            else Fact("warn", "gpu", "none")
        )


def has_gpu_device() -> bool:
    """Whether the system shows a GPU, whatever torch thinks of it."""
    return any(
        Path(path).exists() for path in ("/dev/nvidia0", "/proc/driver/nvidia/version", "/dev/kfd")
    )


def processor_facts(threads: int | None) -> Iterator[Fact]:
    """Cores, hardware threads and half precision; a warning where torch would use more threads than
    there are cores.
    """
    import psutil

    cpus = _usable_cpus()
    # psutil counts the cores of the machine, and this process may be bound to some of them
    siblings = {
        _read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").strip()
        for cpu in cpus
    }
    known = len(siblings) if "" not in siblings else psutil.cpu_count(logical=False)
    cores = min(known or len(cpus), len(cpus))
    quota = _cpu_quota()
    usable = max(1, min(cores, math.ceil(quota))) if quota else cores
    listed = re.search(r"^(?:flags|Features)\s*:(.*)$", _read("/proc/cpuinfo"), re.M)
    flags = set(listed.group(1).split()) if listed else set()
    halves = (
        f"bf16 {'yes' if flags & {'avx512_bf16', 'amx_bf16', 'bf16'} else 'no'}, fp16"
        f" {'yes' if flags & {'avx512_fp16', 'asimdhp'} else 'no'}"
    )
    text = (
        f"{cores} cores, {len(cpus)} hardware"
        f" threads{f', limited to {quota:g} by a cgroup' if quota else ''}; in hardware {halves}"
    )
    if threads and threads > usable:
        more = (
            "hyperthreads"
            if threads <= len(cpus) and not (quota and threads > quota)
            else "more threads than there are cores"
        )
        yield Fact(
            "warn",
            "processor",
            f"{text}; torch would use {threads} threads, {more}, which is slower",
            f"export OMP_NUM_THREADS={usable}",
        )
    else:
        yield Fact("ok", "processor", text)


def _usable_cpus() -> list[int]:
    """The hardware threads that this process may use."""
    import psutil

    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):  # not on macOS
        return sorted(process.cpu_affinity())
    return list(range(psutil.cpu_count() or 1))


def memory_facts(memory: tuple[int, int, bool] | None) -> Iterator[Fact]:
    """The memory that `main_memory` found; None says that it is not known."""
    if memory is None:
        yield Fact("warn", "memory", "not known")
        return
    total, free, limited = memory
    mark: Mark = "warn" if free < 2 * PROGRAM else "ok"
    yield Fact(
        mark,
        "memory",
        f"{gib(free)} free of {gib(total)}{' (a cgroup limits it)' if limited else ''}",
    )


def main_memory() -> tuple[int, int, bool]:
    """Bytes of main memory, bytes free, and whether a cgroup allows less than the machine has."""
    import psutil

    memory = psutil.virtual_memory()
    total, free, limited = memory.total, memory.available, False
    for folder in _cgroups("memory"):
        limit = _first_number(folder, "memory.max", "memory.limit_in_bytes")
        if limit is None or limit >= total:
            continue
        used = _first_number(folder, "memory.current", "memory.usage_in_bytes") or 0
        # file pages, which the kernel gives back when memory is asked for
        cached = re.search(r"^(?:total_)?inactive_file (\d+)", _read(f"{folder}/memory.stat"), re.M)
        total, limited = limit, True
        free = min(free, max(0, limit - used + (int(cached.group(1)) if cached else 0)))
    return total, min(free, total), limited


def _first_number(folder: str, *names: str) -> int | None:
    """The number in the first of a cgroup's files that holds one: v2 and v1 name them differently,
    and a group without limit says `max`.
    """
    texts = (_read(f"{folder}/{name}").strip() for name in names)
    return next((int(text) for text in texts if text.isdigit()), None)


def _cpu_quota() -> float | None:
    """How many processors a cgroup allows, where it allows fewer than all."""
    quotas = []
    for folder in _cgroups("cpu"):
        texts = _read(f"{folder}/cpu.max").split() or [
            _read(f"{folder}/cpu.cfs_quota_us").strip(),
            _read(f"{folder}/cpu.cfs_period_us").strip(),
        ]
        if len(texts) == 2 and texts[0].isdigit() and texts[1].isdigit() and int(texts[1]):
            quotas.append(int(texts[0]) / int(texts[1]))
    return min(quotas, default=None)


def _cgroups(controller: str) -> Iterator[str]:
    """The folders of this process's groups for a controller, of both versions, up to the root."""
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        for base in (
            (f"/sys/fs/cgroup/{controllers}", f"/sys/fs/cgroup/{controller}")
            if controllers
            else ("/sys/fs/cgroup",)
        ):
            inner = path.strip("/")
            while inner:
                yield f"{base}/{inner}"
                inner = inner.rpartition("/")[0]
            yield base


def folder_facts(name: str, folder: Path) -> Iterator[Fact]:
    """Free disk where a folder lies or would lie, and whether it can be written; nothing is left
    there.
    """
    nearest = nearest_folder(folder)
    free = shutil.disk_usage(nearest).free
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        yield Fact(
            "missing",
            name,
            f"{folder} cannot be written: {one_line(error)}",
            f"name another folder with --{name}",
        )
        return
    yield Fact(
        "warn" if free < PROGRAM else "ok",
        name,
        f"{folder}{'' if folder.exists() else ' (not made yet)'} can be written, {gib(free)} free",
    )


def nearest_folder(folder: Path) -> Path:
    """The folder itself, or the nearest of those above it that is there."""
    return next(
        (place for place in (folder.absolute(), *folder.absolute().parents) if place.exists()),
        Path("/"),
    )


def git_facts() -> list[Fact]:
    """The commit that records will name, and whether files differ from it."""
    from bench.records.environment import revision

    found = revision()
    if found["commit"] is None:
        return [Fact("warn", "git", "not a checkout of its own: records will name no commit")]
    return [
        Fact(
            "warn" if found["dirty"] else "ok",
            "git",
            found["commit"][:12]
            + (", with changes that are not committed" if found["dirty"] else ""),
        )
    ]


def name_facts() -> list[Fact]:
    """Every registered method, metric, attack and detector that cannot be imported."""
    from bench.registry.listing import list_names

    kinds = ("methods", "metrics", "attacks", "detectors")
    found = {kind: list_names(kind)[kind] for kind in kinds}
    broken = [
        f"{kind[:-1]} {name}: {summary}"
        for kind, names in found.items()
        for name, summary in names.items()
        if summary.startswith("broken")
    ]
    counts = ", ".join(f"{len(names)} {kind}" for kind, names in found.items())
    return [Fact("warn", "names", line) for line in broken] or [
        Fact("ok", "names", f"{counts}, none broken")
    ]


def _read(path: str) -> str:
    """The text of a small file of the system; empty where there is no such file."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
