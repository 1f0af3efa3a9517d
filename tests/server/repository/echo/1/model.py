"""Answers with its input."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        tensors = [pb_utils.get_input_tensor_by_name(request, "value") for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("value", tensor.as_numpy())]) for tensor in tensors]
