import sys

import pytest

from bench.base.errors import UserError
from bench.base.parameters import parse_assignments
from bench.registry import registry


def write(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text)
    return str(path)


def test_a_strangers_file_comes_through_the_same_door(tmp_path):
    path = write(
        tmp_path,
        "from bench import Method\n\nclass Mine(Method):\n    'Does a thing.'\n    strength: float"
        " = 0.5\n",
    )
    entry = registry.find("method", path)
    assert entry.name == "mine" and entry.summary == "Does a thing."
    assert entry.load()(strength=0.1).strength == 0.1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\n", "exactly one class derived from bench.Method; found: none"),
        ("from bench import Method\nclass A(Method): pass\nclass B(Method): pass\n", "found: A, B"),
        ("import nonsense_that_is_not_there\n", "cannot be imported: ModuleNotFoundError"),
        ("def broken(:\n", "cannot be imported: SyntaxError"),
        ("import sys\nsys.exit(0)\n", "cannot be imported: SystemExit: 0"),
        (
            "from bench import UserError\nraise UserError('no')\n",
            "cannot be imported: UserError: no",
        ),
        ("x = " + "(" * 5000 + ")" * 5000, "cannot be imported"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path, text, says):
    entry = registry.find("method", write(tmp_path, text))
    assert entry.summary is not None  # read without importing, whatever the file holds
    with pytest.raises(UserError, match=says) as error:
        entry.load()
    assert "\n" not in str(error.value)


def test_a_class_whose_look_up_ends_python_is_one_clear_line(monkeypatch):
    from types import ModuleType

    from bench.registry.plugins import Plugin

    module = ModuleType("rude_package")
    module.__getattr__ = lambda name: sys.exit(0)
    monkeypatch.setitem(sys.modules, "rude_package", module)
    plugin = Plugin("method", "rude", "1.0", "mine", "rude_package:Mine")
    with pytest.raises(UserError, match="'rude/mine' .* cannot be imported: SystemExit: 0"):
        registry.Entry("method", "rude.mine", None, None, plugin).load()


def test_a_broken_file_can_still_be_listed(tmp_path):
    assert registry.Entry("method", "x", tmp_path / "none.py", None).summary.startswith("broken:")


def test_values_of_parameters_are_read_as_toml_and_else_as_text():
    assert parse_assignments(["a=1", "b=0.5", "c=true", "d=cond", 'e="x=y"', "f=[1, 2]"]) == {
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": "cond",
        "e": "x=y",
        "f": [1, 2],
    }
    with pytest.raises(UserError, match="given twice"):
        parse_assignments(["a=1", "a=2"])


def test_every_built_in_loads_and_says_what_it_is():
    for kind in registry.KINDS:
        for name, entry in registry.entries(kind).items():
            assert entry.load().__doc__, name


def test_the_method_in_the_readme_works_and_is_none_when_neutral(tmp_path, denoiser):
    import re
    from pathlib import Path

    import torch

    from bench.contracts.method import Method
    from bench.running.sampling import sample

    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n# (milder\.py)\n(.*?)```", readme, re.DOTALL)
    (tmp_path / code[1]).write_text(code[2])
    cls = registry.find("method", str(tmp_path / code[1])).load()
    request = denoiser.request(["a fox"], [1])
    none = sample(denoiser, request, Method(), {})
    assert torch.equal(sample(denoiser, request, cls(steps=0), {}), none)
    assert not torch.equal(sample(denoiser, request, cls(steps=2), {}), none)
