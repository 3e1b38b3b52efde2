"""`bench doctor`: in one screen what this machine can run, what is missing, and how to get it.

Every check is guarded: what is absent or odd becomes a line. Torch, its GPUs and the classes that a suite names are asked in a
process of its own (as in `bench.probe`), so that a torch that crashes, hangs or loads slowly costs its own lines only.
A model is not loaded for this: its size stands in the headers of its safetensors.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from bench.errors import UserError, one_line, visible

if TYPE_CHECKING:
    from bench.suite import Suite

DISTRIBUTION = "diffusion-memorization-bench"
CHECKOUT = Path(__file__).resolve().parent.parent
PYTHONS = ((3, 11), (3, 13))  # the oldest and the newest that the project supports
SECONDS = 10.0  # after which a report is given, whatever is not known by then
SLOW = 100_000_000  # parameters above which a run without a GPU is called slow
# Of the parameters' bytes, for each image of a batch at 512 x 512 pixels. Measured on a processor with Stable Diffusion 1's shapes in
# float32 (4.0 GiB): 1.0 GiB to decode an image, and 0.6 GiB for its two rows in the UNet before that.
ACTIVATIONS = 0.25
PROGRAM = 2**30  # bytes of Python, its libraries and the scorers
PNG = 2.2  # bytes a pixel on disk, as in `Run.plan`
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
WEIGHTS = ("unet", "vae", "text_encoder")
LINES, COLUMNS = 40, 100

T = TypeVar("T")
Mark = Literal["ok", "warn", "missing"]


@dataclass(frozen=True)
class Fact:
    """One line about the machine. Without what is `missing` nothing runs; `get` says how to put it right."""

    mark: Mark
    name: str
    text: str
    get: str = ""


@dataclass(frozen=True)
class Gpu:
    """A GPU as torch sees it, bytes of memory; `problem` where it does not compute."""

    name: str
    total: int
    free: int
    capability: str
    bf16: bool
    fp16: bool
    problem: str = ""


@dataclass(frozen=True)
class FileFact:
    """A file or folder that a suite names, for what, and where it was looked for. `problem` is empty when it is there and whole."""

    what: str
    path: str
    problem: str = ""


@dataclass(frozen=True)
class SuiteFact:
    """What one suite needs, and whether it can run here. Numbers are None where they could not be told; bytes and hours are estimates."""

    name: str
    mark: Mark
    verdict: str
    problems: tuple[str, ...] = ()
    files: tuple[FileFact, ...] = ()
    get: str = ""
    parameters: int | None = None
    memory_factor: float | None = None  # times the parameters' bytes, which makes room for activations
    memory_bytes: int | None = None
    images: int | None = None  # of the method `none`
    images_exact: bool = False  # or about so many: without what attacks ask for, or without a list that is missing
    row_evaluations: int | None = None
    disk_bytes: int | None = None
    hours: float | None = None  # to make the images, from a timing that the store holds


@dataclass(frozen=True)
class Report:
    """Everything that was found, in `seconds`."""

    facts: tuple[Fact, ...]
    gpus: tuple[Gpu, ...]
    suites: tuple[SuiteFact, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether some suite can run, fast or slowly."""
        return any(suite.mark != "missing" for suite in self.suites)

    def as_json(self) -> dict[str, Any]:
        return {"ok": self.ok} | asdict(self)


@dataclass(frozen=True)
class Room:
    """What the machine offers to suites, in bytes where known. `blocked` says why none at all can run."""

    gpus: tuple[Gpu, ...] = ()
    memory: int | None = None
    disk: int | None = None
    blocked: str = ""
    late: bool = False  # there is a GPU, and torch did not tell of it in time


class _Facts(list[Fact]):
    def take(self, name: str, check: Callable[[], Iterable[Fact]]) -> None:
        """Add what a check finds, or the error that it ends with."""
        try:
            self.extend(list(check()))
        except Exception as error:
            self.append(Fact("warn", name, _odd(error)))


class _Later:
    """A call in the background. `result` waits; what is not there in time is a `TimeoutError`, and the call is left to itself."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._found: list[tuple[Any, BaseException | None]] = []
        self._thread = threading.Thread(target=self._run, args=(call,), daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self._found.append((call(), None))
        except BaseException as error:
            self._found.append((None, error))

    def result(self, seconds: float) -> Any:
        self._thread.join(max(seconds, 0.0))
        if not self._found:
            raise TimeoutError("takes too long; repeat the command, or give it more time")
        value, error = self._found[0]
        if error:
            raise error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {one_line(error)}")
        return value


def examine(suites: Sequence[str] | None = None, store: Path = Path("runs/store"), records: Path = Path("runs/records"), seconds: float = SECONDS) -> Report:
    """Look at this machine and at suites (names or TOML files; by default all that are known). Takes about `seconds` at most."""
    start = time.monotonic()
    end = start + seconds - 0.5

    def left() -> float:
        return end - time.monotonic()

    facts = _Facts()
    try:
        names = list(dict.fromkeys(_suite_names() if suites is None else suites))
    except Exception as error:
        names = []
        facts.append(Fact("warn", "suites", _odd(error)))
    asked, commit, broken = _Later(lambda: _ask_child(names, left())), _Later(_commit), _Later(_broken_names)
    facts.take("python", _python)
    facts.take("packages", _packages)
    looked = [_look(name) for name in names]
    try:
        told = asked.result(left() + 0.3)
    except Exception as error:
        told = {"torch": {"late": _odd(error)}}
    torch = told.get("torch") or {"late": f"not known within {seconds:g} s (a first import is slow): repeat the command"}
    facts.take("torch", lambda: _torch_facts(torch))
    facts.take("processor", lambda: _processor(torch.get("threads")))
    memory = _quietly(_memory)
    facts.take("memory", lambda: _memory_facts(memory))
    facts.take("store", lambda: _place("store", store))
    facts.take("records", lambda: _place("records", records))
    facts.take("git", lambda: commit.result(left()))
    facts.take("names", lambda: broken.result(left()))
    gpus = _quietly(lambda: tuple(Gpu(**gpu) for gpu in torch.get("gpus", ()))) or ()
    blocked = "; ".join(f"{fact.name}: {fact.text}" for fact in facts if fact.mark == "missing")
    room = Room(
        gpus, memory[1] if memory else None, _quietly(lambda: shutil.disk_usage(_nearest(store)).free), blocked, bool(torch.get("late")) and _gpu_device()
    )
    judged = tuple(_judged(one, told.get(one.name) or {}, room, store) for one in looked)
    return Report(tuple(facts), gpus, judged, round(time.monotonic() - start, 2))


# --- the machine


def _python() -> Iterator[Fact]:
    running = ".".join(map(str, sys.version_info[:3]))
    (low, high), here = PYTHONS, sys.version_info[:2]
    if here < low:
        yield Fact("missing", "python", f"{running}, too old", f"install Python {low[0]}.{low[1]} to {high[0]}.{high[1]}")
    elif here > high:
        yield Fact("warn", "python", f"{running}, newer than the project was tried with", f"install Python {high[0]}.{high[1]} if something fails")
    else:
        yield Fact("ok", "python", running)


def _requirements() -> tuple[list[str], str]:
    """What the installed distribution requires, extras too; of a checkout that is not installed, what its pyproject.toml says."""
    try:
        return list(metadata.requires(DISTRIBUTION) or ()), ""
    except metadata.PackageNotFoundError:
        project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [f"{line}; extra == '{extra}'" for extra, lines in project.get("optional-dependencies", {}).items() for line in lines]
    return [*project["dependencies"], *extras], "the project is not installed; ranges are from pyproject.toml"


def _packages() -> Iterator[Fact]:
    try:
        from packaging.requirements import Requirement
    except ImportError:  # it comes with several of the required packages, and pip has its own
        from pip._vendor.packaging.requirements import Requirement  # type: ignore[assignment]
    lines, note = _requirements()
    parsed = [Requirement(line) for line in lines]
    extras = sorted(set(re.findall(r"""extra\s*==\s*["']([^"']+)["']""", "\n".join(lines))))

    def wanted(extra: str) -> list[Requirement]:
        chosen = [one for one in parsed if one.marker and not one.marker.evaluate({"extra": ""}) and one.marker.evaluate({"extra": extra})]
        inner = [more for one in chosen if one.name == DISTRIBUTION for other in sorted(one.extras) if other != extra for more in wanted(other)]
        return [one for one in chosen if one.name != DISTRIBUTION] + inner

    def fits(one: Requirement) -> bool:
        version = _installed(one.name)
        return version is not None and one.specifier.contains(version, prereleases=True)

    required = [one for one in parsed if not one.marker or one.marker.evaluate({"extra": ""})]
    absent = [one for one in required if _installed(one.name) is None]
    unfit = [one for one in required if one not in absent and not fits(one)]
    if absent:
        yield Fact("missing", "packages", ", ".join(f"{one.name} is not installed" for one in absent), _pip(absent))
    if unfit:
        yield Fact("warn", "packages", ", ".join(f"{one.name} {_installed(one.name)} is not {one.specifier}" for one in unfit), _pip(unfit))
    if note:
        yield Fact("warn", "project", note, "pip install -e . in its folder")
    if not absent and not unfit:
        yield Fact("ok", "packages", f"all {len(required)} required ones fit")
    lacking = {extra: [one for one in wanted(extra) if not fits(one)] for extra in extras}
    parts = [f"{extra} {'installed' if not ones else 'not installed (' + ', '.join(one.name for one in ones) + ')'}" for extra, ones in lacking.items()]
    absent_extras = ",".join(extra for extra, ones in lacking.items() if ones)
    if extras:
        yield Fact("ok", "extras", "; ".join(parts), f"pip install '{DISTRIBUTION}[{absent_extras}]'" if absent_extras else "")


def _installed(name: str) -> str | None:
    try:
        return str(metadata.version(name) or "0")
    except Exception:  # absent, or its metadata is damaged
        return None


def _pip(requirements: Iterable[Any]) -> str:
    return "pip install " + " ".join(f"'{one.name}{one.specifier}'" for one in requirements)


def _torch_facts(told: Mapping[str, Any]) -> Iterator[Fact]:
    if told.get("late"):
        yield Fact("warn", "torch", f"{_installed('torch') or 'not installed'}; {told['late']}")
        return
    if told.get("error"):
        yield Fact("missing", "torch", str(told["error"]), "pip install torch (pytorch.org/get-started says which for this GPU)")
        return
    yield Fact("ok", "torch", f"{told['version']}, {told['build']} build, threads: {told['threads']}")
    for number, gpu in enumerate(told.get("gpus", ())):
        halves = f"bf16 {'yes' if gpu['bf16'] else 'no'}, fp16 {'yes' if gpu['fp16'] else 'no'}"
        sizes = f"{_gib(gpu['free'])} free of {_gib(gpu['total'])}"
        text = f"{gpu['name']}, {sizes}, compute capability {gpu['capability']}, {halves}"
        yield Fact("warn", f"gpu {number}", f"{text}; does not compute: {gpu['problem']}") if gpu["problem"] else Fact("ok", f"gpu {number}", text)
    if not told.get("gpus"):
        seen, get = _gpu_device(), "install the torch build that pytorch.org/get-started gives for it"
        why = told.get("why") or ("torch is a CPU build" if told["build"] == "CPU" else "")
        yield Fact("warn", "gpu", f"one is there that torch cannot use ({why or 'no reason given'})", get) if seen else Fact("warn", "gpu", "none")


def _gpu_device() -> bool:
    return any(Path(path).exists() for path in ("/dev/nvidia0", "/proc/driver/nvidia/version", "/dev/kfd"))


def _processor(threads: int | None) -> Iterator[Fact]:
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    siblings = {_read(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").strip() for cpu in cpus}
    cores = len(siblings) if "" not in siblings else len(cpus)
    quota = _cpu_quota()
    usable = max(1, min(cores, math.ceil(quota))) if quota else cores
    listed = re.search(r"^(?:flags|Features)\s*:(.*)$", _read("/proc/cpuinfo"), re.M)
    flags = set(listed.group(1).split()) if listed else set()
    halves = f"bf16 {'yes' if flags & {'avx512_bf16', 'amx_bf16', 'bf16'} else 'no'}, fp16 {'yes' if flags & {'avx512_fp16', 'asimdhp'} else 'no'}"
    text = f"{cores} cores, {len(cpus)} hardware threads{f', limited to {quota:g} by a cgroup' if quota else ''}; in hardware {halves}"
    if threads and threads > usable:
        more = "hyperthreads" if threads <= len(cpus) and not (quota and threads > quota) else "more threads than there are cores"
        yield Fact("warn", "processor", f"{text}; torch would use {threads} threads, {more}, which is slower", f"export OMP_NUM_THREADS={usable}")
    else:
        yield Fact("ok", "processor", text)


def _memory_facts(memory: tuple[int, int, bool] | None) -> Iterator[Fact]:
    if memory is None:
        yield Fact("warn", "memory", "not known")
        return
    total, free, limited = memory
    mark: Mark = "warn" if free < 2 * PROGRAM else "ok"
    yield Fact(mark, "memory", f"{_gib(free)} free of {_gib(total)}{' (a cgroup limits it)' if limited else ''}")


def _memory() -> tuple[int, int, bool]:
    """Bytes of main memory, bytes free, and whether a cgroup allows less than the machine has."""
    found = {key: int(number) * 1024 for key, number in re.findall(r"^(\w+):\s+(\d+) kB", _read("/proc/meminfo"), re.M)}
    total = found.get("MemTotal") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = found.get("MemAvailable") or found.get("MemFree") or total
    limited = False
    for folder in _cgroups("memory"):
        limit = next((text for name in ("memory.max", "memory.limit_in_bytes") if (text := _read(f"{folder}/{name}").strip()).isdigit()), "")
        used = next((text for name in ("memory.current", "memory.usage_in_bytes") if (text := _read(f"{folder}/{name}").strip()).isdigit()), "0")
        if limit and int(limit) < total:
            cached = re.search(r"^(?:total_)?inactive_file (\d+)", _read(f"{folder}/memory.stat"), re.M)  # given back when asked for
            total, limited = int(limit), True
            free = min(free, max(0, int(limit) - int(used) + (int(cached.group(1)) if cached else 0)))
    return total, min(free, total), limited


def _cpu_quota() -> float | None:
    """How many processors a cgroup allows, where it allows fewer than all."""
    quotas = []
    for folder in _cgroups("cpu"):
        texts = _read(f"{folder}/cpu.max").split() or [_read(f"{folder}/cpu.cfs_quota_us").strip(), _read(f"{folder}/cpu.cfs_period_us").strip()]
        if len(texts) == 2 and texts[0].isdigit() and texts[1].isdigit() and int(texts[1]):
            quotas.append(int(texts[0]) / int(texts[1]))
    return min(quotas, default=None)


def _cgroups(controller: str) -> Iterator[str]:
    """The folders of this process's groups for a controller, of both versions, up to the root."""
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        for base in (f"/sys/fs/cgroup/{controllers}", f"/sys/fs/cgroup/{controller}") if controllers else ("/sys/fs/cgroup",):
            inner = path.strip("/")
            while inner:
                yield f"{base}/{inner}"
                inner = inner.rpartition("/")[0]
            yield base


def _place(name: str, folder: Path) -> Iterator[Fact]:
    """Free disk where a folder lies or would lie, and whether it can be written; nothing is left there."""
    nearest = _nearest(folder)
    free = shutil.disk_usage(nearest).free
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        yield Fact("missing", name, f"{folder} cannot be written: {one_line(error)}", f"name another folder with --{name}")
        return
    yield Fact("warn" if free < PROGRAM else "ok", name, f"{folder}{'' if folder.exists() else ' (not made yet)'} can be written, {_gib(free)} free")


def _nearest(folder: Path) -> Path:
    """The folder itself, or the nearest of those above it that is there."""
    return next((place for place in (folder.absolute(), *folder.absolute().parents) if place.exists()), Path("/"))


def _commit() -> list[Fact]:
    from bench.record import revision

    found = revision()
    if found["commit"] is None:
        return [Fact("warn", "git", "not a checkout of its own: records will name no commit")]
    return [Fact("warn" if found["dirty"] else "ok", "git", f"{found['commit'][:12]}{', with changes that are not committed' if found['dirty'] else ''}")]


def _broken_names() -> list[Fact]:
    from bench.listing import list_names

    found = {kind: list_names(kind)[kind] for kind in ("methods", "metrics", "attacks")}
    broken = [f"{kind[:-1]} {name}: {summary}" for kind, names in found.items() for name, summary in names.items() if summary.startswith("broken")]
    counts = ", ".join(f"{len(names)} {kind}" for kind, names in found.items())
    return [Fact("warn", "names", line) for line in broken] or [Fact("ok", "names", f"{counts}, none broken")]


def _read(path: str) -> str:
    """A small file of the system; empty where it is not there."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _odd(error: BaseException) -> str:
    return one_line(error, 300) if isinstance(error, UserError | TimeoutError) else f"could not be looked at: {type(error).__name__}: {one_line(error, 300)}"


def _quietly(call: Callable[[], T]) -> T | None:
    try:
        return call()
    except Exception:
        return None


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


# --- suites


@dataclass(frozen=True)
class Looked:
    """What was found of a suite without torch; `suite` reads its lists though files that they name are missing."""

    name: str
    suite: Suite | None = None
    files: tuple[FileFact, ...] = ()
    problems: tuple[str, ...] = ()
    parameters: int | None = None


def _suite_names() -> list[str]:
    from bench import registry

    return list(registry.entries("suite"))


def _lenient(name: str) -> Suite:
    """A suite that gives the prompts of the lists it can read, and takes reference pictures for present."""
    from bench.suite import Prompt, Suite, load_suite

    class Lenient(Suite):
        @cached_property
        def _prompts_by_role(self) -> dict[str, tuple[Prompt, ...]]:
            found = {role: _quietly(lambda r=role, s=settings: self._read_prompts(r, s)) for role, settings in self.settings.prompts.items()}  # type: ignore[misc]
            return {role: prompts for role, prompts in found.items() if prompts}

        def _references(self, listed: str, file: Path) -> tuple[Path, ...]:
            return tuple(file.parent / one for one in listed.split("|") if one)

    strict = load_suite(name)
    return Lenient(strict.settings, strict.file)


def _look(name: str) -> Looked:
    """Every file that a suite names, found or not, all of them however many are missing; and the size of its model."""
    try:
        suite = _lenient(name)
        folder = (suite.file.parent / suite.settings.model.path).resolve()
        files, parameters = _model_files(folder)
        problems: list[str] = []
        for role, settings in suite.settings.prompts.items():
            file = (suite.file.parent / settings.file).resolve()
            files.append(FileFact(f"prompts {role}", str(file), "" if file.is_file() else "missing"))
            if file.is_file():
                try:
                    references = {path for prompt in suite._read_prompts(role, settings) for path in prompt.references}
                    files += [FileFact("reference", str(path), "" if path.is_file() else "missing") for path in sorted(references)]
                except UserError as error:
                    problems.append(one_line(error))
        return Looked(name, suite, tuple(files), tuple(problems), parameters)
    except Exception as error:
        return Looked(name, problems=(_odd(error),))


def _model_files(folder: Path) -> tuple[list[FileFact], int | None]:
    """The parts of a diffusers folder, or a checkpoint in one file, and how many parameters they hold."""
    if not folder.exists():
        return [FileFact("model", str(folder), "missing")], None
    if folder.is_file():
        count, problem = _numbers([folder])
        return [FileFact("model", str(folder), problem)], count
    names = ("model_index.json", "scheduler/scheduler_config.json", "tokenizer", *(f"{part}/config.json" for part in WEIGHTS))
    files = [FileFact("model", str(folder / name), "" if (folder / name).exists() else "missing") for name in names]
    total: int | None = 0
    for part in WEIGHTS:
        variants: dict[str, list[Path]] = {}
        for path in sorted((folder / part).glob("*.safetensors")):
            variants.setdefault(re.sub(r"-\d+-of-\d+", "", path.name), []).append(path)
        chosen = variants[min(variants, key=len)] if variants else []  # the shortest name has no variant in it (fp16, non_ema)
        of = re.search(r"-\d+-of-(\d+)", chosen[0].name) if chosen else None
        if not chosen:
            others = sorted(path.name for path in (folder / part).glob("*.bin"))
            files.append(FileFact("model", str(folder / part / "*.safetensors"), f"missing (there is only {others[0]})" if others else "missing"))
            total = None
        elif of and int(of.group(1)) != len(chosen):
            files.append(FileFact("model", str(chosen[0]), f"only {len(chosen)} of {int(of.group(1))} parts are there"))
            total = None
        else:
            count, problem = _numbers(chosen)
            files.append(FileFact("model", str(chosen[0]), problem))
            total = None if total is None or count is None else total + count
    return files, total


def _numbers(files: Sequence[Path]) -> tuple[int | None, str]:
    """How many numbers safetensors files hold, from their headers, and what is wrong with them."""
    count = 0
    for path in files:
        try:
            size = path.stat().st_size
            with path.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                if not 2 <= length <= size - 8:
                    raise ValueError("it has no header of a safetensors file")
                header = json.loads(stream.read(length))
            tensors = [about for name, about in header.items() if name != "__metadata__"]
            count += sum(math.prod(about["shape"]) for about in tensors)
            whole = 8 + length + max((about["data_offsets"][1] for about in tensors), default=0)
            if size < whole:
                return None, f"truncated: {size} of {whole} bytes"
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            return None, f"{path.name} cannot be read: {one_line(error, 200)}"
    return count, ""


def _judged(looked: Looked, told: Mapping[str, Any], room: Room, store: Path) -> SuiteFact:
    try:
        if looked.suite is None:
            return SuiteFact(looked.name, "missing", f"cannot run: {looked.problems[0]}", looked.problems)
        return _fact_of(looked, looked.suite, told, room, store)
    except Exception as error:
        return SuiteFact(looked.name, "missing", f"cannot run: {_odd(error)}", (_odd(error),))


def _fact_of(looked: Looked, suite: Suite, told: Mapping[str, Any], room: Room, store: Path) -> SuiteFact:
    settings = suite.settings.model
    named = told.get("files") or _named_by_judges(suite)
    files = [*looked.files, *(_judge_file(suite, what, relative) for what, relative in named)]
    files = list({(file.path, file.problem): file for file in reversed(files)}.values())[::-1]
    problems = (*looked.problems, *told.get("problems", ()))
    images = told.get("images") or _images(suite)
    factor = 1 + ACTIVATIONS * settings.batch_size * (settings.side / 512) ** 2
    memory = None if looked.parameters is None else round(looked.parameters * BYTES[settings.dtype] * factor)
    disk = None if images is None else round(images * settings.side**2 * PNG)
    lacking = [file for file in files if file.problem]
    mark, verdict = _verdict(problems, lacking, len(files), looked.parameters, memory, disk, room)
    timed = _seconds_an_image(suite, store, str(told.get("timing", "")))
    return SuiteFact(
        looked.name, mark, verdict, problems, tuple(files), _how_to_get(looked.name, suite, lacking), looked.parameters, round(factor, 3),
        None if memory is None else memory + PROGRAM, images, bool(told.get("images") and told.get("exact")),
        None if images is None else images * settings.steps * 2, disk, round(images * timed / 3600, 4) if images and timed else None,
    )  # fmt: skip


def _verdict(
    problems: Sequence[str], lacking: Sequence[FileFact], files: int, parameters: int | None, memory: int | None, disk: int | None, room: Room
) -> tuple[Mark, str]:
    """`memory` is the model's with its activations; a GPU needs no room for the program, main memory does."""
    if room.blocked:
        return "missing", f"cannot run: {room.blocked}"
    if lacking:
        absent = sum(file.problem.startswith("missing") for file in lacking)
        words = " and ".join(f"{count} {word}" for count, word in ((absent, "missing"), (len(lacking) - absent, "damaged")) if count)
        return "missing", f"cannot run: {words} of {files} files"
    if problems:
        return "missing", f"cannot run: {problems[0]}{f' (and {len(problems) - 1} more)' if len(problems) > 1 else ''}"
    if disk is not None and room.disk is not None and disk > room.disk:
        return "missing", f"cannot run: needs about {_gib(disk)} of disk, {_gib(room.disk)} are free"
    if memory is None or parameters is None:
        return "warn", "can run, if its model fits: its size is not known"
    if room.late:
        return "warn", f"can run, if its GPU has {_gib(memory)} free: torch did not answer in time, repeat the command"
    working = [number for number, gpu in enumerate(room.gpus) if not gpu.problem]
    fitting = next((number for number in working if room.gpus[number].free >= memory), None)
    if fitting is not None:
        return "ok", "can run" if fitting == 0 else f"can run with --device cuda:{fitting}"
    full = f"{'; '.join(f'GPU {number} has {_gib(room.gpus[number].free)} free' for number in working)}" if working else ""
    if room.memory is not None and memory + PROGRAM > room.memory:
        return "missing", f"cannot run: needs about {_gib(memory + PROGRAM)} of memory, {_gib(room.memory)} are free{f'; {full}' if full else ''}"
    if parameters > SLOW:
        return "warn", f"can run slowly (CPU){f': needs about {_gib(memory)}, {full}; give --device cpu' if full else ''}"
    return "ok", "can run"


def _named_by_judges(suite: Suite) -> list[tuple[str, str]]:
    """Settings that look like paths, for when the classes that could say which are files cannot be asked."""
    pairs = [(f"{kind} {name}", value) for kind, name, values in suite.settings.judges() for value in values.values() if isinstance(value, str)]
    pairs += [(f"{kind} {name}", name) for kind, name, _ in suite.settings.judges() if name.endswith(".py")]
    return [(what, value) for what, value in pairs if value.startswith(("./", "../", "/")) or value.endswith(".py")]


def _judge_file(suite: Suite, what: str, relative: str) -> FileFact:
    path = (suite.file.parent / relative).resolve()
    return FileFact(what, str(path), "" if path.exists() else "missing")


def _images(suite: Suite) -> int | None:
    """Of the lists that can be read, without attacks, each image once: what can be said when the classes cannot be asked."""
    images: set[tuple[str, int]] = set()
    for role in ("memorized", "clean", "quality"):
        seen: Counter[str] = Counter()
        for prompt in suite.prompts(role):
            first, count = seen[prompt.text], suite.settings.prompts[role].images_per_prompt
            images |= {(prompt.text, first + index) for index in range(count)}
            seen[prompt.text] += count
    return len(images) or None


def _seconds_an_image(suite: Suite, store: Path, pattern: str) -> float | None:
    """From a timing of `none` on this machine that the store holds, of this protocol; the model's hash, which takes long, is not asked."""
    wanted = suite.settings.model.model_dump(exclude={"path", "batch_size"})
    for file in sorted(store.glob(f"{suite.name}/none-*/{pattern}")) if pattern else ():
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, statistics.StatisticsError, ZeroDivisionError):
            generation = json.loads((file.parent / "key.json").read_text(encoding="utf-8"))["generation"]
            timing = json.loads(file.read_text(encoding="utf-8"))
            if {key: value for key, value in generation.items() if key != "model_sha256"} == wanted:
                return float(statistics.median(timing["method_seconds"]) * len(timing["method_seconds"]) / timing["images"])
    return None


def _how_to_get(name: str, suite: Suite, lacking: Sequence[FileFact]) -> str:
    if not lacking:
        return ""
    bundle = CHECKOUT / "bench" / "testbed" / "bundle"
    if all(Path(file.path).is_relative_to(bundle) for file in lacking):
        return "install the project again (its testbed is incomplete), or: bench testbed build"
    if name.endswith(".toml"):
        return f"put the files there, or correct {suite.file.name}"
    return f"bench fetch --suite {name}"


# --- the process that imports torch


def _ask_child(suites: Sequence[str], seconds: float) -> dict[str, Any]:
    """What the child told in time: by `torch`, its facts; by a suite's name, what its classes say."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
    command, end = [sys.executable, "-P", "-m", "bench.doctor", *suites], ""
    try:
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=max(seconds, 0.1))
        output, end = done.stdout, f"importing it ended Python (exit code {done.returncode})"
    except subprocess.TimeoutExpired as stopped:
        output = stopped.stdout or b""
    told: dict[str, Any] = {}
    for line in output.splitlines():
        with suppress(ValueError, TypeError):
            told |= json.loads(line)
    return told if "torch" in told or not end else told | {"torch": {"error": end}}


def _child(suites: Sequence[str]) -> None:
    with os.fdopen(os.dup(1), "w") as told:
        os.dup2(2, 1)  # whatever libraries print is no fact
        for name, ask in [("torch", _torch), *((suite, lambda suite=suite: _asked_classes(suite)) for suite in suites)]:
            try:
                found = ask()
            except BaseException as error:
                found = {"error": f"{type(error).__name__}: {one_line(error, 300)}"}
            told.write(json.dumps({name: found}) + "\n")
            told.flush()
    os._exit(0)


def _torch() -> dict[str, Any]:
    import torch

    facts: dict[str, Any] = {"version": str(torch.__version__), "threads": torch.get_num_threads(), "gpus": [], "build": "CPU"}
    if torch.version.cuda:
        facts["build"] = f"CUDA {torch.version.cuda}"
    elif getattr(torch.version, "hip", None):
        facts["build"] = f"ROCm {torch.version.hip}"
    if facts["build"] != "CPU":
        with warnings.catch_warnings(record=True) as caught:  # torch warns of a driver that is too old, and goes on without a GPU
            warnings.simplefilter("always")
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        facts["why"] = one_line(caught[-1].message, 200) if caught and isinstance(caught[-1].message, Warning) else ""
        facts["gpus"] = [_torch_gpu(torch, number) for number in range(count)]
    return facts


def _torch_gpu(torch: Any, number: int) -> dict[str, Any]:
    gpu: dict[str, Any] = {"name": f"GPU {number}", "total": 0, "free": 0, "capability": "?", "bf16": False, "fp16": False, "problem": ""}
    try:
        about = torch.cuda.get_device_properties(number)
        gpu |= {"name": about.name, "total": about.total_memory, "capability": f"{about.major}.{about.minor}"}
        amd = bool(getattr(torch.version, "hip", None))
        gpu |= {"bf16": amd or about.major >= 8, "fp16": amd or (about.major, about.minor) >= (5, 3)}
        free, _ = torch.cuda.mem_get_info(number)  # asked before anything is computed
        gpu["free"] = free
        if float((torch.ones(2, device=f"cuda:{number}") * 2).sum()) != 4.0:
            gpu["problem"] = "it computes wrongly"
    except Exception as error:
        gpu["problem"] = one_line(error, 200)
    return gpu


def _asked_classes(name: str) -> dict[str, Any]:
    """What only a suite's metrics and attacks can say: which settings are files, which images they need; and where timings are kept."""
    from bench import registry
    from bench.attack import Attack
    from bench.method import Method
    from bench.model import pick_device
    from bench.parameters import configure
    from bench.runner import Run

    suite = _lenient(name)
    judges: dict[str, dict[str, Any]] = {"metric": {}, "attack": {}}
    files: list[tuple[str, str]] = []
    problems: list[str] = []
    exact = all(suite.prompts(role) for role in suite.settings.prompts)
    for kind, label, values in suite.settings.judges():
        try:
            if label.endswith(".py"):
                files.append((f"{kind} {label}", label))
            judge = configure(kind, label, registry.find(kind, str(suite.file.parent / label) if label.endswith(".py") else label).load(), values)
            judges[kind][label] = judge
            named = [str(getattr(judge, key)) for key in judge.files if getattr(judge, key)]
            files += [(f"{kind} {label}", one) for one in named]
            if isinstance(judge, Attack) and exact and all((suite.file.parent / one).exists() for one in named):
                judge.fits(suite)
        except Exception as error:
            problems.append(_odd(error))
    run = Run(suite, "none", Method(), {}, judges["metric"], judges["attack"], Path(), Path(), pick_device(None))
    run.__dict__["store"] = SimpleNamespace(folder=Path())  # the real one would hash the model and read every shard
    keys = {key for role in run.roles for key in run.keys(role)}
    for attack in judges["attack"].values():
        try:
            keys |= {key for part in attack.asks(suite) for key in run.sample_set(*part).keys}
        except Exception:
            exact = False
    return {"files": files, "problems": problems, "images": len(keys), "exact": exact and not problems, "timing": run._timing_file()}


# --- text


def text(report: Report) -> str:
    """The report in one screen: at most 40 lines of 100 columns unless the machine alone has more to tell."""
    lines = [line for fact in report.facts for line in _fact_lines(fact)]
    room = max(LINES - len(lines) - 2, 6)
    blocks = [_suite_lines(suite) for suite in report.suites]
    if len(blocks) > room:
        blocks, rest = [block[:1] for block in blocks[: room - 1]], len(blocks) - room + 1
        blocks.append([f"... and {rest} more suites: bench doctor --json"])
    given = [1] * len(blocks)
    for depth in range(1, max(map(len, blocks), default=1)):
        for number, block in enumerate(blocks):
            given[number] += len(block) > depth and sum(given) < room
    lines += ["", "suites:" if blocks else "suites: none", *(line for block, count in zip(blocks, given, strict=True) for line in block[:count])]
    return "\n".join(line if len(line) <= COLUMNS else f"{line[: COLUMNS - 1]}…" for line in map(visible, lines))


def _fact_lines(fact: Fact) -> list[str]:
    shown = textwrap.wrap(f"{fact.mark:<8}{fact.name:<11}{fact.text}", COLUMNS, subsequent_indent=" " * 19, max_lines=3, placeholder=" …")
    return shown + textwrap.wrap(fact.get, COLUMNS, initial_indent=" " * 19 + "-> ", subsequent_indent=" " * 22)


def _suite_lines(suite: SuiteFact) -> list[str]:
    """The verdict first, then what is most useful, so that lines can be left out from the end."""
    name = f"{suite.mark:<8}{Path(suite.name).name if suite.name.endswith('.toml') else suite.name:<14}"
    lacking = [file for file in suite.files if file.problem]
    numbers = []
    if suite.images is not None and suite.row_evaluations is not None:
        numbers.append(f"none: {'' if suite.images_exact else 'about '}{suite.images:,} images, {suite.row_evaluations:,} evaluations")
    numbers += [f"memory {_gib(suite.memory_bytes)}"] if suite.memory_bytes is not None else []
    numbers += [f"disk {_gib(suite.disk_bytes)}"] if suite.disk_bytes is not None else []
    numbers += [_duration(suite.hours)] if suite.hours is not None else []
    lines = [f"{name} {suite.verdict}" + (f" -> {suite.get}" if suite.get else "")]
    if len(lines[0]) > COLUMNS and suite.get:
        lines = [f"{name} {suite.verdict}", f"{'':<8}-> {suite.get}"]
    if len(lines[0]) > COLUMNS:
        lines[:1] = textwrap.wrap(lines[0], COLUMNS, subsequent_indent=" " * 23, max_lines=2, placeholder=" …")
    if len(lacking) > 1:
        kinds = Counter(file.what for file in lacking)
        counted = ", ".join(what if count == 1 else f"{count} of {what}" for what, count in kinds.items())
        lines.append(" " * 8 + textwrap.shorten(f"lacking: {counted}", COLUMNS - 8, placeholder=" …"))
    lines += textwrap.wrap(f"{', '.join(numbers)} (estimates)", COLUMNS, initial_indent=" " * 8, subsequent_indent=" " * 14) if numbers else []
    shown = lacking if len(lacking) <= 3 else lacking[:2]
    lines += [_missing_line(file) for file in shown]
    lines += [f"{'':<8}and {len(lacking) - len(shown)} more: bench doctor --json"] if len(lacking) > len(shown) else []
    return lines


def _missing_line(file: FileFact) -> str:
    head = f"{'':<8}{file.what}: {file.problem}: "
    space = max(COLUMNS - len(head), 30)
    return head + (file.path if len(file.path) <= space else f"…{file.path[-(space - 1) :]}")


def _duration(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{max(hours * 60, 0.1):.1f} min"


if __name__ == "__main__":
    _child(sys.argv[1:])
