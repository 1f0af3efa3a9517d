"""Writes `<path>.taken` when a request arrives and answers late, from its own thread, once `<path>` exists."""

import sys
import threading
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

import triptych_serving


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            path = Path(pb_utils.get_input_tensor_by_name(request, "path").as_numpy()[0].decode())
            threading.Thread(target=self.answer, args=(path, request.get_response_sender()), daemon=True).start()

    def answer(self, path, sender):
        path.with_suffix(".taken").touch()
        while not path.exists():
            time.sleep(0.01)
        text = f"{sys.prefix} {sys.version} {triptych_serving.__file__}"
        output = pb_utils.Tensor("python", np.array([text.encode()], dtype=object))
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        sender.send(pb_utils.InferenceResponse([output]), flags=flags)
