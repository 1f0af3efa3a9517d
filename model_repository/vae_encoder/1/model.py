"""The picture that a request starts from, as latents; nothing for a request without one."""

import os
import threading

import numpy as np

from triptych_contract.errors import InvalidRequest
from triptych_serving import runtimes, triton
from triptych_serving.pictures import latent_mask, pixels
from triptych_serving.pipelines import pipeline

NOTHING = np.zeros((1, 1, 0, 0), np.float32)
# Each takes some hundred megabytes for a picture of the largest size, and most of a processor.
THREADS = max(1, min(2, (os.cpu_count() or 1) // 2))


class TritonPythonModel:
    def initialize(self, args):
        arguments = triton.ModelArguments(args)
        manifest = arguments.manifest
        self.pipeline, self.model = pipeline(manifest), manifest.model
        self.stage = runtimes.stage(manifest, "vae_encoder", reproducible=arguments.reproducible)
        self.one_at_a_time = threading.Lock()
        self.aside = triton.Aside(THREADS)

    @triton.noted
    def execute(self, requests):
        return triton.answer_each(requests, self._answer)

    def _answer(self, request):
        document = triton.passed_on(request, "settings")
        init_image, mask = (triton.data(request, name) for name in ("init_image", "mask"))
        if not init_image or document["cached"]:
            return _response()
        settings = self.pipeline.parse(document["settings"])
        ends = None if settings.deadline_ms is None else document["arrived"] + settings.deadline_ms / 1000
        # What there is to say about a deadline or a picture, `denoise` says: an ensemble whose step fails beside others is in
        # flight until Triton ends.
        self.aside.answer(request, lambda: self._encoded(init_image, mask, settings), ends=ends, late=_response)
        return None

    def _encoded(self, init_image, mask, settings):
        size = (settings.height, settings.width)
        try:
            sample = pixels("init_image", init_image, *size)
            painted = latent_mask("mask", mask, *size, self.model.vae_scale_factor) if mask else NOTHING
        except InvalidRequest as error:
            return _response(list(error.problems))
        with self.one_at_a_time:
            return _response(latent_mask=painted, **self.stage({"sample": sample}))


def _response(refusal=b"", *, latent_parameters=NOTHING, latent_mask=NOTHING):
    return triton.response(refusal=triton.text(refusal), latent_parameters=latent_parameters, latent_mask=latent_mask)
