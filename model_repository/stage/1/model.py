"""One exported stage under Triton's dynamic batcher: requests of one shape run as one batch."""

import numpy as np

from triptych_serving import runtimes, triton


class TritonPythonModel:
    def initialize(self, args):
        arguments = triton.ModelArguments(args)
        self.inputs = arguments.inputs
        name, manifest = arguments.parameters["stage"], arguments.manifest
        self.stage = runtimes.stage(manifest, name, reproducible=arguments.reproducible)

    @triton.noted
    def execute(self, requests):
        return triton.answer_all(requests, self._run)

    def _run(self, requests):
        inputs = {name: [triton.array(request, name) for request in requests] for name in self.inputs}
        ends = np.cumsum([len(array) for array in inputs[self.inputs[0]]])[:-1]
        outputs = self.stage({name: np.concatenate(arrays) for name, arrays in inputs.items()})
        parts = {name: np.split(array, ends) for name, array in outputs.items()}
        return [
            triton.response(**{name: np.ascontiguousarray(parts[name][k]) for name in parts})
            for k in range(len(requests))
        ]
