"""Calls in the background: their results, their errors, and that none holds up the program."""

import subprocess
import sys
import threading

import pytest

from bench.base.background import in_background


def test_a_future_gives_the_result_and_the_error_of_its_call():
    assert in_background(lambda: 3).result(10) == 3
    with pytest.raises(ZeroDivisionError):
        in_background(lambda: 1 / 0).result(10)
    with pytest.raises(SystemExit):  # a call cannot end the program either
        in_background(sys.exit).result(10)


def test_a_result_that_is_not_there_in_time_is_a_timeout():
    free = threading.Event()
    future = in_background(free.wait)
    with pytest.raises(TimeoutError):
        future.result(0.01)
    free.set()
    assert future.result(10) is True


def test_a_call_that_never_ends_does_not_hold_up_the_end_of_the_program():
    code = (
        "import threading\n"
        "from bench.base.background import in_background\n"
        "in_background(threading.Event().wait)\n"
        "print('done')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "done\n")
