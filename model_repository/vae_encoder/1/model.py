"""The picture that a request starts from, as latents; nothing for a request without one."""

import functools
import hashlib
import os
import threading

import numpy as np

from triptych_contract.errors import InvalidRequest, invalid
from triptych_serving import runtimes, triton
from triptych_serving.pictures import latent_mask, pixels
from triptych_serving.pipelines import pipeline
from triptych_serving.proofs import LEGAL

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
        response = functools.partial(_response, [triton.proofs.of(triton.data(request, "settings"))])
        if document["settings"]["init_image"] is None or document["cached"]:
            return response()
        settings = self.pipeline.parse(document["settings"])
        files = {name: triton.data(request, name) for name in ("init_image", "mask")}
        ends = None if settings.deadline_ms is None else document["arrived"] + settings.deadline_ms / 1000
        # What there is to say about a deadline or a picture, `denoise` says: an ensemble whose step fails beside others is in
        # flight until Triton ends.
        self.aside.answer(request, lambda: self._encoded(files, settings, response), ends=ends, late=response)
        return None

    def _encoded(self, files, settings, response):
        size = (settings.height, settings.width)
        try:
            for name, file in files.items():
                _check_file(name, file, getattr(settings, name))
            sample = pixels("init_image", files["init_image"], *size)
            mask = files["mask"]
            painted = latent_mask("mask", mask, *size, self.model.vae_scale_factor) if mask else NOTHING
        except InvalidRequest as error:
            return response(list(error.problems))
        with self.one_at_a_time:
            return response(latent_mask=painted, **self.stage({"sample": sample}))


def _check_file(name, file, picture):
    """Only the file that the settings speak of, since what is answered belongs to those."""
    if (hashlib.sha256(file).hexdigest() if file else None) != (picture and picture.sha256):
        raise invalid(name, "another file", LEGAL)


def _response(read, refusal=b"", *, latent_parameters=NOTHING, latent_mask=NOTHING):
    made = {"latent_parameters": latent_parameters, "latent_mask": latent_mask}
    return triton.proving("vae_encoder", read, made, refusal=triton.text(refusal))
