"""The picture that a request starts from, as latents; nothing for a request without one."""

import json

import numpy as np

from triptych_contract.errors import InvalidRequest
from triptych_serving import runtimes, triton
from triptych_serving.pictures import latent_mask, pixels
from triptych_serving.pipelines import pipeline

NOTHING = np.zeros((1, 1, 0, 0), np.float32)


class TritonPythonModel:
    def initialize(self, args):
        arguments = triton.ModelArguments(args)
        manifest = arguments.manifest
        self.pipeline, self.model = pipeline(manifest), manifest.model
        self.stage = runtimes.stage(manifest, "vae_encoder", reproducible=arguments.reproducible)

    def execute(self, requests):
        return triton.answer_each(requests, self._answer)

    def _answer(self, request):
        try:
            return triton.response(refusal=triton.text(""), **self._encoded(request))
        except InvalidRequest as error:
            # `denoise` refuses in its place: an ensemble whose step fails beside others is in flight until Triton ends.
            refusal = triton.text(list(error.problems))
            return triton.response(refusal=refusal, latent_parameters=NOTHING, latent_mask=NOTHING)

    def _encoded(self, request):
        document = json.loads(triton.passed_on(request, "settings"))
        given = {name: triton.passed_on(request, name) for name in ("init_image", "mask")}
        if not given["init_image"] or document["cached"]:
            return {"latent_parameters": NOTHING, "latent_mask": NOTHING}
        settings = self.pipeline.read_settings(document["settings"])
        size = (settings.height, settings.width)
        sample = pixels("init_image", given["init_image"], *size)
        mask = NOTHING
        if given["mask"]:
            mask = latent_mask("mask", given["mask"], *size, self.model.vae_scale_factor)
        return {"latent_mask": mask, **self.stage({"sample": sample})}
