"""Imports go one way: from a room to those below it, and never around."""

from __future__ import annotations

from pathlib import Path

import pytest

from .imports import circles, imports_of

ROOT = Path(__file__).parents[2]
ROOMS = ("contract", "model_repository", "client", "server", "web", "page", "api", "cluster", "export", "lab", "demo")
CONTRACT, SERVING, CLIENT, DEMO = "triptych_contract", "triptych_serving", "triptych", "triptych_demo"
SERVER, EXPORT, WEB = "triptych_server", "triptych_export", "triptych_web"
# Package → the packages of other rooms that it may import.
BELOW = {
    CONTRACT: set(),
    SERVING: {CONTRACT},
    CLIENT: {CONTRACT},
    DEMO: set(),
    SERVER: {CONTRACT, SERVING, CLIENT, DEMO},
    WEB: {CONTRACT, CLIENT},
    "triptych_page": {CONTRACT, SERVING, CLIENT, WEB},
    "triptych_api": {CONTRACT, CLIENT, WEB},
    "triptych_cluster": {CONTRACT, CLIENT, SERVER, WEB, "triptych_api", DEMO},
    EXPORT: {CONTRACT, SERVING, CLIENT},
    "triptych_lab": {CONTRACT, SERVING, CLIENT, SERVER, DEMO, "triptych_cluster"},
    "demo_models": {EXPORT},
}


@pytest.fixture(scope="module")
def imports():
    return imports_of(ROOT / room for room in ROOMS)


def package(module):
    return module.split(".")[0]


def test_every_room_is_read(imports):
    assert {package(module) for module in imports} - BELOW.keys() == {
        "denoise", "hatch_build", "image_encoder", "stage", "tokenizer", "vae_encoder"
    }  # fmt: skip
    assert BELOW.keys() <= {package(module) for module in imports}


def test_a_room_imports_only_rooms_below_it(imports):
    upward = [
        f"{module} imports {imported}"
        for module, others in imports.items()
        for imported in sorted(others)
        if package(imported) in BELOW.keys() - BELOW.get(package(module), {CONTRACT, SERVING}) - {package(module)}
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle(imports):
    assert [sorted(circle) for circle in circles(imports)] == []


@pytest.mark.parametrize(
    "back", ["import pack.one", "def later():\n    from .. import one", "from pack.one import something"]
)
def test_a_circle_is_seen_wherever_it_is_imported(tmp_path, back):
    files = {
        "__init__": "",
        "one": "from .deep import two",
        "deep/__init__": "",
        "deep/two": back,
        "alone": "import pack.one",
    }
    for name, source in files.items():
        file = tmp_path / "pack" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    assert circles(imports_of([tmp_path])) == {frozenset({"pack.one", "pack.deep.two"})}
