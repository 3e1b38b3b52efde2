"""An audit in one call, for scripts and notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.auditing.asked import Asked, parse_lora
from bench.auditing.audit import run_audit
from bench.auditing.folders import compare_folders
from bench.auditing.output import write
from bench.auditing.ready import ready
from bench.auditing.result import Found
from bench.base.progress import Report, silent
from bench.diffusion.model import pick_device


def audit(
    data: str | Path,
    out: str | Path = "runs/audit",
    *,
    loras: Sequence[str] = (),
    generations: str | Path | None = None,
    device: str | None = None,
    report: Report = silent,
    **more: Any,
) -> Found:
    """What `bench audit` finds, as data: `found.frames()` gives data frames, `found.answer` the
    sentence, `found.as_json()` everything. The page and the tables are written to `out` as well.

    `loras` are texts as `--lora` takes them, `FILE:W`. With `generations`, a folder of pictures
    made anywhere, no model is asked. `more` are the other fields of `bench.auditing.asked.Asked`:
    model, base, config, embeddings, holdout, trigger, like, images, quick, seed and so on. Raises
    `UserError` as the command line does, and `TypeError` for a field that is not known.
    """
    paths = {name: _as_path(name, value) for name, value in more.items()}
    asked = Asked(
        Path(data).expanduser(),
        Path(out).expanduser(),
        loras=tuple(parse_lora(text) for text in loras),
        **paths,
    )
    if generations is not None:
        found = compare_folders(asked, Path(generations).expanduser(), pick_device(device), report)
    else:
        found = run_audit(ready(asked, pick_device(device), report))
    write(found, asked.out)
    return found


def _as_path(name: str, value: Any) -> Any:
    """Places may be texts."""
    if name in ("epochs", "embeddings"):
        return tuple(Path(each).expanduser() for each in value)
    if name in ("model", "base", "config", "holdout", "novel", "sscd") and value is not None:
        return Path(value).expanduser()
    return value
