"""Make schemas/*.json from the manual page, and the files of qsd_trio/qapi from schemas/.

python tools/gen_qapi.py [--check] [--page FILE]

Without the manual page (Debian package qemu-system-common) schemas/*.json stay as they are. --check writes nothing
and exits 1 where a file is stale.
"""

from __future__ import annotations

import argparse
import difflib
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from qsd_trio.qapi._schema import build_schema  # noqa: E402  # the checkout's, installed or not
from tools.qapi.corrections import correct  # noqa: E402
from tools.qapi.emit import collect, emit_stub, emit_tables  # noqa: E402
from tools.qapi.manpage import Definition, read_page  # noqa: E402

PAGE = Path("/usr/share/man/man7/qemu-storage-daemon-qmp-ref.7.gz")
WIDTH = 140  # a definition up to this long stands on one line


def schema_texts(page: Path, folder: Path) -> dict[Path, str]:
    """Return what schemas/*.json should hold."""
    version, modules = read_page(page)
    correct(modules, folder / "corrections.toml")
    return {
        folder / f"{module}.json": _module_text(module, version, definitions)
        for module, definitions in modules.items()
    }


def _module_text(module: str, version: str, definitions: list[Definition]) -> str:
    source = f"qemu-storage-daemon-qmp-ref(7), QEMU {version}"
    head = f' "module": {json.dumps(module)},\n "source": {json.dumps(source)},\n'
    items = ",\n".join(_definition_text(definition) for definition in definitions)
    return "{\n" + head + ' "definitions": [\n' + items + "\n ]\n}\n"


def _definition_text(definition: Definition) -> str:
    """Write a definition on one line, or one line a key and a line for each item of a list."""
    text = json.dumps(definition)
    if len(text) <= WIDTH:
        return f"  {text}"
    lines = []
    for key, value in definition.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            items = ",\n".join(f"    {json.dumps(item)}" for item in value)
            lines.append(f"   {json.dumps(key)}: [\n{items}\n   ]")
        else:
            lines.append(f"   {json.dumps(key)}: {json.dumps(value)}")
    return "  {\n" + ",\n".join(lines) + "\n  }"


def package_texts(folder: Path, package: Path) -> dict[Path, str]:
    """Return what the generated files of qsd_trio/qapi should hold."""
    types = collect(build_schema(folder, overlay=True))
    return {
        package / "_tables.json": emit_tables(types),
        package / "__init__.pyi": _formatted(emit_stub(types), "__init__.pyi"),
    }


def _formatted(text: str, name: str) -> str:
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", name, "-"]
    return subprocess.run(
        command, input=text, capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout


def settle(texts: dict[Path, str], *, check: bool) -> int:
    """Write the files that differ, or with ``check`` show how they do; return their number."""
    stale = 0
    for path, text in texts.items():
        old = path.read_text() if path.exists() else ""
        if old == text:
            continue
        stale += 1
        if check:
            name = str(path.relative_to(ROOT))
            diff = difflib.unified_diff(old.splitlines(), text.splitlines(), name, "fresh", n=1)
            print("\n".join(list(diff)[:20]))
        else:
            path.write_text(text)
    return stale


def main(argv: list[str]) -> int:
    """Run; see the module's docstring."""
    parser = argparse.ArgumentParser(description="make schemas/ and the types of qsd_trio/qapi")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(argv)
    folder = ROOT / "schemas"
    stale = 0
    if options.page.exists():
        stale += settle(schema_texts(options.page, folder), check=options.check)
    else:
        print(f"{options.page} is not here: schemas/*.json not looked at", file=sys.stderr)
    stale += settle(package_texts(folder, ROOT / "qsd_trio/qapi"), check=options.check)
    if stale:
        print(f"{stale} files are stale" if options.check else f"{stale} files written")
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
