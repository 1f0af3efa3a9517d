"""Plots of a portrait. Colours are Okabe and Ito's, which people who see colours differently tell apart; lines differ in
their marks as well."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .portrait import PARTS, AtLoad, Portrait

# Okabe and Ito, "Color Universal Design", https://jfly.uni-koeln.de/color/
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00")
HATCHES = ("", "//", "", "..")
INCHES, DPI = (7.0, 4.0), 120


def draw(portrait: Portrait, folder: Path) -> list[Path]:
    """Draw all plots as PNG files; nothing where matplotlib is not installed (`triptych[bench]`)."""
    if find_spec("matplotlib") is None:
        return []
    return [
        _saved(folder / "latency-over-load.png", lambda axes: latency_over_load(axes, portrait.latencies)),
        _saved(folder / "rows-per-batch.png", lambda axes: rows_per_batch(axes, portrait.rows)),
        _saved(folder / "where-time-goes.png", lambda axes: where_time_goes(axes, portrait.parts)),
    ]


def latency_over_load(axes: Any, latencies: Sequence[AtLoad]) -> None:
    """Mean and p95 by load."""
    loads = [at.load for at in latencies]
    axes.plot(loads, [at.mean_s for at in latencies], marker="o", color=COLOURS[0], label="mean")
    axes.plot(loads, [at.p95_s for at in latencies], marker="s", linestyle="--", color=COLOURS[1], label="p95")
    axes.set(
        title="Latency over load",
        xlabel="load, as a share of what one request at a time can carry",
        ylabel="seconds from sending to picture",
        ylim=(0, None),
    )
    axes.legend(frameon=False)


def rows_per_batch(axes: Any, rows: Sequence[tuple[float, float]]) -> None:
    """Mean rows of the batches over time."""
    axes.step([at for at, _ in rows], [count for _, count in rows], where="pre", color=COLOURS[0])
    axes.set(title="Rows per batch", xlabel="seconds", ylabel="mean rows of a batch", ylim=(0, None))


def where_time_goes(axes: Any, parts: Mapping[int, Mapping[str, float]]) -> None:
    """A bar for each number of steps, its parts one above the other."""
    names, bottom = [f"{steps} steps" for steps in parts], [0.0] * len(parts)
    for part, colour, hatch in zip(PARTS, COLOURS, HATCHES, strict=True):
        heights = [seconds[part] for seconds in parts.values()]
        axes.bar(names, heights, bottom=bottom, color=colour, hatch=hatch, edgecolor="white", label=part)
        bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
    axes.set(title="Where a request's time goes", ylabel="seconds, mean")
    axes.legend(frameon=False)


def _saved(path: Path, fill: Callable[[Any], None]) -> Path:
    with _figure() as (figure, axes):
        fill(axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        figure.savefig(path, dpi=DPI)
    return path


@contextmanager
def _figure() -> Iterator[tuple[Any, Any]]:
    """A figure and its axes, without a display and without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure, figure.subplots()
