"""Damage good inputs at random and give them to `bench`: it carries the command out or refuses it
in one line, within seconds.

    python tests/campaigns/mutations.py --count 2000
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from random import Random

from cases import from_command_line
from stage import HANGS, RUN, begun, bench, generator, report, unsound

DRY = [*RUN, "--method", "none", "--dry-run"]
FULL = [*RUN, "--method", "none", "--limit", "1"]
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
    "record.json": [["report", "record.json", "--out", "page.html"], ["submit", "record.json"]],
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


def campaign(count: int, seed: int, folder: Path) -> int:
    begun(folder, [*RUN, "--method", "none"])
    (record,) = (folder / "records").rglob("*.json")
    shutil.copy(record, folder / "record.json")
    shutil.rmtree(folder / "records")
    random, failures = generator(seed), list[str]()
    for number in range(count):
        name = random.choice(list(TARGETS))
        path, command = folder / name, random.choice(TARGETS[name])
        good = path.read_bytes()
        path.write_bytes(damaged(good, random))
        if command is FULL:
            shutil.rmtree(folder / "store", ignore_errors=True)
            shutil.rmtree(folder / "records", ignore_errors=True)
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
