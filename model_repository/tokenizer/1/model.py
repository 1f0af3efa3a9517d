"""An ensemble's first step: nothing wrong passes, and what passes is complete."""

import time

from triptych_serving import triton
from triptych_serving.cache import ImageCache
from triptych_serving.families import family
from triptych_serving.pictures import inspect
from triptych_serving.receipt import runtime
from triptych_serving.tokenizers import PromptTokenizer

PICTURES = ("init_image", "mask")


class TritonPythonModel:
    def initialize(self, args):
        arguments = triton.ModelArguments(args)
        self.inputs, self.manifest = arguments.inputs, arguments.manifest
        self.family = family(self.manifest)
        self.tokenizers = [PromptTokenizer.of(self.manifest, card) for card in self.manifest.model.tokenizers]
        self.runtime = runtime(self.manifest.target, triton.cpu_model(), reproducible=arguments.reproducible)
        self.cache = ImageCache.of_server()

    def execute(self, requests):
        return triton.answer_each(requests, self._answer)

    def _answer(self, request):
        arrived = time.monotonic()
        given = triton.scalars(request, self.inputs)
        given |= {name: inspect(name, given[name]) for name in PICTURES if name in given}
        settings = self.family.parse(given)
        # Without a seed every picture is a new one.
        cached = self._cached(settings) if self.cache and "seed" in given else None
        document = {
            "family": self.manifest.family,
            "settings": settings.to_json(),
            "arrived": arrived,
            "cut": self._cut(settings),
            "cached": cached is not None,
            "keep": "seed" in given,
        }
        return triton.response(
            settings=triton.text(document),
            cached=triton.text(cached or b""),
            **self.family.encoder_inputs(settings, self.tokenizers),
        )

    def _cached(self, settings):
        return self.cache.get(ImageCache.key(settings, self.manifest, self.runtime))

    def _cut(self, settings):
        """What the longest-reading encoder does not see of each prompt, for the receipt."""
        prompts = {"prompt": settings.prompt, "negative_prompt": settings.negative_prompt or ""}
        cut = {name: min((t.cut(text) for t in self.tokenizers), key=len) for name, text in prompts.items()}
        return {name: words for name, words in cut.items() if words}
