"""Tensors that no client library would send, at every model: they are refused, and nobody else notices."""

from __future__ import annotations

import http.client
import json
import queue
import struct
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import psutil
import pytest
import tritonclient.grpc
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from triptych_demo import demo_build, demo_builds
from triptych_server import Server, State

from .. import plain

GOOD = {"prompt": "a fox", "num_inference_steps": 2, "seed": 1}
# Bytes of a BYTES tensor of one element, whose first four are to be the length of what follows.
BAD_BYTES = {
    "longer than its data": b"\x10\0\0\0abc",
    "as long as can be": b"\xff\xff\xff\xffabc",
    "negative by its sign": b"\0\0\0\x80abc",
    "shorter than its data": b"\1\0\0\0abc",
    "without a length": b"abc",
    "nothing": b"",
    "two elements": b"\1\0\0\0a\1\0\0\0b",
    "not UTF-8": b"\2\0\0\0\xff\xfe",
}
SIZES = {"INT64": 8, "INT32": 4, "FP32": 4, "BOOL": 1, "UINT8": 1}


@pytest.fixture(scope="module")
def events():
    return []


@pytest.fixture(scope="module")
def server(events):
    with Server(demo_builds(), http_port=0, grpc_port=0, metrics_port=0, cache_mb=0, on_event=events.append) as server:
        yield server


@pytest.fixture(scope="module")
def models(server):
    """Every model's inputs, by its name: (name, datatype, dims)."""
    with tritonclient.grpc.InferenceServerClient(server.addresses.grpc) as client:
        names = {model.name for model in client.get_inference_statistics().model_stats}
        metadata = {name: MessageToDict(client.get_model_metadata(name)) for name in names}
    assert {"sdxl", "stable_cascade", "tokenizer", "denoise", "vae_encoder", "image_encoder"} <= names
    return {
        name: [(given["name"], given["datatype"], [int(size) for size in given["shape"]]) for given in model["inputs"]]
        for name, model in metadata.items()
    }


def well_formed(datatype, dims):
    shape = [1 if size < 0 else size for size in dims]
    return shape, struct.pack("<I", 1) + b"x" if datatype == "BYTES" else bytes(SIZES[datatype] * int(np.prod(shape)))


def malformed(inputs):
    """What can be wrong with each input in turn, the others being well formed: {name: (datatype, shape, raw)}."""
    good = {name: (datatype, *well_formed(datatype, dims)) for name, datatype, dims in inputs}
    for name, (datatype, shape, raw) in good.items():
        if datatype == "BYTES":
            bad = [(datatype, shape, data) for data in BAD_BYTES.values()]
        else:
            bad = [(datatype, shape, raw[:-1]), (datatype, shape, raw + b"\0"), (datatype, shape, b"")]
        bad += [(datatype, [*shape, 1], raw), (datatype, [-1], raw), (datatype, [2**62], raw), (datatype, [0], b"")]
        bad += [("FP64", shape, bytes(8)), ("NO_TYPE", shape, raw)]
        yield from ({**good, name: one} for one in bad)
        if name in ("prompt", "action", "settings", "tenant", "init_image"):  # alone, where all others may be left out
            yield from ({name: one} for one in bad)
    yield {}
    yield {"no_such_input": ("BYTES", [1], b"\1\0\0\0a")}


def over_grpc(server, model, tensors):
    """The code of the error, None where there was none."""
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, (datatype, shape, raw) in tensors.items():
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(raw)
    return grpc_code(server, request)


def grpc_code(server, request):
    with grpc.insecure_channel(server.addresses.grpc) as channel:
        try:
            service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)
        except grpc.RpcError as error:
            return error.code()
    return None


def over_http(server, model, tensors):
    """The status."""
    given = [
        {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
        for name, (datatype, shape, raw) in tensors.items()
    ]
    header = json.dumps({"inputs": given}).encode()
    body = header + b"".join(raw for _, _, raw in tensors.values())
    return http_status(server, model, body, {"Inference-Header-Content-Length": str(len(header))})


def http_status(server, model, body, headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.addresses.http_port, timeout=60)
    try:
        connection.request("POST", f"/v2/models/{model}/infer", body, headers)
        return connection.getresponse().status
    finally:
        connection.close()


@contextmanager
def bystanders(url):
    """Two callers of both families, whose pictures are all to be there and the same."""
    over, pictures = threading.Event(), []

    def ask(model):
        while not over.is_set():
            pictures.append((model, plain.grpc(url, model=model, **GOOD)["image"]))

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask, model) for model in ("sdxl", "stable_cascade")]
        try:
            yield
        finally:
            over.set()
    for caller in asking:
        caller.result()
    assert len(set(pictures)) == 2  # one of each family, however often


HTTP_BODIES = [
    (b"", {}),
    (b"{", {}),
    (b"[]", {}),
    (b"{}", {}),
    (b"{}", {"Inference-Header-Content-Length": "-1"}),
    (b"{}", {"Inference-Header-Content-Length": "99"}),
]


def negative(tensors):
    """Triton's HTTP reader calls a negative size a mistake of its own, INTERNAL."""
    return any(-1 in shape for _, shape, _ in tensors.values())


def test_malformed_tensors_are_refused_at_every_model_and_nobody_else_notices(server, events, models):
    wrong = []
    with bystanders(server.addresses.grpc):
        for model, inputs in models.items():
            for tensors in malformed(inputs):
                code, status = over_grpc(server, model, tensors), over_http(server, model, tensors)
                if code != grpc.StatusCode.INVALID_ARGUMENT or status != (500 if negative(tensors) else 400):
                    wrong.append((model, code, status, tensors))
        for body, headers in HTTP_BODIES:
            assert http_status(server, "sdxl", body, headers) in (400, 500)
    assert not wrong
    assert undisturbed(events)


def undisturbed(events):
    return [event.state for event in events] == [State.PREPARING, State.LOADING, State.READY]


def test_a_hundred_malformed_tensors_at_once_restart_nothing(server, events):
    bad = {"prompt": ("BYTES", [1], BAD_BYTES["longer than its data"])}
    with bystanders(server.addresses.grpc), ThreadPoolExecutor(16) as pool:
        codes = list(pool.map(lambda _: over_grpc(server, "sdxl", bad), range(100)))
    assert set(codes) == {grpc.StatusCode.INVALID_ARGUMENT}
    assert undisturbed(events)


def stub(model):
    """The process of a model of the newest server."""
    mine = [p for p in psutil.Process().children(recursive=True) if f"/{model}/1/model.py" in " ".join(p.cmdline())]
    return max(mine, key=psutil.Process.create_time)


def ordinary_errors(url):
    """Errors that the loop answers itself."""
    for _ in range(15):
        with pytest.raises(InferenceServerException):
            plain.verb(url, "explode")


def test_a_loop_that_stands_still_is_noticed_after_any_number_of_ordinary_errors():
    told = queue.SimpleQueue()
    with (
        Server(demo_build(), http_port=0, grpc_port=0, metrics_port=0, on_event=told.put) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        ordinary_errors(server.addresses.grpc)
        job = str(uuid.uuid4())
        owed = pool.submit(
            plain.grpc, server.addresses.grpc, job, prompt="a fox", num_inference_steps=100, height=256, width=256
        )
        plain.verb(server.addresses.grpc, "watch", id=job)
        stub("denoise").suspend()
        assert "model 'denoise' stands still" in next_event(told, State.RESTARTING).text
        assert owed.exception(timeout=60)
        next_event(told, State.READY)
        assert plain.grpc(server.addresses.grpc, **GOOD)["image"]


def test_a_process_that_triton_has_given_up_is_replaced_after_any_number_of_ordinary_errors():
    told = queue.SimpleQueue()
    with (
        Server(demo_build(), http_port=0, grpc_port=0, metrics_port=0, cache_mb=0, on_event=told.put) as server,
        ThreadPoolExecutor(1) as pool,
    ):
        ordinary_errors(server.addresses.grpc)
        tokenizer = stub("tokenizer")
        tokenizer.suspend()
        given_up = pool.submit(plain.grpc, server.addresses.grpc, **GOOD)
        assert "not healthy" in str(given_up.exception(timeout=60))
        tokenizer.resume()
        # Triton has freed what the process still works on: it may end by that before the lost answer is noticed.
        assert "model 'tokenizer'" in next_event(told, State.RESTARTING).text
        next_event(told, State.READY)
        assert plain.grpc(server.addresses.grpc, **GOOD)["image"]


def next_event(told, state):
    while (event := told.get(timeout=60)).state != state:
        pass
    return event
