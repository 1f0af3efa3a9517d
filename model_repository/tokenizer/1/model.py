"""An ensemble's first step: nothing wrong passes, and what passes is complete."""

import itertools
import json
import time

from triptych_contract.parameters import File, Files
from triptych_serving import triton
from triptych_serving.cache import ImageCache
from triptych_serving.pictures import inspect
from triptych_serving.pipelines import pipeline
from triptych_serving.proofs import READ_BY
from triptych_serving.receipt import runtime
from triptych_serving.tokenizers import PromptTokenizer


class TritonPythonModel:
    def initialize(self, args):
        arguments = triton.ModelArguments(args)
        self.manifest = arguments.manifest
        self.pipeline = pipeline(self.manifest)
        self.kinds = {name: one.kind for name, one in self.pipeline.family.parameters.items()}
        self.pictures = [name for name, kind in self.kinds.items() if isinstance(kind, (File, Files))]
        self.tokenizers = [PromptTokenizer.of(self.manifest, card) for card in self.manifest.model.tokenizers]
        self.runtime = runtime(self.manifest.target, triton.cpu_model(), reproducible=arguments.reproducible)
        self.read_by = json.loads(arguments.parameters[READ_BY])
        self.by_encoders = set(itertools.chain.from_iterable(self.read_by.values()))
        self.cache = ImageCache.of_server()
        self.aside = triton.Aside(1)

    @triton.noted
    def execute(self, requests):
        return triton.turned_away(requests) or triton.answer_each(requests, self._answer)

    def _answer(self, request):
        arrived, id = time.monotonic(), request.request_id()
        given = triton.scalars(request, self.kinds)
        settings = self._settings(
            given
        )  # others wait for large pictures' 0.1 s; a late answer would be lost with a death
        if self.pipeline.soon(settings):
            return self._response(settings, arrived, id)
        self.aside.answer(request, lambda: self._response(settings, arrived, id))
        return None

    def _settings(self, given):
        seen = {name: self._seen(name, given[name]) for name in self.pictures if name in given}
        return self.pipeline.parse({**given, **seen})

    def _seen(self, name, given):
        if isinstance(self.kinds[name], File):
            return inspect(name, given)
        return [inspect(name, one) for one in self.kinds[name].few(name, given)]

    def _response(self, checked, arrived, id):
        settings = self.pipeline.resolved(checked)
        cached = self._cached(settings) if self.cache and settings.use_cache else None
        tokens = self.pipeline.encoder_inputs(settings, self.tokenizers)
        document = {
            "family": self.manifest.family,
            "settings": settings.to_json(),
            "arrived": arrived,
            "id": id,
            "cut": self.pipeline.cut(settings, self.tokenizers),
            "cached": cached is not None,
            "read": {stage: triton.proofs.read(*map(tokens.get, names)) for stage, names in self.read_by.items()},
            "passed": {name: triton.proofs.read(tokens[name]) for name in tokens if name not in self.by_encoders},
        }
        return triton.response(
            settings=triton.text(triton.proofs.signed("settings", document)),
            cached=triton.text(cached or b""),
            **tokens,
        )

    def _cached(self, settings):
        return self.cache.get(ImageCache.key(settings, self.manifest, self.runtime))
