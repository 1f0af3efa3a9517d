"""Draw the plots of a portrait.

The colours are Okabe and Ito's, which colour-blind people can tell apart; lines differ in their dashes and marks as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .portrait import PARTS, Portrait

# Okabe and Ito, "Color Universal Design", https://jfly.uni-koeln.de/color/
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00")
HATCHES = ("", "///", "", "...")
INCHES, DPI = (7.2, 4.0), 150
FONT: Any = {"font.size": 10, "axes.titlesize": 12, "axes.titleweight": "bold", "axes.titlelocation": "left"}
WORDS = {"loop": "Triptych's loop", "same-step": "same-step batches", "one-at-a-time": "one request at a time"}
DASHES = {"loop": "-", "same-step": "--", "one-at-a-time": ":"}
# The latency axis ends at this multiple of the longest measured latency; simulated curves are cut off there.
HEADROOM = 1.35


def draw(portrait: Portrait, folder: Path) -> list[Path]:
    """Draw all plots into PNG files and return their paths; none if matplotlib is not installed (`triptych[bench]`)."""
    if find_spec("matplotlib") is None:
        return []
    return [
        _saved(folder / "latency-over-load.png", lambda axes: latency_over_load(axes, portrait)),
        _saved(folder / "rows-per-batch.png", lambda axes: rows_per_batch(axes, portrait.rows)),
        _saved(folder / "where-time-goes.png", lambda axes: where_time_goes(axes, portrait.parts)),
    ]


def latency_over_load(axes: Any, portrait: Portrait) -> None:
    """Plot latency by load: for each policy the simulated mean, and for the loop the measured mean and p95."""
    for (policy, curve), colour in zip(portrait.foretold.items(), COLOURS, strict=False):
        foretold = {"linestyle": DASHES[policy], "color": colour, "label": f"{WORDS[policy]}, mean, simulated"}
        axes.plot([load for load, _ in curve], [mean for _, mean in curve], **foretold)
    loads = [at.load for at in portrait.latencies]
    means, p95s = ([getattr(at, name) for at in portrait.latencies] for name in ("mean_s", "p95_s"))
    axes.vlines(loads, means, p95s, color=COLOURS[0], alpha=0.3)
    axes.plot(loads, means, "o", color=COLOURS[0], label=f"{WORDS['loop']}, mean, measured")
    axes.plot(loads, p95s, "_", markersize=12, color=COLOURS[0], label=f"{WORDS['loop']}, p95, measured")
    axes.set(
        title="Latency over load",
        xlabel="load, as a share of the rate that full batches carry",
        ylabel="seconds from sending to picture",
        xlim=(0, None),
        ylim=(0, HEADROOM * max(p95s)),
    )
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def rows_per_batch(axes: Any, rows: Sequence[tuple[float, float]]) -> None:
    """Plot the mean rows of a batch over time."""
    times, counts = [at for at, _ in rows], [count for _, count in rows]
    axes.fill_between(times, counts, step="pre", color=COLOURS[0], alpha=0.15, linewidth=0)
    axes.step(times, counts, where="pre", color=COLOURS[0])
    axes.set(
        title="Rows per batch over time",
        xlabel="seconds",
        ylabel="mean rows of a batch",
        xlim=(0, None),
        ylim=(0, None),
    )
    axes.yaxis.get_major_locator().set_params(integer=True)


def where_time_goes(axes: Any, parts: Mapping[int, Mapping[str, float]]) -> None:
    """Plot a bar for each number of steps, made up of its parts; the fewest steps at the top."""
    names, left = [f"{steps} steps" for steps in parts], [0.0] * len(parts)
    for part, colour, hatch in zip(PARTS, COLOURS, HATCHES, strict=True):
        widths = [seconds[part] for seconds in parts.values()]
        axes.barh(names, widths, left=left, height=0.6, color=colour, hatch=hatch, edgecolor="white", label=part)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    for k, total in enumerate(left):
        axes.annotate(f" {total:.2f} s", (total, k), va="center")
    axes.invert_yaxis()
    axes.set(title="Where a request's time goes", xlabel="seconds, mean", xlim=(0, 1.12 * max(left)))
    axes.legend(frameon=False, ncols=len(PARTS), loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _saved(path: Path, fill: Callable[[Any], None]) -> Path:
    with _figure() as (figure, axes):
        fill(axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        figure.savefig(path, dpi=DPI)
    return path


@contextmanager
def _figure() -> Iterator[tuple[Any, Any]]:
    """Make a figure with its axes, without a display and without pyplot's global state."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(FONT):
        figure = Figure(figsize=INCHES, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots()
