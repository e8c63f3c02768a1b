"""Mutants of guestd's functions, made from their syntax trees, and which of them a set of tests lets live.

A mutant is addressed by what survives a rewrite of its text: `_seen: if false 3` is the function `_seen` with the
fourth condition in it taken for false. Nothing refers to the text or to the names of local variables.

`survivors` starts one pytest that loads this module as a plugin. It collects the tests once and forks for every mutant:
the child puts the mutant's code in the place of the function's, runs the tests until one fails, and ends.
"""

import ast
import importlib
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType

import pytest

ROOT = Path(__file__).parents[2]
# A mutant that loops for ever is ended: a test has this much processor time, and several times what it takes without.
LEAST_CPU_SECONDS, TIMES_THE_BASELINE = 1.0, 5.0
MEMORY_BYTES = 4 * 1024**3
# Conversions and constructors: without them a value has another type and the same content.
CONVERSIONS = frozenset(
    {"set", "frozenset", "tuple", "list", "dict", "str", "int", "float", "bool", "isinstance", "len"}
)
OPPOSITES = {"min": "max", "max": "min", "any": "all", "all": "any"}
# Parts of a function that say what it takes, not what it does.
DECLARATIONS = frozenset({"returns", "decorator_list", "annotation", "type_params"})
SURVIVED, KILLED, BROKEN = 0, 1, 2


@dataclass(frozen=True)
class Mutant:
    """One change of one function. `apply` makes it in the module's syntax tree, where it stays."""

    function: str
    operator: str
    index: int
    line: int
    before: str
    apply: Callable[[], None]

    def __str__(self) -> str:
        return f"{self.function}: {self.operator} {self.index}"


@dataclass(frozen=True)
class Site:
    """A node and the place where it stands, so that another can be put there."""

    node: ast.AST
    parent: ast.AST
    field: str
    place: int | None

    def put(self, *nodes: ast.AST) -> Callable[[], None]:
        """What puts these nodes in its place: one, or in a list any number."""

        def apply() -> None:
            if self.place is None:
                (node,) = nodes
                setattr(self.parent, self.field, node)
            else:
                getattr(self.parent, self.field)[self.place : self.place + 1] = nodes

        return apply


def mutants_of(tree: ast.Module) -> Iterator[Mutant]:
    """Every mutant of every function of a module, in the order of its text."""
    for name, function in _functions(tree):
        counts: dict[str, int] = {}
        for site in _sites(function):
            for operator, apply in _changes(site):
                index, line = counts.get(operator, 0), getattr(site.node, "lineno", getattr(site.parent, "lineno", 0))
                yield Mutant(name, operator, index, line, ast.unparse(site.node), apply)
                counts[operator] = index + 1


def _functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{prefix}{node.name}.")
        # What a plan is in words is no rule.
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name != "__str__":
            yield prefix + node.name, node


def _sites(parent: ast.AST) -> Iterator[Site]:
    for field, value in ast.iter_fields(parent):
        if field in DECLARATIONS or isinstance(value, ast.arguments):
            continue
        nodes = enumerate(value) if isinstance(value, list) else [(None, value)]
        for place, node in nodes:
            if isinstance(node, ast.AST):
                yield Site(node, parent, field, place)
                yield from _sites(node)


def _changes(site: Site) -> Iterator[tuple[str, Callable[[], None]]]:
    """The mutants that begin at a node, each with the name of its operator."""
    yield from _change_condition(site)
    yield from _change_value(site)
    yield from _drop(site)


def _change_condition(site: Site) -> Iterator[tuple[str, Callable[[], None]]]:
    if site.field in ("test", "guard", "ifs") and not isinstance(site.parent, ast.Assert):
        yield "if false", site.put(ast.Constant(False))
        if not isinstance(site.parent, ast.While):
            yield "if true", site.put(ast.Constant(True))
    match site.node:
        case ast.BoolOp(op, values):
            for place in range(len(values)):
                yield "operand dropped", site.put(ast.BoolOp(op, _without(values, place)))
        case ast.Return(ast.Compare() | ast.BoolOp() | ast.UnaryOp(op=ast.Not())):
            yield "true returned", site.put(ast.Return(ast.Constant(True)))
            yield "false returned", site.put(ast.Return(ast.Constant(False)))
        case ast.IfExp(test, body, orelse):
            yield "branches swapped", site.put(ast.IfExp(test, orelse, body))


def _change_value(site: Site) -> Iterator[tuple[str, Callable[[], None]]]:
    match site.node:
        case ast.Call(ast.Name(name), args, keywords) if name in OPPOSITES:
            yield "opposite called", site.put(ast.Call(ast.Name(OPPOSITES[name], ast.Load()), args, keywords))
        case ast.Call(called, [first, *_]) if _is_rule(called) and not isinstance(first, ast.Starred):
            yield "call dropped", site.put(first)
        case ast.BinOp(left, (ast.Sub() | ast.Mult() | ast.BitOr() | ast.BitAnd()) as op, right):
            yield "left alone", site.put(left)
            yield "right alone", site.put(right)
            if isinstance(op, ast.Sub):
                yield "sides swapped", site.put(ast.BinOp(right, op, left))


def _drop(site: Site) -> Iterator[tuple[str, Callable[[], None]]]:
    match site.node:
        case ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break():
            yield "statement dropped", site.put(ast.Pass())
        case ast.Expr(value) if not isinstance(value, ast.Constant):
            yield "statement dropped", site.put(ast.Pass())
        case ast.Return(value) if not isinstance(value, ast.Constant):
            yield "return dropped", site.put(ast.Pass())
        case ast.match_case() if len(getattr(site.parent, site.field)) > 1:
            yield "case dropped", site.put()


def _is_rule(called: ast.expr) -> bool:
    name = called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else "?"
    return name not in CONVERSIONS and not name[0].isupper()


def _without(values: Sequence[ast.expr], place: int) -> list[ast.expr]:
    rest = [value for number, value in enumerate(values) if number != place]
    # `or` and `and` of one value are that value.
    return rest if len(rest) > 1 else rest * 2


def survivors(modules: Sequence[str], tests: Sequence[str], directory: Path) -> dict[str, str]:
    """The mutants of these modules that these tests do not notice, each with the code that it changes.

    AssertionError when the tests fail without any.
    """
    report = directory / "mutants.json"
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "support.mutants", "--confcutdir=tests/unit"]
    environment = os.environ | {
        "HYPOTHESIS_PROFILE": "mutant",
        "PYTHONHASHSEED": "0",  # the same order of sets in every run
        "GUESTD_MUTATED": ",".join(modules),
        "GUESTD_MUTANTS_REPORT": str(report),
        "PYTHONPATH": os.pathsep.join(str(ROOT / each) for each in ("daemon", "schema", "tests", ".")),
    }
    command = [sys.executable, "-m", "pytest", *options, *tests]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, str] = json.loads(report.read_text())
    return found


def pytest_runtestloop(session: pytest.Session) -> bool:
    """Instead of running the tests once, run them for every mutant."""
    seconds = _baseline(session.items)
    # The quickest first: most mutants fail one of them.
    tests = sorted(((seconds[item.nodeid], item) for item in session.items), key=lambda test: test[0])
    running = mmap.mmap(-1, 4)  # the forks write which test they run
    found = {}
    for name in os.environ["GUESTD_MUTATED"].split(","):
        module = importlib.import_module(name)
        assert module.__file__
        tree = ast.parse(Path(module.__file__).read_text())
        for mutant in mutants_of(tree):
            status = _status(partial(_run_mutated, mutant, tree, vars(module), tests, running))
            assert status != BROKEN, f"{mutant} could not be made"
            if status == SURVIVED:
                found[f"{name.rpartition('.')[2]}.{mutant}"] = f"line {mutant.line}: {mutant.before}"
            else:  # the next mutant is mostly one of the same function
                tests.insert(0, tests.pop(int.from_bytes(running, "big")))
    Path(os.environ["GUESTD_MUTANTS_REPORT"]).write_text(json.dumps(found))
    return True


def _status(work: Callable[[], int]) -> int:
    """What `work` returns in a process of its own; KILLED when a signal ended it, BROKEN when it raised."""
    pid = os.fork()
    if pid == 0:
        status = BROKEN
        try:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
            status = work()
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else KILLED


def _run_mutated(
    mutant: Mutant,
    tree: ast.Module,
    names: Mapping[str, object],
    tests: Sequence[tuple[float, pytest.Item]],
    running: mmap.mmap,
) -> int:
    mutant.apply()
    function = _function(names, mutant.function)
    code = compile(ast.fix_missing_locations(tree), "mutant", "exec")
    function.__code__ = next(each for each in _codes(code) if each.co_qualname == mutant.function)
    for place, (seconds, item) in enumerate(tests):
        running[:] = place.to_bytes(4, "big")
        signal.setitimer(signal.ITIMER_PROF, max(LEAST_CPU_SECONDS, TIMES_THE_BASELINE * seconds))
        if not _passes(item):
            return KILLED
    return SURVIVED


def _function(names: Mapping[str, object], name: str) -> FunctionType:
    first, *rest = name.split(".")
    found = names[first]
    for each in rest:
        found = vars(found)[each]
    found = getattr(found, "fget", None) or getattr(found, "__func__", None) or found
    assert isinstance(found, FunctionType), name
    return found


def _codes(code: CodeType) -> Iterator[CodeType]:
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield each
            yield from _codes(each)


def _passes(item: pytest.Item) -> bool:
    reports = item.config.pluginmanager.getplugin("runner").runtestprotocol(item, log=False)
    return all(not report.failed for report in reports)


def _baseline(items: Sequence[pytest.Item]) -> dict[str, float]:
    """The processor time of every test without a mutant, in seconds."""
    reader, writer = os.pipe()

    def work() -> int:
        seconds = {}
        for item in items:
            before = time.process_time()
            if not _passes(item):
                sys.stderr.write(f"fails without a mutant: {item.nodeid}\n")
                return KILLED
            seconds[item.nodeid] = time.process_time() - before
        os.write(writer, json.dumps(seconds).encode())
        return SURVIVED

    status = _status(work)
    os.close(writer)
    with os.fdopen(reader, "rb") as end:
        if status != SURVIVED:
            pytest.exit("the tests fail without a mutant", returncode=1)
        found: dict[str, float] = json.loads(end.read())
        return found
