"""The pictures of a request: the one that it starts from, as latents, and those that controls follow, resized; else nothing."""

import hashlib
import json
import os
import threading

import numpy as np

from triptych_contract.errors import InvalidRequest, invalid
from triptych_contract.parameters import Picture
from triptych_serving import handover, runtimes, triton
from triptych_serving.encoded import CONTROL_PICTURES
from triptych_serving.pictures import latent_mask, packed, pixels
from triptych_serving.pipelines import pipeline
from triptych_serving.proofs import LEGAL

PICTURES = ("init_image", "mask", "control_images")
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
        self.folder = handover.folder()

    @triton.noted
    def execute(self, requests):
        return triton.answer_each(requests, self._answer)

    def _answer(self, request):
        document = triton.passed_on(request, "settings")
        if document["cached"] or all(document["settings"][name] is None for name in PICTURES):
            return triton.response(picture=triton.text(""))
        settings = self.pipeline.parse(document["settings"])
        files = {name: triton.files(request, name) for name in PICTURES}
        ends = None if settings.deadline_ms is None else document["arrived"] + settings.deadline_ms / 1000
        picture = handover.Pending(self.folder)
        # What there is to say about a deadline or a picture, `denoise` says: an ensemble whose step fails beside others is in
        # flight until Triton ends.
        self.aside.do(lambda: picture.fill(self._encoded(files, settings)), ends, late=lambda: picture.fill({}))
        passed_on = {"file": picture.name, "of": triton.proofs.of(triton.data(request, "settings"))}
        return triton.response(picture=triton.text(triton.proofs.signed("picture", passed_on)))

    def _encoded(self, files, settings):
        try:
            with triton.pace.watched():
                return self._made(files, settings)
        except InvalidRequest as error:
            return {"refusal": np.array(json.dumps(error.problems))}
        except Exception as error:
            return {"failure": np.array(f"vae_encoder: {error}")}

    def _made(self, files, settings):
        for name, given in files.items():
            _check_files(name, given, getattr(settings, name))
        size = settings.height, settings.width
        made = {}
        begun = [pixels("init_image", file, *size) for file in files["init_image"]]
        for mask in files["mask"]:
            made["latent_mask"] = latent_mask("mask", mask, *size, self.model.vae_scale_factor)
        if followed := [packed("control_images", file, *size) for file in files["control_images"]]:
            made[CONTROL_PICTURES] = np.stack(followed)
        for sample in begun:
            with self.one_at_a_time:
                made |= self.stage({"sample": sample})
        return made


def _check_files(name, given, pictures):
    """Only the files that the settings speak of, since what is answered belongs to those."""
    told = [pictures] if isinstance(pictures, Picture) else pictures or ()
    if [hashlib.sha256(file).hexdigest() for file in given] != [picture.sha256 for picture in told]:
        raise invalid(name, "another file", LEGAL)
