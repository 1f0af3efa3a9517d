"""InvokeAI's records: the JSON text `invokeai_metadata` of today's files, and `sd-metadata` of older ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .a1111 import Read, number, others

# Their name → ours. Sides, steps and scales mean what ours mean.
NUMBERS = {
    "seed": "seed",
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "cfg_rescale_multiplier": "guidance_rescale",
    "width": "width",
    "height": "height",
    "strength": "strength",
    "clip_skip": "clip_skip",
    "refiner_start": "denoising_end",
}
# Their scheduler → our sampler and schedule; a name that is not here is looked for among the server's samplers.
SCHEDULERS = {
    "euler_k": ("euler", "karras"),
    "euler_a": ("euler_a", ""),
    "dpmpp_2m_k": ("dpmpp_2m", "karras"),
    "dpmpp_2m_sde_k": ("dpmpp_2m_sde", "karras"),
    "dpmpp_3m_k": ("dpmpp_3m", "karras"),
    "dpmpp_2s_k": ("dpmpp_2s", "karras"),
    "kdpm_2": ("dpm2", ""),
    "kdpm_2_k": ("dpm2", "karras"),
    "kdpm_2_a": ("dpm2_a", ""),
    "heun_k": ("heun", "karras"),
    "lms_k": ("lms", "karras"),
    "unipc_k": ("unipc", "karras"),
    "deis_k": ("deis", "karras"),
    "k_euler": ("euler", ""),
    "k_euler_a": ("euler_a", ""),
    "k_lms": ("lms", ""),
    "k_heun": ("heun", ""),
    "k_dpm_2": ("dpm2", ""),
    "k_dpm_2_a": ("dpm2_a", ""),
    "plms": ("pndm", ""),
}
SILENT = {"app_version", "generation_mode", "rand_device", "seamless_x", "seamless_y", "created_by", "_canvas_objects"}
MAX_CHARACTERS = 1_000_000


def parse(text: str) -> Read | None:
    """Read what the JSON `text` says; None where it is no such record."""
    record = _record(text)
    if record is None:
        return None
    read = Read(model=_model(record.get("model")))
    for theirs, ours in (("positive_prompt", "prompt"), ("prompt", "prompt"), ("negative_prompt", "negative_prompt")):
        if isinstance(record.get(theirs), str) and record[theirs]:
            read.settings[ours] = record[theirs]
    for theirs, ours in NUMBERS.items():
        if (value := number(record.get(theirs, ""))) is not None:
            read.settings[ours] = value
    _take_scheduler(record, read)
    known = {*NUMBERS, *SILENT, "positive_prompt", "prompt", "negative_prompt", "scheduler", "sampler", "model"}
    read.left_out += others(record, known)
    return read


def _record(text: str) -> Mapping[str, Any] | None:
    try:
        record = json.loads(text[:MAX_CHARACTERS])
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    if isinstance(record.get("image"), dict):  # sd-metadata: the settings are one level down
        record = {"model": record.get("model"), **record["image"]}
    return record if {"steps", "seed"} <= set(record) else None


def _model(given: Any) -> str:
    name = given.get("name") or given.get("model_name") if isinstance(given, dict) else given
    return name if isinstance(name, str) else ""


def _take_scheduler(record: Mapping[str, Any], read: Read) -> None:
    name = record.get("scheduler") or record.get("sampler")
    if not isinstance(name, str):
        return
    sampler, schedule = SCHEDULERS.get(name, (name, ""))
    read.settings["sampler"] = sampler
    if schedule:
        read.settings["schedule"] = schedule
