"""What a door reads of a request to pass it on: little, and wrong ones pass unread, for the server to refuse."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from tritonclient.grpc import service_pb2

from triptych_contract.verbs import ACTIONS, LOOP

# Inputs of which a picture does not depend, so that a cached one may be had whatever they are.
APART = ("deadline_ms", "cancel_on_disconnect", "output_format")
STEPS = ("num_inference_steps", "prior_num_inference_steps")
# What a stranger claims is no more work than this, and no less than none.
MAX_STEPS = 1000


@dataclass(frozen=True)
class Asked:
    """A request as a door sees it.

    Args:
        action: the loop's verb, "" for a picture.
        id: the picture's, or the one that a verb is about.
        steps: that it asks for, None where it leaves them to the model.
        kin: what it has in common with requests that the same server does cheaper; b"" for nothing.
    """

    action: str = ""
    id: str = ""
    steps: int | None = None
    kin: bytes = b""


def read(request: service_pb2.ModelInferRequest) -> Asked:
    """Read a request: a verb's action and id, or a picture's steps and kin."""
    given = _raw(request)
    if request.model_name == LOOP:
        action = _text(given.get("action", b""))
        return Asked(action if action in ACTIONS else "", _text(given.get("id", b"")))
    steps = [int(np.frombuffer(given[name], "<i4")[0]) for name in STEPS if len(given.get(name, b"")) == 4]
    counted = min(max(0, sum(steps)), MAX_STEPS) if steps else None
    return Asked(id=request.id, steps=counted, kin=_kin(request.model_name, given))


def _raw(request: service_pb2.ModelInferRequest) -> Mapping[str, bytes]:
    return {tensor.name: raw for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=False)}


def _text(raw: bytes) -> str:
    """Of a tensor with one string: four bytes of its length, then the string."""
    return raw[4:].decode("utf-8", "replace")


def _kin(model: str, given: Mapping[str, bytes]) -> bytes:
    """The adapters, which a server keeps in memory; else the whole picture, which it may have in its cache."""
    if lora := given.get("lora"):
        return hashlib.blake2b(model.encode() + lora, digest_size=16).digest()
    if "seed" not in given or given.get("use_cache", b"\1") == b"\0":
        return b""
    made = hashlib.blake2b(model.encode(), digest_size=16)
    for name in sorted(given.keys() - set(APART)):
        made.update(b"%s\0%d\0%s" % (name.encode(), len(given[name]), given[name]))
    return made.digest()
