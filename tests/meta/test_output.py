"""One way out: whatever the programs print passes through two modules, which escape it.

ruff forbids print() (T20); this test forbids what would go around it.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
# Where stdout and stderr are written: lines, errors and JSON; tables; logs. And the questions that others ask a stream.
WRITERS = {"schema/gueststore/command_line.py", "daemon/guestd/cli/terminal.py", "daemon/guestd/core/log.py"}
FILES = {
    str(file.relative_to(REPOSITORY)): ast.parse(file.read_text())
    for folder in ("daemon/guestd", "schema/gueststore")
    for file in sorted((REPOSITORY / folder).glob("**/*.py"))
}
RICH = "daemon/guestd/cli/terminal.py"


def uses(tree: ast.AST) -> Iterator[str]:
    """Names of the standard streams, functions that print, and rich, except in what only the type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr", "__stdout__", "__stderr__"):
            yield ast.unparse(node)
        if isinstance(node, ast.Name) and node.id in ("print", "input"):
            yield node.id
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "rich":
            yield "rich"
        if isinstance(node, ast.Import) and any(name.name.partition(".")[0] == "rich" for name in node.names):
            yield "rich"
        yield from uses(node)


def test_only_the_writers_know_the_standard_streams() -> None:
    found = {(file, name) for file, tree in FILES.items() if file not in WRITERS for name in uses(tree)}
    assert {(file, name) for file, name in found if name.startswith(("sys.", "rich", "print", "input"))} == set()


def test_the_writers_are_in_use() -> None:
    assert {file for file in WRITERS if not list(uses(FILES[file]))} == set()
    assert "rich" in uses(FILES[RICH])
