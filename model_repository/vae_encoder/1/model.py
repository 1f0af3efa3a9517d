"""The picture that a request starts from, as latents; nothing for a request without one."""

import numpy as np

from triptych_serving import runtimes, triton
from triptych_serving.errors import InvalidRequest
from triptych_serving.families import family
from triptych_serving.pictures import latent_mask, pixels

PICTURES = ("init_image", "mask")
NOTHING = np.zeros((1, 1, 0, 0), np.float32)


class TritonPythonModel:
    def initialize(self, args):
        arguments = triton.ModelArguments(args)
        manifest = arguments.manifest
        self.family, self.model = family(manifest), manifest.model
        self.stage = runtimes.stage(manifest, "vae_encoder", reproducible=arguments.reproducible)

    @triton.noted
    def execute(self, requests):
        return triton.answer_each(requests, self._answer)

    def _answer(self, request):
        try:
            return triton.response(refusal=triton.text(""), **self._encoded(request))
        except InvalidRequest as error:
            if error.field not in PICTURES:
                raise
            # `denoise` refuses in its place: an ensemble whose step fails beside others is in flight until Triton ends.
            refusal = triton.text([error.field, error.given, error.legal])
            return triton.response(refusal=refusal, latent_parameters=NOTHING, latent_mask=NOTHING)

    def _encoded(self, request):
        document = triton.passed_on(request, "settings")
        given = triton.scalars(request, PICTURES)
        if "init_image" not in given or document["cached"]:
            return {"latent_parameters": NOTHING, "latent_mask": NOTHING}
        settings = self.family.read_settings(document["settings"])
        size = (settings.height, settings.width)
        sample = pixels("init_image", given["init_image"], *size)
        mask = NOTHING
        if "mask" in given:
            mask = latent_mask("mask", given["mask"], *size, self.model.vae_scale_factor)
        return {"latent_mask": mask, **self.stage({"sample": sample})}
