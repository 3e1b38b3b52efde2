"""Options and their groups: the names and defaults that scripts of users rely on, and how a group
becomes options and an object again.
"""

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pytest
import typer
from typer.testing import CliRunner

from bench.cli.app import PANELS, Application, app, examples
from bench.cli.main import COMMANDS
from bench.cli.options import grouped

# Every command's options as users' scripts know them: `!` is required, `*` may be repeated, `=` a
# default other than none. Add to it; take nothing away and change nothing.
OPTIONS = {
    "": "--version --debug --allow*",
    "analyze locality": (
        "--suite=testbed --members=16 --steps=50 --init=normal --picture= --images=4 --transfer=8"
        " --rounds=0 --searches=4 --method* -p/--parameter* --out --store=runs/store --device"
        " --dry-run --trust* --json"
    ),
    "analyze masks": (
        "--suite=testbed --method=wanda -p/--parameter* --subsets=10 --size --seed=0 --device --out"
        " --json"
    ),
    "analyze subsets": (
        "--suite=testbed --method=wanda -p/--parameter* --sizes* --subsets=10 --seed=0"
        " --held-out=24 --left-out=0 --images=2 --clean=32 --fid --control=True"
        " --store=runs/store --device --trust* --out --dry-run --json"
    ),
    "audit": (
        "--data! --model --lora* --epochs* --embedding* --base --config --holdout --generations"
        " --holdout-random --trigger= --caption-column=text --instance-prompt --novel --quick"
        " --images --limit=200 --weights= --remedy* --no-attack --seed=0 --like= --sscd"
        " --profile= --threshold --calibrate --steps --guidance --dtype= --batch-size --clip-skip"
        " --chunks --no-flip --buckets --random-crops --out=runs/audit --store= --fail-above"
        " --dry-run --device --trust* --json"
    ),
    "calibrate": (
        "attack! --suite=testbed -p/--parameter* --out --store=runs/store --device --trust* --json"
    ),
    "check": "name! -p/--parameter* --json",
    "compare": "a! b! --json",
    "doctor": "--suite* --records=runs/records --store=runs/store --json",
    "experiment memorization-by-size": (
        "--model --data --name --out --records=leaderboards/experiments --device --quick"
        " --dry-run --json --sizes=8,16,32,64,128 --conditioning* --seeds=1 --epochs=2000"
        " --batch-size=8 --lr=0.003 --warmup=50 --weight-decay=0.01 --ema=0.98 --width=32"
        " --predicts=v_prediction --generations=256 --steps=20 --snapshots=3 --epsilon=0.1"
        " --held-out=64 --seed=0"
    ),
    "experiment solidmark": (
        "--model --data --name --out --records=leaderboards/experiments --device --quick"
        " --dry-run --json --pictures=96 --doses=0,1,10,50 --rounds=10 --row* --method*"
        " --mark=frame --width=4 --batch-size=16 --lr=0.0004 --warmup=100 --ema=0.999 --noises=4"
        " --every=1 --steps=25 --guidance=1.0 --seed=0 --side"
    ),
    "fetch": (
        "--suite* --only* --skip* --local* --mirror* --cache --offline --login* --dry-run --check"
        " --retry-dead --workers=8 --timeout=30.0 --retries=2 --json"
    ),
    "finetune": (
        "--model! --data! --duplicate! --times! --out=runs/finetune --steps=15000 --batch-size=4"
        " --accumulate=1 --lr=1e-05 --warmup=500 --ema=0.0 --flip --precision=no"
        " --gradient-checkpointing --checkpoint-every=500 --seed=0 --method=wanda -p/--parameter*"
        " --rank=0 --fit=10 --images=50 --clique=3 --threshold=calibrated --rate=0.01"
        " --calibration-prompts=100 --clean-prompts=16 --clean --early-stop --inference-steps=50"
        " --guidance=7.5 --images-batch=8 --sscd --profile=nemo --similarity=0.7 --no-train"
        " --no-attack --save --device --trust* --json"
    ),
    "leaderboard": "--records=leaderboards/records --out=leaderboards --check --json",
    "list": "kind --json",
    "lora filter": (
        "files --out! --model --base --config --like= --drop=0.25 --rank-share=0.9 --strip-header"
        " --force --device --json"
    ),
    "lora scale": "file! weight! --out! --text-weight --strip-header --force --json",
    "report": "record! --out",
    "run": (
        "--method! --suite=testbed -p/--parameter* --records=runs/records --store=runs/store"
        " --device --tuned --limit --seeds=1 --executor=local --workers --address --gpus --shard"
        " --keep-images=all --dry-run --batch-size --memory --channels-last --attention=sdpa"
        " --vae-slicing --compile --tf32 --trust* --json"
    ),
    "show": "name! --json",
    "statistics": (
        "--images! --inception! --out! --side --size=299 --features --store=runs/store --device"
        " --force --trust* --json"
    ),
    "submit": "record! --store --suite --out=leaderboards/self-reported --json",
    "suite new": (
        "--model --prompts --out --images --clean --sscd --profile=nemo --threshold=0.7 --clip"
        " --clip-model= --inception --statistics --part* --name= --steps=50 --guidance=7.5"
        " --images-per-prompt=4 --seed=0 --fit=0.25 --missing=refuse --force --json"
    ),
    "detect": (
        "--detector! --suite=testbed -p/--parameter* --picture* --out=runs/detections"
        " --store=runs/store --device --dry-run --trust* --json"
    ),
    "testbed build": "--plan=cpu --work --out --device --only*",
    "testbed removal": "--bundle --out!",
    "testbed info": "--bundle --measure --sheets --json",
    "testbed scenes": "--out! --count=160 --seed=1",
    "testbed subject": (
        "--out! --rank=16 --alpha=16 --epochs=50 --save-every=10 --lr=0.001 --seed=2 --measure"
        " --dry-run --device --json"
    ),
    "sweep": (
        "method! --suite=testbed --values= -p/--parameter* --seeds=1 --out --work=runs/sweeps"
        " --store=runs/store --device --trust* --json"
    ),
    "tune": (
        "method! --grid!* --suite=testbed --out --work=runs/tuning --tolerance=0.02"
        " --tolerance-fit=0.15 --clean=48 --images=4 --device --trust* --json"
    ),
    "verify": "record! --prompts=8 --seed --suite --method --store --device --trust* --json",
}


def commands(command, path=()):
    """Every command below one by its words; the application itself as ""."""
    inner = getattr(command, "commands", {})
    if not path or not inner:
        yield " ".join(path), command
    for name, below in inner.items():
        yield from commands(below, (*path, name))


def written(parameter):
    default = (
        "" if parameter.default is None or parameter.default is False else f"={parameter.default}"
    )
    marks = "!" * parameter.required + "*" * bool(getattr(parameter, "multiple", False))
    return "/".join(parameter.opts) + marks + default


def test_every_command_keeps_the_names_and_defaults_of_its_options():
    found = {
        path: sorted(written(parameter) for parameter in command.params)
        for path, command in commands(typer.main.get_command(app))
    }
    assert found == {path: sorted(words.split()) for path, words in OPTIONS.items()}


def test_every_command_stands_in_one_panel_of_the_help_and_has_an_example():
    root = typer.main.get_command(app)
    names = [name for names in PANELS.values() for name in names]
    assert sorted(names) == sorted(root.commands) and len(names) == len(set(names))
    for path, command in commands(root):
        if path:
            assert f"bench {path}" in command.epilog, path
            first = command.help.partition("\n\n")[0]
            assert "\n" not in first.strip() and first.strip().endswith("."), path


def test_help_shows_panels_and_commands_in_the_stated_order():
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120", "TERM": "dumb"}).stdout
    listed = re.findall(r"^[│|] ([a-z]+) ", shown, re.MULTILINE)
    assert listed == [name for names in PANELS.values() for name in names]
    places = [shown.index(f" {panel} ") for panel in PANELS]
    assert places == sorted(places)


def test_there_is_one_module_for_every_command_of_the_application():
    modules = {module.__name__.rpartition(".")[2] for module in COMMANDS}
    assert modules == {name for names in PANELS.values() for name in names}


@dataclass(frozen=True)
class Paint:
    panel: ClassVar[str] = "Paint"

    colour: Annotated[str, typer.Option(help="Its colour.")]
    layers: Annotated[int, typer.Option("-l", "--layers", min=1)] = 2
    glossy: Annotated[bool, typer.Option("--glossy")] = False

    def __str__(self):
        return f"{self.layers} x {self.colour}{' glossy' * self.glossy}"


Names = Annotated[list[str] | None, typer.Option("--name")]


@dataclass(frozen=True)
class Wall:
    names: Names = None


def painting(**settings):
    tool = Application()

    @tool.command(epilog=examples("paint north --colour red"))
    @grouped
    def paint(
        side: Annotated[str, typer.Argument()], paint: Paint, wall: Wall, dry: bool = False
    ) -> None:
        """Paint a wall."""
        print(side, paint, wall.names, dry)

    return tool


def painted(*words):
    return CliRunner().invoke(painting(), list(words), env={"COLUMNS": "100", "TERM": "dumb"})


def test_a_group_becomes_options_and_comes_back_as_one_object():
    assert painted("north", "--colour", "red").stdout == "north 2 x red None False\n"
    everything = ("north", "--colour", "red", "-l", "3", "--glossy", "--name", "a", "--name", "b")
    assert painted(*everything, "--dry").stdout == "north 3 x red glossy ['a', 'b'] True\n"


def test_limits_and_required_options_of_a_group_are_those_of_its_fields():
    assert painted("north").exit_code == 2
    assert painted("north", "--colour", "red", "--layers", "0").exit_code == 2


def test_help_shows_a_group_under_the_title_that_it_states():
    shown = painted("--help").stdout
    assert shown.index(" Paint ") < shown.index("--colour") < shown.index("--glossy")
    assert "Its colour." in shown and "Paint a wall." in shown and "paint north --colour" in shown


def test_two_options_of_one_name_and_fields_that_are_no_options_are_refused():
    @dataclass(frozen=True)
    class Bare:
        colour: str = "red"

    def twice(paint: Paint, colour: str = "blue") -> None: ...

    def bare(paint) -> None: ...

    bare.__annotations__["paint"] = Bare
    with pytest.raises(TypeError, match="two options named 'colour'"):
        grouped(twice)
    with pytest.raises(TypeError, match=r"Bare\.colour is not annotated as an option"):
        grouped(bare)


def test_one_annotation_may_stand_in_several_groups():
    @dataclass(frozen=True)
    class Other:
        panel: ClassVar[str] = "Other"

        names: Names = None

    def one(wall: Wall) -> None: ...

    def other(group) -> None: ...

    other.__annotations__["group"] = Other
    grouped(other)
    grouped(one)
    (info,) = Names.__metadata__
    assert info.rich_help_panel is None


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e999"])
def test_numbers_that_are_not_finite_are_refused_by_every_command(value):
    tool = Application()

    @tool.command()
    def measure(by: Annotated[float, typer.Option()] = 1.0) -> None:
        print(by)

    done = CliRunner().invoke(tool, [f"--by={value}"])
    assert done.exit_code == 2 and "--by must be a finite number" in done.output


def test_integers_beyond_64_bits_are_refused_by_every_command():
    for command in ("--limit", "--seeds"):
        words = ["run", "--method", "none", command, "9" * 30]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 2 and f"{command} must lie between" in done.output
