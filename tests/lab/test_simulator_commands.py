"""`triptych workload` and `triptych simulate`: what they write and print, and how they end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from triptych.cli import main
from triptych_lab.simulator import CostModel, Farm, ServerSpec, simulate
from triptych_lab.workload import Mix, load, make

from .farms import planner

COST = {"points": [{"denoiser": "unet", "height": 16, "width": 16, "rows": rows, "seconds": 0.01} for rows in (1, 16)]}


@pytest.fixture
def triptych(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cost.json").write_text(json.dumps(COST))

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["triptych", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code or 0, *capsys.readouterr())

    return call


def test_a_workload_is_written_once_and_simulated_as_it_is_made(triptych):
    choose = ["--choose", "num-inference-steps=2,4", "--choose", "sampler=euler,heun"]
    assert triptych("workload", "w.jsonl", "-n", "30", "--rate", "5", "--seed", "7", *choose) == (0, "w.jsonl\n", "")
    mix = Mix({"num_inference_steps": (2, 4), "sampler": ("euler", "heun")})
    assert list(load(Path("w.jsonl"))) == list(make(mix, rate=5, count=30, seed=7))
    code, out, _ = triptych("simulate", "--cost", "cost.json", "--workload", "w.jsonl", "--servers", "2", "--json")
    assert code == 0
    farm = Farm(ServerSpec(CostModel.load(Path("cost.json"))), 2)
    assert json.loads(out) == simulate(make(mix, rate=5, count=30, seed=7), planner(), farm)


def test_the_loops_policy_is_beside_others(triptych):
    mean = {}
    for policy in ("loop", "same-step", "one-at-a-time"):
        code, out, _ = triptych(
            "simulate", "--cost", "cost.json", "--rate", "3", "-n", "200", "--policy", policy, "--json"
        )
        assert code == 0
        mean[policy] = json.loads(out)["latency_s"]["mean"]
    assert mean["loop"] < mean["same-step"] < mean["one-at-a-time"]


def test_without_json_it_is_words(triptych):
    code, out, _ = triptych("simulate", "--cost", "cost.json", "--rate", "3", "-n", "50")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [
        "requests", "offered", "goodput", "utilisation", "latency", "wait",
    ]  # fmt: skip
    assert "50 (50 completed, 0 rejected, 0 expired)" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("workload", "w", "--choose", "steps=4"), "steps: an unknown parameter given"),
        (("workload", "w", "--choose", "num_inference_steps"), "--choose: 'num_inference_steps' given"),
        (("workload", "w", "--arrivals", "often"), "arrivals: 'often' given; legal: poisson, bursts, constant"),
        (("simulate", "--cost", "cost.json", "--balancer", "luck"), "balancer: 'luck' given"),
        (("simulate", "--cost", "cost.json", "--policy", "luck"), "--policy: 'luck' given; legal: loop, same-step, "),
        (("simulate", "--cost", "cost.json", "--build", "."), "build: "),
    ],
)
def test_what_is_wrong_is_usage_and_one_line(triptych, words, said):
    code, out, err = triptych(*words)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1


def test_a_cost_file_that_is_not_there_is_an_error(triptych):
    code, _, err = triptych("simulate", "--cost", "nowhere.json")
    assert code == 1
    assert "nowhere.json" in err
