"""The ensemble's last step: pixels and what made them, as one file."""

import json
import time

import numpy as np

from triptych_serving import triton
from triptych_serving.errors import StageFailed
from triptych_serving.images import encode
from triptych_serving.receipt import receipt, runtime
from triptych_serving.settings import Settings


class TritonPythonModel:
    def initialize(self, args):
        self.manifest = triton.ModelArguments(args).manifest
        self.runtime = runtime(self.manifest.target, triton.cpu_model())

    def execute(self, requests):
        return triton.answer_each(requests, self._answer)

    def _answer(self, request):
        passed_on = json.loads(triton.array(request, "settings")[0])
        timings = json.loads(triton.array(request, "report")[0])
        settings = Settings(**passed_on["settings"])
        pixels = triton.array(request, "sample")[0]
        if pixels.min() == pixels.max():
            raise StageFailed("vae_decoder: every pixel is the same; no image is made of it")
        made_by = receipt(settings, self.manifest, self.runtime, passed_on["cut"])
        image = encode(pixels, settings.output_format, made_by)
        timings["total_ms"] = round((time.monotonic() - passed_on["arrived"]) * 1e3, 3)
        return triton.response(
            image=triton.text(image),
            resolved_seed=np.array([settings.seed], np.int64),
            receipt=triton.text({**made_by, "timings": timings}),
        )
