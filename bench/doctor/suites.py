"""What `bench doctor` says of a suite: which of its files are missing or damaged, what it needs,
and whether it can run in the room that there is.

A model is not loaded for this: its size stands in the headers of its safetensors. What only the
classes of a suite's metrics and attacks can say was asked in a child process
(`bench.doctor.slow_facts`), and is guessed where that said nothing.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.assets.catalogue import PREFIX
from bench.base.errors import UserError, visible
from bench.base.files import is_regular_file
from bench.diffusion.families import STEMS, Family, family_of
from bench.diffusion.weights_header import read_weights_header
from bench.doctor.report import PROGRAM, FileFact, Gpu, Mark, SuiteFact, gib, odd

if TYPE_CHECKING:
    from bench.suite.suite import Suite

TESTBED = Path(__file__).resolve().parents[1] / "testbed" / "bundle"
SLOW = 100_000_000  # parameters above which a run without a GPU is called slow
# Of the parameters' bytes, for each image of a batch at 512 x 512 pixels. Measured on a processor
# with Stable Diffusion 1's shapes in
# float32 (4.0 GiB): 1.0 GiB to decode an image, and 0.6 GiB for its two rows in the UNet before
# that.
ACTIVATIONS = 0.25
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Room:
    """What the machine offers to suites, in bytes where known. `blocked` says why no suite can run
    at all.
    """

    gpus: tuple[Gpu, ...] = ()
    memory: int | None = None
    disk: int | None = None
    blocked: str = ""
    late: bool = False  # there is a GPU, and torch did not answer in time


@dataclass(frozen=True)
class Looked:
    """What was found of a suite without torch. `suite` reads its prompt lists even where files that
    they name are missing.
    """

    name: str
    suite: Suite | None = None
    files: tuple[FileFact, ...] = ()
    problems: tuple[str, ...] = ()
    parameters: int | None = None
    detectors: str = ""


def suite_names() -> list[str]:
    """All suites that are known, plug-ins' too."""
    from bench.registry import registry

    return list(registry.entries("suite"))


def look(name: str) -> Looked:
    """Every file that a suite names, found or not, all of them however many are missing; and the
    size of its model.
    """
    from bench.suite.load import load_suite
    from bench.suite.needs import readable_part

    try:
        strict = load_suite(name)
        suite, unreadable = readable_part(strict)
        lacking = {
            absent.name for asset in suite.wanted() for absent in suite.assets.lacking(asset)
        }
        files = [
            FileFact(
                f"asset {name}", str(suite.assets.place(name)), "missing" if name in lacking else ""
            )
            for name in suite.wanted()
        ]
        parameters, problems = None, list[str]()
        if suite.settings.model.path.removeprefix(PREFIX) not in lacking:
            place = suite.place(suite.settings.model.path)
            family, refused = _family(place)
            problems += refused
            more, parameters = _model_files(place, family)
            files += more
        base = suite.settings.model.base
        if base and base.removeprefix(PREFIX) not in lacking:
            files += _model_files(suite.place(base))[0]
        files += [
            FileFact("LoRA", str(place), "" if is_regular_file(place) else "missing")
            for place in (suite.place(lora.file) for lora in suite.settings.model.loras)
        ]
        files += [
            FileFact("embedding", str(place), "" if is_regular_file(place) else "missing")
            for place in (suite.place(one.path) for one in suite.settings.model.embeddings)
        ]
        for role, settings in suite.settings.prompts.items():
            file = suite.place(settings.file)
            if not settings.file.startswith(PREFIX):
                files.append(
                    FileFact(f"prompts {role}", str(file), "" if file.is_file() else "missing")
                )
            if role in unreadable:
                problems.append(visible(unreadable[role]))
            elif not settings.references.startswith(PREFIX):
                references = {path for prompt in suite.prompts(role) for path in prompt.references}
                files += [
                    FileFact("reference", str(path), "" if is_regular_file(path) else "missing")
                    for path in sorted(references)
                ]
        if not unreadable:
            problems += _leaks(suite)
        return Looked(name, suite, tuple(files), tuple(problems), parameters, _detectors(strict))
    except Exception as error:
        return Looked(name, problems=(odd(error),))


def _detectors(suite: Suite) -> str:
    """What detectors are judged on under a suite, or why they cannot be; empty where it does not
    say. A suite runs without, so this is no obstacle.
    """
    from bench.suite.detection import Judged

    settings = suite.settings.detection
    if settings is None:
        return ""
    try:
        counts = Judged(suite).counts
    except UserError as error:
        return f"cannot be judged: {visible(str(error))}"
    if settings.labels and not (labels := suite.place(settings.labels)).is_file():
        return f"cannot be judged: labels {labels} are not there"
    return "judged on " + ", ".join(f"{count:,} {kind}" for kind, count in counts.items())


def _leaks(suite: Suite) -> list[str]:
    from bench.suite.leaks import refuse_leaks

    try:
        refuse_leaks(suite)
    except UserError as error:
        return [str(error)]
    return []


def _family(folder: Path) -> tuple[Family, list[str]]:
    """The family of the model in a folder, Stable Diffusion 1 where it does not say, and why it
    cannot be sampled.
    """
    if not (folder / "model_index.json").is_file():
        return "sd", []
    try:
        return family_of(folder), []
    except UserError as error:
        return "sd", [visible(str(error))]


def _model_files(folder: Path, family: Family = "sd") -> tuple[list[FileFact], int | None]:
    """The parts of a diffusers folder, or a checkpoint in one file, and how many parameters they
    hold.
    """
    if not folder.exists():
        return [FileFact("model", str(folder), "missing")], None
    if folder.is_file():
        count, problem = _numbers([folder])
        return [FileFact("model", str(folder), problem)], count
    names = (
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer",
        *(["tokenizer_2"] if family == "sdxl" else []),
        *(f"{part}/config.json" for part in STEMS[family]),
    )
    files = [
        FileFact("model", str(folder / name), "" if (folder / name).exists() else "missing")
        for name in names
    ]
    total: int | None = 0
    for part in STEMS[family]:
        variants: dict[str, list[Path]] = {}
        for path in sorted((folder / part).glob("*.safetensors")):
            variants.setdefault(re.sub(r"-\d+-of-\d+", "", path.name), []).append(path)
        # the shortest name has no variant in it (fp16, non_ema)
        chosen = variants[min(variants, key=len)] if variants else []
        of = re.search(r"-\d+-of-(\d+)", chosen[0].name) if chosen else None
        if not chosen:
            others = sorted(path.name for path in (folder / part).glob("*.bin"))
            files.append(
                FileFact(
                    "model",
                    str(folder / part / "*.safetensors"),
                    f"missing (there is only {others[0]})" if others else "missing",
                )
            )
            total = None
        elif of and int(of.group(1)) != len(chosen):
            files.append(
                FileFact(
                    "model",
                    str(chosen[0]),
                    f"only {len(chosen)} of {int(of.group(1))} parts are there",
                )
            )
            total = None
        else:
            count, problem = _numbers(chosen)
            files.append(FileFact("model", str(chosen[0]), problem))
            total = None if total is None or count is None else total + count
    return files, total


def _numbers(files: Sequence[Path]) -> tuple[int | None, str]:
    """How many parameters safetensors files hold, from their headers, and what is wrong with the
    files.
    """
    count = 0
    for path in files:
        try:
            header = read_weights_header(path)
        except ValueError as error:
            return None, f"{path.name} cannot be read: {error}"
        if header.size < header.promised:
            return None, f"truncated: {header.size} of {header.promised} bytes"
        if header.size > header.promised:
            return None, f"damaged: {header.size} bytes, and its header promises {header.promised}"
        count += header.numbers.total()
    return count, ""


def judged(looked: Looked, answers: Mapping[str, Any], room: Room, store: Path) -> SuiteFact:
    """The verdict on a suite. An error on the way is a verdict too."""
    try:
        if looked.suite is None:
            return SuiteFact(
                looked.name, "missing", f"cannot run: {looked.problems[0]}", looked.problems
            )
        return _fact_of(looked, looked.suite, answers, room, store)
    except Exception as error:
        return SuiteFact(looked.name, "missing", f"cannot run: {odd(error)}", (odd(error),))


def _fact_of(
    looked: Looked, suite: Suite, answers: Mapping[str, Any], room: Room, store: Path
) -> SuiteFact:
    from bench.base.pictures import PNG_BYTES_PER_PIXEL

    settings = suite.settings.model
    named = answers.get("files") or _named_by_judges(suite)
    files = [*looked.files, *(_judge_file(suite, what, relative) for what, relative in named)]
    files = list({(file.path, file.problem): file for file in reversed(files)}.values())[::-1]
    problems = (*looked.problems, *answers.get("problems", ()))
    images = answers.get("images") or _images(suite)
    factor = 1 + ACTIVATIONS * settings.batch_size * math.prod(settings.sides) / 512**2
    memory = (
        None
        if looked.parameters is None
        else round(looked.parameters * BYTES[settings.dtype] * factor)
    )
    disk = (
        None if images is None else round(images * math.prod(settings.sides) * PNG_BYTES_PER_PIXEL)
    )
    lacking = [file for file in files if file.problem]
    mark, verdict = _verdict(problems, lacking, len(files), looked.parameters, memory, disk, room)
    timed = _seconds_an_image(suite, store, str(answers.get("timing", "")))
    return SuiteFact(
        looked.name,
        mark,
        verdict,
        problems,
        tuple(files),
        _how_to_get(looked.name, suite, lacking),
        looked.parameters,
        round(factor, 3),
        None if memory is None else memory + PROGRAM,
        images,
        bool(answers.get("images") and answers.get("exact")),
        None if images is None else images * settings.steps * 2 + answers.get("searched", 0),
        disk,
        round(images * timed / 3600, 4) if images and timed else None,
        looked.detectors,
    )


def _verdict(
    problems: Sequence[str],
    lacking: Sequence[FileFact],
    files: int,
    parameters: int | None,
    memory: int | None,
    disk: int | None,
    room: Room,
) -> tuple[Mark, str]:
    """Whether a suite can run here, and where, or why not."""
    if obstacle := _obstacle(problems, lacking, files, disk, room):
        return "missing", f"cannot run: {obstacle}"
    return _where_it_runs(parameters, memory, room)


def _obstacle(
    problems: Sequence[str], lacking: Sequence[FileFact], files: int, disk: int | None, room: Room
) -> str:
    """Why a suite cannot run on any device of this machine; empty where nothing stands in the
    way. `files` counts all that it names, those that are there included.
    """
    if room.blocked:
        return room.blocked
    if lacking:
        absent = sum(file.problem.startswith("missing") for file in lacking)
        words = " and ".join(
            f"{count} {word}"
            for count, word in ((absent, "missing"), (len(lacking) - absent, "damaged"))
            if count
        )
        return f"{words} of {files} files"
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return problems[0] + more
    if disk is not None and room.disk is not None and disk > room.disk:
        return f"needs about {gib(disk)} of disk, {gib(room.disk)} are free"
    return ""


def _where_it_runs(parameters: int | None, memory: int | None, room: Room) -> tuple[Mark, str]:
    """The device that has room for a suite. `memory` is the model's with its activations, in bytes;
    a GPU needs no room for the program, main memory does.
    """
    if memory is None or parameters is None:
        return "warn", "can run, if its model fits: its size is not known"
    if room.late:
        needs = f"can run, if its GPU has {gib(memory)} free"
        return "warn", f"{needs}: torch did not answer in time, repeat the command"
    working = [number for number, gpu in enumerate(room.gpus) if not gpu.problem]
    fitting = next((number for number in working if room.gpus[number].free >= memory), None)
    if fitting is not None:
        return "ok", "can run" if fitting == 0 else f"can run with --device cuda:{fitting}"
    full = "; ".join(f"GPU {number} has {gib(room.gpus[number].free)} free" for number in working)
    if room.memory is not None and memory + PROGRAM > room.memory:
        needs = f"needs about {gib(memory + PROGRAM)} of memory, {gib(room.memory)} are free"
        return "missing", f"cannot run: {needs}" + (f"; {full}" if full else "")
    if parameters > SLOW:
        why = f": needs about {gib(memory)}, {full}; give --device cpu" if full else ""
        return "warn", f"can run slowly (CPU){why}"
    return "ok", "can run"


def _named_by_judges(suite: Suite) -> list[tuple[str, str]]:
    """Settings that look like paths: a guess for when the classes, which know which settings are
    files, cannot be asked.
    """
    pairs = [
        (f"{kind} {name}", value)
        for kind, name, values in suite.settings.judges()
        for value in values.values()
        if isinstance(value, str)
    ]
    pairs += [
        (f"{kind} {name}", name)
        for kind, name, _ in suite.settings.judges()
        if name.endswith(".py")
    ]
    return [
        (what, value)
        for what, value in pairs
        if value.startswith(("./", "../", "/")) or value.endswith(".py")
    ]


def _judge_file(suite: Suite, what: str, relative: str) -> FileFact:
    path = suite.place(relative)
    # assets have lines of their own
    return FileFact(
        what, str(path), "" if relative.startswith(PREFIX) or path.exists() else "missing"
    )


def _images(suite: Suite) -> int | None:
    """How many images the prompt lists that can be read ask for, each counted once, without those
    of attacks: an estimate for when the classes cannot be asked.
    """
    images: set[tuple[str, int]] = set()
    from bench.suite.schema import MEASURED_ROLES

    for role in MEASURED_ROLES:
        seen: Counter[str] = Counter()
        for prompt in suite.prompts(role):
            first, count = seen[prompt.text], suite.settings.prompts[role].images_per_prompt
            images |= {(prompt.text, first + index) for index in range(count)}
            seen[prompt.text] += count
    return len(images) or None


def _seconds_an_image(suite: Suite, store: Path, pattern: str) -> float | None:
    """Seconds for one image, from a timing of `none` under this protocol that the store holds. The
    hash of the model, which takes long, is not compared.
    """
    wanted = suite.picture_settings
    for file in sorted(store.glob(f"{suite.store_name}/none-*/{pattern}")) if pattern else ():
        with suppress(
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            statistics.StatisticsError,
            ZeroDivisionError,
        ):
            generation = json.loads((file.parent / "key.json").read_text(encoding="utf-8"))[
                "generation"
            ]
            timing = json.loads(file.read_text(encoding="utf-8"))
            if {key: value for key, value in generation.items() if key != "model_sha256"} == wanted:
                return float(
                    statistics.median(timing["method_seconds"])
                    * len(timing["method_seconds"])
                    / timing["images"]
                )
    return None


def _how_to_get(name: str, suite: Suite, lacking: Sequence[FileFact]) -> str:
    if not lacking:
        return ""
    if all(Path(file.path).is_relative_to(TESTBED) for file in lacking):
        return "install the project again (its testbed is incomplete), or: bench testbed build"
    if any(file.what.startswith("asset ") for file in lacking):
        return f"bench fetch --suite {name}"
    return f"put the files there, or correct {suite.file.name}"
