"""The house rules that a program can check: layers, and what may stand in one place only.

The imports are read, not run: DESIGN's layers hold for code that no test executes as well.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TypeAlias

import pytest

PACKAGE = Path(__file__).parents[1] / "qsd_trio"

#: Import only from a smaller number, or from the own room.
LAYERS = {
    "_data": 0,
    "_version": 0,
    "errors": 0,
    "getopt": 0,
    "identifiers": 0,
    "iov": 0,
    "registry": 0,
    "trace": 0,
    "untyped": -1,
    "crypto": 1,
    "host": 1,
    "protocol": 1,
    "qapi": 1,
    "events": 2,
    "net": 2,
    "services": 2,
    "objects": 3,
    "block": 4,
    "chardevs": 4,
    "exports": 5,
    "jobs": 5,
    "daemon": 6,
    "commands": 7,
    "monitor": 8,
    "api": 9,
    "options": 9,
    "__init__": 10,
    "cli": 10,
    "testing": 10,
    "__main__": 11,
}

#: (importing file, imported room): reason. Each must still be needed.
EXCEPTIONS: dict[tuple[str, str], str] = {}

#: Modules of dependencies that start with an underscore are theirs to change.
PRIVATE = re.compile(r"(^|\.)_(?!_)")

Rule: TypeAlias = Callable[[ast.AST], bool]


@cache
def sources() -> dict[str, ast.Module]:
    """Parse the package: path relative to it -> tree."""
    return {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(), str(path))
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def room(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


def imported(path: str, tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield each imported module's full name, `if TYPE_CHECKING` and functions' imports included."""
    parts = ["qsd_trio", *path.removesuffix(".py").split("/")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parts[: len(parts) - node.level]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            if module == "qsd_trio":  # from qsd_trio import x: x may be a module
                for alias in node.names:
                    yield f"qsd_trio.{alias.name}", node.lineno
            else:
                yield module, node.lineno


def offences(path: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield (imported room, message) for imports against the layers."""
    own = room(path)
    for module, line in imported(path, tree):
        if module.split(".")[0] != "qsd_trio":
            continue
        names = module.split(".")
        other = names[1] if len(names) > 1 and names[1] in LAYERS else "__init__"
        if other != own and LAYERS[other] >= LAYERS[own]:
            yield other, f"qsd_trio/{path}:{line} imports {module}"


def test_every_room_has_a_layer() -> None:
    found = {room(path) for path in sources()}
    assert found <= LAYERS.keys(), "say in LAYERS where the new room stands"


def test_imports_go_down() -> None:
    wrong = [
        text
        for path, tree in sources().items()
        for other, text in offences(path, tree)
        if (path, other) not in EXCEPTIONS
    ]
    assert wrong == []


def test_exceptions_are_still_needed() -> None:
    needed = {
        (path, other) for path, tree in sources().items() for other, _ in offences(path, tree)
    }
    assert EXCEPTIONS.keys() <= needed


def test_protocol_and_crypto_and_qapi_do_no_io() -> None:
    wrong = [
        f"qsd_trio/{path}:{line} imports {module}"
        for path, tree in sources().items()
        if room(path) in ("protocol", "crypto", "qapi")
        for module, line in imported(path, tree)
        if module.split(".")[0] in ("trio", "trio_util", "socket", "asyncio", "threading")
    ]
    assert wrong == []


def test_no_private_module_of_a_dependency() -> None:
    wrong = [
        f"qsd_trio/{path}:{line} imports {module}"
        for path, tree in sources().items()
        for module, line in imported(path, tree)
        if module.split(".")[0] not in ("qsd_trio", "__future__", "_typeshed")
        and PRIVATE.search(module)
    ]
    assert wrong == []


def _names(node: ast.AST) -> set[str]:
    """Return the bare names of an except clause's type, tuples taken apart."""
    found = node.elts if isinstance(node, ast.Tuple) else [node]
    return {item.id for item in found if isinstance(item, ast.Name)}


def _catches_everything(node: ast.AST) -> bool:
    if not isinstance(node, ast.ExceptHandler):
        return False
    if node.type is None:
        caught = {"BaseException"}
    else:
        caught = _names(node.type) & {"Exception", "BaseException"}
    if caught == {"BaseException"}:
        # Cleaning up and raising on is no catch; neither is ending a forked process.
        return not any(
            (isinstance(inner, ast.Raise) and inner.exc is None)
            or (isinstance(inner, ast.Expr) and ast.unparse(inner).startswith("os._exit("))
            for inner in node.body
        )
    return bool(caught)


def _attribute(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in names


def _dotted(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Attribute) and ast.unparse(node) in names


def _calls(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names


def _imports(node: ast.AST, *modules: str) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.split(".")[0] in modules for alias in node.names)
    return isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in modules


def _stores_nursery(node: ast.AST) -> bool:
    """See `self.x = nursery`, and an attribute declared as a nursery."""
    match node:
        case ast.Assign(targets=targets, value=ast.Name(id=name)) if "nursery" in name:
            return any(isinstance(target, ast.Attribute) for target in targets)
        case ast.AnnAssign(annotation=annotation, target=ast.Attribute()):
            return "Nursery" in ast.unparse(annotation)
        case ast.ClassDef(body=body):
            return any(
                isinstance(item, ast.AnnAssign) and "trio.Nursery" in ast.unparse(item.annotation)
                for item in body
            )
        case _:
            return False


#: What: (where it may stand, how it is recognised).
ONLY_IN: dict[str, tuple[tuple[str, ...], Rule]] = {
    "a catch-all": (("services.py",), _catches_everything),
    "a stored nursery": (("services.py",), _stores_nursery),
    "threads": (
        ("host/",),
        lambda node: (
            _attribute(node, "to_thread", "start_thread_soon", "from_thread")
            or _imports(node, "threading", "concurrent")
        ),
    ),
    "ctypes, ioctl": (
        ("host/",),
        lambda node: (
            _imports(node, "ctypes")
            or _dotted(node, "fcntl.ioctl", "fcntl.fcntl")
            or (isinstance(node, ast.ImportFrom) and node.module == "fcntl")
        ),
    ),
    "sys.exit, os._exit": (
        ("cli.py", "__main__.py", "host/daemonize.py"),
        lambda node: _dotted(node, "sys.exit", "os._exit") or _calls(node, "exit", "quit"),
    ),
    "print": (("cli.py", "__main__.py"), lambda node: _calls(node, "print")),
    "signals": (
        ("cli.py", "__main__.py"),
        lambda node: _dotted(node, "signal.signal", "trio.open_signal_receiver"),
    ),
}


@pytest.mark.parametrize("what", ONLY_IN)
def test_only_in_one_place(what: str) -> None:
    places, rule = ONLY_IN[what]
    wrong = [
        f"qsd_trio/{path}:{getattr(node, 'lineno', 0)}: {what}"
        for path, tree in sources().items()
        if not path.startswith(places)
        for node in ast.walk(tree)
        if rule(node)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("a catch-all", "try:\n  pass\nexcept (OSError, Exception):\n  pass"),
        ("a catch-all", "try:\n  pass\nexcept:\n  pass"),
        ("a stored nursery", "self.x = nursery"),
        ("a stored nursery", "class A:\n  tasks: trio.Nursery"),
        ("threads", "await trio.to_thread.run_sync(f)"),
        ("threads", "import threading"),
        ("ctypes, ioctl", "from fcntl import ioctl"),
        ("sys.exit, os._exit", "os._exit(0)"),
        ("print", "print()"),
        ("signals", "trio.open_signal_receiver(2)"),
    ],
)
def test_the_rules_see_what_they_forbid(what: str, code: str) -> None:
    _, rule = ONLY_IN[what]
    assert any(rule(node) for node in ast.walk(ast.parse(code)))


def test_cleaning_up_is_no_catch_all() -> None:
    tree = ast.parse("try:\n  pass\nexcept BaseException:\n  x()\n  raise")
    assert not any(_catches_everything(node) for node in ast.walk(tree))


#: Lines; from 600 on a file's owner looks for the pure part to pull out.
MAX_LINES = 700
GENERATED = ("qapi/_tables.py",)


def test_files_keep_their_size() -> None:
    long = {
        path: lines
        for path in sources()
        if (lines := len((PACKAGE / path).read_text().splitlines())) > MAX_LINES
        and path not in GENERATED
    }
    assert long == {}
