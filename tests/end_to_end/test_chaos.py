"""`make chaos` in short: everything that it does, and that it finds what is planted."""

from __future__ import annotations

import pytest
import typer.testing

from triptych_lab.chaos.__main__ import main

pytestmark = pytest.mark.serial


def chaos(*words):
    app = typer.Typer()
    app.command()(main)
    return typer.testing.CliRunner().invoke(app, words)


def test_nothing_is_lost_doubled_or_differing_under_faults():
    done = chaos("--minutes=0.5", "--seed=1", "--drained=20", "--no-times")
    assert done.exit_code == 0, done.output
    assert "--seed 1" in done.output


def test_faults_of_our_own_are_found():
    done = chaos(
        "--minutes=0.1", "--seed=1", "--drained=1", "--no-times", "--plant=loss", "--plant=doubled", "--plant=leak"
    )
    assert done.exit_code == 1, done.output
    found = {line.split("  ")[1] for line in done.output.splitlines() if line.startswith("WRONG")}
    assert found == {
        "idle: regions of shared memory",
        "stages: callers that noticed",  # of the one that is lost nobody says that it was an image
        "stages: rows drawn twice",
        "requests: lost",
        "requests: doubled",
    }
