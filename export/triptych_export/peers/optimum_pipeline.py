"""Optimum's `ORTStableDiffusionXLPipeline` on the CPU: `python -m triptych_export.peers.optimum_pipeline WEIGHTS FOLDER`.

Optimum's own export of the weights is kept in FOLDER, by the weights' path.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnxruntime
import torch
from optimum.onnxruntime import ORTStableDiffusionXLPipeline

from triptych_export.peers.answering import answer, threads

# What transformers 5 calls tokenizers that are a `tokenizer.json`, and what 4, which Optimum needs, calls them.
NEW, OLD = "TokenizersBackend", "PreTrainedTokenizerFast"


class OptimumPipeline:
    """The pipeline with ONNX Runtime's threads set as Triptych sets them."""

    def __init__(self, weights: Path, folder: Path) -> None:
        exported = folder / f"optimum-export-{hashlib.sha256(str(weights.resolve()).encode()).hexdigest()[:12]}"
        if not exported.is_dir():
            export(weights, exported)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads()
        self._pipeline: Any = ORTStableDiffusionXLPipeline.from_pretrained(
            str(exported), provider="CPUExecutionProvider", session_options=options
        )
        self._pipeline.set_progress_bar_config(disable=True)

    def __call__(self, requests: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
        settings = {name: value for name, value in requests[0].items() if name not in ("prompt", "seed")}
        generators = [torch.Generator("cpu").manual_seed(request["seed"]) for request in requests]
        drawn = self._pipeline([request["prompt"] for request in requests], generator=generators, **settings)
        images: Sequence[Any] = drawn.images
        return images


def export(weights: Path, exported: Path) -> None:
    """Optimum's export, of a copy that its transformers can read."""
    with TemporaryDirectory(dir=exported.parent) as copy:
        shutil.copytree(weights, copy, dirs_exist_ok=True)
        for path in (Path(copy, "model_index.json"), *Path(copy).glob("tokenizer*/tokenizer_config.json")):
            path.write_text(path.read_text("utf-8").replace(json.dumps(NEW), json.dumps(OLD)), "utf-8")
        ORTStableDiffusionXLPipeline.from_pretrained(copy, export=True).save_pretrained(exported)


if __name__ == "__main__":
    answer(OptimumPipeline(Path(sys.argv[1]), Path(sys.argv[2])), ("optimum-onnx", "onnxruntime", "diffusers", "torch"))
