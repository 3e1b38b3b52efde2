"""`bench suite new`: an auditor's own suite, from a diffusers folder, a CSV of suspicious prompts and their training pictures.

All that can be read without loading weights is checked first, and everything wrong is said together. Then CSVs with the split into fit and
held-out prompts and a commented TOML are written; the TOML is loaded and compared with what was meant, and taken back when it differs.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
import shlex
import shutil
import sys
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from bench import registry
from bench.atomic import write_atomically
from bench.digests import path_digest
from bench.errors import UserError, one_line, visible
from bench.parameters import configure, validation_line
from bench.progress import Report, silent
from bench.suite import Scheduler, SuiteSettings, load_suite

PARTS = {"unet": "config.json", "vae": "config.json", "text_encoder": "config.json", "tokenizer": "tokenizer_config.json", "scheduler": "scheduler_config.json"}
ASKED = {  # field: question; the first three must be answered
    "model": "Diffusers folder of the model",
    "prompts": "CSV of the suspicious prompts (column prompt; optional id, group, reference)",
    "out": "Suite file to write (.toml)",
    "images": "Folder of training pictures (file name = prompt id, or column reference)",
    "clean": "CSV of clean prompts, which no training picture belongs to",
    "sscd": "SSCD TorchScript file",
    "clip": "open_clip folder or checkpoint",
    "inception": "Inception TorchScript file of clean-fid",
    "statistics": "Reference statistics (.npz) for it",
}
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
LISTED = 5  # examples of one kind of problem
BARE = re.compile(r"[A-Za-z0-9_-]+")  # a key of TOML that needs no quotes
ENOUGH = 2048  # features of Inception: a covariance of fewer pictures is singular


@dataclass(frozen=True)
class Given:
    """What the auditor says. `parts` (unet, vae, text_encoder, tokenizer, scheduler) take the place of the model folder's own.

    `fit`: share of the prompts, and of the clean ones, that methods may learn from. `missing`: what happens to a suite with a training
    picture that is missing or does not decode: it is refused, or prompts without any picture are dropped.
    """

    model: Path | None = None
    prompts: Path | None = None
    out: Path | None = None
    images: Path | None = None
    clean: Path | None = None
    sscd: Path | None = None
    profile: str = "nemo"
    threshold: float = 0.7
    clip: Path | None = None
    clip_model: str = ""
    inception: Path | None = None
    statistics: Path | None = None
    parts: Mapping[str, Path] = field(default_factory=dict)
    name: str = ""
    steps: int = 50
    guidance: float = 7.5
    images_per_prompt: int = 4
    seed: int = 0
    fit: float = 0.25
    missing: Literal["refuse", "drop"] = "refuse"

    def unanswered(self) -> list[str]:
        """The fields that must be given and are not."""
        whole = set(PARTS) <= set(self.parts)
        return [name for name in ("model", "prompts", "out") if getattr(self, name) is None and not (name == "model" and whole)]


def parse_parts(assignments: Iterable[str]) -> dict[str, Path]:
    """`["unet=FOLDER", ...]`, from the command line, to the parts by name."""
    parts: dict[str, Path] = {}
    for assignment in assignments:
        name, _, folder = assignment.partition("=")
        if not folder or name not in PARTS or name in parts:
            raise UserError(f"part '{visible(assignment)}' must be NAME=FOLDER, each name once: {', '.join(PARTS)}")
        parts[name] = Path(folder)
    return parts


class CannotCreate(UserError):
    """All that stands in the way of a suite, numbered on one line and one by one in `problems`."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        listed = "; ".join(f"({number}) {problem}" for number, problem in enumerate(problems, 1)) if len(problems) > 1 else problems[0]
        super().__init__(f"no suite was written: {listed}")


@dataclass(frozen=True)
class Created:
    """What was written: the suite file and those beside it, prompts by role, references asked for and found, and what to know about it."""

    suite: Path
    files: tuple[Path, ...]
    name: str
    model: dict[str, Any]
    prompts: dict[str, int]
    n_expected: int
    n_found: int
    metrics: tuple[str, ...]
    left_out: tuple[str, ...]  # sections that stand in the file as comments
    notes: tuple[str, ...]

    @property
    def next(self) -> str:
        return f"bench run --method none --suite {shlex.quote(str(self.suite))} --dry-run"

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"suite": str(self.suite), "files": [str(path) for path in self.files], "next": self.next}


def text(created: Created) -> str:
    """What was written, for a terminal, ending with the command that comes next."""
    model = created.model
    lines = [
        f"wrote: {', '.join(visible(str(path)) for path in created.files)}",
        f"model: {model['side']}x{model['side']} pixels, predicts {model['prediction_type']}, {model['scheduler']}, "
        f"{model['parameters']:,} parameters ({', '.join(model['stored'])} on disk)",
        "prompts: " + ", ".join(f"{count} {role}" for role, count in created.prompts.items()),
        f"references: {created.n_found} of {created.n_expected} found" if created.n_expected else "references: none asked for",
        f"metrics: {', '.join(created.metrics)}",
        *([f"as comments, to fill in: {', '.join(created.left_out)}"] if created.left_out else []),
        *(f"note: {visible(note)}" for note in created.notes),
        f"next: {created.next}",
    ]
    return "\n".join(lines)


def ask(given: Given, input: Callable[[str], str] = input, terminal: bool | None = None) -> Given:
    """Ask on a terminal for what is missing; a complete call is asked nothing. Raises one `UserError` that names it all where nobody can answer."""
    missing = given.unanswered()
    if not missing:
        return given
    if not (sys.stdin.isatty() if terminal is None else terminal):
        raise UserError(f"missing: {'; '.join(f'{name} ({ASKED[name]})' for name in missing)}")
    answers: dict[str, Any] = {}
    try:
        for name, question in ASKED.items():
            needed = name in missing
            useless = name == "statistics" and not (given.inception or answers.get("inception"))
            if getattr(given, name) is not None or useless or (name == "model" and not needed):
                continue
            answer = _answer(input, question, needed, exists=name != "out")
            if answer is not None:
                answers[name] = answer
        if answers.get("sscd"):
            answers["profile"] = input(f"Profile of the SSCD score [{given.profile}]: ").strip() or given.profile
        checkpoint = answers.get("clip")
        if checkpoint and checkpoint.is_file() and not given.clip_model:
            answers["clip_model"] = input("Architecture of the open_clip checkpoint, such as ViT-B-32: ").strip()
    except EOFError:
        raise UserError(f"missing: {', '.join(name for name in missing if name not in answers) or 'the last answer'} (input ended)") from None
    return replace(given, **answers)


def _answer(input: Callable[[str], str], question: str, needed: bool, exists: bool) -> Path | None:
    hint = "" if needed else " [Enter: none]"
    while True:
        answer = input(f"{question}{hint}: ").strip().strip("\"'")
        if not answer and not needed:
            return None
        path = Path(answer).expanduser()
        if answer and (path.exists() or not exists):
            return path
        hint = f" ({visible(answer)} is not there)" if answer else " (needed)"


def new_suite(given: Given, force: bool = False, report: Report = silent) -> Created:
    """Check, split, write, and load what was written. Files that are there already are replaced only with `force`.

    Raises `CannotCreate` with every problem that was found; then nothing has been written or changed.
    """
    if missing := given.unanswered():
        raise CannotCreate([f"missing: {', '.join(missing)}"])
    assert given.prompts is not None and given.out is not None
    problems: list[str] = []
    notes: list[str] = []
    model, lists, suite = _Model(given, problems, notes), _Prompts(given, problems, notes), _Suite(given, problems, notes, _absolute(given.out))
    facts = model.check()
    rows, clean = lists.read_rows(given.prompts, "p"), lists.read_rows(given.clean, "c") if given.clean else []
    expected, found = lists.find_references(rows, report)
    rows = [row for row in rows if row.references or not expected]
    lists.compare(rows, clean)
    lists.split(rows, ("fit", "memorized"))
    lists.split(clean, ("calibration", "clean"))
    metrics = suite.metrics(sum(row.role == "clean" for row in clean), bool(found))
    table = suite.table(facts, rows, clean, metrics)
    settings = suite.validated(table, metrics)
    suite.check_out(force)
    files = {suite.beside("prompts.csv"): suite.csv(rows)} | ({suite.beside("clean.csv"): suite.csv(clean)} if clean else {})
    if problems or settings is None:
        raise CannotCreate(list(dict.fromkeys(problems)))
    files[suite.out], left_out = _toml(table, given, found, expected)
    with _taken_back_on_failure([*files, suite.assembled]):
        if given.parts:
            model.assemble(suite.assembled)
        for path, content in files.items():
            write_atomically(path, content.encode())
        loaded = load_suite(str(suite.out))
        counts = {str(role): len(loaded.prompts(role)) for role in loaded.settings.prompts}
        meant = Counter(row.role for row in (*rows, *clean))
        if loaded.settings != settings or any(counts[role] != meant[role] for role in counts if role != "quality"):
            raise UserError(f"the suite written to {suite.out} does not read back as it was meant; this is a defect of `bench suite new`")
    written = (*([suite.assembled] if given.parts else []), *files)
    return Created(suite.out, written, settings.name, facts, counts, expected, found, tuple(metrics), left_out, tuple(notes))


@dataclass
class _Row:
    """One prompt of a CSV. `line`: where it begins in the file; `listed`: its cell `reference`."""

    line: int
    id: str
    prompt: str
    group: str
    listed: str
    has_id: bool
    references: list[Path] = field(default_factory=list)
    role: str = ""


@dataclass
class _Checks:
    """One part of the checks; all parts add to the same lists."""

    given: Given
    problems: list[str]
    notes: list[str]

    def _rows_problem(self, path: Path, rows: Sequence[object], what: str) -> None:
        if rows:
            self.problems.append(f"{path}: {len(rows)} x {what} {_some(rows)}")

    def _json(self, path: Path) -> dict[str, Any] | None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            self.problems.append(f"{path} is missing")
        except (OSError, ValueError, RecursionError) as error:
            self.problems.append(f"{path} cannot be read: {one_line(error)[:100]}")
        else:
            if isinstance(content, dict):
                return content
            self.problems.append(f"{path} holds no JSON object")
        return None

    def _header(self, path: Path) -> Counter[str]:
        """Parameters by stored dtype, read from the header; a file shorter or longer than that promises is a problem."""
        try:
            size = path.stat().st_size
            with path.open("rb") as stream:
                first = stream.read(8)
                if first == b"version ":  # of a git-lfs pointer
                    raise ValueError("it is a git-lfs pointer: run git lfs pull")
                length = int.from_bytes(first, "little")
                if not 2 <= length <= min(size - 8, 100 << 20):
                    raise ValueError("it is truncated or no safetensors file")
                tensors = {name: tensor for name, tensor in json.loads(stream.read(length)).items() if name != "__metadata__"}
            end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
            if size != 8 + length + end:
                raise ValueError(f"it has {size:,} bytes and its header promises {8 + length + end:,}: truncated or damaged")
            counts: Counter[str] = Counter()
            for tensor in tensors.values():
                counts[str(tensor["dtype"])] += math.prod(tensor["shape"])
            return counts
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            self.problems.append(f"{path} is not readable: {one_line(error)[:120]}")
            return Counter()


class _Model(_Checks):
    """The model's folder, or its parts: what its JSON files and the headers of its weights say."""

    folders: dict[str, Path]
    configs: Mapping[str, dict[str, Any] | None]

    def check(self) -> dict[str, Any]:
        """Facts of the pipeline that stand in its JSON files and safetensors headers."""
        facts: dict[str, Any] = {"side": 512, "prediction_type": "epsilon", "scheduler": "DDIMScheduler", "parameters": 0, "stored": []}
        for part in self.given.parts:
            if part not in PARTS:
                self.problems.append(f"unknown part of a model '{part}': known: {', '.join(PARTS)}")
        index = self._model_index()
        folders = {part: Path(self.given.parts.get(part) or (self.given.model or Path()) / part) for part in PARTS}
        configs = {part: self._json(folder / PARTS[part]) for part, folder in folders.items()} if index is not None else {}
        if index is None or any(config is None for config in configs.values()):
            return facts
        self.folders, self.configs = folders, configs
        if not any((folders["tokenizer"] / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            self.problems.append(f"{folders['tokenizer']} holds neither tokenizer.json nor vocab.json")
        stored: Counter[str] = Counter()
        for part in ("unet", "vae", "text_encoder"):
            for file in self._weights(folders[part], "model" if part == "text_encoder" else "diffusion_pytorch_model"):
                stored += self._header(file)
        self._check_scheduler(configs["scheduler"] or {}, facts)
        self._check_shapes(configs, facts)
        return facts | {"parameters": stored.total(), "stored": sorted(stored)}

    def _model_index(self) -> dict[str, Any] | None:
        folder = self.given.model
        if folder is None:
            return {}
        if folder.is_file():
            self.problems.append(f"{folder} is one file; a diffusers folder is needed (diffusers' from_single_file(...).save_pretrained(...) makes one)")
            return None
        if not (folder / "model_index.json").is_file() and set(PARTS) <= set(self.given.parts):
            return {}
        index = self._json(folder / "model_index.json")
        if index and (others := sorted({"text_encoder_2", "text_encoder_3", "transformer", "prior"} & set(index))):
            self.problems.append(f"{folder} is a {index.get('_class_name')} (it has {', '.join(others)}); only StableDiffusionPipeline is supported")
            return None
        for name, entry in (index or {}).items():
            named = isinstance(entry, list) and bool(entry) and entry[0] is not None
            if named and name not in (*PARTS, "safety_checker") and not self.given.parts and not (folder / name).is_dir():
                self.problems.append(f"{folder}/model_index.json names the part '{name}', whose folder is missing")
        return index

    def _weights(self, folder: Path, stem: str) -> list[Path]:
        """The safetensors files of a part: one, or the shards that its index names; the fp16 variant where only that is there."""
        for variant, single, index in (
            (False, f"{stem}.safetensors", f"{stem}.safetensors.index.json"),
            (True, f"{stem}.fp16.safetensors", f"{stem}.safetensors.index.fp16.json"),
        ):
            names = {single} if (folder / single).is_file() else set()
            if not names and (folder / index).is_file():
                listed = (self._json(folder / index) or {}).get("weight_map", {})
                names = {str(name) for name in listed.values()} if isinstance(listed, dict) else set()
                if not names:
                    self.problems.append(f"{folder / index} names no shards")
                    return []
            if names:
                if variant:
                    self.notes.append(f"{folder.name} has only the fp16 variant of its weights")
                elif (folder / f"{stem}.fp16.safetensors").is_file():
                    self.notes.append(f"{folder.name} also has an fp16 variant; the plain weights are used")
                return [folder / name for name in sorted(names)]
        pickles = sorted(folder.glob("*.bin"))
        why = f"only {pickles[0].name}, a pickle, which is not loaded: convert it" if pickles else f"no {stem}.safetensors"
        self.problems.append(f"{folder} has {why}")
        return []

    def _check_scheduler(self, config: dict[str, Any], facts: dict[str, Any]) -> None:
        if "prediction_type" not in config:
            self.notes.append("the scheduler's configuration has no prediction_type; diffusers takes epsilon")
        predicts, name = config.get("prediction_type", "epsilon"), str(config.get("_class_name"))
        if predicts not in ("epsilon", "v_prediction"):
            self.problems.append(f"the model predicts '{predicts}'; epsilon and v_prediction are supported")
        facts["prediction_type"] = predicts
        if name in get_args(Scheduler):
            facts["scheduler"] = name
        else:
            self.notes.append(f"the model's scheduler {visible(name)} cannot stand in a suite; DDIMScheduler is written")

    def _check_shapes(self, configs: Mapping[str, dict[str, Any] | None], facts: dict[str, Any]) -> None:
        unet, vae, encoder = (configs[part] or {} for part in ("unet", "vae", "text_encoder"))
        size, blocks = unet.get("sample_size"), vae.get("block_out_channels")
        if type(size) is not int or size < 1:
            self.problems.append(f"{self.folders['unet']}/config.json: sample_size must be a positive whole number, not {json.dumps(size)[:60]}")
        elif not isinstance(blocks, list) or not blocks:
            self.problems.append(f"{self.folders['vae']}/config.json has no block_out_channels, from which its scale factor follows")
        else:
            facts["side"] = size * 2 ** (len(blocks) - 1)
        channels = {unet.get("in_channels", 4), unet.get("out_channels", 4), vae.get("latent_channels", 4)}
        if len(channels) > 1:
            said = ", ".join(sorted(map(str, channels)))
            self.problems.append(f"unet and vae do not fit: in_channels, out_channels and latent_channels are {said} (an inpainting model?)")
        wide, hidden = unet.get("cross_attention_dim"), encoder.get("hidden_size")
        if type(wide) is int and type(hidden) is int and wide != hidden:
            self.problems.append(f"unet and text_encoder do not fit: cross_attention_dim is {wide} and hidden_size {hidden}")

    def assemble(self, out: Path) -> None:
        """A model folder of links to the given parts: links to files, since the hash of a folder does not follow links to folders."""
        classes: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "safety_checker": [None, None], "feature_extractor": [None, None]}
        for part, folder in self.folders.items():
            config = self.configs[part] or {}
            known = {"tokenizer": config.get("tokenizer_class", "CLIPTokenizer"), "text_encoder": (config.get("architectures") or ["CLIPTextModel"])[0]}
            classes[part] = ["transformers" if part in known else "diffusers", known.get(part) or config.get("_class_name")]
            for file in sorted(path for path in _absolute(folder).rglob("*") if path.is_file()):
                link = out / part / file.relative_to(_absolute(folder))
                link.parent.mkdir(parents=True, exist_ok=True)
                try:
                    link.symlink_to(file)
                except OSError:  # a system or file system without them
                    shutil.copyfile(file, link)
        write_atomically(out / "model_index.json", json.dumps(classes | {"requires_safety_checker": False}, indent=1, sort_keys=True).encode())


class _Prompts(_Checks):
    """Prompt lists, the training pictures that belong to them, and who is held out."""

    def read_rows(self, path: Path, letter: str) -> list[_Row]:
        """The prompts of a CSV; texts are kept byte by byte, since they are keys."""
        try:
            content = path.read_bytes()
            if content.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise ValueError("it is UTF-16: save it as CSV in UTF-8")
            lines = _fields(content.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            byte, line = error.object[error.start], error.object[: error.start].count(b"\n") + 1
            self.problems.append(f"{path} is not UTF-8 (byte 0x{byte:02x} in line {line}): save it as UTF-8")
            return []
        except (OSError, ValueError, csv.Error) as error:
            self.problems.append(f"{path} cannot be read as CSV: {one_line(error)[:120]}")
            return []
        header, body = (lines[0][1], lines[1:]) if lines else ([], [])
        if "prompt" not in header:
            self.problems.append(f"{path} has no column 'prompt' (it has: {visible(', '.join(header))[:200] or 'none'})")
            return []
        twice = [name for name in ("prompt", "id", "group", "reference") if header.count(name) > 1]
        long = [line for line, cells in body if len(cells) > len(header)]
        self._rows_problem(path, twice, "a column that stands more than once:")
        self._rows_problem(path, long, "more fields than the header has (a comma without quotes?), line")
        rows = []
        for number, (line, cells) in enumerate(body, 1):
            row = dict(zip(header, cells))
            own = row.get("id") or ""
            rows.append(_Row(line, own or f"{letter}{number:05d}", row.get("prompt", ""), row.get("group") or "", row.get("reference") or "", bool(own)))
        self._rows_problem(path, [row.line for row in rows if not row.prompt.strip()], "empty prompts, line")
        self._rows_problem(path, [id for id, count in Counter(row.id for row in rows).items() if count > 1], "ids that stand more than once:")
        if not rows:
            self.problems.append(f"{path} has no prompts")
        again = len(rows) - len({_same(row.prompt) for row in rows})
        if again and all(row.prompt.strip() for row in rows):
            self.notes.append(f"{path.name}: {again} prompts repeat an earlier one; such prompts stay on one side of the split")
        return rows

    def find_references(self, rows: list[_Row], report: Report) -> tuple[int, int]:
        """Fill every row's references; how many were expected, and how many are there and decode."""
        assert self.given.prompts is not None
        folder, beside = self.given.images, self.given.prompts.parent
        if folder is not None and not folder.is_dir():
            self.problems.append(f"{folder} is no folder of training pictures")
            return 0, 0
        if folder is None and not any(row.listed for row in rows):
            return 0, 0
        if folder is not None and rows and not any(row.listed or row.has_id for row in rows):
            self.problems.append(f"{self.given.prompts} has neither a column 'reference' nor 'id', so no picture of {folder} can be matched")
            return len(rows), 0
        by_name: dict[str, list[Path]] = {}
        for path in sorted(folder.iterdir()) if folder else ():
            if path.suffix.lower() in SUFFIXES and path.is_file():
                for key in {_normal(path.name), _normal(path.stem)}:
                    by_name.setdefault(key, []).append(path)
        wanted: list[tuple[_Row, str, list[Path]]] = []
        for row in rows:
            names = [name for name in row.listed.split("|") if name]
            for name in names:
                places = [place / name for place in (folder, beside) if place is not None]
                wanted.append((row, name, [path for path in places if _is_file(path)][:1]))
            if not names:
                wanted.append((row, row.id, by_name.get(_normal(row.id), []) if row.has_id else []))
        candidates = list(dict.fromkeys(path for _, _, paths in wanted for path in paths))
        broken = {path: why for path, why in zip(candidates, self._decoded(candidates, report)) if why}
        absent = [name for _, name, paths in wanted if not paths]
        for row, _, paths in wanted:
            row.references += [path for path in paths if path not in broken and path not in row.references]
        expected = sum(max(len(paths), 1) for _, _, paths in wanted)
        found = sum(path not in broken for _, _, paths in wanted for path in paths)
        odd = [path.name for row in rows for path in row.references if "|" in str(_absolute(path))]
        self._rows_problem(self.given.prompts, odd, "training pictures with '|' in their path:")
        spare = len({path for paths in by_name.values() for path in paths} - set(candidates))
        if spare:
            self.notes.append(f"{spare} pictures of {folder} belong to no prompt")
        why = [f"{len(absent)} missing: {_some(absent)}"] if absent else []
        why += [f"{len(broken)} do not decode: {_some([f'{path.name} ({reason})' for path, reason in broken.items()])}"] if broken else []
        if why:
            said = f"{found} of {expected} training pictures found; {'; '.join(why)}"
            bare = [row.id for row in rows if not row.references]
            if self.given.missing == "refuse":
                self.problems.append(f"{said} (or drop the prompts without one)")
            elif len(bare) == len(rows):
                self.problems.append(f"{said}; no prompt is left")
            else:
                self.notes.append(f"{said}; {len(bare)} prompts were dropped{': ' + _some(bare) if bare else ''}")
        return expected, found

    def _decoded(self, paths: Sequence[Path], report: Report) -> Iterator[str]:
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            for number, why in enumerate(pool.map(_undecodable, paths), 1):
                report("pictures", number, len(paths))
                yield why

    def compare(self, rows: list[_Row], clean: list[_Row]) -> None:
        """A clean prompt that is also suspicious would be fitted on and judged as both."""
        suspicious = {_same(row.prompt) for row in rows}
        both = [row.line for row in clean if row.prompt.strip() and _same(row.prompt) in suspicious]
        if self.given.clean:
            self._rows_problem(self.given.clean, both, "prompts that are also among the suspicious ones, line")

    def split(self, rows: list[_Row], roles: tuple[str, str]) -> None:
        """Give each row one of two roles: the first gets the share `fit`."""
        if not 0 <= self.given.fit < 1:
            self.problems.append(f"the fit share must be at least 0 and below 1, not {self.given.fit}")
            return
        chosen = split([row.prompt for row in rows], [row.group for row in rows], self.given.fit, self.given.seed)
        for index, row in enumerate(rows):
            row.role = roles[index not in chosen]
        if roles[0] == "fit" and rows:
            if self.given.fit and not chosen:
                self.notes.append("one prompt cannot be split: there are no fit prompts")
            learned = {path for row in rows if row.role == "fit" for path in row.references}
            if shared := sum(row.role == "memorized" and bool(learned & set(row.references)) for row in rows):
                self.notes.append(f"{shared} memorized prompts share a training picture with a fit prompt")


@dataclass
class _Suite(_Checks):
    """The files to write and what stands in them."""

    out: Path

    @property
    def name(self) -> str:
        return self.given.name or re.sub(r"[^a-z0-9._-]+", "-", self.out.stem.lower()).strip("-._") or "my-suite"

    def beside(self, ending: str) -> Path:
        return self.out.with_name(f"{self.out.stem}.{ending}")

    @property
    def assembled(self) -> Path:
        return self.beside("model")

    def written(self, path: Path) -> str:
        """A path as the suite's files say it: relative to their folder where it lies below it, else absolute."""
        path = _absolute(path)
        inside = path.is_relative_to(self.out.parent)
        shown = path.relative_to(self.out.parent).as_posix() if inside else str(path)
        if not shown.isascii() and any(0xD800 <= ord(c) < 0xE000 for c in shown):
            self.problems.append(f"{visible(shown)}: the name is not valid Unicode, which a suite file cannot hold; rename it")
        return shown

    def metrics(self, clean: int, references: bool) -> dict[str, dict[str, Any]]:
        """Settings of those metrics whose files are given."""
        given, chosen = self.given, dict[str, dict[str, Any]]()
        if given.sscd:
            self._torchscript(given.sscd)
            if not references:
                self.problems.append("SSCD compares with training pictures and none are given: add a folder of them or a column 'reference'")
            chosen["sscd"] = {"weights": self.written(given.sscd), "profile": given.profile, "threshold": given.threshold}
        if given.clip:
            chosen["clip_score"] = self._clip(given.clip)
        if bool(given.inception) != bool(given.statistics):
            self.problems.append("Inception and reference statistics belong together: give both")
        elif given.inception and given.statistics:
            self._torchscript(given.inception)
            if not clean:
                self.problems.append("FID is measured on pictures of clean prompts: give a CSV of them")
            size = self._statistics(given.statistics, given.inception)
            chosen["fid"] = {"weights": self.written(given.inception), "statistics": self.written(given.statistics), "images": clean, "size": size}
            if 0 < clean < ENOUGH:
                self.notes.append(f"FID of {clean} images is biased upwards: it compares methods on this suite and nothing else")
        chosen["walltime"] = {"rounds": 3, "images": 8}
        return chosen

    def _torchscript(self, path: Path) -> None:
        try:
            with zipfile.ZipFile(path) as archive:
                if not any("/code/" in name for name in archive.namelist()):
                    self.problems.append(f"{path} is a checkpoint and no TorchScript; the official file's name ends in .torchscript.pt")
        except (OSError, zipfile.BadZipFile) as error:
            self.problems.append(f"{path} is no readable TorchScript file: {one_line(error)[:100]}")

    def _clip(self, path: Path) -> dict[str, Any]:
        if path.is_dir():
            self._json(path / "open_clip_config.json")
            return {"model": self.written(path)}
        name, package = self.given.clip_model, find_spec("open_clip")
        known = {file.stem for place in (package.submodule_search_locations or [] if package else []) for file in Path(place, "model_configs").glob("*.json")}
        if not name:
            self.problems.append(f"{path} is a checkpoint: name its open_clip architecture too, such as ViT-B-32")
        elif known and name not in known:
            self.problems.append(f"open_clip knows no architecture '{visible(name)}'")
        if path.suffix == ".safetensors":
            self._header(path)
        elif not path.is_file() or not (zipfile.is_zipfile(path) or _begins_as_pickle(path)):
            self.problems.append(f"{path} is missing, truncated or no checkpoint")
        return {"model": name, "weights": self.written(path)}

    def _statistics(self, path: Path, network: Path) -> int:
        """The side that pictures are resized to, where the statistics say it, else 299."""
        import numpy as np

        try:
            with np.load(path, allow_pickle=False) as content:
                mean, covariance, made_with = content["mu"].shape, content["sigma"].shape, str(content.get("fingerprint", ""))
            if len(mean) != 1 or covariance != (mean[0], mean[0]):
                raise ValueError(f"mu {mean} and sigma {covariance} do not fit")
        except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            self.problems.append(f"reference statistics {path} cannot be read: {one_line(error)[:100]}")
            return 299
        said = re.fullmatch(r"clean-(\d+)-([0-9a-f]{12})", made_with)
        if said and network.is_file() and path_digest(network)[:12] != said[2]:
            self.problems.append(f"reference statistics {path} were made with another network than {network.name} ({made_with})")
        return int(said[1]) if said else 299

    def table(self, model: dict[str, Any], rows: list[_Row], clean: list[_Row], metrics: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """The suite as `SuiteSettings` takes it."""
        given = self.given
        source = self.assembled if given.parts else given.model or self.assembled
        label = (given.model or source).name or "a model"
        present = {row.role for row in (*rows, *clean)}
        images = {"fit": 1, "calibration": 1, "memorized": given.images_per_prompt, "clean": 1}
        prompts: dict[str, dict[str, Any]] = {}
        for role, count in images.items():
            file = self.beside("prompts.csv" if role in ("fit", "memorized") else "clean.csv").name
            if role in present or role == "memorized":
                prompts[role] = {"file": file, "where": {"split": role}, "images_per_prompt": count}
        if "fid" in metrics:
            prompts["quality"] = {"file": self.beside("clean.csv").name, "where": {"split": "clean"}, "images_per_prompt": 1}
        return {
            "name": self.name,
            "version": 1,
            "description": f"{len(rows)} suspicious prompts of {visible(label)}",
            "seed": given.seed,
            "share_references": False,
            "model": {
                "path": self.written(source),
                "dtype": "float32",
                "scheduler": model["scheduler"],
                "steps": given.steps,
                "guidance_scale": float(given.guidance),
                "side": model["side"],
                "batch_size": 8,
            },
            "prompts": prompts,
            "metrics": metrics,
        }

    def validated(self, table: dict[str, Any], metrics: dict[str, dict[str, Any]]) -> SuiteSettings | None:
        if not math.isfinite(self.given.guidance):
            self.problems.append(f"the guidance scale must be a number, not {self.given.guidance}")
        if self.name in registry.entries("suite"):
            self.problems.append(f"'{self.name}' is the name of another suite, whose records it would join: choose another")
        for name, settings in metrics.items():
            try:
                configure("metric", name, registry.find("metric", name).load(), settings)
            except UserError as error:
                self.problems.append(str(error))
        try:
            return SuiteSettings.model_validate(table)
        except ValidationError as error:
            self.problems.append(validation_line(error))
            return None

    def check_out(self, force: bool) -> None:
        """The suite's files overwrite nothing unasked, never an input, and do not lie in the model, whose hash they would change."""
        if self.out.suffix != ".toml":
            self.problems.append(f"{self.out} must end in .toml")
        written = [self.out, self.beside("prompts.csv"), *([self.beside("clean.csv")] if self.given.clean else [])]
        inputs = {path.resolve() for name, path in vars(self.given).items() if isinstance(path, Path) and name != "out"}
        for path in written:
            if path.resolve() in inputs or path.is_dir():
                self.problems.append(f"{path} is {'a folder' if path.is_dir() else 'one of the inputs'} and would be overwritten: choose another out path")
            elif os.path.lexists(path) and not force:
                self.problems.append(f"{path} is there already: choose another out path, or force")
        if self.given.parts and os.path.lexists(self.assembled):
            self.problems.append(f"{self.assembled} is there already: choose another out path, or delete it")
        folders = [*([self.given.model] if self.given.model else []), *self.given.parts.values()]
        if any(self.out.resolve().is_relative_to(folder.resolve()) for folder in folders):
            self.problems.append(f"{self.out} lies inside the model, whose hash is part of the suite: choose another out path")

    def csv(self, rows: Iterable[_Row]) -> str:
        stream = io.StringIO(newline="")
        writer = csv.writer(stream)
        writer.writerow(["id", "prompt", "group", "reference", "split"])
        writer.writerows([row.id, row.prompt, row.group, "|".join(map(self.written, row.references)), row.role] for row in rows)
        return stream.getvalue()


def split(prompts: Sequence[str], groups: Sequence[str], share: float, seed: int) -> set[int]:
    """The indices that make up `share` of the different prompts, spread over the groups by largest remainders; at least one prompt on each side.

    Who is chosen follows from a hash of seed and text, so it depends neither on the order of the list nor on other prompts. Prompts that differ
    only in case or white space go together, with the group of the first.
    """
    together: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        together.setdefault(_same(prompt), []).append(index)
    of_group: dict[str, list[str]] = {}
    for key, indices in together.items():
        of_group.setdefault(groups[indices[0]], []).append(key)
    if share == 0 or len(together) < 2:
        return set()

    def drawn(text: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{text}".encode("utf-8", "surrogatepass")).digest()

    exact = {group: Fraction(str(share)) * len(keys) for group, keys in of_group.items()}
    wanted = min(max(math.floor(sum(exact.values()) + Fraction(1, 2)), 1), len(together) - 1)
    taken = {group: math.floor(count) for group, count in exact.items()}
    by_remainder = sorted(exact, key=lambda group: (taken[group] - exact[group], drawn(group)))
    for group in by_remainder[: wanted - sum(taken.values())]:
        taken[group] += 1
    chosen = [key for group, keys in of_group.items() for key in sorted(keys, key=drawn)[: taken[group]]]
    return {index for key in chosen for index in together[key]}


def _same(prompt: str) -> str:
    return " ".join(unicodedata.normalize("NFC", prompt).casefold().split())


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100  links stay: a cache may link every file to a place that says nothing


def _some(items: Sequence[object]) -> str:
    shown = ", ".join(visible(str(item))[:80] for item in items[:LISTED])
    return f"{shown} and {len(items) - LISTED} more" if len(items) > LISTED else shown


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long for the system, say: a caption in the wrong column
        return False


def _begins_as_pickle(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(1) == b"\x80"


def _undecodable(path: Path) -> str:
    """Why a picture cannot be used; empty when it can."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.convert("RGB")
    except Exception as error:  # each format's decoder raises its own
        return one_line(error)[:60]
    return ""


def _fields(content: str) -> list[tuple[int, list[str]]]:
    """The records of a CSV, each with the line where it begins; separated by what gives a column `prompt`: comma, semicolon or tab."""

    def reader(delimiter: str, strict: bool) -> Any:
        return csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=strict)

    chosen = next((delimiter for delimiter in ",;\t" if "prompt" in next(reader(delimiter, False), [])), ",")
    lines, records, begins = reader(chosen, True), [], 1
    for cells in lines:
        if cells:
            records.append((begins, cells))
        begins = lines.line_num + 1
    return records


@contextmanager
def _taken_back_on_failure(paths: Sequence[Path]) -> Iterator[None]:
    """Should anything fail inside, files are as they were before; folders that were not there are gone."""
    before = {path: path.read_bytes() if path.is_file() else None for path in paths}
    existed = {path for path in paths if os.path.lexists(path)}
    try:
        yield
    except BaseException:
        for path, content in before.items():
            if content is not None:
                write_atomically(path, content)
            elif path not in existed:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        raise


def toml_value(value: Any) -> str:
    """A TOML literal: text as a basic string with every control character escaped, numbers, truth values, lists and inline tables."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        short = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
        return '"' + "".join(short.get(c) or (c if c.isprintable() or c == " " else _escaped(c)) for c in value) + '"'
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key if BARE.fullmatch(key) else toml_value(key)} = {toml_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    raise TypeError(f"no TOML for {type(value).__name__}")


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xD800 <= code < 0xE000:
        raise UserError(f"text with {visible(character)}, which is no Unicode character, cannot stand in TOML")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


SECTIONS: dict[str, tuple[str, dict[str, Any]]] = {  # why each section is as it is; of those that can be left out, what it would say
    "prompts.fit": (
        "Prompts that methods may learn from; they are never judged. The column split of the CSV says which, and can be changed by hand.",
        {"file": "prompts.csv", "where": {"split": "fit"}},
    ),
    "prompts.calibration": (
        "Clean prompts that methods and attacks may learn from: wen and nemo need them.",
        {"file": "clean.csv", "where": {"split": "calibration"}},
    ),
    "prompts.memorized": ("Held-out suspicious prompts, on which methods are judged. Two images or more a prompt also give diversity.", {}),
    "prompts.clean": (
        "Held-out clean prompts: what a method costs in alignment where nothing is memorized.",
        {"file": "clean.csv", "where": {"split": "clean"}},
    ),
    "prompts.quality": (
        "Prompts of the pictures for FID, one picture each: the held-out clean ones.",
        {"file": "clean.csv", "where": {"split": "clean"}},
    ),
    "metrics.sscd": (
        "Replication: similarity to the training picture. A profile belongs to a checkpoint (nemo and han: sscd_disc_mixup; wen, jeon, membench and\n"
        "concept_prune: sscd_disc_large), and the threshold above which a picture counts as memorized to both: scores of two profiles are never compared.",
        {"weights": "sscd_disc_mixup.torchscript.pt", "profile": "nemo", "threshold": 0.7},
    ),
    "metrics.clip_score": (
        "Alignment: cosine of picture and prompt, by an open_clip folder (model alone) or by an architecture's name and its checkpoint.",
        {"model": "ViT-B-32", "weights": "open_clip_pytorch_model.bin"},
    ),
    "metrics.fid": (
        "Quality: Frechet distance with clean-fid's resizing. It falls with the number of images: compare it at the same number only.",
        {"weights": "inception-2015-12-05.pt", "statistics": "reference.npz", "images": 5000, "size": 299},
    ),
    "metrics.walltime": ("Cost: rounds of so many images, with the method and without it in turn. Needs no files.", {}),
    "attacks.clique_extraction": (
        "Extraction without knowing the training pictures (Carlini et al. 2023): many generations a prompt that agree. Needs prompts.calibration, and\n"
        "before the first run `bench calibrate clique_extraction` with this suite.",
        {"images": 32, "clique": 6, "calibration": "clique_extraction.json", "clean_prompts": 16},
    ),
    "attacks.knn_extraction": (
        "Extraction by nearest neighbours: `training` is the folder of all training pictures, at least 51 different ones.",
        {"images": 4, "training": "training"},
    ),
}


def _toml(table: Mapping[str, Any], given: Given, found: int, expected: int) -> tuple[str, tuple[str, ...]]:
    """The suite file, and the names of the sections that stand in it as comments: code after `#` alone, prose after `# `."""
    lines = [
        "# Written by `bench suite new`. Everything here is part of the protocol: a change gives another fingerprint, whose results stand apart.",
        "# Paths are relative to this file or absolute; an absolute one ties the fingerprint to this machine.",
        *_assigned({key: table[key] for key in ("name", "version", "description", "seed")}),
        "# Training pictures stay out of records and pages. Set it to true only where you may publish them.",
        *_assigned({"share_references": table["share_references"]}),
        "",
        "[model]",
        "# The scheduler is the model folder's own where a suite can hold it, the side what its unet and vae give. float16 halves the memory on a GPU,",
        "# and a smaller batch_size lowers it too.",
        *_assigned(table["model"]),
        "",
        f"# Prompts are split by text with seed {given.seed}: a share of {given.fit:g} to learn from, spread over the groups, the rest to judge by.",
        f"# Training pictures: {found} of {expected} found." if expected else "# No training pictures were given, so replication cannot be measured.",
    ]
    left_out = []
    for section, (why, example) in SECTIONS.items():
        kind, _, name = section.partition(".")
        settings = table.get(kind, {}).get(name)
        lines += ["", *(f"# {line}" for line in why.split("\n"))]
        if settings is None:
            left_out.append(section)
            lines += ["# To have it, fill in and take the # away:", f"#[{section}]", *(f"#{line}" for line in _assigned(example))]
        else:
            lines += [f"[{section}]", *_assigned(settings)]
    return "\n".join(lines) + "\n", tuple(left_out)


def _assigned(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {toml_value(value)}" for key, value in settings.items()]
