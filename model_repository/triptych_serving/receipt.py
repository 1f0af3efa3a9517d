"""What made an image, complete enough to make it again."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from .manifest import Manifest
from .settings import Settings

# The stages that a text-to-image request runs.
STAGES = ("text_encoder", "text_encoder_2", "unet", "vae_decoder")
# What the caller is told but the image does not depend on.
NOT_IN_RECEIPT = ("deadline_ms", "tenant", "cancel_on_disconnect")
# diffusers-style names → what A1111 calls them.
A1111_SAMPLERS = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "deis": "DEIS",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "lms": "LMS",
    "pndm": "PLMS",
    "unipc": "UniPC",
}


def runtime(target: str, processor: str) -> dict[str, str]:
    """What ran the model. Two runs that agree in it give the same bytes."""
    return {
        "target": target,
        "processor": processor,
        "machine": platform.machine(),
        **{package: version(package) for package in ("triptych", "onnxruntime", "numpy", "pillow")},
    }


def receipt(
    settings: Settings, manifest: Manifest, ran_on: Mapping[str, str], cut: Mapping[str, str]
) -> dict[str, Any]:
    """The JSON receipt; `cut` holds the words of each prompt that no encoder saw."""
    asked = {name: value for name, value in settings.to_json().items() if name not in NOT_IN_RECEIPT}
    made_by = {"model": manifest.model.name, "family": manifest.family, **asked}
    return {
        **made_by,
        **({"cut": dict(cut)} if cut else {}),
        "build": manifest.build_hash,
        "stages": {name: manifest.stages[name]["sha256"][:16] for name in STAGES},
        "runtime": dict(ran_on),
    }


def parameters(made_by: Mapping[str, Any]) -> str:
    """The receipt as A1111 writes it, which other tools read: prompt, negative prompt, one line of settings."""
    fields = {
        "Steps": made_by["num_inference_steps"],
        "Sampler": A1111_SAMPLERS.get(made_by["sampler"], made_by["sampler"]),
        "Schedule type": made_by["schedule"].capitalize(),
        "CFG scale": f"{made_by['guidance_scale']:g}",
        "Seed": made_by["seed"],
        "Size": f"{made_by['width']}x{made_by['height']}",
        "Model hash": made_by["stages"]["unet"][:10],
        "Model": made_by["model"],
        "Version": f"triptych {made_by['runtime']['triptych']}",
    }
    lines = [made_by["prompt"]]
    if made_by["negative_prompt"]:
        lines.append(f"Negative prompt: {made_by['negative_prompt']}")
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in fields.items())])
