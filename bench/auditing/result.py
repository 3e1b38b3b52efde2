"""What an audit found, as data: for the page, for JSON, and as data frames."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.auditing.threshold import Threshold
from bench.auditing.verdicts import Share, Verdict

if TYPE_CHECKING:
    import pandas as pd

VERSION = 1
Interval = tuple[float, float]


@dataclass(frozen=True)
class Near:
    """One generation near a training picture: its prompt with kind and seed, the view of the
    picture that it is nearest to, and whether it counts as a copy. `size` is its width and height
    where it is no square of the model's side, such as `640 x 384`; `file` is its place below the
    audit's folder, for pages.
    """

    kind: str
    prompt: str
    seed: int | None
    view: str
    similarity: float
    copy: bool
    file: str = ""
    size: str = ""


@dataclass(frozen=True)
class PictureFound:
    """One training picture: what is said of it, and on what grounds.

    `copies` of `images` made with its caption copy it, `interval` is that of the share, and `limit`
    the rate above which none would have been a surprise; of generations made elsewhere, `images`
    are all of them. `by_kind` has copies and images by kind of prompt, and `of_all` counts copies
    among all images. `best` is the largest similarity of any image, `best_base` the base's;
    `similar` says that the picture is not counted, and still so near that one should look.
    """

    name: str
    caption: str
    repeats: int
    views: int | None
    group: int
    verdict: Verdict
    copies: int
    images: int
    interval: Interval | None
    limit: float | None
    by_kind: dict[str, tuple[int, int]]
    of_all: int
    best: float
    best_base: float | None
    similar: bool = False
    nearest: tuple[Near, ...] = ()
    file: str = ""

    @property
    def ease(self) -> str:
        """`about 1 in 3`, for people."""
        if not self.images or not self.copies:
            return ""
        ratio = self.images / self.copies
        return (
            "nearly always"
            if ratio < 1.2
            else f"about 1 in {ratio:.0f}"
            if ratio >= 1.75
            else ("more than half")
        )


@dataclass(frozen=True)
class KindFound:
    """One kind of prompt: how many images copy some training picture, those of the base with the
    same prompts and seeds, and how many pass for a held-out picture.
    """

    kind: str
    means: str
    prompts: int
    images: int
    copies: int
    interval: Interval
    base: int | None
    held_out: int | None


@dataclass(frozen=True)
class Row:
    """A weight, an epoch or a remedy: share of images of training captions that copy, use (0 base,
    1 the model), alignment with novel prompts, seconds an image, whether it travels with the file,
    what the curve says of it or why there is no curve to hold it against, and the command that
    writes it as a file, where one can.
    """

    name: str
    kind: str  # weight, epoch, remedy
    weight: float | None
    copies: float
    interval: Interval
    use: tuple[float, float, float] | None
    alignment: float | None
    seconds: float | None
    travels: str
    against: str = ""
    not_against: str = ""
    command: str = ""


@dataclass(frozen=True)
class AttackFound:
    """What the attacker finds who holds the file and its base, beside as many plain images."""

    name: str
    words: str
    scores: dict[str, float | None]


@dataclass(frozen=True)
class Found:
    """The whole audit."""

    model: str
    what: str
    threshold: float
    copy_threshold: Threshold  # the same with where it comes from and how often it errs
    profile: str
    images: int
    yours: Share
    base: Share | None
    held_out: Share | None
    chance: Share | None
    already: int
    by_caption: int  # pictures that come back by their own caption
    excess: tuple[float, float, float] | None
    p: float | None
    correlation: float | None
    pictures: tuple[PictureFound, ...]
    kinds: tuple[KindFound, ...]
    rows: tuple[Row, ...]
    attack: AttackFound | None
    header: dict[str, Any]
    notes: tuple[str, ...]
    not_tried: tuple[str, ...]
    settings: dict[str, Any]
    images_each: int = 0  # of each caption
    total: int = 0  # pictures in the folder
    of_model: bool = True  # not of generations that were made elsewhere
    whole: bool = False  # the model was fine-tuned as a whole, and has no LoRA file
    environment: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def answer(self) -> str:
        """One sentence: how many of the pictures come back."""
        count, total = int(self.yours.count), self.yours.total
        if not count and self.of_model:
            return (
                f"None of {total} training pictures came back, in {self.images_each}"
                f" image{'s' if self.images_each > 1 else ''} of each caption."
            )
        if not count:
            return f"None of {total} training pictures came back in {self.images:,} images."
        verb = "comes" if count == 1 else "come"
        return f"{count} of {total} training pictures {verb} back."

    @property
    def similar(self) -> int:
        """How many pictures are similar to some image and not counted."""
        return sum(one.similar for one in self.pictures)

    @property
    def given_away(self) -> float:
        """The share of pictures that this training gives away: copied, or extractable by an attack;
        what comes back from the base as well is not counted.
        """
        ours = sum(one.verdict in ("copied", "extractable") for one in self.pictures)
        return ours / len(self.pictures)

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {"version": VERSION, "answer": self.answer} | _plain(dataclasses.asdict(self))

    def frames(self) -> dict[str, pd.DataFrame]:
        """`pictures`, `nearest`, `kinds` and `rows` as data frames."""
        import pandas as pd

        facts = self.copy_threshold.facts
        pictures = [
            {key: value for key, value in dataclasses.asdict(one).items() if key != "nearest"}
            | facts
            for one in self.pictures
        ]
        nearest = [
            {"picture": one.name} | dataclasses.asdict(near)
            for one in self.pictures
            for near in one.nearest
        ]
        return {
            "pictures": pd.DataFrame(pictures),
            "nearest": pd.DataFrame(nearest),
            "kinds": pd.DataFrame([dataclasses.asdict(one) for one in self.kinds]),
            "rows": pd.DataFrame([dataclasses.asdict(one) | facts for one in self.rows]),
        }


def _plain(value: Any) -> Any:
    """JSON has no infinities: they are null."""
    return json.loads(json.dumps(value, default=_default), parse_constant=lambda _: None)


def _default(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no plain data")
