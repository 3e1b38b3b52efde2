"""A suite: the frozen, fingerprinted protocol that every method runs through, read from one TOML
file.

Paths are relative to the file that states them, or `asset:NAME`, which `bench fetch` brings. The
fingerprint covers the protocol and the contents of every file that the suite names, so two records
with the same fingerprint answered the same question.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

from bench.assets.asset import cache_folder
from bench.assets.catalogue import PREFIX, Assets, Entry, PicturesEntry, name_of, shipped_entries
from bench.base.digests import digest_of, path_digest
from bench.base.errors import UserError, visible
from bench.registry.registry import SUITES, declared_files
from bench.suite.embeddings import token_in, weights_digest
from bench.suite.lora_files import lora_digest
from bench.suite.places import Places, named_files
from bench.suite.prompts import Prompt, read_prompts
from bench.suite.schema import Role, SuiteSettings, protocol, texts_in


@dataclass(frozen=True)
class Suite:
    """The settings of a suite, the file that they come from, and what is read of the files that it
    names.

    `limit` is how many prompts of each role are kept; it changes the fingerprint. `entries` are
    assets of the suite's own, beside the shipped ones.

    A `lenient` suite is for plans: a list that is missing gives as many placeholders as the suite
    expects prompts, pictures that are missing are passed over, and what is there is read as
    strictly as ever. The roles in `unread` are taken to have no prompts, because their lists cannot
    be read (`bench.suite.needs.readable_part`).
    """

    settings: SuiteSettings
    file: Path
    limit: int | None = None
    entries: Mapping[str, Entry] | None = None
    lenient: bool = False
    unread: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def store_name(self) -> str:
        """The name of its folder in the sample store."""
        return self.settings.store or self.settings.name

    @property
    def called(self) -> str:
        """What it is called on the command line: its name, or the path of its file."""
        return self.name if self.file.parent == SUITES else str(self.file)

    @cached_property
    def assets(self) -> Assets:
        return Assets(self.called, shipped_entries() | dict(self.entries or {}), cache_folder())

    def wanted(self) -> tuple[str, ...]:
        """Names of the assets that the suite needs, in the order in which it names them. Lists of
        links come first, since the pictures behind them need the list.
        """
        texts = [
            text
            for text in texts_in(self.settings.model_dump(mode="json"))
            if text.startswith(PREFIX)
        ]
        behind = [
            entry.list
            for text in texts
            if isinstance(entry := self.assets.entry(text), PicturesEntry)
        ]
        return tuple(dict.fromkeys(name_of(text)[0] for text in [*behind, *texts]))

    def is_fetched(self) -> bool:
        """Whether every asset that it needs is here and whole."""
        return not any(self.assets.lacking(name) for name in self.wanted())

    @cached_property
    def places(self) -> Places:
        return Places(self.name, self.file, self.assets, self.lenient)

    def place(self, relative: str) -> Path:
        """Where a path of the suite file leads, there or not."""
        return self.places.place(relative)

    def path(self, relative: str) -> Path:
        """A path of the suite file, made absolute. Raises `UserError` when nothing is there."""
        return self.places.path(relative)

    def digest(self, relative: str) -> str:
        """sha256 of the content behind a path of the suite file; the same wherever an asset
        lies.
        """
        return self.places.digest(relative)

    def prompts(self, role: Role) -> tuple[Prompt, ...]:
        """The prompts of a role, in file order; none where the suite has no such role.

        In the tracks `removal` and `audit` methods learn from the prompts that are judged: those of
        the role fit are those of the role memorized.

        A list is read when its role is first asked for. Raises `UserError` when it is missing,
        malformed or leaves no prompt, and when a reference picture is missing.
        """
        if role == "fit" and self.removes:
            role = "memorized"
        settings = self.settings.prompts.get(role)
        if settings is None or role in self.unread:
            return ()
        if role not in self._prompts:
            self._prompts[role] = read_prompts(self.places, role, settings, self.limit)
        return self._prompts[role]

    def references(self, role: Role) -> tuple[int, int]:
        """How many prompts of a role should have a training picture, and how many have one."""
        listed = self.settings.prompts.get(role)
        prompts = self.prompts(role)
        found = sum(bool(prompt.references) for prompt in prompts)
        return (len(prompts) if listed and listed.references else found), found

    @property
    def removes(self) -> bool:
        """Whether methods learn from prompts that are judged: tracks `removal` and `audit`."""
        return self.settings.track in ("removal", "audit")

    @cached_property
    def training_pictures(self) -> tuple[Path, ...]:
        """The training pictures of all fit, memorized and unnamed prompts, each once, in the order
        of the prompts.
        """
        roles: tuple[Role, ...] = ("fit", "memorized", "unnamed")
        return tuple(
            dict.fromkeys(
                path
                for role in roles
                for prompt in self.prompts(role)
                for path in prompt.references
            )
        )

    @cached_property
    def _prompts(self) -> dict[Role, tuple[Prompt, ...]]:
        """What has been read of the lists, which `prompts` fills role by role."""
        return {}

    def image_seed(self, prompt: str, index: int) -> int:
        """The seed of image `index` of a prompt, 0 to 2^63 - 1. It follows from the suite's seed,
        the text and the index, so that prompts do not share initial noise.
        """
        digest = hashlib.sha256(f"{self.settings.seed}\0{prompt}\0{index}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    @cached_property
    def generation(self) -> dict[str, Any]:
        """What decides a picture besides prompt, seed and method, as a part of the store's keys:
        the settings of the model and sha256 of its files.
        """
        model = self.picture_settings
        if "config" in model:
            model["config"] = self.digest(model["config"])
        if self.settings.model.loras:
            model["loras"] = self.lora_strengths
        if self.settings.model.weight != 1:
            model["base_sha256"] = self.digest(self.settings.model.base)
        if self.settings.model.embeddings:
            model["embeddings"] = self.embedding_digests
        return model | {"model_sha256": self.digest(self.settings.model.path)}

    @property
    def picture_settings(self) -> dict[str, Any]:
        """The settings of the model that decide a picture, without the contents of its files."""
        return {
            key: value
            for key, value in protocol(self.settings)["model"].items()
            if key not in ("path", "batch_size", "loras", "embeddings", "base")
        }

    @cached_property
    def base(self) -> Suite | None:
        """The suite of what this one's model was fine-tuned from, everything else alike: what
        `[model] base` names, or else the model without its LoRA files. None where it is not said.
        """
        model = self.settings.model
        if not model.base and not model.loras:
            return None
        path = model.base or model.path
        # a checkpoint in one file has no configs of its own, and a folder always has
        config = None if self.place(path).is_dir() else model.config or model.path
        changed = {"path": path, "config": config, "loras": (), "base": "", "weight": 1.0}
        settings = self.settings.model_copy(update={"model": model.model_copy(update=changed)})
        return replace(self, settings=settings)

    def needed_base(self, who: str) -> Suite:
        """The same for somebody who cannot do without: `who` is named in the error.

        Raises `UserError` where the suite does not say what its model was fine-tuned from.
        """
        if self.base is None:
            raise UserError(
                f"{who} needs what the model was fine-tuned from, and suite {self.name} does not"
                " say: give [model] base = FOLDER, or merge LoRA files with [[model.loras]]"
            )
        return self.base

    @cached_property
    def lora_strengths(self) -> dict[str, tuple[float, float]]:
        """What is merged into the model: strengths in the UNet and in the text encoder, by the
        digest of a file (`lora_digest`). One that is named twice is there with the sum, one without
        strength is not. Raises `UserError` for a sum that is not finite.
        """
        found: dict[str, tuple[float, float]] = {}
        for lora in self.settings.model.loras:
            digest = lora_digest(self.path(lora.file))
            unet, text = found.get(digest, (0.0, 0.0))
            more, more_text = lora.strengths
            found[digest] = unet + more, text + more_text
            if not all(map(isfinite, found[digest])):
                raise UserError(
                    f"suite {self.name}: the weights of '{visible(lora.file)[:200]}', which is"
                    " named more than once, add up to more than a number can be"
                )
        return {digest: found[digest] for digest in sorted(found) if any(found[digest])}

    @cached_property
    def embedding_digests(self) -> dict[str, str]:
        """Textual inversions of the model: sha256 of a file's tensors by the word that stands for
        it in prompts.
        """
        found: dict[str, str] = {}
        for one in self.settings.model.embeddings:
            file = self.places.named(one.path)
            token = token_in(file, one.token)
            if token in found:
                raise UserError(
                    f"suite {self.name}: two files of [[model.embeddings]] stand for"
                    f" '{visible(token)}'; give one of them another token"
                )
            found[token] = weights_digest(file)
        return dict(sorted(found.items()))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the protocol and the contents of every file it names, 16 hex digits."""
        settings = protocol(self.settings)
        if self.settings.model.loras:
            settings["model"]["loras"] = self.lora_strengths
        if self.settings.model.embeddings:
            settings["model"]["embeddings"] = self.embedding_digests
        files = {settings["model"]["path"], *(p["file"] for p in settings["prompts"].values())}
        files |= {text for text in (self.settings.model.config, self.settings.model.base) if text}
        for kind, name, parameters in self.settings.judges():
            declared = declared_files(kind, self.places.judge(name))
            files |= named_files(parameters.items(), self.file.parent, declared)
        fetched = self._fetched_digests()
        content = {
            "settings": settings,
            "limit": self.limit,
            "files": {name: self.digest(name) for name in sorted(files)},
            "references": self._references_digests(fetched),
        }
        return digest_of(content)[:16]

    def _references_digests(self, fetched: Mapping[Path, str]) -> Any:
        """sha256 of the reference pictures; of suites that fetch some, by prompt, since which
        prompts have one depends on what was found.
        """
        roles: Iterable[Role] = self.settings.prompts
        if not fetched:
            return [
                path_digest(path)
                for path in sorted(
                    {
                        path
                        for role in roles
                        for prompt in self.prompts(role)
                        for path in prompt.references
                    }
                )
            ]
        return {
            role: {
                prompt.id: [fetched.get(path) or path_digest(path) for path in prompt.references]
                for prompt in self.prompts(role)
                if prompt.references
            }
            for role in roles
        }

    def _fetched_digests(self) -> dict[Path, str]:
        """Of reference pictures that came as assets: by path, without reading them again."""
        assets = [
            text
            for settings in self.settings.prompts.values()
            if (text := settings.references).startswith(PREFIX)
        ]
        return {
            path: digest
            for text in dict.fromkeys(name_of(text)[0] for text in assets)
            for path, digest in self.assets.digests_inside(text).items()
        }
