"""Options that mean nothing beside others are refused and not passed over in silence."""

import pytest

from conftest import bench


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "detect --detector plaplace --picture /nope --dry-run --store s --out o",
            "leave --dry-run, --out, --store out",
        ),
        ("detect --detector plaplace --picture /nope --dry-run", "leave --dry-run out"),
        (
            "finetune --model m --data d --duplicate 1 --times 2 --no-train --no-attack",
            "leave nothing to do",
        ),
        (
            "finetune --model m --data d --duplicate 1 --times 2 --no-attack --save s.json",
            "--save is for the result of the attack",
        ),
        ("sweep wanda --values ,", "names no strength: give numbers separated by commas"),
        ("analyze subsets --sizes , --dry-run", "whole numbers separated by commas, not ','"),
        ("testbed info --sheets s", "--sheets shows what --measure generates"),
    ],
)
def test_it_is_one_line(words, says):
    done = bench(*words.split())
    assert done.returncode == 2
    assert says in done.stderr and done.stderr.count("\n") == 1
