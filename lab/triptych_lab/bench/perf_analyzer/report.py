"""Write our report of perf_analyzer's measurements, beside the files that perf_analyzer wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..markdown import table
from .command import Mode
from .results import Result

LOADS = {Mode.CONCURRENCY: "{:g} at once", Mode.RATE: "{:g}/s, Poisson", Mode.SCHEDULE: "{:g} as scheduled"}
HEADER = ("load", "requests", "per second", "mean ms", "p50 ms", "p95 ms", "p99 ms", "notes")
LATE_ANSWERS = (
    "`denoise` answers late: Triton's own figures for it end when a request is handed over, not when it is answered. "
    "Its line among the parts is therefore too small, and what is missing there is the loop's."
)


def write(folder: Path, results: Sequence[Result], facts: Mapping[str, Any]) -> tuple[Path, Path]:
    """Write `report.md` and `report.json`; return both paths. `facts` say what was measured, and on what machine."""
    document = {"facts": dict(facts), "measurements": [result.to_json() for result in results]}
    markdown, as_json = folder / "report.md", folder / "report.json"
    as_json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    markdown.write_text("\n\n".join(_sections(results, facts)) + "\n", "utf-8")
    return markdown, as_json


def _sections(results: Sequence[Result], facts: Mapping[str, Any]) -> Iterator[str]:
    yield "# perf_analyzer"
    yield table(("", ""), facts.items())
    for ensemble, model in dict.fromkeys(map(_whose, results)):
        measured = [result for result in results if _whose(result) == (ensemble, model)]
        yield f"## `{model}`" if model == ensemble else f"### `{model}` of `{ensemble}`"
        yield table(HEADER, map(_row, measured))
        if any(result.parts for result in measured):
            yield f"Mean milliseconds of a request in each stage, queue included:\n\n{_parts(measured)}\n\n{LATE_ANSWERS}"


def _whose(result: Result) -> tuple[str, str]:
    return result.measurement.ensemble, result.measurement.model


def _row(result: Result) -> tuple[object, ...]:
    level = result.measurement.level
    times = [result.mean_s, *result.quantiles_s.values()]
    return (
        LOADS[level.mode].format(level.value),
        len(result.latencies_s),
        result.throughput_per_s,
        *(f"{1000 * seconds:.1f}" for seconds in times),
        ", ".join(_notes(result)),
    )


def _notes(result: Result) -> Iterator[str]:
    if result.delayed:
        yield f"{result.delayed:.0%} sent late"
    if result.cache_hit_s:
        yield "some answered by Triton's response cache"


def _parts(results: Sequence[Result]) -> str:
    names = list(dict.fromkeys(name for result in results for name in result.parts))
    rows = [(_row(result)[0], *(_part(result, name) for name in names)) for result in results]
    return table(("load", *(f"`{name}`" for name in names)), rows)


def _part(result: Result, name: str) -> str:
    """Return a part's milliseconds; "" if perf_analyzer has none."""
    return f"{1000 * result.parts[name].latency_s:.1f}" if name in result.parts else ""
