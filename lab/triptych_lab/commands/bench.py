"""`triptych bench`: measure how fast this machine serves, compared with other ways to serve."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from triptych_lab.bench.target import Setting

FOLDER = Path("out/bench")


def bench(
    builds: Annotated[
        list[Path] | None, typer.Argument(metavar="[BUILD]…", help="Builds to be served; default: the demo.")
    ] = None,
    perf_analyzer: Annotated[
        bool, typer.Option("--perf-analyzer", help="Drive NVIDIA's perf_analyzer (from PATH, or PERF_ANALYZER).")
    ] = False,
    only: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only these ratios.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often each side of a ratio is measured, in turns.")] = 5,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Your build's weights in diffusers layout, for diffusers and Optimum."),
    ] = None,
    workload: Annotated[Path | None, typer.Option(metavar="FILE", help="Requests from `triptych workload`.")] = None,
    load: Annotated[
        float, typer.Option(min=0.01, metavar="SHARE", help="Load of latencies, of the rate that full batches carry.")
    ] = 0.7,
    against: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An earlier run's report.json: say which ratios differ by 15%.")
    ] = None,
    cost: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Measure batches for `triptych simulate`, and write them there.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="perf_analyzer: a server that runs, rather than one of its own.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few requests and one repeat: whether it works, not how fast.")
    ] = False,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for reports and files.")
    ] = FOLDER,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Measure this machine, side by side with what would be used otherwise. Prints `RATIO name value target`."""
    from rich.console import Console

    from triptych_lab.bench.target import Setting

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that servers and peers end as well
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    setting = Setting(tuple(builds or ()), weights, 1 if quick else repeats, quick, output, workload, load)
    _check(setting.builds)
    if cost:
        _cost(setting, cost)
    elif perf_analyzer:
        _perf_analyzer(console, setting, url, as_json)
    else:
        _ratios(console, setting, only or [], against, as_json)


def _check(builds: Sequence[Path]) -> None:
    from triptych_lab.bench.errors import BenchError
    from triptych_serving.manifest import Manifest, ManifestError

    for build in builds:
        try:
            Manifest.load(build)
        except ManifestError as error:
            raise BenchError(str(error)) from None


def _cost(setting: Setting, path: Path) -> None:
    from triptych_lab.bench.cost import measure, write

    write(path, measure(setting.build, repeats=setting.repeats))
    sys.stdout.write(f"{path}\n")


def _perf_analyzer(console: Console, setting: Setting, url: str | None, as_json: bool) -> None:
    from triptych_lab.bench.machine import facts
    from triptych_lab.bench.perf_analyzer import Suite, find, run
    from triptych_lab.bench.perf_analyzer.report import write
    from triptych_lab.bench.perf_analyzer.stages import TritonModels
    from triptych_lab.bench.perf_analyzer.suite import perform
    from triptych_lab.workload import load

    binary, suite, folder = find(), Suite.quick() if setting.quick else Suite(), setting.output / "perf_analyzer"
    results = []
    with _server(setting.builds, url) as (address, ensembles):
        perf = perform(binary, address, suite.timeout_s)
        # A workload is written for one ensemble: the first.
        scheduled = {ensembles[0]: list(load(setting.workload, ensembles[0]))} if setting.workload else {}
        for ensemble in ensembles:
            for result in run(perf, TritonModels(address), ensemble, folder, suite, scheduled.get(ensemble, ())):
                console.print(f"{result.measurement.model} {result.measurement.level.name}: {result.mean_s:.3f} s")
                results.append(result)
    _show(write(folder, results, {"models": ", ".join(ensembles), **facts()}), as_json)


@contextmanager
def _server(builds: Sequence[Path], url: str | None) -> Iterator[tuple[str, list[str]]]:
    """Yield the gRPC address and the ensembles of the server at `url`, or of one that is started here, without a cache."""
    from triptych import Client
    from triptych_lab.bench.serving import started

    if url:
        with Client(url) as client:
            yield url, list(client.models())
    else:
        with started(builds) as served:
            yield served.url, served.ensembles


def _ratios(console: Console, setting: Setting, only: list[str], against: Path | None, as_json: bool) -> None:
    from triptych_lab.bench.against import changes, load
    from triptych_lab.bench.portrait import take
    from triptych_lab.bench.report import Report
    from triptych_lab.bench.targets import chosen

    targets, then, report = chosen(only), load(against) if against else {}, Report(setting)
    for target in targets:
        console.print(f"measuring {target.name} …")
        for line in report.measure(target):
            if not as_json:
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
        report.write()  # so that a run that is stopped leaves what it has measured
    for name, reason in {**report.skipped, **report.failed}.items():
        console.print(f"not measured: {name}: {reason}", style="red" if name in report.failed else "yellow")
    report.portrait = None if only else take(setting)
    for change in changes(then, {ratio.name: ratio.value for ratio in report.ratios}):
        console.print(change.line, style=None if change.agrees else "yellow")
    _show(report.write(), as_json)
    raise typer.Exit(0 if report.holds else 1)


def _show(written: tuple[Path, Path], as_json: bool) -> None:
    markdown, document = written
    sys.stdout.write(document.read_text("utf-8") if as_json else f"{markdown}\n{document}\n")
