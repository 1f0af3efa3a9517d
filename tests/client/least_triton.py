"""The least Triton that the command line can talk to: `python -m tests.client.least_triton [LOADING]` prints its address.

The first LOADING requests find its models not loaded yet.
"""

from __future__ import annotations

import io
import json
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Draws one black pixel for every request and knows no verbs."""

    def __init__(self, loading):
        self.loading = loading

    def ModelInfer(self, request, context):  # noqa: N802 - gRPC's name
        if request.model_name != "denoise" and self.loading:
            self.loading -= 1
            words = f"Request for unknown model: '{request.model_name}' has no available versions"
            context.abort(grpc.StatusCode.UNAVAILABLE, words)
        if request.model_name == "denoise":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "id: x given; legal: the id of a request of this tenant")
        inputs = {tensor.name: raw for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)}
        file = io.BytesIO()
        Image.new("RGB", (1, 1)).save(file, "PNG")
        receipt = json.dumps({"output_format": "png", "timings": {"total_ms": 5.0}}).encode()
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        for name, datatype, raw in (
            ("image", "BYTES", struct.pack("<I", len(file.getvalue())) + file.getvalue()),
            ("resolved_seed", "INT64", inputs["seed"]),
            ("receipt", "BYTES", struct.pack("<I", len(receipt)) + receipt),
        ):
            response.outputs.add(name=name, datatype=datatype, shape=[1])
            response.raw_output_contents.append(raw)
        return response


if __name__ == "__main__":
    server = grpc.server(ThreadPoolExecutor(8))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Triton(int([*sys.argv, "0"][1])), server)
    sys.stdout.write(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}\n")
    sys.stdout.flush()
    server.start()
    threading.Event().wait()
