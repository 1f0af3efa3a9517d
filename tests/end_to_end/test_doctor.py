"""`triptych doctor` on this machine."""

from __future__ import annotations

import json

from ..lab.test_doctor import CHECKS, command

FREE = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")


def test_this_machine(monkeypatch, capsys):
    code, out = command(monkeypatch, capsys, *FREE, "--json")
    shown = json.loads(out)
    assert {finding["check"] for finding in shown["checks"]} == CHECKS
    problems = [finding for finding in shown["checks"] if finding["level"] == "problem"]
    assert problems == []  # the tests run on it
    assert (code, shown["ok"]) == (0, True)
