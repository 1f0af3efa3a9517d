"""The ensemble's first step: nothing wrong passes, and what passes is complete."""

import time

from triptych_serving import triton
from triptych_serving.settings import Settings
from triptych_serving.tokenizers import PromptTokenizer


class TritonPythonModel:
    def initialize(self, args):
        arguments = triton.ModelArguments(args)
        self.inputs, self.model = arguments.inputs, arguments.manifest.model
        cards = self.model.tokenizers
        self.tokenizers = [PromptTokenizer(arguments.manifest.verified(card.path), card) for card in cards]

    def execute(self, requests):
        return triton.answer_each(requests, self._answer)

    def _answer(self, request):
        arrived = time.monotonic()
        settings = Settings.parse(triton.scalars(request, self.inputs), self.model)
        prompts = [settings.negative_prompt or "", settings.prompt] if settings.guided else [settings.prompt]
        input_ids, input_ids_2 = (tokenizer(prompts) for tokenizer in self.tokenizers)
        passed_on = {"settings": settings.to_json(), "arrived": arrived, "cut": self._cut(settings)}
        return triton.response(input_ids=input_ids, input_ids_2=input_ids_2, settings=triton.text(passed_on))

    def _cut(self, settings):
        """What the longest-reading encoder does not see of each prompt, for the receipt."""
        prompts = {"prompt": settings.prompt, "negative_prompt": settings.negative_prompt or ""}
        cut = {name: min((t.cut(text) for t in self.tokenizers), key=len) for name, text in prompts.items()}
        return {name: words for name, words in cut.items() if words}
