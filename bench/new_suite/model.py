"""The model of a new suite: what can be known of its folder or its parts without loading weights;
and one folder made of single parts.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from bench.base.errors import UserError, visible
from bench.base.files import write_atomically
from bench.diffusion.families import STEMS, Family, family_of
from bench.new_suite.given import PARTS, PARTS_OF_XL, Checks, absolute
from bench.suite.schema import Scheduler

LARGEST_SIDE = 2**14  # pixels of a picture; more is a damaged configuration


class ModelChecks(Checks):
    """Checks of the model's folder, or of its parts: JSON files and the headers of weights."""

    folders: dict[str, Path]
    configs: Mapping[str, dict[str, Any] | None]
    family: Family = "sd"

    def check(self, weights: bool = True) -> dict[str, Any]:
        """What the JSON files and the headers of the weights say: side in pixels, prediction type,
        scheduler, number of parameters and their stored types. Where they cannot be read, problems
        are added and the facts are those of Stable Diffusion 1. Without `weights` the folder is one
        of configurations, for a checkpoint in one file.
        """
        facts: dict[str, Any] = {
            "side": 512,
            "prediction_type": "epsilon",
            "scheduler": "DDIMScheduler",
            "parameters": 0,
            "stored": [],
        }
        for part in self.given.parts:
            if part not in PARTS:
                self.problems.append(f"unknown part of a model '{part}': known: {', '.join(PARTS)}")
        index = self._model_index()
        tables = PARTS | PARTS_OF_XL if self.family == "sdxl" else PARTS
        folders = {
            part: Path(self.given.parts.get(part) or (self.given.model or Path()) / part)
            for part in tables
        }
        configs = (
            {part: self.read_json(folder / tables[part]) for part, folder in folders.items()}
            if index is not None
            else {}
        )
        if index is None or any(config is None for config in configs.values()):
            return facts
        self.folders, self.configs = folders, configs
        for folder in (folder for part, folder in folders.items() if part.startswith("tokenizer")):
            if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
                self.problems.append(f"{folder} holds neither tokenizer.json nor vocab.json")
        stored: Counter[str] = Counter()
        for part, stem in STEMS[self.family].items() if weights else ():
            for file in self._weights(folders[part], stem):
                stored += self.stored_numbers(file)
        self._check_scheduler(configs["scheduler"] or {}, facts)
        self._check_shapes(configs, facts)
        return facts | {"parameters": stored.total(), "stored": sorted(stored)}

    def _model_index(self) -> dict[str, Any] | None:
        folder = self.given.model
        if folder is None:
            return {}
        if folder.is_file():
            self.problems.append(
                f"{folder} is one file; a diffusers folder is needed (diffusers'"
                " from_single_file(...).save_pretrained(...) makes one)"
            )
            return None
        if not (folder / "model_index.json").is_file() and set(PARTS) <= set(self.given.parts):
            return {}
        index = self.read_json(folder / "model_index.json")
        if index:
            try:
                self.family = family_of(folder)
            except UserError as error:
                self.problems.append(visible(str(error)))
                return None
        if self.family == "sdxl" and self.given.parts:
            self.problems.append(
                f"{folder} is a model of Stable Diffusion XL, which is given as one folder, without"
                " --part"
            )
            return None
        for name, entry in (index or {}).items():
            named = isinstance(entry, list) and bool(entry) and entry[0] is not None
            if (
                named
                and name not in (*PARTS, *PARTS_OF_XL, "safety_checker")
                and not self.given.parts
                and not (folder / name).is_dir()
            ):
                self.problems.append(
                    f"{folder}/model_index.json names the part '{name}', whose folder is missing"
                )
        return index

    def _weights(self, folder: Path, stem: str) -> list[Path]:
        """The safetensors files of a part: one, or the shards that its index names; the fp16
        variant where only that is there.
        """
        for variant, single, index in (
            (False, f"{stem}.safetensors", f"{stem}.safetensors.index.json"),
            (True, f"{stem}.fp16.safetensors", f"{stem}.safetensors.index.fp16.json"),
        ):
            names = {single} if (folder / single).is_file() else set()
            if not names and (folder / index).is_file():
                listed = (self.read_json(folder / index) or {}).get("weight_map", {})
                names = (
                    {str(name) for name in listed.values()} if isinstance(listed, dict) else set()
                )
                if not names:
                    self.problems.append(f"{folder / index} names no shards")
                    return []
            if names:
                if variant:
                    self.notes.append(f"{folder.name} has only the fp16 variant of its weights")
                elif (folder / f"{stem}.fp16.safetensors").is_file():
                    self.notes.append(
                        f"{folder.name} also has an fp16 variant; the plain weights are used"
                    )
                return [folder / name for name in sorted(names)]
        pickles = sorted(folder.glob("*.bin"))
        why = (
            f"only {pickles[0].name}, a pickle, which is not loaded: convert it"
            if pickles
            else f"no {stem}.safetensors"
        )
        self.problems.append(f"{folder} has {why}")
        return []

    def _check_scheduler(self, config: dict[str, Any], facts: dict[str, Any]) -> None:
        if "prediction_type" not in config:
            self.notes.append(
                "the scheduler's configuration has no prediction_type; diffusers takes epsilon"
            )
        predicts, name = config.get("prediction_type", "epsilon"), str(config.get("_class_name"))
        if predicts not in ("epsilon", "v_prediction"):
            self.problems.append(
                f"the model predicts '{predicts}'; epsilon and v_prediction are supported"
            )
        facts["prediction_type"] = predicts
        if name in get_args(Scheduler):
            facts["scheduler"] = name
        else:
            self.notes.append(
                f"the model's scheduler {visible(name)} cannot stand in a suite; DDIMScheduler is"
                " written"
            )

    def _check_shapes(
        self, configs: Mapping[str, dict[str, Any] | None], facts: dict[str, Any]
    ) -> None:
        unet, vae, encoder = (configs[part] or {} for part in ("unet", "vae", "text_encoder"))
        side = self._side(unet.get("sample_size"), vae.get("block_out_channels"))
        facts["side"] = side or facts["side"]
        channels = {
            visible(str(config.get(key, 4)))[:60]
            for config, key in (
                (unet, "in_channels"),
                (unet, "out_channels"),
                (vae, "latent_channels"),
            )
        }
        if len(channels) > 1:
            self.problems.append(
                "unet and vae do not fit: in_channels, out_channels and latent_channels are"
                f" {', '.join(sorted(channels))} (an inpainting model?)"
            )
        wide, hidden = unet.get("cross_attention_dim"), encoder.get("hidden_size")
        second = (configs.get("text_encoder_2") or {}).get("hidden_size", 0)
        numbers = all(type(number) is int for number in (wide, hidden, second))
        if numbers and wide != hidden + second:
            self.problems.append(
                f"unet and text_encoder do not fit: cross_attention_dim is {wide} and hidden_size"
                f" {hidden}{f' and {second}' if second else ''}"
            )

    def _side(self, size: Any, blocks: Any) -> int | None:
        """The side of the model's pictures in pixels; None, and a problem, where it does not follow
        from the configurations. diffusers keeps the size of latents as a number or as height and
        width.
        """
        if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
            size = size[0]
        if type(size) is not int or not 1 <= size <= LARGEST_SIDE:
            self.problems.append(
                f"{self.folders['unet']}/config.json: sample_size must be a positive whole number,"
                f" or twice the same one, not {json.dumps(size)[:60]}"
            )
            return None
        if not isinstance(blocks, list) or not blocks:
            self.problems.append(
                f"{self.folders['vae']}/config.json has no block_out_channels, from which its scale"
                " factor follows"
            )
            return None
        if len(blocks) > LARGEST_SIDE.bit_length() or size << (len(blocks) - 1) > LARGEST_SIDE:
            self.problems.append(
                f"pictures of {size} latents and {len(blocks)} blocks a side have more than"
                f" {LARGEST_SIDE} pixels a side"
            )
            return None
        return size << (len(blocks) - 1)

    def assemble(self, out: Path) -> None:
        """A model folder of links to the given parts: links to files, since the hash of a folder
        does not follow links to folders.
        """
        classes: dict[str, Any] = {
            "_class_name": "StableDiffusionPipeline",
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
        }
        for part, folder in self.folders.items():
            config = self.configs[part] or {}
            architectures = config.get("architectures")
            first = architectures[0] if isinstance(architectures, list) and architectures else None
            known = {
                "tokenizer": config.get("tokenizer_class", "CLIPTokenizer"),
                "text_encoder": first or "CLIPTextModel",
            }
            classes[part] = [
                "transformers" if part in known else "diffusers",
                known.get(part) or config.get("_class_name"),
            ]
            for file in sorted(path for path in absolute(folder).rglob("*") if path.is_file()):
                link = out / part / file.relative_to(absolute(folder))
                link.parent.mkdir(parents=True, exist_ok=True)
                try:
                    link.symlink_to(file)
                except OSError:  # a system or file system without them
                    shutil.copyfile(file, link)
        write_atomically(
            out / "model_index.json",
            json.dumps(
                classes | {"requires_safety_checker": False}, indent=1, sort_keys=True
            ).encode(),
        )
