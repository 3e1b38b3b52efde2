"""The one reader of folders of captioned pictures, in the layouts that training scripts take.

listed     metadata.csv or metadata.jsonl (file_name, text), as Hugging Face's imagefolder
beside     NAME.txt or NAME.caption beside each picture
kohya      folders `N_words`, whose pictures are repeated N times and are called `words` where no
           file gives a caption (kohya-ss/sd-scripts)
instance   one prompt for all pictures (DreamBooth)
tar        *.tar whose members of equal stems belong together (WebDataset)

Whatever would have to be guessed is refused in one line that names the file: a training script may
pass over a picture in silence, and a picture that is passed over here would never be looked for.
"""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from PIL import Image, ImageOps

from bench.base.errors import UserError, is_whole, one_line, visible
from bench.base.files import read_regular_file
from bench.base.pictures import MAX_BYTES, BadPicture, decode_image, has_picture_suffix
from bench.base.prompt_lists import read_list

Layout = Literal["listed", "beside", "kohya", "instance", "tar"]
METADATA = ("metadata.csv", "metadata.jsonl")
CAPTIONS = (".txt", ".caption")
UNREAD = (
    ".avif",
    ".jxl",
    ".heic",
    ".heif",
)  # pictures to others; passing them over would hide them
REPEATED = re.compile(r"([0-9]+)_(.*)")
MEMBERS = 1_000_000  # of one archive
TEXT_BYTES = 2**20  # of a file of captions


@dataclass(frozen=True)
class Captioned:
    """One training picture: its path inside the folder, its captions (the first one counts, further
    ones are alternatives; none where it has none), how often it is shown in an epoch, and what its
    folder calls it.
    """

    name: str
    captions: tuple[str, ...]
    read: Callable[[], bytes] = field(compare=False, repr=False)
    repeats: int = 1
    words: str = ""

    @property
    def caption(self) -> str:
        """The first caption; the empty one where there is none."""
        return self.captions[0] if self.captions else ""

    def image(self) -> Image.Image:
        """The picture as an RGB image, upright: turned as its EXIF mark says, as the scripts that
        train do.

        Raises `UserError`, which names the picture, where it cannot be read.
        """
        try:
            image, _ = decode_image(self.read())
            return ImageOps.exif_transpose(image)
        except (OSError, BadPicture, ValueError) as error:
            raise UserError(
                f"picture {visible(self.name)} cannot be read: {one_line(error)[:160]}"
            ) from error


@dataclass(frozen=True)
class CaptionedFolder:
    """The pictures of a folder, sorted by name, and the layout that it has."""

    folder: Path
    layout: Layout
    pictures: tuple[Captioned, ...]


def read_folder(
    folder: Path,
    *,
    caption_column: str = "text",
    instance_prompt: str | None = None,
    layouts: Sequence[Layout] = ("listed", "beside", "kohya", "instance", "tar"),
    every_picture: bool = True,
) -> CaptionedFolder:
    """Every picture of a folder with its captions.

    `caption_column` is that of a metadata file. `instance_prompt` is the caption of every picture,
    whatever stands beside it or whatever its folder is called. Of `layouts` the first that the
    folder has is taken, in the order of this module's list. Without `every_picture` a metadata file
    may leave pictures out. Pictures are not decoded yet.

    Raises `UserError` where the folder is missing or holds no picture, for what a layout leaves
    open, for a picture in a format that is not read, and for names and captions that are not valid
    Unicode.
    """
    if not folder.is_dir():
        raise UserError(f"data folder {folder} is not there")
    layout, found = _found(folder, caption_column, instance_prompt, layouts, every_picture)
    if not found:
        raise UserError(
            f"{folder} holds no captioned pictures: give a metadata.csv (file_name,"
            f" {caption_column}), a metadata.jsonl, or NAME.txt beside each picture"
        )
    for one in found:
        if not is_whole(one.name):
            raise UserError(
                f"picture {visible(one.name)}: the name is not valid Unicode, which no list can"
                " hold; rename it"
            )
        if not all(map(is_whole, one.captions)):
            raise UserError(
                f"picture {visible(one.name)}: its caption holds half a character (a lone"
                " surrogate)"
            )
    return CaptionedFolder(folder, layout, tuple(sorted(found, key=lambda one: one.name)))


def _found(
    folder: Path,
    caption_column: str,
    instance_prompt: str | None,
    layouts: Sequence[Layout],
    every_picture: bool,
) -> tuple[Layout, list[Captioned]]:
    lists = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(lists) > 1:
        raise UserError(f"{folder} holds both {' and '.join(METADATA)}; keep one")
    if lists and instance_prompt is not None:
        raise UserError(
            f"{lists[0]} has captions, and an instance prompt was given: leave one of them out"
        )
    if lists:
        return "listed", _listed(folder, lists[0], caption_column, every_picture)
    shown = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    inner = [path for path in shown if path.is_dir()]
    archives = [path for path in shown if path.suffix.lower() == ".tar"]
    loose = _pictures_in(folder)
    layout: Layout
    if "kohya" in layouts and any(_pictures_below(path) for path in inner):
        layout, found = "kohya", _kohya(folder, inner, loose, archives)
    elif "tar" in layouts and archives:
        if loose:
            raise UserError(
                f"picture {visible(loose[0].name)} lies beside {visible(archives[0].name)}: which"
                " of them is the training data? Move one of them away"
            )
        layout, found = "tar", [one for path in archives for one in _of_archive(path)]
    else:
        layout = "beside"
        found = [Captioned(path.name, _captions_of(path), _reader(path)) for path in loose]
    if instance_prompt is None:
        return layout, found
    given = (instance_prompt.strip(),) if instance_prompt.strip() else ()
    return "instance", [
        Captioned(one.name, given, one.read, one.repeats, one.words) for one in found
    ]


def _listed(folder: Path, file: Path, column: str, every_picture: bool) -> list[Captioned]:
    """What a metadata file names. Raises `UserError` for rows without a file, pictures without a
    row and names that lead out of the folder.
    """
    listed = read_list(file, "csv" if file.suffix == ".csv" else "jsonl")
    if listed.rows and not {"file_name", column} <= set(listed.columns):
        raise UserError(
            f"{file} has not both file_name and {visible(column)} (it has:"
            f" {visible(', '.join(listed.columns)) or 'none'})"
        )
    found: dict[str, Captioned] = {}
    absent: list[str] = []
    for row in listed.rows:
        name, caption = row.text("file_name").strip(), row.text(column).strip()
        inside = PurePosixPath(name.replace("\\", "/"))
        if not name or inside.is_absolute() or ".." in inside.parts or "|" in name:
            raise UserError(
                f"{file}, line {row.line}: '{visible(name)}' is no path inside the folder (and '|'"
                " is not allowed in it)"
            )
        path = folder / inside
        if str(inside) in found:
            raise UserError(f"{file} names picture {visible(name)} twice")
        if not path.is_file():
            absent.append(f"line {row.line}: picture {visible(name)} is missing")
            continue
        found[str(inside)] = Captioned(str(inside), (caption,) if caption else (), _reader(path))
    if absent:
        more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
        raise UserError(f"{file}, {absent[0]}{more}")
    present = {str(PurePosixPath(p.relative_to(folder))) for p in _pictures_below(folder)}
    if every_picture and found and (left := sorted(present - set(found))):
        more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
        raise UserError(f"{file} has no row for picture {visible(left[0])}{more}")
    return list(found.values())


def _kohya(
    folder: Path, inner: Sequence[Path], loose: Sequence[Path], archives: Sequence[Path]
) -> list[Captioned]:
    """Pictures of folders `N_words`. A folder of pictures without a number is an error, and so are
    pictures in folders of such a folder: kohya's scripts ignore them in silence.
    """
    if others := [*loose, *archives]:
        raise UserError(
            f"{visible(others[0].name)} lies in {folder} itself, beside folders of pictures: move"
            " it into a folder NUMBER_words, or name the folder that holds the pictures"
        )
    found: list[Captioned] = []
    for path in inner:
        pictures = _pictures_in(path)
        if deeper := sorted(set(_pictures_below(path)) - set(pictures)):
            raise UserError(
                f"picture {visible(str(deeper[0].relative_to(folder)))} lies two folders deep,"
                " where training scripts do not look: move it, or name its folder as the data"
            )
        if not pictures:
            continue
        named = REPEATED.fullmatch(path.name)
        if not named:
            raise UserError(
                f"folder {visible(path.name)} holds pictures and has no number of repeats: call it"
                f" NUMBER_words (such as 10_{visible(path.name)}), or name it alone as the data"
            )
        if not int(named[1]):
            continue  # kohya shows these zero times
        words = named[2].strip()
        for picture in pictures:
            captions = _captions_of(picture) or ((words,) if words else ())
            name = f"{path.name}/{picture.name}"
            found.append(Captioned(name, captions, _reader(picture), int(named[1]), words))
    return found


def _of_archive(archive: Path) -> Iterator[Captioned]:
    """The pictures of a tar file, in place: members of equal stems belong together."""
    try:
        with tarfile.open(archive, "r:") as opened:
            members: list[tarfile.TarInfo] = []
            for member in opened:
                if len(members) == MEMBERS:
                    raise UserError(f"{archive} has more than {MEMBERS:,} members")
                if member.isfile():
                    members.append(member)
            texts = {
                member.name: _text(opened, archive, member)
                for member in members
                if PurePosixPath(member.name).suffix.lower() in (".txt", ".json")
            }
    except (OSError, tarfile.TarError, EOFError) as error:
        raise UserError(f"{archive} is no whole tar file: {one_line(error)[:120]}") from error
    pictures = [member for member in members if _is_picture(PurePosixPath(member.name))]
    stems = Counter(_stem(member.name) for member in pictures)
    if twice := [stem for stem, count in stems.items() if count > 1]:
        raise UserError(f"{archive} holds two pictures called {visible(twice[0])}")
    for member in pictures:
        yield Captioned(
            f"{archive.name}/{member.name}",
            _captions_in(archive, texts, _stem(member.name)),
            _member_reader(archive, member.offset_data, member.size),
        )


def _stem(name: str) -> str:
    """Of a member: up to the first point of its last part, as WebDataset has it."""
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0]))


def _captions_in(archive: Path, texts: dict[str, str], stem: str) -> tuple[str, ...]:
    import json

    if (text := texts.get(f"{stem}.txt")) is not None:
        return _lines(text)
    if (text := texts.get(f"{stem}.json")) is None:
        return ()
    try:
        table = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"{archive}: {visible(stem)}.json is no valid JSON: {one_line(error)[:100]}"
        ) from error
    for key in ("text", "caption", "prompt"):
        if isinstance(table, dict) and isinstance(table.get(key), str):
            return _lines(table[key])
    return ()


def _text(opened: tarfile.TarFile, archive: Path, member: tarfile.TarInfo) -> str:
    if member.size > TEXT_BYTES or member.issparse():
        raise UserError(
            f"{archive}: {visible(member.name)} is no caption: it has {member.size:,} bytes, and"
            f" {TEXT_BYTES:,} are read"
        )
    stream = opened.extractfile(member)
    assert stream is not None  # it is a file
    try:
        return stream.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{archive}: {visible(member.name)} is no UTF-8: {one_line(error)[:80]}"
        ) from error


def _captions_of(picture: Path) -> tuple[str, ...]:
    """Those of the file beside a picture: its first line, and further lines as alternatives."""
    for suffix in CAPTIONS:
        for beside in (picture.with_suffix(suffix), picture.with_suffix(suffix.upper())):
            if beside.is_file():
                return _lines(_text_of(beside, picture.parent))
    return ()


def _text_of(file: Path, folder: Path) -> str:
    """Raises `UserError` for a link out of the folder, whose text would get into pages, and for
    what is no text of captions.
    """
    try:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise ValueError("it is a link out of the folder")
        return read_regular_file(file, TEXT_BYTES).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {one_line(error)[:120]}") from error


def _lines(text: str) -> tuple[str, ...]:
    """Its lines without the empty ones, each once."""
    return tuple(dict.fromkeys(line for raw in text.splitlines() if (line := raw.strip())))


def _is_picture(path: PurePosixPath | Path) -> bool:
    """Whether a file is a picture that is read. Raises `UserError` for formats that are not."""
    if path.suffix.lower() in UNREAD:
        raise UserError(
            f"picture {visible(str(path))} is of a format that is not read: convert it to PNG, JPEG"
            " or WebP"
        )
    return has_picture_suffix(Path(path))


def _pictures_in(folder: Path) -> list[Path]:
    """Picture files of a folder itself, sorted, without hidden ones."""
    return [
        path
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".") and path.is_file() and _is_picture(path)
    ]


def _pictures_below(folder: Path) -> list[Path]:
    """The same in folders below, without hidden ones."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
        and _is_picture(path)
    ]


def _reader(path: Path) -> Callable[[], bytes]:
    return lambda: read_regular_file(path, MAX_BYTES)


def _member_reader(archive: Path, offset: int, size: int) -> Callable[[], bytes]:
    def read() -> bytes:
        if size > MAX_BYTES:
            raise ValueError(f"it has {size:,} bytes, and {MAX_BYTES:,} are allowed")
        with archive.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)

    return read
