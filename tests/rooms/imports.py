"""Who imports whom, read from the source: also what is imported inside functions, or for types only."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

# Module → the modules that it names in imports.
Imports = Mapping[str, set[str]]


def imports_of(folders: Iterable[Path]) -> Imports:
    """Read every module below the folders; each folder holds packages, and scripts such as `denoise/1/model.py`."""
    sources = {_name(file, folder): file for folder in folders for file in sorted(folder.rglob("*.py"))}
    return {name: {*_imported(name, file, sources.keys())} for name, file in sources.items()}


def circles(imports: Imports) -> set[frozenset[str]]:
    """Give the sets of modules that all reach each other."""
    reached = {module: _reached(module, imports) for module in imports}
    return {
        frozenset(other for other in reached[module] if module in reached.get(other, ()))
        for module in imports
        if module in reached[module]
    }


def _name(file: Path, folder: Path) -> str:
    parts = file.relative_to(folder).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(name: str, file: Path, known: Iterable[str]) -> Iterator[str]:
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{module}.{alias.name}"
                yield submodule if submodule in known else module


def _reached(module: str, imports: Imports) -> set[str]:
    reached: set[str] = set()
    waiting = [module]
    while waiting:
        new = imports.get(waiting.pop(), set()) - reached
        reached |= new
        waiting += new
    return reached
