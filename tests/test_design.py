"""The form of the code: files and functions that can be read at once, what is imported where."""

import ast
import io
import pathlib
import tokenize

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in ("tfseg", "tfrecords_tools")
    for path in (ROOT / package).rglob("*.py")
)
MAX_LINES, MAX_FUNCTION_LINES = 600, 60
# `command_line` is the programs' side: it says what is wrong with a command line.
KNOWING_ABSL = {"tfseg/settings/flags.py", "tfseg/command_line.py"}

_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def lines_of_code(text: str) -> set[int]:
    """Returns the numbers of the lines that are no docstring, not blank and not only comment."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef, ast.Module)) and ast.get_docstring(node):
            lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def long_functions(text: str) -> dict[str, int]:
    """Returns the lengths, in lines of code, of functions that are too long."""
    code, found = lines_of_code(text), {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, _FUNCTIONS):
            length = len(code & set(range(node.lineno, node.end_lineno + 1)))
            if length > MAX_FUNCTION_LINES:
                found[node.name] = length
    return found


def test_lines_are_counted_without_docstrings_blanks_and_comments():
    function = ("def f():", '    """One.', "", '    Two."""', "    # Why.", "")
    text = "\n".join((*function, '    x = """a', "", '    b"""', "", "    return x", ""))
    assert lines_of_code(text) == {1, 7, 8, 9, 11}


@pytest.mark.parametrize("name", FILES)
def test_files_and_functions_can_be_read_at_once(name):
    text = (ROOT / name).read_text()
    assert len(text.splitlines()) <= MAX_LINES, f"split {name} by idea"
    found = long_functions(text)
    assert not found, f"more than {MAX_FUNCTION_LINES} lines of code: cut them by idea"


def test_flags_are_known_in_one_place():
    def imports_absl(name):
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module]
            if any(module.split(".")[0] == "absl" for module in modules):
                return True
        return False

    knowing = {name for name in FILES if name.startswith("tfseg/") and imports_absl(name)}
    assert knowing == KNOWING_ABSL


@pytest.mark.parametrize("folder", ["benchmarks", "experiments", "tests"])
def test_keras_2_is_selected_before_tensorflow_is_imported(folder):
    """Sorting imports would put it behind; then such a file fails when it is run by itself."""
    for path in (ROOT / folder).rglob("*.py"):
        lines = path.read_text().splitlines()
        first = [
            next((i for i, x in enumerate(lines) if x.startswith(start)), None)
            for start in ("import tfseg ", "import tensorflow")
        ]
        if None not in first:
            assert first[0] < first[1], path
