"""The files of a new suite: its settings, checked as those of any suite, the scorers whose files
are given, and where everything is written.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from bench.base.arrays import open_arrays
from bench.base.digests import path_digest
from bench.base.errors import UserError, is_whole, one_line, visible
from bench.base.parameters import configure, validation_line
from bench.new_suite.given import Checks, absolute
from bench.new_suite.prompts import Row
from bench.registry import registry
from bench.suite.schema import SuiteSettings

ENOUGH = 2048  # features of Inception: a covariance of fewer pictures is singular


@dataclass
class SuiteDraft(Checks):
    """The files to write and what stands in them."""

    out: Path

    @property
    def name(self) -> str:
        return (
            self.given.name
            or re.sub(r"[^a-z0-9._-]+", "-", self.out.stem.lower()).strip("-._")
            or "my-suite"
        )

    def beside(self, ending: str) -> Path:
        """A file beside the suite's: mine.toml, mine.clean.csv."""
        return self.out.with_name(f"{self.out.stem}.{ending}")

    @property
    def assembled(self) -> Path:
        """The model folder made of single parts."""
        return self.beside("model")

    def written(self, path: Path) -> str:
        """A path as the suite's files say it: relative to their folder where it lies below it, else
        absolute.
        """
        path = absolute(path)
        inside = path.is_relative_to(self.out.parent)
        shown = path.relative_to(self.out.parent).as_posix() if inside else str(path)
        if not is_whole(shown):
            self.problems.append(
                f"{visible(shown)}: the name is not valid Unicode, which a suite file cannot hold;"
                " rename it"
            )
        return shown

    def metrics(self, clean: int, references: bool) -> dict[str, dict[str, Any]]:
        """The settings of the metrics whose files are given, and of `walltime`, which needs none.
        `clean` is the number of held-out clean prompts; `references`: whether any training picture
        was found.
        """
        given, chosen = self.given, dict[str, dict[str, Any]]()
        if given.sscd:
            chosen["sscd"] = self._sscd(given.sscd, references)
        if given.clip:
            chosen["clip_score"] = self._clip(given.clip)
        if bool(given.inception) != bool(given.statistics):
            self.problems.append("Inception and reference statistics belong together: give both")
        elif given.inception and given.statistics:
            chosen["fid"] = self._fid(given.inception, given.statistics, clean)
        chosen["walltime"] = {"rounds": 3, "images": 8}
        return chosen

    def _sscd(self, weights: Path, references: bool) -> dict[str, Any]:
        self._network(weights)
        if not references:
            self.problems.append(
                "SSCD compares with training pictures and none are given: add a folder of them or"
                " a column 'reference'"
            )
        return {
            "weights": self.written(weights),
            "profile": self.given.profile,
            "threshold": self.given.threshold,
        }

    def _fid(self, network: Path, statistics: Path, clean: int) -> dict[str, Any]:
        self._network(network)
        if not clean:
            self.problems.append("FID is measured on pictures of clean prompts: give a CSV of them")
        if 0 < clean < ENOUGH:
            self.notes.append(
                f"FID of {clean} images is biased upwards: it compares methods on this suite and"
                " nothing else"
            )
        return {
            "weights": self.written(network),
            "statistics": self.written(statistics),
            "images": clean,
            "size": self._statistics(statistics, network),
        }

    def _network(self, path: Path) -> None:
        try:
            if not zipfile.is_zipfile(path):
                with safe_open(path, framework="numpy"):
                    return
            with zipfile.ZipFile(path) as archive:
                if not any("/code/" in name for name in archive.namelist()):
                    self.problems.append(
                        f"{path} is a checkpoint and no TorchScript; the official file's name ends"
                        " in .torchscript.pt"
                    )
        except (OSError, SafetensorError, zipfile.BadZipFile) as error:
            self.problems.append(
                f"{path} is neither a readable TorchScript nor a safetensors file:"
                f" {one_line(error)[:100]}"
            )

    def _clip(self, path: Path) -> dict[str, Any]:
        if path.is_dir():
            self.read_json(path / "open_clip_config.json")
            return {"model": self.written(path)}
        name, package = self.given.clip_model, find_spec("open_clip")
        known = {
            file.stem
            for place in (package.submodule_search_locations or [] if package else [])
            for file in Path(place, "model_configs").glob("*.json")
        }
        if not name:
            self.problems.append(
                f"{path} is a checkpoint: name its open_clip architecture too, such as ViT-B-32"
            )
        elif known and name not in known:
            self.problems.append(f"open_clip knows no architecture '{visible(name)}'")
        if path.suffix == ".safetensors":
            self.stored_numbers(path)
        elif not path.is_file() or not (zipfile.is_zipfile(path) or _begins_as_pickle(path)):
            self.problems.append(f"{path} is missing, truncated or no checkpoint")
        return {"model": name, "weights": self.written(path)}

    def _statistics(self, path: Path, network: Path) -> int:
        """The side that pictures are resized to, where the statistics say it, else 299."""
        try:
            with open_arrays(path) as content:
                mean, covariance, made_with = (
                    content["mu"].shape,
                    content["sigma"].shape,
                    str(content.get("fingerprint", "")),
                )
            if len(mean) != 1 or covariance != (mean[0], mean[0]):
                raise ValueError(f"mu {mean} and sigma {covariance} do not fit")
        except (
            OSError,
            ValueError,
            KeyError,
            EOFError,
            AttributeError,
            zipfile.BadZipFile,
        ) as error:
            self.problems.append(
                f"reference statistics {path} cannot be read: {one_line(error)[:100]}"
            )
            return 299
        maker = re.fullmatch(r"clean-(\d+)-([0-9a-f]{12})", made_with)
        if maker and network.is_file() and path_digest(network)[:12] != maker[2]:
            self.problems.append(
                f"reference statistics {path} were made with another network than {network.name}"
                f" ({made_with})"
            )
        return int(maker[1]) if maker else 299

    def table(
        self,
        model: dict[str, Any],
        rows: list[Row],
        clean: list[Row],
        metrics: dict[str, dict[str, Any]],
    ) -> dict[str, Any]:
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
            prompts["quality"] = {
                "file": self.beside("clean.csv").name,
                "where": {"split": "clean"},
                "images_per_prompt": 1,
            }
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

    def validated(
        self, table: dict[str, Any], metrics: dict[str, dict[str, Any]]
    ) -> SuiteSettings | None:
        """The settings that will be loaded; None, and problems, where they are refused."""
        if not math.isfinite(self.given.guidance):
            self.problems.append(f"the guidance scale must be a number, not {self.given.guidance}")
        if self.name in registry.entries("suite"):
            self.problems.append(
                f"'{self.name}' is the name of another suite, whose records it would join: choose"
                " another"
            )
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
        """The suite's files overwrite nothing unasked, never an input, and do not lie in the model,
        whose hash they would change.
        """
        if self.out.suffix != ".toml":
            self.problems.append(f"{self.out} must end in .toml")
        written = [
            self.out,
            self.beside("prompts.csv"),
            *([self.beside("clean.csv")] if self.given.clean else []),
        ]
        inputs = {
            path.resolve()
            for name, path in vars(self.given).items()
            if isinstance(path, Path) and name != "out"
        }
        for path in written:
            if path.resolve() in inputs or path.is_dir():
                self.problems.append(
                    f"{path} is {'a folder' if path.is_dir() else 'one of the inputs'} and would be"
                    " overwritten: choose another out path"
                )
            elif os.path.lexists(path) and not force:
                self.problems.append(f"{path} is there already: choose another out path, or force")
        if self.given.parts and os.path.lexists(self.assembled):
            self.problems.append(
                f"{self.assembled} is there already: choose another out path, or delete it"
            )
        folders = [*([self.given.model] if self.given.model else []), *self.given.parts.values()]
        if any(self.out.resolve().is_relative_to(folder.resolve()) for folder in folders):
            self.problems.append(
                f"{self.out} lies inside the model, whose hash is part of the suite: choose another"
                " out path"
            )

    def csv(self, rows: Iterable[Row]) -> str:
        """Prompts in the columns that a suite reads, with `split` as the role."""
        stream = io.StringIO(newline="")
        writer = csv.writer(stream)
        writer.writerow(["id", "prompt", "group", "reference", "split"])
        writer.writerows(
            [row.id, row.prompt, row.group, "|".join(map(self.written, row.references)), row.role]
            for row in rows
        )
        return stream.getvalue()


def _begins_as_pickle(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(1) == b"\x80"
