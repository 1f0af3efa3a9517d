"""`triptych simulate`: predict what servers do with a workload, from measured times of their batches."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer


def simulate(
    cost: Annotated[
        Path, typer.Option(metavar="FILE", help="Measured seconds of batches (JSON), see docs/capacity.md.")
    ],
    workload: Annotated[Path | None, typer.Option(metavar="FILE", help="Requests from `triptych workload`.")] = None,
    rate: Annotated[float, typer.Option(min=1e-6, help="Without a workload: requests per second.")] = 1.0,
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="Without a workload: how many requests.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Without a workload: the same seed makes the same requests.")] = 0,
    build: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The build to be served; default: the demo.")
    ] = None,
    max_size: Annotated[
        int | None, typer.Option(min=1, help="Plan for sizes up to this, whatever the build says.")
    ] = None,
    servers: Annotated[int, typer.Option(min=0, max=64, help="Servers, alike; with --most the fewest.")] = 1,
    most: Annotated[int | None, typer.Option(min=1, max=64, help="Scale up to so many, as `triptych cluster`.")] = None,
    target_seconds: Annotated[float, typer.Option(min=0.1, help="With --most: work that may wait for each.")] = 20,
    pause: Annotated[float, typer.Option(min=0, help="With --most: seconds of less work before one goes.")] = 60,
    start_seconds: Annotated[float, typer.Option(min=0, help="With --most: until a new server can be asked.")] = 30,
    balancer: Annotated[
        str,
        typer.Option(
            metavar="[round-robin|two-choices|least-requests|least-seconds|one-queue]",
            help="Who gets a request: gRPC's, Ray Serve's, the fewest requests, `triptych cluster`'s, one queue's.",
        ),
    ] = "round-robin",
    max_batch_rows: Annotated[int, typer.Option(min=1, help="As in denoise/config.pbtxt.")] = 16,
    max_queue_seconds: Annotated[float, typer.Option(min=0, help="As in denoise/config.pbtxt.")] = 600,
    policy: Annotated[
        str, typer.Option(metavar="[loop|same-step|one-at-a-time]", help="The loop's own, or what others do.")
    ] = "loop",
    slo: Annotated[float, typer.Option(min=1, help="A request is good within so many times its time alone.")] = 5.0,
    warmup: Annotated[float, typer.Option(min=0, help="Seconds at the beginning that are not counted.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Predict latency, goodput and rejections of 1 to 64 servers, with the loop's own scheduling and no model."""
    from triptych.errors import invalid
    from triptych_demo import demo_build
    from triptych_lab.bench.policies import POLICIES
    from triptych_lab.simulator import CostModel, Farm, Planner, Scaling, ServerSpec
    from triptych_lab.simulator import simulate as run
    from triptych_lab.workload import Mix, load, make

    if policy not in POLICIES:
        raise invalid("--policy", repr(policy), ", ".join(POLICIES))
    spec = ServerSpec(CostModel.load(cost), max_batch_rows, max_queue_seconds)
    planner = Planner(build or demo_build(), max_size=max_size)
    arrivals = load(workload, planner.model) if workload else make(Mix(), rate=rate, count=n, seed=seed)
    scaling = Scaling(most, target_seconds, pause, start_seconds) if most else None
    farm = Farm(spec, servers, balancer, POLICIES[policy], scaling)
    report = run(arrivals, planner, farm, slo=slo, warmup_s=warmup)
    sys.stdout.write((json.dumps(report) if as_json else _words(report)) + "\n")


def _words(report: Mapping[str, Any]) -> str:
    rows = {
        "requests": "{requests} ({completed} completed, {rejected} rejected, {expired} expired)",
        "offered": "{offered_per_s:.3f}/s",
        "goodput": "{goodput_per_s:.3f}/s, {within_slo:.1%} within {slo:g} times their time alone",
        "utilisation": "{utilisation:.1%} of {servers} server(s), {rows_per_batch:.2f} rows a batch",
    }
    if "mean_servers" in report:
        rows["scaling"] = "{mean_servers:.2f} servers in the mean, {most_servers} at most, {starts} started"
    lines = [f"{name:12}{row.format(**report)}" for name, row in rows.items()]
    return "\n".join([*lines, _spread("latency", report["latency_s"]), _spread("wait", report["wait_s"])])


def _spread(name: str, seconds: Mapping[str, float]) -> str:
    return f"{name:12}" + (", ".join(f"{key} {value:.3f} s" for key, value in seconds.items()) or "nothing completed")
