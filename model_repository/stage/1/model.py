"""One exported stage under Triton's dynamic batcher: requests of one shape run as one batch."""

import numpy as np

from triptych_serving import runtimes, triton
from triptych_serving.bounds import Bounds


class TritonPythonModel:
    def initialize(self, args):
        arguments = triton.ModelArguments(args)
        self.inputs = arguments.inputs
        self.name, manifest = arguments.parameters["stage"], arguments.manifest
        self.bounds = Bounds(manifest, self.name)
        self.stage = runtimes.stage(manifest, self.name, reproducible=arguments.reproducible)

    @triton.noted
    def execute(self, requests):
        return triton.answer_together(requests, self._read, self._run)

    def _read(self, request):
        inputs = {name: triton.array(request, name) for name in self.inputs}
        self.bounds.check(inputs)
        return inputs

    def _run(self, requests):
        outputs = self.stage({name: np.concatenate([one[name] for one in requests]) for name in self.inputs})
        ends = np.cumsum([len(one[self.inputs[0]]) for one in requests])[:-1]
        parts = {name: np.split(array, ends) for name, array in outputs.items()}
        made = [{name: np.ascontiguousarray(part[k]) for name, part in parts.items()} for k in range(len(requests))]
        read = (triton.proofs.read(*inputs.values()) for inputs in requests)
        return [triton.proving(self.name, *both) for both in zip(read, made, strict=True)]
