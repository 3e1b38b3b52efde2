"""Damage good inputs at random and give them to `bench`: it carries the command out or refuses it
in one line, within seconds.

    python tests/campaigns/mutations.py --count 2000
"""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
from pathlib import Path
from random import Random

from cases import from_command_line, of_the_tests
from safetensors.torch import save_file
from stage import HANGS, RUN, begun, bench, generator, report, unsound

DRY = [*RUN, "--method", "none", "--dry-run"]
FULL = [*RUN, "--method", "none", "--limit", "1"]
OTHER = ["run", "--suite", "suite/other.toml", "--method", "none", "--dry-run"]
TUNED = [*RUN, "--method", "guidance", "--tuned", "tuned/guidance.json", "--dry-run"]
BOARD = ["leaderboard", "--records", "board/records", "--out", "pages"]
SUBMITTED = ["submit", "record.json", "--suite", "suite/tiny.toml", "--out", "submitted"]
JUDGES = ("--like", "suite/tiny.toml", "--out", "audited")
PLAN = ("--model", "suite/pipeline", "--dry-run", *JUDGES)
LORA = ["audit", "--data", "pictures", "--lora", "style.safetensors", *PLAN]
SCALED = ["lora", "scale", "style.safetensors", "0.5", "--force", "--out", "kept/half.safetensors"]
FILTERED = [
    *("lora", "filter", "style.safetensors", "--model", "suite/pipeline"),
    *("--force", "--out", "kept/kept.safetensors"),
]
WORD = ["audit", "--data", "pictures", "--embedding", "zog.safetensors", *PLAN]
WHOLE = [
    *("audit", "--data", "pictures", "--model", "whole.safetensors"),
    *("--config", "suite/pipeline", "--dry-run", *JUDGES),
]
COMPARED = ["audit", "--data", "pictures", "--generations", "made", *JUDGES]
LISTED = ["audit", "--data", "listed", "--generations", "made", *JUDGES]
LINES = ["audit", "--data", "lines", "--generations", "made", *JUDGES]
PACKED = ["audit", "--data", "packed", "--generations", "made", *JUDGES]
# What is carried out before the damage, so that there is something to damage.
BEFORE = [
    [*RUN, "--method", "none"],
    [
        *("sweep", "guidance", "--values", "0.8,0.2", "--suite", "suite/tiny.toml"),
        *("--store", "store", "--work", "work", "--out", "board/sweeps/tiny/guidance.json"),
    ],
    [
        *("detect", "--detector", "wen_score", "--suite", "suite/tiny.toml"),
        *("--store", "store", "--out", "board/detections"),
    ],
    [
        *("experiment", "memorization-by-size", "--sizes", "4", "--epochs", "4", "--width", "16"),
        *("--generations", "4", "--steps", "2", "--snapshots", "1", "--held-out", "4"),
        *("--out", "trained", "--records", "board/experiments"),
    ],
    [
        *("tune", "guidance", "--grid", "share=0.5,0.8", "--suite", "suite/tiny.toml"),
        *("--clean", "2", "--images", "1", "--work", "tuning", "--out", "tuned/guidance.json"),
    ],
]
# What is damaged, and the commands that read it.
TARGETS: dict[str, list[list[str]]] = {
    "suite/tiny.toml": [DRY],
    "suite/prompts.csv": [DRY],
    "suite/clean.csv": [DRY],
    "suite/labels.json": [DRY],
    "suite/reference-3.png": [FULL],
    "suite/descriptor.safetensors": [FULL],
    "suite/features.safetensors": [FULL],
    "suite/objects.safetensors": [FULL],
    "suite/frechet_reference.npz": [FULL],
    "suite/clip/open_clip_config.json": [FULL],
    "suite/clip/open_clip_model.safetensors": [FULL],
    "suite/clip/tokenizer_config.json": [FULL],
    "suite/pipeline/model_index.json": [DRY, FULL],
    "suite/pipeline/unet/config.json": [FULL],
    "suite/pipeline/unet/diffusion_pytorch_model.safetensors": [FULL],
    "suite/pipeline/scheduler/scheduler_config.json": [FULL],
    "suite/pipeline/tokenizer/tokenizer_config.json": [FULL],
    "record.json": [["report", "record.json", "--out", "page.html"], SUBMITTED],
    "suite/other.toml": [OTHER],
    "style.safetensors": [LORA, SCALED, FILTERED],
    "zog.safetensors": [WORD],
    "whole.safetensors": [WHOLE],
    "pictures/0.png": [LORA, COMPARED],
    "pictures/1.txt": [LORA, COMPARED],
    "made/0.png": [COMPARED],
    "listed/metadata.csv": [LISTED],
    "lines/metadata.jsonl": [LINES],
    "packed/some.tar": [PACKED],
    "tuned/guidance.json": [TUNED],
    "board/sweeps/tiny/guidance.json": [BOARD],
    "board/detections/*/*.json": [BOARD],
    "board/experiments/*/*.json": [BOARD],
    "board/records/*/*/*.json": [BOARD],
}
WORDS = (b"null", b"1e999", b"-1", b"9" * 400, b"[]", b"{}", b'""', b"\x00", b"\xff\xfe", b"true")


def damaged(content: bytes, random: Random) -> bytes:
    """The content with one to three changes."""
    for _ in range(random.choice((1, 1, 2, 3))):
        size = max(1, len(content))
        start = random.randrange(size)
        end = min(size, start + random.choice((1, 1, 4, 30, 300)))
        kind = random.randrange(7)
        if kind == 0:
            content = content[:start]
        elif kind == 1:
            content = content[:start] + content[end:]
        elif kind == 2:
            content = content[:start] + random.choice(WORDS) + content[end:]
        elif kind == 3:
            content = content[:start] + random.randbytes(end - start) + content[end:]
        elif kind == 4:
            content = content[:end] + content[start:end] * random.choice((1, 50)) + content[end:]
        elif kind == 5 and content:
            flipped = content[start] ^ (1 << random.randrange(8))
            content = content[:start] + bytes([flipped]) + content[start + 1 :]
        else:
            words = content.split()
            if words:
                content = content.replace(random.choice(words), random.choice(WORDS), 1)
    return content


def _prepare(folder: Path, commands: list[list[str]]) -> None:
    """Put in place what is damaged: what commands leave, and pictures in all layouts."""
    for command in commands:
        begun(folder, command)
    (record,) = (folder / "records").rglob("*.json")
    shutil.copy(record, folder / "record.json")
    shutil.move(folder / "records", folder / "board/records")
    from bench.testbed.tiny import build_tiny_pipeline

    save_file(
        of_the_tests("one_file").ldm_state(build_tiny_pipeline()), folder / "whole.safetensors"
    )
    for name in ("listed", "lines", "made", "packed"):
        (folder / name).mkdir()
    for number in range(3):
        for name in ("listed", "lines", "made"):
            shutil.copy(folder / f"pictures/{number}.png", folder / name)
    rows = [(f"{number}.png", f"picture {number}") for number in range(3)]
    table = "".join(f"{file},{text}\n" for file, text in rows)
    (folder / "listed/metadata.csv").write_text(f"file_name,text\n{table}")
    lines = "".join(json.dumps({"file_name": file, "text": text}) + "\n" for file, text in rows)
    (folder / "lines/metadata.jsonl").write_text(lines)
    with tarfile.open(folder / "packed/some.tar", "w") as tar:
        for file in ("0.png", "0.txt", "1.png", "1.txt"):
            tar.add(folder / "pictures" / file, file)
    other = [
        *('extends = "./tiny.toml"', 'name = "other"', "[model]", "weight = 0.5", 'base = "base"'),
        *("clip_skip = 0", "chunks = 1", "[prompts.memorized]", "images_per_prompt = 3"),
        *("[attacks.noise]", "targets = 2", "images = 1"),
    ]
    (folder / "suite/other.toml").write_text("\n".join(other) + "\n")


def _clear(folder: Path) -> None:
    for left in ("store", "records", "audited", "kept", "pages", "submitted"):
        shutil.rmtree(folder / left, ignore_errors=True)


def campaign(count: int, seed: int, folder: Path) -> int:
    _prepare(folder, BEFORE)
    random, failures, tried = generator(seed), list[str](), list[list[str]]()
    for number in range(count):
        name = random.choice(list(TARGETS))
        path, command = next(folder.glob(name)), random.choice(TARGETS[name])
        if command not in tried:  # one that refuses what is whole would pass for a careful one
            tried.append(command)
            _clear(folder)
            child = bench(command, folder)
            if child.wait(10 * HANGS) != 0:
                failures.append(f"undamaged, {' '.join(command)}: {child.said()[-300:]}")
        good = path.read_bytes()
        path.write_bytes(damaged(good, random))
        _clear(folder)
        child = bench(command, folder)
        code = child.wait(HANGS)
        if code not in (0, 1, 2) or unsound(child):
            kept = Path(tempfile.gettempdir()) / f"mutation-{seed}-{number}-{path.name}"
            shutil.copy(path, kept)
            why = unsound(child) or f"exit code {code}"
            failures.append(f"{number}: {name} with {command[0]}: {why} (kept as {kept})")
        path.write_bytes(good)
    return report("mutations", count, failures)


if __name__ == "__main__":
    from_command_line(campaign, __doc__, 2000, chooses=False)
