"""The command line: thin commands that parse, call the rooms below and print. Nothing here imports torch before it must."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from bench import finetune_cli, records_cli, run_cli, statistics_cli, suite_cli
from bench.analyze_cli import analyze
from bench.cli_options import RECORDS, STORE, Records, resumable
from bench.errors import UserError, one_line
from bench.fetch_cli import fetch
from bench.records_cli import COMMITTED, Json

app = typer.Typer(
    help="Benchmark of mitigations against memorization in text-to-image diffusion models.",
    epilog="Begin with: bench run --method none --suite testbed-quick",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
testbed = typer.Typer(help="The embedded default: how it is made and what was measured on it.", no_args_is_help=True)
app.command(epilog=run_cli.EXAMPLES)(run_cli.run)
app.command(epilog="Examples:  bench fetch --suite sd14-mem500 --dry-run   |   bench fetch --suite sd14-mem500 --local sd14=./stable-diffusion-v1-4")(fetch)
app.add_typer(testbed, name="testbed")
app.add_typer(analyze, name="analyze")
app.add_typer(suite_cli.suite, name="suite")
app.command(epilog="Example:  bench finetune --model ./pipeline --data ./pictures --duplicate 100 --times 50 --sscd sscd.torchscript.pt")(finetune_cli.finetune)
testbed.command(epilog="Example:  bench testbed scenes --out scenes --count 160 --seed 1")(finetune_cli.scenes)
app.command(epilog="Example:  bench compare runs/records/testbed/none/0123456789ab.json runs/records/testbed/wanda/ba9876543210.json")(records_cli.compare)
app.command(epilog="Example:  bench report runs/records/testbed/wanda/ba9876543210.json --out wanda.html")(records_cli.report)
app.command(epilog="Example:  bench submit theirs.json --store their-store")(records_cli.submit)
app.command(epilog="Example:  bench verify leaderboards/records/testbed-quick/none/0123456789ab.json --prompts 4")(records_cli.verify)
app.command(epilog=statistics_cli.EXAMPLE)(statistics_cli.statistics)


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    if debug:
        os.environ["BENCH_DEBUG"] = "1"


@app.command(epilog="Example:  bench tune wen --grid quantile=0.05,0.5,0.95 --suite testbed")
def tune(
    method: Annotated[str, typer.Argument(help="A name from `bench list methods`, or a Python file.")],
    grid: Annotated[list[str], typer.Option("--grid", help="name=value,value,... May be repeated: every combination is tried.")],
    suite: Annotated[str, typer.Option("--suite", help="A name from `bench list suites`, or a TOML file.")] = "testbed",
    out: Annotated[Path | None, typer.Option(help="Where the result goes; leaderboards/tuning/<suite>/<method>.json by default.")] = None,
    work: Annotated[Path, typer.Option(help="Where images and records of the settings are kept, to go on after an interruption.")] = Path("runs/tuning"),
    tolerance: Annotated[float, typer.Option(min=0, help="How far the CLIP score of clean prompts may fall below that of `none`.")] = 0.02,
    tolerance_fit: Annotated[float, typer.Option(min=0, help="The same on fit prompts, whose copies show all that was asked for.")] = 0.15,
    clean: Annotated[int, typer.Option(min=1, help="Clean prompts that alignment is measured on.")] = 48,
    images: Annotated[int, typer.Option(min=1, help="Images a fit prompt.")] = 4,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; the GPU by default where there is one.")] = None,
    as_json: Json = False,
) -> None:
    """Choose parameters on fit prompts only: the lowest SSCD that keeps alignment. Held-out prompts are never sampled."""
    from bench.suite import load_suite

    chosen = load_suite(suite)
    from bench import registry, tuning
    from bench.model import pick_device
    from bench.progress import reporter

    settings, allowed = tuning.parse_grid(grid), {tuning.ALIGNMENT: tolerance_fit, tuning.CLEAN_ALIGNMENT: tolerance}
    entry = registry.find("method", method)
    with reporter() as report, resumable():
        result = tuning.tune(chosen, method, settings, work, pick_device(device), allowed, clean, images, report)
    path = out or COMMITTED.parent / "tuning" / chosen.name / f"{entry.name}.json"
    result.save(path)
    print(result.model_dump_json(indent=1) if as_json else tuning.text(result))
    print(f"tuning: {path}", file=sys.stderr if as_json else sys.stdout)


@app.command(epilog="Example:  bench calibrate clique_extraction --suite testbed")
def calibrate(
    attack: Annotated[str, typer.Argument(help="An attack that needs a calibration, or a Python file.")],
    suite: Annotated[str, typer.Option("--suite", help="A name from `bench list suites`, or a TOML file.")] = "testbed",
    parameter: Annotated[list[str] | None, typer.Option("-p", "--parameter", help="name=value, over the suite's. May be repeated.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the result goes; by default beside the suite file, as its `calibration` names it.")] = None,
    store: Annotated[str, typer.Option(help="Where images and features are kept: a folder, or a URL such as s3://bucket/folder.")] = STORE,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; the GPU by default where there is one.")] = None,
    as_json: Json = False,
) -> None:
    """Measure on the model without mitigation what an attack needs before it can run, such as its threshold, and write it to a file."""
    from bench.suite import load_suite

    chosen = load_suite(suite)
    from bench.calibrating import calibrate as measure
    from bench.model import pick_device
    from bench.parameters import parse_assignments
    from bench.progress import reporter

    with reporter() as report, resumable():
        path, content = measure(chosen, attack, parse_assignments(parameter or []), store, pick_device(device), out, report)
    print(json.dumps(content, indent=1) if as_json else "\n".join(f"{key}: {_short(value)}" for key, value in content.items()))
    print(f"calibration: {path}", file=sys.stderr if as_json else sys.stdout)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 160 else f"{text[:150]} ... ({len(value)} values)"


@app.command(epilog="Examples:  bench check wanda   |   bench check ./mine.py -p strength=0.3")
def check(
    name: Annotated[str, typer.Argument(help="A method, metric or attack, or a Python file that holds one.")],
    parameter: Annotated[list[str] | None, typer.Option("-p", "--parameter", help="name=value. May be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Try the contracts of a method, metric or attack on a tiny model; say which is broken, how, and what to change."""
    from bench.listing import kind_of
    from bench.parameters import parse_assignments

    values, kind = parse_assignments(parameter or []), kind_of(name)
    from bench import checks, registry

    entry = registry.find(kind, name)
    results = checks.check(entry, values)
    print(json.dumps([vars(result) for result in results], indent=1) if as_json else checks.text(results, f"{kind} {entry.name}"))
    if any(result.verdict == "broken" for result in results):
        raise typer.Exit(1)


@app.command("list")
def list_(kind: Annotated[str | None, typer.Argument(help="methods, metrics, attacks or suites; all by default.")] = None, as_json: Json = False) -> None:
    """List what can be named: methods, metrics, attacks, suites, with those of installed plug-ins and which of these are broken."""
    from bench.listing import list_names, listing_text

    found = list_names(kind)
    print(json.dumps(found, indent=1) if as_json else listing_text(found))


@app.command(epilog="Example:  bench show wanda")
def show(name: Annotated[str, typer.Argument(help="A method, metric, attack or suite.")], as_json: Json = False) -> None:
    """Show what a name stands for: its parameters with defaults, its paper, what it needs; or a suite's protocol."""
    from bench.listing import show_text

    print(show_text(name, as_json))


@app.command(epilog="Examples:  bench leaderboard   |   bench leaderboard --check   |   bench leaderboard --records runs/records --out runs/leaderboard")
def leaderboard(
    records: Records = COMMITTED,
    out: Annotated[Path, typer.Option(help="Where the tables and pages go.")] = Path("leaderboards"),
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail when what is there differs from what the records give.")] = False,
    as_json: Json = False,
) -> None:
    """Make every table and page again from the records."""
    from bench.leaderboard import check_pages, make_pages, write_pages

    readme = out.parent / "README.md"
    pages, problems = make_pages(records, readme if out.name == COMMITTED.parent.name and readme.exists() else None)
    if check:
        differences = [*problems, *check_pages(pages, out)]
        print(
            json.dumps({"pages": len(pages), "differences": differences})
            if as_json
            else "\n".join(differences) or f"{len(pages)} files agree with their records"
        )
        if differences:
            raise typer.Exit(1)
        return
    written = write_pages(pages, out)
    print(json.dumps([str(path) for path in written]) if as_json else "\n".join(str(path) for path in written))
    for problem in problems:
        print(f"bench: left out: {problem}", file=sys.stderr)
    if problems:
        raise typer.Exit(1)


@app.command(epilog="Examples:  bench doctor   |   bench doctor --suite testbed --suite ./mine.toml")
def doctor(
    suite: Annotated[list[str] | None, typer.Option("--suite", help="A name from `bench list suites`, or a TOML file; by default all names.")] = None,
    records: Records = RECORDS,
    store: Annotated[str, typer.Option(help="Folder where images and features are kept; it cannot look at one behind a URL.")] = STORE,
    as_json: Json = False,
) -> None:
    """Say in one screen what this machine can run, what is missing, and how to get it."""
    from bench.doctor import examine
    from bench.doctor_text import text

    if "://" in store:
        raise UserError(f"bench doctor looks at this machine, and {store} is elsewhere: leave --store out")
    found = examine(suite, Path(store), records)
    print(json.dumps(found.as_json(), indent=1) if as_json else text(found))
    if not found.ok:
        raise typer.Exit(1)


@testbed.command("build", epilog="Example:  bench testbed build --plan cpu")
def testbed_build(
    plan: Annotated[str, typer.Option(help="cpu (32x32, hours on two cores), gpu (64x64), tiny (minutes; memorizes nothing).")] = "cpu",
    work: Annotated[Path | None, typer.Option(help="Checkpoints and finished parts; repeat the command to go on. Default: in the cache folder.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the bundle goes; <work>/bundle by default.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Run only these stages.")] = None,
) -> None:
    """Make the testbed from scratch: data, model, scorers, reference statistics, manifest. Seeded and resumable."""
    from bench.errors import UnknownName
    from bench.model import pick_device
    from bench.testbed.build import STAGES, Workshop, default_work, run_stages
    from bench.testbed.plan import PLANS
    from bench.testbed.sprites import require_extra

    if plan not in PLANS:
        raise UnknownName("plan", plan, PLANS)
    for stage in only or ():
        if stage not in STAGES:
            raise UnknownName("stage", stage, STAGES)
    require_extra()
    folder = work or default_work()
    shop = Workshop(PLANS[plan], folder, pick_device(device), out or folder / "bundle")
    with resumable():
        run_stages(shop, tuple(only) if only else tuple(STAGES))
    print(f"bundle: {shop.bundle}")


@testbed.command("info")
def testbed_info(
    bundle: Annotated[Path | None, typer.Option(help="A bundle's folder; the embedded one by default.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure the acceptance figures again (minutes), and write them into the manifest.")] = False,
    sheets: Annotated[Path | None, typer.Option(help="With --measure: a folder for contact sheets (PNG).")] = None,
    as_json: Json = False,
) -> None:
    """Print what was measured on a bundle and whether it meets each acceptance figure."""
    from bench.testbed.bundle import BUNDLE, info_facts, info_text, read_manifest

    folder = bundle or BUNDLE
    manifest = read_manifest(folder)
    if measure:
        from bench.progress import reporter
        from bench.testbed.acceptance import measure_bundle
        from bench.testbed.sprites import require_extra

        require_extra()

        with reporter() as report:
            manifest = measure_bundle(folder, sheets, report)
    print(json.dumps(info_facts(manifest), indent=1) if as_json else info_text(manifest))


def main() -> None:
    """Entry point: an error is one line on standard error, with exit code 2 for what the user can put right."""
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        _fail(error, one_line(error), 2)
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        usage = getattr(error, "format_message", None)  # what typer raises for wrong options
        if usage is None:
            _fail(error, f"unexpected {type(error).__name__}: {one_line(error)[:300]} (bench --debug ... shows where)", 1)
        text = usage()
        if "\n" in text:  # a command group without a command: its help
            print(text)
            sys.exit(2)
        _fail(error, f"{text} (see bench --help)", 2)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(error: Exception, line: str, code: int) -> NoReturn:
    if os.environ.get("BENCH_DEBUG"):
        raise error
    print(f"bench: {line}", file=sys.stderr)
    sys.exit(code)
