import sys

from bench.base.source import bare_code, code_of

CODE = '''"""What it is."""
from made_up_methods._helper import twice  # why


class A:
    """Words."""

    x = "# no comment"

    def f(self):
        """More
        words."""
        return twice(self.x)  # because
'''


def test_comments_docstrings_and_empty_lines_are_no_code():
    assert bare_code(CODE) == (
        "from made_up_methods._helper import twice\n"
        "class A:\n"
        '    x = "# no comment"\n'
        "    def f(self):\n"
        "        return twice(self.x)"
    )


def test_the_families_that_a_method_works_on_are_no_code():
    declared = CODE.replace(
        '    x = "# no comment"\n',
        '    x = "# no comment"\n    families: ClassVar = (\n        "sd",\n    )\n',
    )
    assert "families" in declared and bare_code(declared) == bare_code(CODE)
    assert bare_code("families: int = 3\n") == "families: int = 3"


def test_code_changes_with_a_helper_and_not_with_its_comments(tmp_path, monkeypatch):
    package = tmp_path / "made_up_methods"
    package.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text(CODE)

    def now(helper):
        (package / "_helper.py").write_text(helper)
        code_of.cache_clear()
        return code_of("made_up_methods.a")

    first = now("def twice(x):\n    return x + x\n")
    assert now("def twice(x):\n    # sum\n\n    return x + x\n") == first
    assert now("def twice(x):\n    return 2 * x\n") != first
    sys.modules.pop("made_up_methods", None)
    code_of.cache_clear()
