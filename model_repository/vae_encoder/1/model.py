"""A request's pictures: what it starts from as latents, its image prompt as tokens, what controls follow, resized; else none."""

import functools
import itertools
import json
import os
import threading

import numpy as np

from triptych_contract.errors import InvalidRequest
from triptych_serving import handover, runtimes, triton
from triptych_serving.canvas import Canvas
from triptych_serving.encoded import CONTROL_PICTURES
from triptych_serving.pictures import check_file, decoded, packed
from triptych_serving.pipelines import pipeline
from triptych_serving.sdxl.image_prompts import ENCODER, pixel_values

# Each takes some hundred megabytes for a picture of the largest size, and most of a processor.
THREADS = max(1, min(2, (os.cpu_count() or 1) // 2))
# So many sizes of a grey picture are remembered, which is what a model that reads masks sees of a request without one.
GREYS = 8
FILES = ("init_image", "mask", "ip_adapter_image")
FOLLOWED = "control_images"


class TritonPythonModel:
    def initialize(self, args):
        arguments = triton.ModelArguments(args)
        manifest = arguments.manifest
        self.pipeline, self.model = pipeline(manifest), manifest.model
        self.stage = runtimes.stage(manifest, "vae_encoder", reproducible=arguments.reproducible)
        if ENCODER in manifest.stages:
            self.image_prompts = runtimes.stage(manifest, ENCODER, reproducible=arguments.reproducible)
            self.side = manifest.stages[ENCODER]["inputs"]["pixel_values"]["shape"][-1]
        self.one_at_a_time = threading.Lock()
        self.grey = functools.lru_cache(GREYS)(lambda *size: self._moments(np.zeros((1, 3, *size), np.float32)))
        self.aside = triton.Aside(THREADS)
        self.folder = handover.folder()

    @triton.noted
    def execute(self, requests):
        return triton.answer_each(requests, self._answer)

    def _answer(self, request):
        document = triton.passed_on(request, "settings")
        settings = self.pipeline.parse(document["settings"])
        if document["cached"] or not self.pipeline.reads_pictures(settings):
            return triton.response(picture=triton.text(""))
        files = {name: triton.data(request, name) for name in FILES} | {FOLLOWED: triton.files(request, FOLLOWED)}
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
                made = {**self._latents(files, settings), **self._tokens(files["ip_adapter_image"], settings)}
                return {**made, **_followed(files[FOLLOWED], settings)}
        except InvalidRequest as error:
            return {"refusal": np.array(json.dumps(error.problems))}
        except Exception as error:
            return {"failure": np.array(f"vae_encoder: {error}")}

    def _latents(self, files, settings):
        size, sample, white = (settings.height, settings.width), None, None
        if settings.init_image is not None:
            sample, white = Canvas.of(files.get, settings).seen(*size)
        made = {}
        with self.one_at_a_time:
            if self.pipeline.begins_with_picture(settings):
                made["latent_parameters"] = self._moments(sample)
            if self.model.inpainting:  # without a mask all is painted anew, and what is seen of the rest is grey
                made["outside_parameters"] = self.grey(*size) if white is None else self._moments(sample * (1 - white))
                white = np.ones((1, 1, *size), np.float32) if white is None else white
        if white is not None:
            scale = self.model.vae_scale_factor
            made["latent_mask"] = np.ascontiguousarray(white[:, :, ::scale, ::scale])
        return made

    def _tokens(self, file, settings):
        check_file("ip_adapter_image", file, settings.ip_adapter_image)
        if settings.ip_adapter_image is None:
            return {}
        image = decoded("ip_adapter_image", file)
        with self.one_at_a_time:
            return self.image_prompts({"pixel_values": pixel_values(image, self.side)})

    def _moments(self, sample):
        return self.stage({"sample": sample})["latent_parameters"]


def _followed(files, settings):
    """The pictures that controls follow, of the size that is drawn."""
    for file, picture in itertools.zip_longest(files, settings.control_images or ()):
        check_file(FOLLOWED, file, picture)
    size = settings.height, settings.width
    return {CONTROL_PICTURES: np.stack([packed(decoded(FOLLOWED, file), *size) for file in files])} if files else {}
