"""Optimum's `ORTStableDiffusionXLPipeline` on the CPU: `python -m triptych_export.peers.optimum_pipeline WEIGHTS FOLDER`.

Optimum's own export of the weights is kept in FOLDER.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from optimum.onnxruntime import ORTStableDiffusionXLPipeline

from triptych_export.peers.answering import answer, threads


class Pipeline:
    """The pipeline with ONNX Runtime's threads set as Triptych sets them."""

    def __init__(self, weights: str, folder: Path) -> None:
        exported = folder / "optimum-export"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads()
        source = {"export": False} if exported.is_dir() else {"export": True}
        self._pipeline: Any = ORTStableDiffusionXLPipeline.from_pretrained(
            str(exported) if exported.is_dir() else weights,
            provider="CPUExecutionProvider",
            session_options=options,
            **source,
        )
        self._pipeline.set_progress_bar_config(disable=True)
        if not exported.is_dir():
            self._pipeline.save_pretrained(exported)

    def __call__(self, requests: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
        settings = {name: value for name, value in requests[0].items() if name not in ("prompt", "seed")}
        generators = [torch.Generator("cpu").manual_seed(request["seed"]) for request in requests]
        drawn = self._pipeline([request["prompt"] for request in requests], generator=generators, **settings)
        images: Sequence[Any] = drawn.images
        return images


if __name__ == "__main__":
    answer(Pipeline(sys.argv[1], Path(sys.argv[2])), ("optimum-onnx", "onnxruntime", "diffusers", "torch"))
