"""Callers and every model of a server read the contract at their start: it needs nothing that is installed or slow."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import triptych_contract

CODE = """
import importlib, pkgutil, sys
before = set(sys.modules)
sys.path.insert(0, sys.argv[1])
import triptych_contract.verbs
if sys.argv[2] == "all":
    for module in pkgutil.walk_packages(triptych_contract.__path__, "triptych_contract."):
        importlib.import_module(module.name)
print(*sorted(set(sys.modules) - before))
"""
# What takes longer to import than the contract itself.
SLOW = {
    "argparse",
    "asyncio",
    "ctypes",
    "email",
    "http",
    "logging",
    "multiprocessing",
    "pathlib",
    "subprocess",
    "typing_extensions",
}


def imported(how):
    folder = Path(triptych_contract.__file__).parents[1]
    command = [sys.executable, "-I", "-S", "-c", CODE, folder, how]
    return set(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split())


def test_the_contract_needs_the_standard_library_only():
    roots = {module.split(".")[0] for module in imported("all")}
    assert roots - sys.stdlib_module_names == {"triptych_contract"}


def test_a_start_does_not_wait_for_what_the_contract_imports():
    assert imported("what a start needs") & SLOW == set()
