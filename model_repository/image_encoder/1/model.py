"""Every ensemble's last step: pixels and what made them, as one file."""

import time

import numpy as np

from triptych_contract.errors import invalid
from triptych_serving import triton
from triptych_serving.cache import ImageCache
from triptych_serving.errors import StageFailed
from triptych_serving.images import encode
from triptych_serving.proofs import LEGAL
from triptych_serving.receipt import infotext, receipt, runtime

# Inputs that a picture may be laid over.
FILES = ("init_image", "mask")


class TritonPythonModel:
    def initialize(self, args):
        arguments = triton.ModelArguments(args)
        self.pipelines, self.made_by, processor = arguments.pipelines(), arguments.made_by, triton.cpu_model()
        self.ran_on = {
            target: runtime(target, processor, reproducible=arguments.reproducible)
            for target in {pipeline.manifest.target for pipeline in self.pipelines.values()}
        }
        self.cache = ImageCache.of_server()
        self.aside = triton.Aside(1)

    @triton.noted
    def execute(self, requests):
        return triton.answer_each(requests, self._answer)

    def _answer(self, request):
        document, timings = (triton.passed_on(request, name) for name in ("settings", "report"))
        triton.check_id(request, document)
        if timings.pop("of") != triton.proofs.of(triton.data(request, "settings")):
            raise invalid("report", "another request's", LEGAL)
        pipeline = self.pipelines[document["family"]]
        settings = pipeline.parse(document["settings"])
        ran_on = self.ran_on[pipeline.manifest.target]
        made_by = receipt(settings, pipeline, ran_on, document["cut"])
        latents = timings.pop("latents")

        def answer(image):
            timings["total_ms"] = round((time.monotonic() - document["arrived"]) * 1e3, 3)
            return triton.response(
                image=triton.text(image),
                resolved_seed=np.array([settings.seed], np.int64),
                receipt=triton.text({**made_by, "timings": timings, "cached": document["cached"]}),
            )

        if document["cached"]:
            return answer(triton.data(request, "cached"))
        pixels, proven = self._pixels(request, document["family"], settings, latents)
        files = {name: triton.data(request, name) for name in FILES}

        def made():
            finished = pipeline.finished(settings, pixels, files.get)
            image = encode(finished, settings.output_format, made_by, infotext(made_by, pipeline))
            if self.cache and settings.use_cache and proven:
                self.cache.put(ImageCache.key(settings, pipeline.manifest, ran_on), image)
            return answer(image)

        if not pipeline.lays_over(settings):
            return made()
        self.aside.answer(request, made)  # a stranger's picture may be large
        return None

    def _pixels(self, request, family, settings, latents):
        """What the decoder made of these latents, and whether it proved that; Triton's own models cannot."""
        sample, legal = triton.array(request, "sample"), (1, settings.height, settings.width, 3)
        if sample.shape != legal:
            raise invalid("sample", f"shape {sample.shape}", str(legal))
        if maker := self.made_by[family].get("sample"):
            triton.proven(request, "sample", maker, latents)
        if sample.min() == sample.max():
            raise StageFailed("the decoder: every pixel is the same; no image is made of it")
        return np.array(sample[0]), bool(maker)
