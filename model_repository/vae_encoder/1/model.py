"""The picture that a request starts from, as latents; nothing for a request without one."""

import hashlib
import json
import os
import threading

import numpy as np

from triptych_contract.errors import InvalidRequest, invalid
from triptych_serving import handover, runtimes, triton
from triptych_serving.pictures import latent_mask, pixels
from triptych_serving.pipelines import pipeline
from triptych_serving.proofs import LEGAL

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
        if document["settings"]["init_image"] is None or document["cached"]:
            return triton.response(picture=triton.text(""))
        settings = self.pipeline.parse(document["settings"])
        files = {name: triton.data(request, name) for name in ("init_image", "mask")}
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
                return self._latents(files, settings)
        except InvalidRequest as error:
            return {"refusal": np.array(json.dumps(error.problems))}
        except Exception as error:
            return {"failure": np.array(f"vae_encoder: {error}")}

    def _latents(self, files, settings):
        for name, file in files.items():
            _check_file(name, file, getattr(settings, name))
        size, mask = (settings.height, settings.width), files["mask"]
        sample = pixels("init_image", files["init_image"], *size)
        painted = {"latent_mask": latent_mask("mask", mask, *size, self.model.vae_scale_factor)} if mask else {}
        with self.one_at_a_time:
            return {**painted, **self.stage({"sample": sample})}


def _check_file(name, file, picture):
    """Only the file that the settings speak of, since what is answered belongs to those."""
    if (hashlib.sha256(file).hexdigest() if file else None) != (picture and picture.sha256):
        raise invalid(name, "another file", LEGAL)
