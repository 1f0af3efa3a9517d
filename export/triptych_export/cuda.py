"""Graphs for ONNX Runtime's CUDA provider: each stage's checked graph in its precision, attention over heads as one operation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych_serving.manifest import sha256

from . import precision
from .attention import fused
from .errors import ExportError
from .ledger import Facts
from .parts import Made, fingerprint
from .stages import StageSpec
from .weights import combined

CODE = "cuda precision attention"


@dataclass(frozen=True)
class CudaGraphs:
    """Makes the graphs of one export, in its folder `output`. `precisions` are the caller's, by stage."""

    output: Path
    precisions: Mapping[str, str]

    def __post_init__(self) -> None:
        for stage, chosen in self.precisions.items():
            precision.check_precision(stage, chosen)
            if chosen == precision.EIGHTH:
                raise ExportError(f"precision of {stage}: {chosen!r} given; legal with --target cuda: fp32, fp16, bf16")

    def made_from(self, name: str, facts: Mapping[str, Any]) -> str:
        """What the graph of the stage `name` depends on, given its exported `facts`."""
        return fingerprint(CODE, facts["sha256"], precision.of_stage(name, self.precisions, facts))

    def make(self, name: str, facts: Mapping[str, Any]) -> Made:
        """Write the graph of a stage; what takes the place of its `facts` in the manifest.

        Raises:
            ExportError: a weight does not fit the precision; names it.
        """
        chosen, path = precision.of_stage(name, self.precisions, facts), f"{name}/cuda.onnx"
        files = [path, f"{path}_data"]
        for file in files:
            (self.output / file).unlink(missing_ok=True)  # an export that is cut off leaves none that looks whole
        precision.lower(
            self.output / facts["path"], self.output / path, chosen, StageSpec.of(name, facts), rewrite=fused
        )
        made = [file for file in files if (self.output / file).exists()]
        lowered: Facts = {"path": path, "files": made, "sha256": combined(sha256(self.output / file) for file in made)}
        return made, {**lowered, "precision": chosen}
