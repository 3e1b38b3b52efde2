"""The commands that campaigns disturb, and what each leaves that must be the same in the end,
however it was disturbed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stage import RUN, begun, import_everything, scores_of

TINY = ["--suite", "suite/tiny.toml", "--store", "store"]
CACHE = "cache"
# What differs from one sitting to the next: how long things took, and when.
OF_THE_SITTING = {"seconds", "created", "started", "environment", "made_by"}


@dataclass(frozen=True)
class Case:
    """A command as `bench` is given it, what it leaves as a value that can be compared, and the
    names in the campaign's folder that have to go before it begins again.
    """

    name: str
    command: list[str]
    outcome: Callable[[Path], Any]
    leaves: tuple[str, ...]
    full: tuple[int, ...] = (2,)  # exit codes where the disk is full

    def clear(self, folder: Path) -> None:
        """Remove what the command left."""
        for name in self.leaves:
            shutil.rmtree(folder / name, ignore_errors=True)


def _run(method: str, *parameters: str) -> Case:
    command = [*RUN, "--method", method, *parameters]
    name = f"run {method}"
    return Case(name, command, lambda folder: scores_of(folder / "records"), ("records", "store"))


def without(value: Any, keys: set[str]) -> Any:
    """A JSON value without some keys of its objects, at any depth."""
    if isinstance(value, dict):
        return {key: without(item, keys) for key, item in value.items() if key not in keys}
    return [without(item, keys) for item in value] if isinstance(value, list) else value


def _json_of(name: str, files: str = "*.json") -> Callable[[Path], Any]:
    """The one JSON file below a folder of the campaign, without what belongs to the sitting."""

    def read(folder: Path) -> Any:
        (file,) = [path for path in (folder / name).rglob(files) if path.name[0] != "."]
        return without(json.loads(file.read_text()), OF_THE_SITTING)

    return read


def _digests_of(name: str, suffixes: tuple[str, ...]) -> Callable[[Path], Any]:
    """The digests of the files with these suffixes below a folder of the campaign, by place."""

    def read(folder: Path) -> Any:
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((folder / name).rglob("*"))
            if path.suffix in suffixes and not any(part[0] == "." for part in path.parts[1:])
        }

    return read


CASES = [
    _run("none"),
    _run("wanda", "-p", "sparsity=0.1"),
    _run("wen", "-p", "iterations=2"),
    Case(
        "sweep",
        [
            "sweep",
            "guidance",
            "--values",
            "0.8,0.2",
            *TINY,
            "--work",
            "work",
            "--out",
            "out/g.json",
        ],
        _json_of("out"),
        ("out", "work", "store"),
    ),
    Case(
        "detect",
        ["detect", "--detector", "wen_score", *TINY, "--out", "detections"],
        _json_of("detections"),
        ("detections", "store"),
    ),
    Case(
        "finetune",
        [
            *("finetune", "--model", "suite/pipeline", "--data", "pictures", "--duplicate", "2"),
            *("--times", "3", "--steps", "6", "--batch-size", "2", "--checkpoint-every", "2"),
            *("--no-attack", "--out", "finetuned"),
        ],
        _digests_of("finetuned", (".safetensors",)),
        ("finetuned",),
    ),
    Case(
        "build",
        [
            *("testbed", "build", "--plan", "tiny", "--work", "built"),
            *("--only", "tokenizer", "--only", "autoencoder"),
        ],
        _digests_of("built", (".safetensors",)),
        ("built",),
    ),
    Case("fetch", ["fetch", "--suite", "suite/far.toml"], _digests_of(CACHE, (".bin",)), (CACHE,)),
    Case(
        "audit",
        [
            *("audit", "--data", "pictures", "--lora", "style.safetensors"),
            *("--embedding", "zog.safetensors", "--model", "suite/pipeline"),
            *("--like", "suite/tiny.toml", "--steps", "2", "--images", "1", "--weights", "0.5"),
            *("--remedy", "cfg_delay", "--remedy", "wanda", "--out", "audited"),
        ],
        _json_of("audited", "audit.json"),
        ("audited",),
    ),
    Case(
        "lora filter",
        [
            *("lora", "filter", "style.safetensors", "--model", "suite/pipeline"),
            *("--force", "--out", "kept/kept.safetensors"),
        ],
        _digests_of("kept", (".safetensors",)),
        ("kept",),
    ),
    Case(
        "calibrate",
        [
            *("calibrate", "sscd", "--suite", "suite/tiny.toml", "--store", "store"),
            *("--out", "calibrated/threshold.json"),
        ],
        _json_of("calibrated"),
        ("calibrated", "store"),
    ),
    Case(
        "tune",
        [
            *("tune", "guidance", "--grid", "share=0.5,0.8", "--suite", "suite/tiny.toml"),
            *("--clean", "2", "--images", "1", "--work", "tuning", "--out", "tuned/guidance.json"),
        ],
        _json_of("tuned"),
        ("tuned", "tuning"),
    ),
    Case(
        "experiment",
        [
            *("experiment", "memorization-by-size", "--sizes", "4", "--epochs", "4"),
            *("--width", "16", "--generations", "4", "--steps", "2", "--snapshots", "1"),
            *("--held-out", "4", "--out", "trained", "--records", "experiments"),
        ],
        _json_of("experiments"),
        ("trained", "experiments"),
    ),
    Case(
        "subject",
        ["testbed", "subject", "--epochs", "1", "--save-every", "1", "--out", "subject"],
        _digests_of("subject", (".safetensors",)),
        ("subject",),
    ),
]


class Undisturbed:
    """What cases give, and in how many seconds, when nobody disturbs them; asked once each.

    `before` is called in the child that carries a case out.
    """

    def __init__(self, folder: Path, before: Callable[[Case], None] = lambda case: None) -> None:
        self.folder, self.before = folder, before
        self.known: dict[str, tuple[Any, float]] = {}

    def of(self, case: Case) -> tuple[Any, float]:
        if case.name not in self.known:
            seconds = begun(self.folder, case.command, lambda: self.before(case))
            self.known[case.name] = case.outcome(self.folder), seconds
            case.clear(self.folder)
        return self.known[case.name]


def of_the_tests(name: str) -> Any:
    """A module of the tests, by its place: were their folder on the path, the folders of tests
    would be taken for the packages whose names they bear.
    """
    place = Path(__file__).parents[1] / f"{name}.py"
    found = importlib.util.spec_from_file_location(name, place)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _write_fine_tuning(folder: Path) -> None:
    """A LoRA and a textual inversion of the tiny model."""
    import torch
    from safetensors.torch import save_file

    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    drawn = torch.Generator().manual_seed(0)
    tensors = {
        f"{layer}.lora_up.weight": torch.randn(16, 2, generator=drawn),
        f"{layer}.lora_down.weight": torch.randn(2, 16, generator=drawn),
        f"{layer}.alpha": torch.tensor(2.0),
    }
    header = {"ss_network_alpha": "2", "ss_resolution": "(32, 32)", "ss_clip_skip": "1"}
    save_file(tensors, folder / "style.safetensors", header)
    save_file({"zog": torch.randn(2, 32, generator=drawn)}, folder / "zog.safetensors")


@contextmanager
def stage_set(folder: Path) -> Iterator[None]:
    """Put in place what the cases read beside the tiny suite: captioned pictures, a fine-tuning,
    and a suite whose files a server of this campaign has.
    """
    import numpy as np

    from bench.base.pictures import encode_png
    from bench.testbed.tiny import build_tiny_suite

    site = of_the_tests("local_site")
    build_tiny_suite(folder / "suite")
    (folder / "pictures").mkdir()
    for number in range(6):
        grey = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        (folder / f"pictures/{number}.png").write_bytes(encode_png(grey))
        (folder / f"pictures/{number}.txt").write_text(f"picture {number}")
    _write_fine_tuning(folder)
    with site.Site() as server:
        lines = ['extends = "./tiny.toml"', 'name = "far"']
        lines += [f'[prompts.{role}]\nfile = "asset:far0"' for role in ("quality", "control")]
        lines += ['[metrics.sscd]\nweights = "asset:far1"', '[metrics.fid]\nweights = "asset:far2"']
        for number in range(3):
            body = random.Random(number).randbytes(400_000)
            server.files[f"{number}.bin"] = body
            lines += [
                f"[assets.far{number}]",
                f'path = "far/{number}.bin"',
                f'urls = ["{server.url(f"{number}.bin")}"]',
                f'sha256 = "{site.sha256(body)}"',
            ]
        (folder / "suite/far.toml").write_text("\n".join(lines) + "\n")
        yield


def from_command_line(
    campaign: Callable[..., int], about: str, count: int, *, chooses: bool = True
) -> None:
    """Carry a campaign out as `--count` and `--seed` say, and end with its exit code. One that
    chooses among the cases gets those that `--only` leaves, as its last argument.
    """
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    if chooses:
        names = [case.name for case in CASES]
        parser.add_argument("--only", action="append", choices=names, help="may be repeated")
    given = parser.parse_args()
    with on_stage() as folder:
        cases = [case for case in CASES if chooses and case.name in (given.only or names)]
        sys.exit(campaign(given.count, given.seed, folder, *([cases] if chooses else [])))


@contextmanager
def on_stage() -> Iterator[Path]:
    """A folder with everything that a campaign reads, for as long as it lasts."""
    import_everything()
    from bench.assets import addresses

    # The server of the campaign stands on this machine, where `bench fetch` asks for nothing.
    addresses.is_private = lambda host: False
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ |= {
            "BENCH_CACHE": str(folder / CACHE),
            "BENCH_ALLOW": str(folder),  # an audit's suites lie in its own folder
            "no_proxy": "127.0.0.1",
        }
        with stage_set(folder):
            yield folder
