"""`make gpu-report`: its parts in small, on the simulated GPU and on ONNX Runtime's other provider."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from triptych_demo import demo_build
from triptych_lab.simulator.cost import CostModel
from triptych_serving import runtimes
from triptych_serving.ort import CPU

from ..end_to_end.test_cuda import on_the_processor
from ..engines import cuda_build, simulated_build
from ..gpu import graphs, report
from ..simulated import MACHINE, SimulatedDevice

SMALL = {"rows": (1, 2, 4), "repeats": 1, "pictures": 2}


@pytest.fixture
def without_a_gpu(monkeypatch):
    device = SimulatedDevice()
    monkeypatch.setattr(runtimes, "provider", lambda: CPU)
    monkeypatch.setattr(runtimes, "device", lambda _target: device)
    monkeypatch.setattr(runtimes, "machine", lambda _target: MACHINE)


@pytest.mark.usefixtures("without_a_gpu")
def test_all_parts_in_small_give_a_page_a_curve_and_are_not_done_twice(tmp_path, monkeypatch):
    build, thin = cuda_build(demo_build("sdxl"), tmp_path / "build", {"unet": "fp32"}), tmp_path / "thin"
    graphs.thin(build, thin)
    assert sum(file.stat().st_size for file in thin.iterdir()) < 2e6
    bench = report.Bench("cuda", tmp_path, build, thin, prepare=on_the_processor, **SMALL)
    machine = asdict(replace(MACHINE, target="cuda"))
    assert not report.run(bench, 0, machine)
    assert (tmp_path / "report.md").read_text().count("**not run**") == len(report.PARTS)
    assert report.run(bench, 60, machine)
    page = (tmp_path / "report.md").read_text()
    assert "not run" not in page
    assert "2 pictures of 128×128 at once" in page
    assert page.count("| 4 |") == 2  # of the served model, and of the graph with random weights
    cost = CostModel.load(tmp_path / "cost.json")
    assert cost.seconds("unet", 4, 256) >= cost.seconds("unet", 1, 256) > 0
    monkeypatch.setattr(report, "PARTS", {name: (None, seconds) for name, (_, seconds) in report.PARTS.items()})
    assert report.run(bench, 60, machine)


@pytest.mark.usefixtures("without_a_gpu")
def test_engines_are_measured_step_by_step_and_what_fails_leaves_the_rest(tmp_path, monkeypatch, capsys):
    build = simulated_build(demo_build("sdxl"), tmp_path / "build")
    bench = report.Bench("tensorrt-rtx", tmp_path, build, None, **SMALL)

    def broken(_bench):
        raise OSError("no")

    monkeypatch.setattr(report, "PARTS", {**report.PARTS, "pictures": (broken, 0)})
    assert not report.run(bench, 60, asdict(MACHINE))
    assert "OSError: no" in capsys.readouterr().out
    assert "pictures: **not run**" in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "loop.json").read_text())["pictures"] == 2
    assert json.loads((tmp_path / "full_size.json").read_text())["left"] == "no --graphs given"


def test_without_a_gpu_it_says_so_in_one_line(capsys, tmp_path):
    assert report.main(["--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().out
    assert said.startswith("gpu-report: no GPU that can be used here: tensorrt: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
