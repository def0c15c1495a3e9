"""How long things may be: a file, and what a function does."""

from __future__ import annotations

import ast

from tests.unit.test_imports import modules

FILE_LINES, FUNCTION_LINES = 400, 60


def function_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines that a function does something in: neither its parameters nor its docstring."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def too_long(name: str, source: str) -> list[str]:
    """Return a sentence about the file and each function that is too long."""
    lines = source.count("\n")
    found = [f"{name} has {lines} lines"] if lines > FILE_LINES else []
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    return found + [
        f"{name}.{function.name} has {function_lines(function)} lines"
        for function in functions
        if function_lines(function) > FUNCTION_LINES
    ]


def test_no_file_is_longer_than_400_lines_and_no_function_does_more_than_60():
    assert [found for name, path in modules().items() for found in too_long(name, path.read_text("utf-8"))] == []


def test_what_is_too_long_is_found():
    body = "    pass\n"
    assert too_long("m", f"def f():\n    '''What.'''\n{body * 60}") == []
    assert too_long("m", f"def f():\n{body * 61}") == ["m.f has 61 lines"]
    assert too_long("m", "x = 1\n" * 401) == ["m has 401 lines"]
