"""Requests as a stranger sends them: tritonclient and nothing of ours."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http

TYPES = {
    "prompt": "BYTES",
    "negative_prompt": "BYTES",
    "seed": "INT64",
    "prior_num_inference_steps": "INT32",
    "prior_guidance_scale": "FP32",
    "num_inference_steps": "INT32",
    "decoder_guidance_scale": "FP32",
    "guidance_scale": "FP32",
    "guidance_rescale": "FP32",
    "guidance_end": "FP32",
    "clip_skip": "INT32",
    "height": "INT32",
    "width": "INT32",
    "original_size": "INT32",
    "target_size": "INT32",
    "crops_coords_top_left": "INT32",
    "sampler": "BYTES",
    "schedule": "BYTES",
    "init_image": "BYTES",
    "mask": "BYTES",
    "strength": "FP32",
    "denoising_end": "FP32",
    "aesthetic_score": "FP32",
    "negative_aesthetic_score": "FP32",
    "prompt_syntax": "BYTES",
    "lora": "BYTES",
    "mask_blur": "INT32",
    "padding_mask_crop": "INT32",
    "extend": "INT32",
    "ip_adapter_image": "BYTES",
    "ip_adapter": "BYTES",
    "ip_adapter_scale": "FP32",
    "control": "BYTES",
    "control_images": "BYTES",
    "output_format": "BYTES",
    "deadline_ms": "INT32",
    "tenant": "BYTES",
    "cancel_on_disconnect": "BOOL",
    "use_cache": "BOOL",
    "action": "BYTES",
    "id": "BYTES",
    "since": "INT64",
    "preview": "BOOL",
}
NUMPY = {"BYTES": np.object_, "INT64": np.int64, "INT32": np.int32, "FP32": np.float32, "BOOL": np.bool_}


def inputs(module: Any, given: dict[str, Any]) -> list[Any]:
    """`given` as the inputs of `module` (tritonclient.grpc or .http); arrays are sent as they are."""
    made = []
    for name, value in given.items():
        array = value if isinstance(value, np.ndarray) else _array(name, value)
        datatype = (
            TYPES[name] if not isinstance(value, np.ndarray) else tritonclient.utils.np_to_triton_dtype(array.dtype)
        )
        tensor = module.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        made.append(tensor)
    return made


def grpc(url: str, request_id: str = "", model: str = "sdxl", **given: Any) -> dict[str, Any]:
    """One gRPC call of `sdxl`: image bytes, seed, receipt."""
    client = tritonclient.grpc.InferenceServerClient(url)
    result = client.infer(model, inputs(tritonclient.grpc, given), request_id=request_id)
    return _result(result)


def http(url: str, **given: Any) -> dict[str, Any]:
    """The same over HTTP; `url` without a scheme."""
    with tritonclient.http.InferenceServerClient(url) as client:
        return _result(client.infer("sdxl", inputs(tritonclient.http, given)))


def verb(url: str, action: str, **given: Any) -> dict[str, Any]:
    """One of the loop's verbs."""
    client = tritonclient.grpc.InferenceServerClient(url)
    tensors = inputs(tritonclient.grpc, {"action": action, **given})
    wanted = [tritonclient.grpc.InferRequestedOutput("report")]
    return json.loads(client.infer("denoise", tensors, outputs=wanted).as_numpy("report")[0])


def _array(name: str, value: Any) -> np.ndarray:
    """A scalar as `[1]`, a tuple or list as it is long."""
    values = value if isinstance(value, (tuple, list)) else [value]
    return np.array([item.encode() if isinstance(item, str) else item for item in values], NUMPY[TYPES[name]])


def _result(result: Any) -> dict[str, Any]:
    return {
        "image": result.as_numpy("image")[0],
        "seed": int(result.as_numpy("resolved_seed")[0]),
        "receipt": json.loads(result.as_numpy("receipt")[0]),
    }
