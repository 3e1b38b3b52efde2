"""The entry point. It imports every module of commands, and it is the one place that turns
exceptions into lines and exit codes.

Exit codes: 0, done. 1, the command was carried out and its answer is no (a broken contract, a
difference, an asset that could not be fetched), or the benchmark itself has a fault. 2, something
that the user can put right, said in one line on standard error. 3, `bench audit --fail-above`: more
pictures come back than that. 130, stopped by Ctrl-C.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from contextlib import suppress

import typer

from bench.base.errors import UserError, one_line, visible
from bench.cli import (
    analyze,
    audit,
    calibrate,
    check,
    compare,
    detect,
    doctor,
    experiment,
    fetch,
    finetune,
    leaderboard,
    lora,
    report,
    run,
    show,
    statistics,
    submit,
    suite,
    sweep,
    testbed,
    tune,
    verify,
)
from bench.cli import list as list_
from bench.cli.app import app
from bench.cli.streams import forgiving_streams

COMMANDS = (
    analyze,
    audit,
    calibrate,
    check,
    compare,
    detect,
    doctor,
    experiment,
    fetch,
    finetune,
    leaderboard,
    list_,
    lora,
    report,
    run,
    show,
    statistics,
    submit,
    suite,
    sweep,
    testbed,
    tune,
    verify,
)
LONGEST = 300  # characters of a message that did not come from this project
DONE, NO, USER, INTERRUPTED = 0, 1, 2, 130


def main() -> None:
    """Run the command line and end the process with its exit code.

    An error is one line on standard error; with `--debug`, or BENCH_DEBUG in the environment, it
    is raised instead.
    """
    try:
        code = _carried_out()
    except KeyboardInterrupt:  # where no command is under way yet, or any more
        print("bench: interrupted", file=sys.stderr)
        code = INTERRUPTED
    sys.exit(code)


def _carried_out() -> int:
    """Carry the command out with the streams and signals that it needs; return the exit code."""
    # Nothing but `bench fetch` asks the network, and that one asks without this library.
    os.environ["HF_HUB_OFFLINE"] = "1"
    # A scheduler that ends a job sends SIGTERM: it is answered as Ctrl-C is, with whatever every
    # command does to keep its work.
    before, threads = signal.getsignal(signal.SIGTERM), set(threading.enumerate())
    with suppress(ValueError):  # not the main thread: somebody calls this from a program
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        with forgiving_streams():
            code = _run()
    finally:
        with suppress(ValueError):
            signal.signal(signal.SIGTERM, before)
    _end_in_spite_of_threads(code, threads)
    return code


def _end_in_spite_of_threads(code: int, before: set[threading.Thread]) -> None:
    """End the process at once where code of others left threads that may never end."""
    left = [
        thread.name
        for thread in threading.enumerate()
        if thread not in before and not thread.daemon
    ]
    if left and any(name.startswith("bench_file_") for name in sys.modules):
        print(f"bench: a plug-in left a thread running: {', '.join(left)}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _interrupt(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends the process at once
    raise KeyboardInterrupt


def _run() -> int:
    """Carry the command out; print at most one line about what stopped it; return the exit code."""
    try:
        _refuse_nul(sys.argv[1:])
        code = app(standalone_mode=False)
        sys.stdout.flush()  # a full disk is noticed here, while it can still be said
        return code if isinstance(code, int) else DONE
    except (Exception, SystemExit, KeyboardInterrupt) as raised:
        error = _meant(raised)
        line, code = _line_and_code(error)
        if os.environ.get("BENCH_DEBUG") and code != INTERRUPTED:
            raise
        if line:
            print(f"bench: {line}", file=sys.stderr)
        return code


def _refuse_nul(arguments: list[str]) -> None:
    """No file name and no text of a record can hold the character NUL."""
    for argument in arguments:
        if "\0" in argument:
            raise UserError(f"the argument '{visible(argument)[:LONGEST]}' holds a NUL character")


def _meant(raised: BaseException) -> BaseException:
    """The exception that a command raised, where typer put another in its place: `Abort` for an
    `EOFError`, and an exit for a broken pipe that is neither standard output nor standard error.
    """
    if isinstance(raised, typer.Abort) and isinstance(raised.__cause__, EOFError):
        return raised.__cause__
    if isinstance(raised, SystemExit) and isinstance(raised.__context__, OSError):
        return raised.__context__
    return raised


def _line_and_code(error: BaseException) -> tuple[str, int]:
    """What is said about an exception, and the exit code; an empty line says nothing."""
    if isinstance(error, UserError):
        return one_line(error), USER
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return "interrupted", INTERRUPTED
    if isinstance(error, SystemExit):
        return (
            "a plug-in or a library ended Python with"
            f" sys.exit({visible(str(error.code))[:LONGEST]}) before the command was through;"
            " what it was to do is not done (bench --debug ... shows where)",
            USER,
        )
    if usage := getattr(error, "format_message", None):  # what typer raises for wrong arguments
        if type(error).__name__ == "NoArgsIsHelpError":  # typer has printed the help already
            print(usage(), end="")
            return "", USER
        return f"{visible(usage())[:LONGEST]} (see bench --help)", USER
    if reason := _outside_reason(error):
        return reason, USER
    text = one_line(error)[:LONGEST]
    return f"unexpected {type(error).__name__}: {text} (bench --debug ... shows where)", NO


def _outside_reason(error: BaseException) -> str | None:
    """Why an exception that no room of the house expected is still the user's to put right: files,
    memory, and input that is deeper or larger than a computer reads. None for a fault of ours.
    """
    text = one_line(error)[:LONGEST]
    if isinstance(error, RecursionError):
        return (
            "something given is nested too deeply: a file, a parameter, or what a plug-in returns"
        )
    if isinstance(error, MemoryError):
        return f"there is not enough memory: {text}"
    if isinstance(error, EOFError):
        return f"a file or the standard input ends too early: {text}"
    if isinstance(error, OSError) and (error.filename is not None or error.errno in _FULL):
        places = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return visible(": ".join([error.strerror or text, *places]))[: 2 * LONGEST]
    if isinstance(error, RuntimeError) and text.startswith("Symlink loop"):
        return text
    if isinstance(error, ValueError) and "embedded null" in text:
        return "a path or a text given holds a NUL character"
    if isinstance(error, ValueError) and "integer string conversion" in text:
        return "a number given has too many digits"
    return None


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE}
