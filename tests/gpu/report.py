"""What a GPU makes of all this, in minutes and parts: figures in JSON, a page of Markdown, a cost file for `triptych simulate`.

python -m tests.gpu.report [--target cuda|tensorrt|tensorrt-rtx] [--build BUILD] [--graphs FOLDER] [--minutes 8] [--output FOLDER]

The demo model is measured, or a build of yours with `--build`; with `--graphs`, graphs with random weights (`tests.gpu.graphs`).
A part that is done is not done again: what does not fit into the time is left to the next call. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from triptych import AsyncClient
from triptych_contract.sdxl.settings import SdxlSettings
from triptych_demo import demo_build
from triptych_lab.simulator.cost import CostModel
from triptych_server import Server
from triptych_serving import runtimes
from triptych_serving.denoiser import Conditioning, Denoiser
from triptych_serving.engine import Engine
from triptych_serving.invariance import example
from triptych_serving.job import Job
from triptych_serving.manifest import Manifest
from triptych_serving.metrics import Metrics
from triptych_serving.ort import OrtDenoiser
from triptych_serving.phase import Phase, noise_alone
from triptych_serving.policy import Policy
from triptych_serving.tables import load_tables
from triptych_serving.tensorrt.library import CUDA_TARGET, LibraryMissing
from triptych_serving.tensorrt.machine import probe
from triptych_serving.walk import Walk

from ..engines import cuda_build, planned
from .graphs import FACTS, fill

TARGETS = ("tensorrt", "tensorrt-rtx", CUDA_TARGET)
ROWS = tuple(range(1, 17))
REPEATS, PICTURES, GAP_JOBS, GAP_STEPS = 8, 24, 8, 30
# MLPerf's SDXL: 1024², 20 Euler steps, guidance 8.
SHAPE = {"sampler": "euler", "num_inference_steps": 20, "guidance_scale": 8.0}
UNET, LIMIT = "unet", 0.03


@dataclass(frozen=True)
class Bench:
    """What the parts need: the machine's target, and where things lie."""

    target: str
    folder: Path
    given: Path | None
    graphs: Path | None
    rows: Sequence[int] = ROWS
    repeats: int = REPEATS
    pictures: int = PICTURES
    prepare: Callable[..., None] | None = None  # the tests' way to a server without a GPU

    @cached_property
    def build(self) -> Path:
        """The build that is served: the caller's, or the demo for this target."""
        if self.given:
            return self.given
        made = self.folder / f"demo-{self.target}"
        if not (made / "manifest.json").exists():
            if self.target == CUDA_TARGET:
                cuda_build(demo_build("sdxl"), made, {})
            else:
                planned(demo_build("sdxl"), made, [runtimes.machine(self.target).capability], target=self.target)
        return made

    @cached_property
    def manifest(self) -> Manifest:
        return Manifest.load(self.build)

    @cached_property
    def denoiser(self) -> Denoiser:
        return runtimes.denoiser(self.manifest, UNET, most_rows=max(self.rows))


def self_test(bench: Bench) -> dict[str, Any]:
    """The GPU's predictions beside the processor's, at several numbers of rows."""
    inputs, sizes = bench.manifest.stages[UNET]["inputs"], bench.manifest.model.default_sizes
    exact = OrtDenoiser(Manifest.load(demo_build("sdxl")).stage_path(UNET)) if not bench.given else None
    off = {}
    for rows in (1, 2, max(bench.rows)):
        given = example(inputs, sizes, rows)
        got = bench.denoiser.predict(*given)
        assert np.isfinite(got).all(), f"{rows} rows: not finite"
        if exact:
            wanted = exact.predict(*given)
            off[rows] = float(np.abs(got - wanted).max() / np.abs(wanted).max())
            assert off[rows] < LIMIT, f"{rows} rows: {off[rows]} from the processor"
    return {"off": off}


def loop(bench: Bench) -> dict[str, Any]:
    """Milliseconds of a step of the loop, 8 guided pictures with noise, and of the same call of the model alone."""
    manifest, sizes = bench.manifest, bench.manifest.model.default_sizes
    table = load_tables(manifest.build / manifest.model.samplers["dpmpp_2m_sde"].schedules["default"].path).steps(
        GAP_STEPS
    )
    way = Walk(table, (UNET,) * len(table), np.full(len(table), True))
    jobs = min(GAP_JOBS, max(bench.rows) // 2)
    sample, timestep, rows = example(manifest.stages[UNET]["inputs"], sizes, 2 * jobs)
    shape = sample.shape[1:]
    engine = Engine({UNET: bench.denoiser}, Policy(2 * jobs, {UNET: 1e-9}), Metrics(), max_queue_seconds=1e9)
    for seed in range(jobs):
        pair = rows[2 * seed : 2 * seed + 2]
        both = Conditioning({name: np.concatenate([one[name] for one in pair]) for name in pair[0].arrays})
        settings = SdxlSettings.parse({"prompt": b"a fox", "seed": seed}, manifest.model)
        phase = Phase(way, shape, 8.0, lambda generator, _, both=both: noise_alone(way, shape, generator, {UNET: both}))
        engine.submit(Job(str(uuid.uuid4()), settings, [phase], _Silent(), arrived=time.monotonic()))
    turns = _times(lambda: engine.turn(wait=False), GAP_STEPS - 2)
    while engine.books.jobs:
        engine.turn(wait=False)
    alone = _times(lambda: bench.denoiser.predict(sample, timestep, rows), bench.repeats)
    return {"pictures": jobs, "step_ms": 1e3 * turns, "call_ms": 1e3 * alone}


def steps(bench: Bench) -> dict[str, Any]:
    """Seconds of a call of the served model at each number of rows, its own size."""
    return {"points": _points(bench, bench.denoiser, bench.manifest.stages[UNET]["inputs"], UNET)}


def decoder(bench: Bench) -> dict[str, Any]:
    """Seconds of the served decoder, one picture."""
    manifest = bench.manifest
    run = runtimes.stage(manifest, "vae_decoder")
    sizes = {**manifest.model.default_sizes, "batch": 1}
    given = {
        name: np.zeros([sizes.get(dim, dim) for dim in spec["shape"]], spec["dtype"])
        for name, spec in manifest.stages["vae_decoder"]["inputs"].items()
    }
    return {"seconds": _times(lambda: run(given), bench.repeats)}


def full_size(bench: Bench) -> dict[str, Any]:
    """Seconds of graphs of full size, with random weights, on ONNX Runtime, at each number of rows."""
    if bench.graphs is None:
        return {"left": "no --graphs given"}
    from triptych_serving.cuda import CudaDenoiser, CudaStage

    facts, made = json.loads((bench.graphs / FACTS).read_text()), {}
    for name, stage in facts["stages"].items():
        with tempfile.TemporaryDirectory(dir=bench.folder) as scratch:
            path = fill(bench.graphs, name, Path(scratch))
            if stage["denoises"]:
                model = CudaDenoiser(
                    path, stage["inputs"], facts["sizes"], most_rows=max(bench.rows), provider=runtimes.provider()
                )
                made[name] = _points(bench, model, stage["inputs"], name, facts["sizes"])
            else:
                run, sizes = CudaStage(path, provider=runtimes.provider()), {**facts["sizes"], "batch": 1}
                given = {
                    tensor: np.zeros([sizes.get(dim, dim) for dim in spec["shape"]], spec["dtype"])
                    for tensor, spec in stage["inputs"].items()
                }
                made[name] = [{"rows": 1, "seconds": _times(lambda run=run, given=given: run(given), bench.repeats)}]
    return {"stages": made}


def pictures(bench: Bench) -> dict[str, Any]:
    """Pictures a second of a server with MLPerf's shape, all asked for at once."""
    options = {"http_port": 0, "grpc_port": 0, "metrics_port": 0, "cache_mb": 0}
    if bench.prepare:
        options["prepare"] = bench.prepare
    with Server([bench.build], **options) as server:
        return asyncio.run(_drawn(server.addresses.grpc, bench.pictures))


async def _drawn(url: str, count: int) -> dict[str, Any]:
    async with AsyncClient(url, model="sdxl") as client:
        first = await client.generate("a fox", seed=0, **SHAPE)
        begun = time.monotonic()
        await client.generate("a fox", seed=1, **SHAPE)
        alone, begun = time.monotonic() - begun, time.monotonic()
        await asyncio.gather(*(client.generate("a fox", seed=2 + k, **SHAPE) for k in range(count)))
        size = f"{first.image.width}×{first.image.height}"
        return {"size": size, "pictures": count, "per_second": count / (time.monotonic() - begun), "alone_s": alone}


# In this order; each with the seconds that it may need.
PARTS: Mapping[str, tuple[Callable[[Bench], dict[str, Any]], float]] = {
    "self_test": (self_test, 60),
    "loop": (loop, 30),
    "steps": (steps, 60),
    "decoder": (decoder, 30),
    "full_size": (full_size, 150),
    "pictures": (pictures, 120),
}


def _points(
    bench: Bench,
    model: Denoiser,
    inputs: Mapping[str, Mapping[str, Any]],
    name: str,
    sizes: Mapping[str, int] | None = None,
) -> list[dict[str, Any]]:
    points = []
    for rows in bench.rows:
        given = example(inputs, sizes or bench.manifest.model.default_sizes, rows)
        height, width = given[0].shape[2:]
        seconds = _times(lambda given=given: model.predict(*given), bench.repeats)
        points.append({"denoiser": name, "height": height, "width": width, "rows": rows, "seconds": seconds})
        for one in given[2]:
            model.release(one)
    return points


def _times(work: Callable[[], object], repeats: int) -> float:
    """The median seconds of some calls after the first two."""
    seconds = []
    for _ in range(repeats + 2):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return float(np.median(seconds[2:]))


class _Silent:
    """Nobody waits."""

    def send(self, report: Any, latents: Any = None) -> None: ...

    def fail(self, error: Exception) -> None:
        raise error

    def is_cancelled(self) -> bool:
        return False


def run(bench: Bench, minutes: float, machine: Mapping[str, Any]) -> bool:
    """Do the parts that are not done and for which there is time, then write the page; whether all are done."""
    until = time.monotonic() + 60 * minutes
    for name, (part, seconds) in PARTS.items():
        file = bench.folder / f"{name}.json"
        if file.exists() or time.monotonic() + seconds > until:
            continue
        begun = time.monotonic()
        try:
            found = part(bench)
        except Exception as error:  # the other parts' figures are wanted all the same
            found = {"failed": f"{type(error).__name__}: {error}"}
        found["took_s"] = round(time.monotonic() - begun, 1)
        sys.stdout.write(f"{name:<10} {found['took_s']:>6} s  {found.get('failed', found.get('left', 'done'))}\n")
        sys.stdout.flush()
        if "failed" not in found:
            file.write_text(json.dumps(found, indent=1))
        else:
            (bench.folder / f"{name}.failed").write_text(found["failed"])
    done = {name: json.loads(file.read_text()) for name in PARTS if (file := bench.folder / f"{name}.json").exists()}
    if "steps" in done:
        _write_cost(bench.folder / "cost.json", done)
    (bench.folder / "report.md").write_text(page(machine, done))
    return done.keys() == PARTS.keys()


def _write_cost(path: Path, done: Mapping[str, Any]) -> None:
    decode_s = done.get("decoder", {}).get("seconds", 0.0)
    path.write_text(json.dumps({"points": done["steps"]["points"], "decode_s": decode_s, "shared": True}, indent=1))
    CostModel.load(path)


def page(machine: Mapping[str, Any], done: Mapping[str, Any]) -> str:
    """What was found, as Markdown."""
    lines = [f"# {machine['gpu']} ({machine['capability']}), {machine['target']} {machine['version']}", ""]
    for name in PARTS:
        if name not in done:
            lines.append(f"- {name}: **not run**")
            continue
        found = done[name]
        if name == "self_test":
            worst = max(found["off"].values(), default=None)
            lines.append(f"- self-test: {'finite' if worst is None else f'at most {worst:.1e} from the processor'}")
        elif name == "loop":
            lines.append(
                f"- a step of the loop, {found['pictures']} guided pictures with noise: {found['step_ms']:.2f} ms; the "
                f"same call of the model alone: {found['call_ms']:.2f} ms"
            )
        elif name == "decoder":
            lines.append(f"- decoder, one picture: {1e3 * found['seconds']:.2f} ms")
        elif name == "pictures":
            lines.append(
                f"- {found['pictures']} pictures of {found['size']} at once, 20 Euler steps, guidance 8: "
                f"**{found['per_second']:.3f} pictures/s**; one alone {found['alone_s']:.3f} s"
            )
        elif "left" in found:
            lines.append(f"- {name}: **not run** ({found['left']})")
    curves = {"served": done.get("steps", {}).get("points", []), **done.get("full_size", {}).get("stages", {})}
    for name, points in curves.items():
        if points:
            lines += ["", f"| {name}: rows | ms | ms a row |", "| ---: | ---: | ---: |"]
            lines += [
                f"| {one['rows']} | {1e3 * one['seconds']:.2f} | {1e3 * one['seconds'] / one['rows']:.2f} |"
                for one in points
            ]
    return "\n".join(lines) + "\n"


def found_target(asked: str | None) -> Mapping[str, Any] | str:
    """The machine for the target asked for, or the first that runs here; else why none does, on one line."""
    reasons = []
    for target in [asked] if asked else TARGETS:
        try:
            return asdict(probe(target))
        except LibraryMissing as error:
            reasons.append(f"{target}: {error.missing}")
    return "no GPU that can be used here: " + "; ".join(reasons)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", choices=TARGETS)
    parser.add_argument("--build", type=Path)
    parser.add_argument("--graphs", type=Path)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--output", type=Path, default=Path(os.environ.get("OUT", "out/gpu")))
    given = parser.parse_args(arguments)
    machine = found_target(given.target)
    if isinstance(machine, str):
        sys.stdout.write(f"gpu-report: {machine}\n")
        return 1
    given.output.mkdir(parents=True, exist_ok=True)
    bench = Bench(machine["target"], given.output, given.build, given.graphs)
    complete = run(bench, given.minutes, machine)
    sys.stdout.write(f"{given.output / 'report.md'}{'' if complete else ': call again for the rest'}\n")
    return 0 if complete else 2


if __name__ == "__main__":
    sys.exit(main())
