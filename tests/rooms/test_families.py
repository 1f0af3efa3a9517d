"""No code names a family outside that family's own room."""

import ast
import re
from pathlib import Path

import pytest

from triptych_contract.families import FAMILIES

ROOT = Path(__file__).parents[2]
ROOMS = ("contract", "model_repository", "client", "server", "web", "page", "api", "cluster", "export", "lab", "docker")
# Generated from the contract: the docstrings of the client's TypedDicts say whose they are.
GENERATED = ROOT / "client/triptych/parameters.py"
NAMES = re.compile("|".join(rf"\b{re.escape(name)}\b|\b{re.escape(name.replace('_', '-'))}\b" for name in FAMILIES))


def named(source: str) -> list[str]:
    """The string literals, docstrings aside, that name a family."""
    tree = ast.parse(source)
    documents = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    texts = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return [text.value for text in texts if id(text) not in documents and NAMES.search(text.value)]


def test_no_literal_names_a_family_outside_its_room():
    found = {
        str(path.relative_to(ROOT)): literals
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if not FAMILIES.keys() & set(path.parts) and path != GENERATED and (literals := named(path.read_text("utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize(
    "source", ["x = 'sdxl'", "def f(): return f'{1} of stable-cascade'", "d = {'stable_cascade': 1}"]
)
def test_a_literal_is_seen(source):
    assert named(source)


def test_documents_may_name_families():
    assert named('"""Of sdxl."""\ndef f():\n    """And stable_cascade."""') == []
