"""The ratios of a run: printed as they come, then written as JSON for programs and as Markdown with plots for people."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from . import machine
from .errors import BenchError
from .interleave import Samples, interleave
from .markdown import table
from .plots import draw
from .portrait import Portrait
from .target import Bound, Setting, Target

NO_WEIGHTS = "a build of your own; --weights takes the folder in diffusers layout that it was exported from"
HEADER = ("ratio", "value", "target", "holds", "smallest to largest", "first", "second")


@dataclass(frozen=True)
class Ratio:
    """One measured ratio beside its bound."""

    name: str
    samples: Samples
    bound: Bound

    @property
    def value(self) -> float:
        """The ratio itself: the median over the repeats."""
        return self.samples.ratio

    @property
    def holds(self) -> bool:
        """Whether it is within its bound."""
        return self.bound.holds(self.value)

    @property
    def line(self) -> str:
        """The line that is printed: `RATIO name value target`."""
        return f"RATIO {self.name} {self.value:.3f} {self.bound}"

    def to_json(self) -> dict[str, Any]:
        """Return it for the JSON report."""
        return {
            "name": self.name,
            "value": self.value,
            "target": str(self.bound),
            "aim": self.bound.aim,
            "holds": self.holds,
            "first": list(self.samples.first),
            "second": list(self.samples.second),
        }


@dataclass
class Report:
    """What has been measured so far.

    Attributes:
        meanings: by ratio, what is divided by what.
        skipped, failed: by target, why it was not tried, or why it could not be measured.
        seconds: by target, how long it took, with starting and stopping servers and peers.
    """

    setting: Setting
    facts: Mapping[str, str] = field(default_factory=machine.facts)
    ratios: list[Ratio] = field(default_factory=list)
    meanings: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    portrait: Portrait | None = None

    @property
    def holds(self) -> bool:
        """Whether all targets that were tried could be measured, and all ratios are within their bounds."""
        return not self.failed and all(ratio.holds for ratio in self.ratios)

    def measure(self, target: Target) -> Iterator[str]:
        """Measure a target, and yield a line for each of its ratios; if that is not possible, note why and yield nothing."""
        if target.needs_weights and self.setting.builds and self.setting.weights is None:
            self.skipped[target.name] = NO_WEIGHTS
            return
        began = time.monotonic()
        try:
            with target.sides(self.setting) as sides:
                samples = interleave(sides, self.setting.repeats)
        except BenchError as error:
            self.failed[target.name] = str(error)
            return
        finally:
            self.seconds[target.name] = time.monotonic() - began
        for name, bound in target.bounds.items():
            ratio = Ratio(name, samples[name], bound.eased(sides.eased.get(name, bound.low)))
            self.ratios.append(ratio)
            self.meanings[name] = target.what
            yield ratio.line

    def write(self) -> tuple[Path, Path]:
        """Write `report.md` with its plots, and `report.json`; return the paths of both."""
        folder = self.setting.output
        folder.mkdir(parents=True, exist_ok=True)
        markdown, document = folder / "report.md", folder / "report.json"
        document.write_text(json.dumps(self.to_json(), indent=1) + "\n", "utf-8")
        plots = draw(self.portrait, folder) if self.portrait else []
        markdown.write_text("\n\n".join(self._sections(plots)) + "\n", "utf-8")
        return markdown, document

    def to_json(self) -> dict[str, Any]:
        """Return all of it for `report.json`."""
        return {
            "facts": dict(self.facts),
            "repeats": self.setting.repeats,
            "quick": self.setting.quick,
            "ratios": [ratio.to_json() for ratio in self.ratios],
            "skipped": self.skipped,
            "failed": self.failed,
            "seconds": self.seconds,
            "portrait": self.portrait and self.portrait.to_json(),
        }

    def _sections(self, plots: Sequence[Path]) -> Iterator[str]:
        yield "# Benchmark"
        yield table(("", ""), [*self.facts.items(), ("repeats of each side, in turns", str(self.setting.repeats))])
        if self.setting.quick:
            yield "**A quick run: few requests. It shows that the benchmark works, not how fast anything is.**"
        yield table(HEADER, map(_row, self.ratios))
        yield table(("ratio", "what is divided by what"), self.meanings.items())
        if missing := {**self.skipped, **self.failed}:
            yield "Not measured:\n\n" + table(("target", "because"), missing.items())
        yield "What it took:\n\n" + table(("", "seconds"), self._took())
        yield from (f"![{path.stem.replace('-', ' ')}]({path.name})" for path in plots)

    def _took(self) -> Iterator[tuple[str, str]]:
        yield from ((name, f"{seconds:.0f}") for name, seconds in self.seconds.items())
        yield "all", f"{sum(self.seconds.values()):.0f}"


def _row(ratio: Ratio) -> tuple[object, ...]:
    low, high = ratio.samples.spread
    sides = (_median_of(side) for side in (ratio.samples.first, ratio.samples.second))
    return (
        ratio.name,
        ratio.value,
        str(ratio.bound),
        "yes" if ratio.holds else "**no**",
        f"{low:.3g} to {high:.3g}",
        *sides,
    )


def _median_of(figures: Sequence[float]) -> str:
    return f"{median(figures):.4g}"
