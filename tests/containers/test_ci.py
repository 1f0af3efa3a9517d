"""What runs on every push: a workflow that is valid, of commands and Pythons that there are."""

from __future__ import annotations

import re
import shutil

import pytest
import yaml

from .test_containers import DOCKER, ROOT, run, tool

WORKFLOW = ROOT / ".github/workflows/ci.yml"
JOBS = yaml.safe_load(WORKFLOW.read_text())["jobs"]
MAKEFILE = (ROOT / "Makefile").read_text()


def test_the_workflow_is_valid():
    found = run(tool("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", WORKFLOW)
    assert found.returncode == 0, found.stdout
    found = run(tool("yamllint"), "--strict", "-c", DOCKER / ".yamllint.yaml", WORKFLOW)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.skipif(not shutil.which("actionlint"), reason="no actionlint on PATH")
def test_actionlint_finds_nothing():
    found = run("actionlint", WORKFLOW)
    assert (found.returncode, found.stdout) == (0, "")


def test_every_python_that_the_project_is_for_is_tried():
    low, below = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', (ROOT / "pyproject.toml").read_text()).groups()
    assert JOBS["unit"]["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in range(int(low), int(below))]
    assert set(JOBS["everything"]["strategy"]["matrix"]["python"]) < set(JOBS["unit"]["strategy"]["matrix"]["python"])


def test_what_is_run_is_what_a_newcomer_runs():
    commands = [step["run"] for job in JOBS.values() for step in job["steps"] if "run" in step]
    assert commands == ["make unit", ".ci/run"]
    targets = re.findall(r"^make (\S+)$", "\n".join([*commands, (ROOT / ".ci/run").read_text()]), re.MULTILINE)
    assert targets == ["unit", "check", "test"]
    assert all(re.search(rf"^{target}: ", MAKEFILE, re.MULTILINE) for target in targets)


def test_the_folders_of_unit_tests_exist():
    (folders,) = re.findall(r"^UNIT := (.*)$", MAKEFILE, re.MULTILINE)
    assert all([*(ROOT / folder).glob("test_*.py")] for folder in folders.split())
