"""Malformed requests beside normal load: what they cost those who send proper ones.

    python -m tests.end_to_end.malformed [--requests 1000] [--rate 40]

Four phases, without and with malformed requests in turn; prints latencies of the proper requests and the ratio of their
99th percentiles, restarts, and the kinds that were sent.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import tritonclient.grpc
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2, service_pb2_grpc

from triptych_demo import demo_builds
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


METHOD = "/inference.GRPCInferenceService/ModelInfer"
GOOD_FRAME = service_pb2.ModelInferRequest(model_name="sdxl").SerializeToString()
FRAMES = {
    "no protobuf": b"\xff" * 64,
    "a cut protobuf": GOOD_FRAME[:-2],
    "an endless varint": b"\x0a" + b"\xff" * 20,
    "no model": b"",
    "a model with a path": service_pb2.ModelInferRequest(model_name="../../etc/passwd").SerializeToString(),
    "a version that is none": service_pb2.ModelInferRequest(model_name="sdxl", model_version="-1").SerializeToString(),
    "contents and raw contents": service_pb2.ModelInferRequest(
        model_name="sdxl",
        inputs=[
            service_pb2.ModelInferRequest.InferInputTensor(
                name="prompt",
                datatype="BYTES",
                shape=[1],
                contents=service_pb2.InferTensorContents(bytes_contents=[b"a", b"b"]),
            )
        ],
        raw_input_contents=[b"\1\0\0\0a"],
    ).SerializeToString(),
}
HTTP = {
    "no body": (b"", {}),
    "half a document": (b"{", {}),
    "a list": (b"[]", {}),
    "no inputs": (b"{}", {}),
    "a negative header": (b"{}", {"Inference-Header-Content-Length": "-1"}),
    "a header beyond the body": (b"{}", {"Inference-Header-Content-Length": "99"}),
    "a header that is no number": (b"{}", {"Inference-Header-Content-Length": "ten"}),
    "no UTF-8": (b'{"inputs": [{"name": "\xff\xfe"}]}', {}),
    "nested a thousand times": (b"[" * 1000, {}),
    "an unknown encoding": (b"{}", {"Content-Encoding": "br"}),
    "gzip that is none": (b"{}", {"Content-Encoding": "gzip"}),
    "numbers for texts": (b'{"inputs": [{"name": 7, "shape": "x", "datatype": [], "data": {}}]}', {}),
    "huge numbers": (b'{"inputs": [{"name": "seed", "shape": [1e99], "datatype": "INT64", "data": [1e999]}]}', {}),
}


def inputs_of(server):
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


def kinds(inputs):
    """What can be wrong with each input in turn, the others being well formed: its name, {name: (datatype, shape, raw)}."""
    good = {name: (datatype, *well_formed(datatype, dims)) for name, datatype, dims in inputs}
    for name, (datatype, shape, raw) in good.items():
        if datatype == "BYTES":
            bad = {words: (datatype, shape, data) for words, data in BAD_BYTES.items()}
        else:
            short, long = raw[:-1], raw + b"\0"
            bad = {"short": (datatype, shape, short), "long": (datatype, shape, long), "empty": (datatype, shape, b"")}
        bad |= {
            "of a rank more": (datatype, [*shape, 1], raw),
            "of a negative size": (datatype, [-1], raw),
            "of a huge size": (datatype, [2**62], raw),
            "of no size": (datatype, [0], b""),
            "of another type": ("FP64", shape, bytes(8)),
            "of no type": ("NO_TYPE", shape, raw),
        }
        for words, one in bad.items():
            kind = f"{'text' if datatype == 'BYTES' else 'numbers'} {words}"
            yield kind, {**good, name: one}
            if name in (
                "prompt",
                "action",
                "settings",
                "tenant",
                "init_image",
            ):  # alone, where all others may be left out
                yield kind, {name: one}
    yield "nothing", {}
    yield "an unknown input", {"no_such_input": ("BYTES", [1], b"\1\0\0\0a")}


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
def bystanders(url, seconds=None):
    """Two callers of both families, whose pictures are all to be there and the same; `seconds` gets what each took."""
    over, pictures, took = threading.Event(), set(), [] if seconds is None else seconds

    def ask(model):
        while not over.is_set():
            began = time.perf_counter()
            pictures.add((model, plain.grpc(url, model=model, **GOOD)["image"]))
            took.append(time.perf_counter() - began)

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask, model) for model in ("sdxl", "stable_cascade")]
        try:
            yield
        finally:
            over.set()
    for caller in asking:
        caller.result()
    assert len(pictures) == 2  # one of each family, however often


def tensors(models) -> Iterator[tuple[str, str, object]]:
    """Everything that `malformed` makes, at every model: (kind, model, tensors)."""
    for model, inputs in models.items():
        for kind, made in kinds(inputs):
            yield kind, model, made


def requests(server, models):
    """Endless requests of all kinds in a fixed order: (kind, send)."""
    chosen = random.Random(0)
    every = list(tensors(models))
    chosen.shuffle(every)
    for k, (kind, model, made) in enumerate(itertools.cycle(every)):
        if k % 10 == 8:
            name = chosen.choice(list(FRAMES))
            yield f"gRPC, {name}", lambda name=name: send_frame(server, FRAMES[name])
        elif k % 10 == 9:
            name = chosen.choice(list(HTTP))
            yield f"HTTP, {name}", lambda name=name, model=model: send_body(server, model, *HTTP[name])
        elif k % 100 == 50:
            yield "HTTP, hung up", lambda: hang_up(server)
        else:
            over = over_grpc if k % 2 else over_http
            way = "gRPC" if k % 2 else "HTTP"
            yield f"{way}, {kind}", lambda over=over, model=model, made=made: over(server, model, made)


def send_frame(server, frame):
    with grpc.insecure_channel(server.addresses.grpc) as channel:
        try:
            channel.unary_unary(METHOD)(frame, timeout=60)
        except grpc.RpcError as error:
            return error.code()
    return None


def send_body(server, model, body, headers):
    try:
        return http_status(server, model, body, headers)
    except (OSError, http.client.HTTPException) as error:  # it may hang up on some
        return type(error).__name__


def hang_up(server):
    """Promise a body, send a part and leave."""
    with socket.create_connection(("127.0.0.1", server.addresses.http_port)) as connection:
        connection.sendall(b"POST /v2/models/sdxl/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    return "left"


def storm(server, models, count: int, rate: float) -> tuple[Counter, Counter]:
    """Send so many malformed requests, so many a second: how often each kind was sent, and each answer came."""
    sent, answers = Counter(), Counter()
    with ThreadPoolExecutor(4) as pool:
        futures = []
        for kind, send in itertools.islice(requests(server, models), count):
            sent[kind] += 1
            futures.append(pool.submit(send))
            time.sleep(1 / rate)
        answers.update(str(future.result()) for future in futures)
    return sent, answers


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=40, help="malformed requests a second")
    given = parser.parse_args()
    events, took = [], {"without": [], "with": []}
    sent, answers = Counter(), Counter()
    with Server(demo_builds(), http_port=0, grpc_port=0, metrics_port=0, cache_mb=0, on_event=events.append) as server:
        models = inputs_of(server)
        for _ in range(2):
            with bystanders(server.addresses.grpc, took["without"]):
                time.sleep(given.requests / 2 / given.rate)
            with bystanders(server.addresses.grpc, took["with"]):
                kinds, codes = storm(server, models, given.requests // 2, given.rate)
            sent, answers = sent + kinds, answers + codes
    sys.stdout.write(f"{report(took, sent, answers, events)}\n")


def report(took, sent, answers, events) -> str:
    lines = []
    for phase, seconds in took.items():
        p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
        lines.append(f"{phase:8} {len(seconds)} pictures, p50 {p50:.0f} ms, p99 {p99:.0f} ms")
    ratio = np.percentile(took["with"], 99) / np.percentile(took["without"], 99)
    restarts = sum(event.state == State.RESTARTING for event in events)
    lines += [f"RATIO storm_p99 {ratio:.2f} 1.5", f"{sent.total()} malformed requests of {len(sent)} kinds"]
    return "\n".join([*lines, f"answers: {dict(answers)}", f"restarts: {restarts}"])


if __name__ == "__main__":
    main()
