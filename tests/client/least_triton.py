"""The least Triton that the command line can talk to: `python -m tests.client.least_triton` prints its address."""

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

    def ModelInfer(self, request, context):  # noqa: N802 - gRPC's name
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
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Triton(), server)
    sys.stdout.write(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}\n")
    sys.stdout.flush()
    server.start()
    threading.Event().wait()
