"""How the command line ends: exit codes and lines, whatever happens to the streams, the arguments
or the code that it calls.
"""

import io
import json
import os
import subprocess
import sys
from typing import Annotated

import pytest
import typer
from rich.table import Table

from bench.base.errors import UserError
from bench.cli import main as entry
from bench.cli.app import Application

FORBIDDEN = ("torch", "numpy", "pandas", "matplotlib", "diffusers", "PIL")


def failing(error):
    tool = Application()

    @tool.command()
    def fail(number: Annotated[int, typer.Option()] = 0) -> None:
        raise error

    return tool


@pytest.fixture
def ended(monkeypatch, capsys):
    """Run `bench WORDS` in this process, with another application where one is given; return the
    exit code, standard output and standard error.
    """

    def call(*words, application=None):
        monkeypatch.setattr(sys, "argv", ["bench", *words])
        monkeypatch.delenv("BENCH_DEBUG", raising=False)
        if application is not None:
            monkeypatch.setattr(entry, "app", application)
        with pytest.raises(SystemExit) as stopped:
            entry.main()
        return (stopped.value.code, *capsys.readouterr())

    return call


def os_error(number, *names):
    return OSError(number, os.strerror(number), *names)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("the file\nis missing"), 2, "bench: the file is missing"),
        (KeyboardInterrupt(), 130, None),
        (typer.Exit(1), 1, None),
        (typer.Exit(0), 0, None),
        (SystemExit(0), 2, "bench: a plug-in or a library ended Python with sys.exit(0)"),
        (SystemExit(), 2, "sys.exit(None)"),
        (SystemExit("good\nbye"), 2, "sys.exit(good bye)"),
        (RecursionError("maximum recursion depth exceeded"), 2, "nested too deeply"),
        (MemoryError(), 2, "not enough memory"),
        (EOFError("Ran out of input"), 2, "ends too early: Ran out of input"),
        (os_error(13, "/records"), 2, "bench: Permission denied: /records"),
        (os_error(40, "loop"), 2, "bench: Too many levels of symbolic links: loop"),
        (os_error(28), 2, "bench: No space left on device"),
        (os_error(32), 1, "bench: unexpected BrokenPipeError"),
        (ValueError("embedded null byte"), 2, "NUL"),
        (RuntimeError("Symlink loop from 'a'"), 2, "bench: Symlink loop from 'a'"),
        (RuntimeError("sizes differ"), 1, "bench: unexpected RuntimeError: sizes differ"),
        (
            ValueError("Exceeds the limit (4300 digits) for integer string conversion"),
            2,
            "too many digits",
        ),
        (ZeroDivisionError("division by zero"), 1, "bench: unexpected ZeroDivisionError: division"),
    ],
)
def test_every_way_to_fail_has_its_exit_code_and_at_most_one_line(error, code, says, ended):
    found, out, err = ended(application=failing(error))
    lines = [line for line in err.splitlines() if line]
    assert (found, out) == (code, "")
    assert len(lines) <= 1 and (says is None or says in lines[0])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run\0"], r"the argument 'run\x00' holds a NUL character"),
        (["run", "--method", "none", "-p", "a=\0"], "holds a NUL character"),
        (["no\nsuch"], "No such command"),
        (["no" * 9000], "No such command"),
        (["run", "--method", "none", "--limit", "9" * 5000], "--limit"),
        (["run", "--method", "none", "--limit", "9" * 30], "--limit must lie between"),
        (["run", "--method", "none", "--memory", "inf"], "--memory must be a finite number"),
        (["fetch", "--timeout", "nan"], "--timeout"),
        (["finetune"], "Missing option"),
        (["run", "--method", "none", "--seeds", "1001"], "--seeds must be at most 1000, not 1001"),
        (["run", "--method", "none", "--suite", "x" * 5000 + ".toml"], "xxxx"),
        (["run", "--method", "none", "--suite", "\udcff.toml"], "does not exist"),
    ],
)
def test_arguments_that_nothing_can_use_are_one_short_line(words, says, ended):
    code, out, err = ended(*words)
    (line,) = filter(None, err.splitlines())
    assert (code, out) == (2, "") and says in line and len(line) < 2500


@pytest.mark.parametrize(
    "value",
    [
        "[" * 3000,
        "[" * 3000 + "]" * 3000,
        "{a=" * 3000,
        "9" * 5000,
        "inf",
        "-nan",
        "[1.0, inf]",
        "1e999",
        r'"\u0000"',
    ],
)
@pytest.mark.parametrize("command", ["run", "check", "tune"])
def test_parameter_values_that_nothing_can_use_are_one_line(command, value, ended):
    words = {
        "run": ["run", "--method", "wanda", "-p", f"sparsity={value}", "--dry-run"],
        "check": ["check", "wanda", "-p", f"sparsity={value}"],
        "tune": ["tune", "wanda", "--grid", f"sparsity={value}"],
    }[command]
    code, out, err = ended(*words)
    (line,) = filter(None, err.splitlines())
    assert (code, out) == (2, "") and "sparsity" in line and "unexpected" not in line
    assert len(line) < 2500


def python(code, *words, **settings):
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=120,
        **settings,
    )


BENCH = "import sys; from bench.cli.main import main; main()"


@pytest.mark.parametrize("words", [["--help"], ["list"], ["list", "methods"], ["list", "--json"]])
def test_help_and_list_import_no_large_library(words):
    code = (
        f"import atexit, sys\nsys.argv = ['bench', *{words!r}]\n"
        f"atexit.register(lambda: sys.stderr.write(str([m for m in {FORBIDDEN!r}"
        " if m in sys.modules])))\nfrom bench.cli.main import main\nmain()"
    )
    done = python(code, stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"[]")


def test_a_reader_that_went_away_costs_a_command_nothing():
    reading, writing = os.pipe()
    os.close(reading)
    for shared in (False, True):
        done = subprocess.run(
            [sys.executable, "-m", "bench", "list"],
            stdout=writing,
            stderr=writing if shared else subprocess.PIPE,
            timeout=120,
        )
        assert (done.returncode, done.stderr or b"") == (0, b"")
    os.close(writing)


@pytest.mark.skipif(os.name != "posix", reason="closes descriptors")
@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_streams_that_are_closed_from_the_start_cost_a_command_nothing(closed):
    def close():
        for descriptor in closed:
            os.close(descriptor)

    done = python(BENCH, "list", stdout=subprocess.PIPE, preexec_fn=close)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_file_opened_under_a_closed_stream_is_not_printed_into(tmp_path):
    code = (
        "import os, sys\nfrom bench.cli.streams import forgiving_streams\n"
        "with forgiving_streams():\n"
        f"    file = open({str(tmp_path / 'kept')!r}, 'w')\n"
        "    print('to nobody'); os.write(1, b'by a library')\n    file.write('content')\n"
    )
    done = python(code, stdout=subprocess.PIPE, preexec_fn=lambda: os.close(1))
    assert done.returncode == 0 and (tmp_path / "kept").read_text() == "content"


def test_a_terminal_that_does_not_speak_utf_8_gets_escapes():
    code = (
        "from bench.cli.streams import forgiving_streams\n"
        "with forgiving_streams():\n    print('pr\\u00fcfen \\u2026 \\udcff')"
    )
    done = python(code, stdout=subprocess.PIPE, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout) == (0, b"pr\\xfcfen \\u2026 \\udcff\n")
    listed = python(
        BENCH,
        "--help",
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "80"},
    )
    assert listed.returncode == 0 and listed.stdout.isascii()


def test_no_text_of_a_stranger_gives_a_terminal_orders():
    hostile = "a\x1b[2J\x1b]0;t\x07\r\x9b1m\u202e\tb\nc"
    shown = r"a\u001b[2J\u001b]0;t\u0007{}\u009b1m\u202e" + "\tb\nc"
    done = python(
        "import sys\nfrom bench.cli.streams import forgiving_streams\n"
        f"with forgiving_streams():\n    sys.stdout.write({hostile!r})\n"
        f"    sys.stderr.write({hostile!r})",
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    assert done.stdout == shown.format(r"\u000d").encode()
    assert done.stderr == shown.format("\r").encode()


def test_colours_and_bars_of_progress_reach_a_terminal():
    from rich.console import Console
    from rich.progress import Progress

    from bench.cli.streams import ForgivingStream

    for needed in (True, False):
        plain, guarded = io.StringIO(), io.StringIO()
        for stream in (plain, ForgivingStream(guarded, needed)):
            console = Console(file=stream, force_terminal=True, width=60, legacy_windows=False)
            console.print("[bold red]word[/]", Table("a", "b"))
            if not needed:
                with Progress(console=console, auto_refresh=False) as progress:
                    for name in ("one", "two"):
                        progress.add_task(name, total=2, completed=1)
                        progress.refresh()
        assert plain.getvalue() == guarded.getvalue() and "\x1b[" in plain.getvalue()


def test_json_with_odd_characters_means_the_same_behind_the_guard():
    from bench.cli.streams import ForgivingStream

    text, guarded = "".join(map(chr, range(0x3000))), io.StringIO()
    ForgivingStream(guarded, True).write(json.dumps(text, ensure_ascii=False))
    assert json.loads(guarded.getvalue()) == text


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")  # noqa: PTH110
def test_a_full_disk_behind_standard_output_is_one_line():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = python(BENCH, "list", stdout=full)
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert line == "bench: standard output cannot be written: No space left on device"


def test_the_help_of_a_group_without_a_command_is_all_that_is_printed(ended):
    code, out, err = ended("suite")
    assert code == 2 and "bench suite new" not in err and err == "" and " new " in out


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("    strength: Callable[[], int] = Field(print, description='d')", "cannot be shown"),
        ("    version: ClassVar = 1\n    needs: ClassVar = (3,)\n    paper: ClassVar = {1}", None),
    ],
)
def test_a_class_that_describes_itself_in_strange_ways_is_shown_or_refused(
    body, says, ended, tmp_path
):
    file = tmp_path / "strange.py"
    file.write_text(
        "from collections.abc import Callable\nfrom typing import ClassVar\n"
        "from bench import Method\nfrom pydantic import Field\n\n"
        f"class Strange(Method):\n    'Strange.'\n{body}\n"
    )
    for words in ([], ["--json"]):
        code, out, err = ended("show", str(file), *words)
        err = "".join(
            line for line in err.splitlines(keepends=True) if "running code of" not in line
        )
        if says:
            (line,) = err.splitlines()
            assert (code, out) == (2, "") and says in line
        else:
            assert (code, err) == (0, "") and "Strange." in out and "{1}" in out


def test_ctrl_c_where_no_command_is_under_way_is_one_line(monkeypatch, capsys):
    from bench.cli import main

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "forgiving_streams", interrupted)
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 130 and capsys.readouterr().err == "bench: interrupted\n"
