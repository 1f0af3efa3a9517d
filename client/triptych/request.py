"""A request's inputs: what may be given, and what can be sent at all. What is legal, the server says."""

from __future__ import annotations

import math
import numbers
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import invalid
from .pictures import file_bytes

_PROMPTS = {"prompt": "BYTES", "negative_prompt": "BYTES", "seed": "INT64"}
_SIZE = {"height": "INT32", "width": "INT32"}
# What the picture does not depend on.
DELIVERY = {"deadline_ms": "INT32", "tenant": "BYTES", "cancel_on_disconnect": "BOOL"}
# Ensemble → name → Triton's type; the order is the contract's.
INPUTS: Mapping[str, Mapping[str, str]] = {
    "sdxl": {
        **_PROMPTS,
        "num_inference_steps": "INT32",
        "guidance_scale": "FP32",
        "guidance_rescale": "FP32",
        "guidance_end": "FP32",
        "clip_skip": "INT32",
        **_SIZE,
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
        "output_format": "BYTES",
        **DELIVERY,
    },
    "stable_cascade": {
        **_PROMPTS,
        "prior_num_inference_steps": "INT32",
        "prior_guidance_scale": "FP32",
        "num_inference_steps": "INT32",
        "decoder_guidance_scale": "FP32",
        **_SIZE,
        "output_format": "BYTES",
        **DELIVERY,
    },
}
VERB_INPUTS = {"action": "BYTES", "id": "BYTES", "tenant": "BYTES", "since": "INT64", "preview": "BOOL"}
# What any input is sent as: a name has one type, whichever model it is for.
DATATYPES = {name: datatype for table in (*INPUTS.values(), VERB_INPUTS) for name, datatype in table.items()}
# Inputs of two numbers, and what those are.
PAIRS = {
    "original_size": "height and width",
    "target_size": "height and width",
    "crops_coords_top_left": "top and left",
}
PICTURES = ("init_image", "mask")
_BITS = {"INT32": 31, "INT64": 63}


def inputs_of(model: str) -> Mapping[str, str]:
    """The table of an ensemble; one that is not ours is asked as `sdxl` is."""
    return INPUTS.get(model, INPUTS["sdxl"])


def check(model: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that were given (None is not given), each as what Triton can carry.

    Raises:
        InvalidRequest: a name that `model` does not have, a value that its type cannot hold, or a file that cannot be read.
    """
    legal = inputs_of(model)
    if foreign := sorted(set(given) - set(legal)):
        raise invalid(foreign[0], stranger("a parameter", foreign[0], model), ", ".join(legal))
    return {name: _sendable(name, legal[name], value) for name, value in given.items() if value is not None}


def stranger(what: str, name: str, model: str) -> str:
    """What an error calls an input that `model` does not have: `what` of another model, or nobody's."""
    owner = next((other for other, table in INPUTS.items() if name in table), None)
    return f"{what} of {owner} and not of {model}" if owner else "an unknown parameter"


def _sendable(name: str, datatype: str, value: Any) -> Any:
    if name in PICTURES:
        return file_bytes(name, value)
    if name in PAIRS:
        return _pair(name, datatype, value)
    return _scalar(name, datatype, value)


def _pair(name: str, datatype: str, value: Any) -> tuple[Any, Any]:
    value = value.tolist() if hasattr(value, "tolist") else value  # NumPy's arrays are no Sequence
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or len(value) != 2:
        raise invalid(name, repr(value), f"two whole numbers, {PAIRS[name]}")
    return _scalar(name, datatype, value[0]), _scalar(name, datatype, value[1])


def _scalar(name: str, datatype: str, value: Any) -> Any:
    if datatype == "BYTES":
        return _bytes(name, value)
    if datatype == "BOOL":
        return bool(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):  # NumPy's scalars are Real as well
        raise invalid(name, repr(value), "a number")
    return _float(name, value) if datatype == "FP32" else _integer(name, value, _BITS[datatype])


def _float(name: str, value: Any) -> float:
    try:
        struct.pack("<f", value)
    except (OverflowError, struct.error):
        raise invalid(name, value, "a number that 32 bits can hold") from None
    return float(value)


def _integer(name: str, value: Any, bits: int) -> int:
    whole = int(value) if isinstance(value, numbers.Integral) or math.isfinite(value) else None
    if whole is None or value != whole or not -(2**bits) <= whole < 2**bits:
        raise invalid(name, value, f"a whole number below 2^{bits}")
    return whole


def _bytes(name: str, value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise invalid(name, repr(value), "a text")
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise invalid(name, f"a character that is not Unicode at {error.start}", "UTF-8 text") from None
