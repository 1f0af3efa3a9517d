"""What documents name is there: files, folders, tests, modules and what is in them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = (
    "contract",
    "model_repository",
    "client",
    "server",
    "web",
    "page",
    "api",
    "cluster",
    "export",
    "lab",
    "demo",
    ".",
)
OURS = re.compile(r"triptych\w*|tests|demo_models")
SUFFIXES = (".md", ".pbtxt", ".py", ".toml", ".yml")
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
PATH = re.compile(r"[\w./-]+")
TEST = re.compile(r"([\w/]+\.py)::(\w+)")
MODULE = re.compile(r"(?<![\w/.-])(?:triptych\w*|tests|demo_models)(?:\.\w+)+")
IMPORT = re.compile(r"^from (triptych[\w.]*) import ([\w, ]+)$", re.MULTILINE)
NO_MODULES = {"triptych.commands"}  # the group of entry points


@cache
def files() -> frozenset[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    return frozenset(name for name in os.fsdecode(listed.stdout).split("\0") if (ROOT / name).exists())


@cache
def endings() -> frozenset[str]:
    """Every tracked file and folder, by every ending of its path that is whole."""
    paths = {path for file in files() for path in [Path(file), *Path(file).parents]}
    return frozenset("/".join(path.parts[k:]) for path in paths for k in range(len(path.parts)))


DOCUMENTS = sorted(name for name in files() if name.endswith(".md"))
each_document = pytest.mark.parametrize("name", DOCUMENTS)


def read(name):
    return (ROOT / name).read_text("utf-8")


def headings(name):
    """The anchors of a document, as GitHub makes them."""
    lines = re.findall(r"^#+ (.*)$", FENCED.sub("", read(name)), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in lines}


def is_path(text):
    """Whether a piece of code can only be meant as a path here; a part in capitals stands for something else."""
    first = text.split("/")[0]
    ours = text.endswith(SUFFIXES) or ("/" in text and (OURS.fullmatch(first) or first in ROOMS))
    return ours and not re.search(r"(^|/)([A-Z_]{2,}|\.)", text) and not text.startswith(("/", "."))


def defined(module):
    """What a module defines or imports; None where there is no such module."""
    relative = module.replace(".", "/")
    found = [ROOT / room / f"{relative}{end}" for room in ROOMS for end in (".py", "/__init__.py")]
    source = next((path for path in found if path.exists()), None)
    if source is None:
        return None
    tree = ast.parse(source.read_text("utf-8"))
    names = {node.name for node in ast.walk(tree) if hasattr(node, "name")}
    names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {
        alias.asname or alias.name
        for node in ast.walk(tree)
        for alias in getattr(node, "names", [])
        if hasattr(alias, "asname")
    }
    return names | {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)
    }  # what is imported by its name


def is_there(dotted):
    if defined(dotted) is not None:
        return True
    module, _, name = dotted.rpartition(".")
    return name in (defined(module) or ())


@each_document
def test_links_lead_somewhere(name):
    lost = []
    for target in LINK.findall(read(name)):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        to = os.path.normpath(Path(name).parent / path) if path else name
        if not (ROOT / to).exists() or (anchor and to.endswith(".md") and anchor not in headings(to)):
            lost.append(target)
    assert lost == []


@each_document
def test_the_files_that_it_names_are_there(name):
    named = {path for code in CODE.findall(FENCED.sub("", read(name))) for path in PATH.findall(code) if is_path(path)}
    assert sorted(path for path in named if path.rstrip("/") not in endings()) == []


@each_document
def test_the_tests_that_it_names_are_there(name):
    lost = []
    for file, test in TEST.findall(read(name)):
        found = [path for path in files() if path.endswith(f"tests/{file}") or path == file]
        if not any(re.search(rf"^(async )?def {test}\(", read(path), re.MULTILINE) for path in found):
            lost.append(f"{file}::{test}")
    assert lost == []


@each_document
def test_the_modules_that_it_names_are_there(name):
    text = read(name)
    named = {dotted for code in [*CODE.findall(text), *FENCED.findall(text)] for dotted in MODULE.findall(code)}
    named |= {f"{module}.{one.strip()}" for module, names in IMPORT.findall(text) for one in names.split(",")}
    modules = {dotted for dotted in named if not dotted.endswith(SUFFIXES)} - NO_MODULES
    assert sorted(dotted for dotted in modules if not is_there(dotted)) == []


def test_what_is_not_there_is_missed():
    assert is_path("triptych_serving/no_such.py")
    assert "triptych_serving/no_such.py" not in endings()
    assert not is_path("BUILD/manifest.json")
    assert is_there("triptych_contract.parameters.OfModel")
    assert is_there("triptych.Parameters")
    assert not is_there("triptych_contract.parameters.NoSuch")
    assert not is_there("triptych_contract.no_such.OfModel")
