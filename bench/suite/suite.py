"""A suite: the frozen, fingerprinted protocol that every method runs through, read from one TOML file.

Paths in the file are relative to the file, or `asset:NAME`, which `bench fetch` brings. The fingerprint covers the protocol
and the contents of every file it names, so two records with the same fingerprint answered the same question.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from bench.assets.asset import cache_folder
from bench.assets.catalogue import PREFIX, Assets, Entry, PicturesEntry, name_of, parse_entries, shipped_entries
from bench.base.digests import digest_of, path_digest
from bench.base.errors import UnknownName, UserError, one_line
from bench.base.parameters import validation_line
from bench.base.prompt_lists import Row, filled_in, read_rows
from bench.registry.registry import find_suite
from bench.suite.settings import ROLES, ModelSettings, PromptSettings, Role, SuiteSettings, protocol


@dataclass(frozen=True)
class Prompt:
    """One prompt: `id` is unique in its file, `group` a label such as the number of times it was trained on, `seed` its first image's own."""

    id: str
    text: str
    group: str
    references: tuple[Path, ...]
    seed: int | None = None


@dataclass(frozen=True)
class Suite:
    """A suite ready to run: settings, where they came from, and a limit on prompts per role (which changes the fingerprint).

    `entries`: assets of its own, beside the shipped ones. `lenient`: for plans; lists that are missing give as many
    placeholders as the suite expects prompts, and pictures that are missing are passed over.
    """

    settings: SuiteSettings
    file: Path
    limit: int | None = None
    entries: Mapping[str, Entry] | None = None
    lenient: bool = False

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def store_name(self) -> str:
        """The folder of the sample store."""
        return self.settings.store or self.settings.name

    @property
    def called(self) -> str:
        """What names it on the command line."""
        return self.name if self.file.parent == Path(__file__).parents[1] / "suites" else str(self.file)

    @cached_property
    def assets(self) -> Assets:
        return Assets(self.called, shipped_entries() | dict(self.entries or {}), cache_folder())

    def wanted(self) -> tuple[str, ...]:
        """Names of the assets that the suite needs, in the order in which it names them, with the lists that others are behind."""
        texts = [text for text in _texts(self.settings.model_dump(mode="json")) if text.startswith(PREFIX)]
        behind = [entry.list for text in texts if isinstance(entry := self.assets.entry(text), PicturesEntry)]
        return tuple(dict.fromkeys(name_of(text)[0] for text in [*behind, *texts]))

    def is_fetched(self) -> bool:
        """Whether every asset that it needs is here."""
        return not any(self.assets.lacking(name) for name in self.wanted())

    def place(self, relative: str) -> Path:
        """Where a path of the suite file leads, there or not."""
        return self.assets.place(relative) if relative.startswith(PREFIX) else (self.file.parent / relative).resolve()

    def path(self, relative: str) -> Path:
        """A path of the suite file, made absolute. Raises `UserError` when nothing is there."""
        if relative.startswith(PREFIX):
            return self.assets.path(relative)
        path = self.place(relative)
        if not path.exists():
            raise UserError(f"suite {self.name}: '{relative}' is missing (looked at {path})")
        return path

    def digest(self, relative: str) -> str:
        """sha256 of the content behind a path of the suite file; the same wherever an asset lies."""
        return self.assets.digest(relative) if relative.startswith(PREFIX) else path_digest(self.path(relative))

    def prompts(self, role: Role) -> tuple[Prompt, ...]:
        """The prompts of a role, in file order. Empty when the suite has none; `UserError` when its list is empty or malformed."""
        return self._prompts_by_role.get(role, ())

    def references(self, role: Role) -> tuple[int, int]:
        """How many prompts of a role ought to have a training picture, and how many have one."""
        listed = self.settings.prompts.get(role)
        prompts = self.prompts(role)
        found = sum(bool(prompt.references) for prompt in prompts)
        return (len(prompts) if listed and listed.references else found), found

    @cached_property
    def training_pictures(self) -> tuple[Path, ...]:
        """Every training picture that the suite's prompts to fit and to measure on have, each once; of all prompts, whichever of them are asked for."""
        roles: tuple[Role, ...] = ("fit", "memorized")
        return tuple(dict.fromkeys(path for role in roles for prompt in self._prompts_by_role.get(role, ()) for path in prompt.references))

    @cached_property
    def _prompts_by_role(self) -> dict[str, tuple[Prompt, ...]]:
        return {role: self._read_prompts(role, settings) for role, settings in self.settings.prompts.items()}

    def _read_prompts(self, role: str, settings: PromptSettings) -> tuple[Prompt, ...]:
        if self.lenient and not _is_there(self, settings.file):
            count = min(settings.expected or 0, self.limit or settings.expected or 0)
            return tuple(Prompt(f"{role}-{i:05d}", f"{role} prompt {i} of {settings.file}", "", ()) for i in range(count))
        file = self.path(settings.file)
        called = {"prompt": "prompt"} | {str(ours): theirs for ours, theirs in settings.columns.items()}
        columns, table = read_rows(file, settings.format, settings.delimiter)
        for column in {*called.values(), *settings.where, *(("group",) if settings.groups and "group" not in called else ())}:
            if column not in columns:
                raise UserError(f"suite {self.name}: {file} has no column '{column}' (it has: {', '.join(sorted(columns)) or 'none'})")
        rows = [row for row in table if all(row[key] == value for key, value in settings.where.items())]
        if settings.groups:
            rows = [row for row in rows if row[called.get("group", "group")] in settings.groups]
        if settings.part:
            rows = rows[settings.part[0] :: settings.part[1]]
        if settings.without:
            first, every = settings.without
            rows = [row for number, row in enumerate(rows) if number % every != first]
        rows = _spread(rows, settings.limit)
        if settings.expected not in (None, len(rows)):
            raise UserError(f"suite {self.name}: {settings.expected} prompts of the role {role} are expected, and {file} gives {len(rows)}")
        rows = _spread(rows, self.limit)
        blank = next((number for number, row in enumerate(rows) if not row[called["prompt"]].strip()), None)
        if blank is not None:
            raise UserError(f"suite {self.name}: prompt number {blank + 1} of the role {role} in {file} is empty")
        if not rows:
            raise UserError(f"suite {self.name}: no prompts of the role {role} in {file} ({settings.where or 'no filter'})")
        finder = _References(self, settings, file)
        prompts = tuple(self._prompt(role, number, row, called, finder) for number, row in enumerate(rows))
        if len({prompt.id for prompt in prompts}) != len(prompts):
            raise UserError(f"suite {self.name}: prompt ids in {file} are not unique")
        return prompts

    def _prompt(self, role: str, number: int, row: Row, called: Mapping[str, str], finder: _References) -> Prompt:
        id = row.get(called.get("id", "id")) or row.get("line") or f"{role}-{number:05d}"
        seed = row[called["seed"]] if "seed" in called else ""
        if seed and not (seed.isascii() and seed.isdigit() and int(seed) < 2**63):
            raise UserError(f"suite {self.name}: the seed '{seed}' of prompt {id} is no whole number below 2^63")
        group = row.get(called.get("group", "group")) or ""
        return Prompt(id, row[called["prompt"]], group, finder.of(id, row), int(seed) if seed else None)

    def image_seed(self, prompt: str, index: int) -> int:
        """The seed of image `index` of a prompt: its own 63 bits, so prompts do not share initial noise."""
        digest = hashlib.sha256(f"{self.settings.seed}\0{prompt}\0{index}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    @cached_property
    def generation(self) -> dict[str, Any]:
        """What decides a picture besides prompt, seed and method: the key part of the sample store."""
        model = self.picture_settings
        if "config" in model:
            model["config"] = self.digest(model["config"])
        return model | {"model_sha256": self.digest(self.settings.model.path)}

    @property
    def picture_settings(self) -> dict[str, Any]:
        """The settings of the model that decide a picture, without the contents of its files."""
        return {key: value for key, value in protocol(self.settings)["model"].items() if key not in ("path", "batch_size")}

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the protocol and the contents of every file it names, 16 hex digits."""
        settings = protocol(self.settings)
        files = {settings["model"]["path"], *(p["file"] for p in settings["prompts"].values())}
        files |= {config for config in (self.settings.model.config,) if config}
        files |= {value for _, _, parameters in self.settings.judges() for value in parameters.values() if self._names_file(value)}
        fetched = self._fetched_digests()
        content = {
            "settings": settings,
            "limit": self.limit,
            "files": {name: self.digest(name) for name in sorted(files)},
            "references": self._references_digests(fetched),
        }
        return digest_of(content)[:16]

    def _references_digests(self, fetched: Mapping[Path, str]) -> Any:
        """sha256 of the reference pictures; of suites that fetch some, by prompt, since which prompts have one depends on what was found."""
        roles: Iterable[Role] = self.settings.prompts
        if not fetched:
            return [path_digest(path) for path in sorted({path for role in roles for prompt in self.prompts(role) for path in prompt.references})]
        return {
            role: {prompt.id: [fetched.get(path) or path_digest(path) for path in prompt.references] for prompt in self.prompts(role) if prompt.references}
            for role in roles
        }

    def _fetched_digests(self) -> dict[Path, str]:
        """Of reference pictures that came as assets: by path, without reading them again."""
        assets = [text for settings in self.settings.prompts.values() if (text := settings.references).startswith(PREFIX)]
        return {path: digest for text in dict.fromkeys(name_of(text)[0] for text in assets) for path, digest in self.assets.digests_inside(text).items()}

    def _names_file(self, value: Any) -> bool:
        return isinstance(value, str) and value != "" and (value.startswith(PREFIX) or (self.file.parent / value).exists())


class _References:
    """Finds the reference pictures of one list's prompts."""

    def __init__(self, suite: Suite, settings: PromptSettings, file: Path) -> None:
        self.suite, self.settings, self.file = suite, settings, file
        self.column = settings.columns.get("reference", "reference")
        self.by_id: dict[str, Path] | None = None
        asset = settings.references
        if asset.startswith(PREFIX) and isinstance(suite.assets.entry(asset), PicturesEntry):
            self.by_id = {} if suite.lenient and not _is_there(suite, asset) else suite.assets.pictures(asset)
        elif asset.startswith(PREFIX) and not suite.lenient:
            suite.path(PREFIX + name_of(asset)[0])  # the whole of it, by what is remembered of every file

    def of(self, id: str, row: Row) -> tuple[Path, ...]:
        """The pictures of one prompt; none where its link is dead. Raises `UserError` for a picture that ought to be there."""
        if self.by_id is not None:
            return (self.by_id[id],) if id in self.by_id else ()
        if template := self.settings.references:
            relative = filled_in(template, row)
            paths: tuple[Path, ...] = (self.suite.place(relative) if relative.startswith(PREFIX) else self.suite.file.parent / relative,)
        else:
            paths = tuple(self.file.parent / name for name in (row.get(self.column) or "").split("|") if name)
        for path in () if self.suite.lenient else paths:
            if not path.is_file():
                raise UserError(f"suite {self.suite.name}: reference picture {path} is missing")
        return paths


def _is_there(suite: Suite, relative: str) -> bool:
    try:
        suite.path(relative)
    except UserError:
        return False
    return True


def _texts(value: Any) -> Iterable[str]:
    """All texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


def load_suite(name: str, limit: int | None = None) -> Suite:
    """A shipped suite by name or a TOML file by path. `limit` keeps that many prompts of every role, for trying things out."""
    if limit is not None and limit < 1:
        raise UserError(f"--limit must be at least 1, not {limit}")
    file = find_suite(name)
    table = _extended(file)
    entries = parse_entries(table.pop("assets", {}), file)
    _refuse_unknown_keys(file, table)
    try:
        return Suite(SuiteSettings.model_validate(table), file, limit, entries)
    except ValidationError as error:
        raise UserError(f"suite file {file}: {validation_line(error)}") from error


def _extended(file: Path, before: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The table of a suite file, laid over that of the suite it extends, section by section.

    Paths are relative to the file they stand in, so a suite in another folder can be extended only where it names none.
    """
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"suite file {file} is not valid TOML: {one_line(error)}") from error
    if (base := table.pop("extends", None)) is None:
        return table
    parent = find_suite(str(file.parent / base) if str(base).endswith(".toml") else str(base)).resolve()
    if parent in (*before, file.resolve()):
        raise UserError(f"suite file {file} extends itself by way of {parent.name}")
    inherited = _extended(parent, (*before, file.resolve()))
    local = [text for text in _texts(inherited) if not text.startswith(PREFIX) and text not in ("", ".") and (parent.parent / text).exists()]
    if local and parent.parent != file.resolve().parent:
        raise UserError(f"suite file {file} cannot extend {parent.name}: that one names '{local[0]}', relative to its own folder")
    inherited.pop("name", None)
    return _laid_over(inherited, table)


def _laid_over(base: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two tables as one; where both have a value the one above counts, and sections are joined key by key."""
    joined = dict(base)
    for key, value in above.items():
        joined[key] = _laid_over(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return joined


def _refuse_unknown_keys(file: Path, table: dict[str, Any]) -> None:
    """Pydantic would refuse them too; this says what was probably meant."""
    sections: list[tuple[str, Any, type[BaseModel]]] = [("", table, SuiteSettings), ("model.", table.get("model"), ModelSettings)]
    prompts = table.get("prompts")
    if isinstance(prompts, dict):
        for role in prompts:
            if role not in ROLES:
                raise UnknownName(f"prompt role in {file.name}", role, ROLES)
        sections += [(f"prompts.{role}.", section, PromptSettings) for role, section in prompts.items()]
    for prefix, section, model in sections:
        for key in section if isinstance(section, dict) else ():
            if key not in model.model_fields:
                raise UnknownName(f"key in {file.name}", prefix + key, (prefix + known for known in model.model_fields))


def _spread(rows: list[dict[str, str]], limit: int | None) -> list[dict[str, str]]:
    """`limit` rows at even distances, so that a short list still covers every group."""
    if limit is None or len(rows) <= limit:
        return rows
    return [rows[i * len(rows) // limit] for i in range(limit)]
