"""What a built-in's code says, apart from comments, docstrings and layout: a key of what it made.

So an edit of a method makes its images anew, and a better comment does not; nor does it to say of
one more kind of models that it works on them.
"""

from __future__ import annotations

import ast
import io
import tokenize
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from bench.base.digests import digest_of

# Of a class: the families of models that it works on, and whether it does on prompts in chunks.
DECLARED = ("families", "in_chunks")


@cache
def code_of(module: str) -> str:
    """A digest of the code of a module and of all that it imports from its own top-level package,
    with whatever these import from it.
    """
    package, found, waiting = module.partition(".")[0], dict[str, str](), [module]
    while waiting:
        name = waiting.pop()
        spec = find_spec(name)
        if name in found or spec is None or not spec.origin:
            continue
        text = Path(spec.origin).read_text(encoding="utf-8")
        found[name] = bare_code(text)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module:
                waiting.append(node.module)
            elif isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names]
        waiting = [name for name in waiting if name.partition(".")[0] == package]
    return digest_of(sorted(found.items()))


def bare_code(text: str) -> str:
    """Python source without comments, docstrings, what a class declares of the models that it works
    on (`DECLARED`), and empty lines.
    """
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for declared in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(declared, ast.AnnAssign) and ast.unparse(declared.target) in DECLARED:
                for row in range(declared.lineno - 1, declared.end_lineno or declared.lineno):
                    lines[row] = ""
        first = node.body[0] if node.body else None
        if (
            isinstance(first, ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
        ):
            for row in range(first.lineno - 1, first.end_lineno or first.lineno):
                lines[row] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())
