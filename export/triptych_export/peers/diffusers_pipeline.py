"""diffusers' `StableDiffusionXLPipeline` on the CPU: `python -m triptych_export.peers.diffusers_pipeline WEIGHTS`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline

from triptych_export.peers.answering import answer, threads


class DiffusersPipeline:
    """The pipeline as its documentation has it, float32; calls of it draw whole batches. `adapters` is a folder of LoRAs."""

    def __init__(self, weights: str, adapters: str | None = None) -> None:
        torch.set_num_threads(threads())
        pipeline: Any = StableDiffusionXLPipeline  # its loader is untyped
        self._pipeline = pipeline.from_pretrained(weights, torch_dtype=torch.float32)
        self._pipeline.set_progress_bar_config(disable=True)
        self._adapters = sorted(Path(adapters).glob("*.safetensors")) if adapters else []
        for file in self._adapters:
            self._pipeline.load_lora_weights(file, adapter_name=file.stem)

    def __call__(self, requests: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
        settings = {name: value for name, value in requests[0].items() if name not in ("prompt", "seed", "lora")}
        if self._adapters:
            self._wear(json.loads(requests[0].get("lora", "[]")))
        generators = [torch.Generator("cpu").manual_seed(request["seed"]) for request in requests]
        with torch.inference_mode():
            drawn = self._pipeline([request["prompt"] for request in requests], generator=generators, **settings)
        images: Sequence[Any] = drawn.images
        return images

    def _wear(self, adapters: Sequence[Mapping[str, Any]]) -> None:
        if not adapters:
            self._pipeline.disable_lora()
            return
        self._pipeline.enable_lora()
        self._pipeline.set_adapters([one["name"] for one in adapters], [one["scale"] for one in adapters])


if __name__ == "__main__":
    answer(DiffusersPipeline(*sys.argv[1:]), ("diffusers", "torch", "transformers"))
