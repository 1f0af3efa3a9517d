"""What made an image, complete enough to make it again."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from .manifest import Manifest
from .settings import Settings

# What the caller is told but the image does not depend on.
NOT_IN_RECEIPT = ("deadline_ms", "tenant", "cancel_on_disconnect")


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
        "stages": {name: manifest.stages[name]["sha256"][:16] for name in _stages(settings, manifest)},
        "runtime": dict(ran_on),
    }


def parameters(made_by: Mapping[str, Any], a1111_sampler: str) -> str:
    """The receipt as A1111 writes it, which other tools read: prompt, negative prompt, one line of settings."""
    fields = {
        "Steps": made_by["num_inference_steps"],
        "Sampler": a1111_sampler,
        "Schedule type": made_by["schedule"].replace("_", " ").capitalize(),
        "CFG scale": f"{made_by['guidance_scale']:g}",
        "Seed": made_by["seed"],
        "Size": f"{made_by['width']}x{made_by['height']}",
        "Model hash": made_by["stages"]["unet"][:10],
        "Model": made_by["model"],
        "Denoising strength": made_by["strength"],
        "Clip skip": made_by["clip_skip"] + 1 if made_by["clip_skip"] else None,
        "Refiner switch at": made_by["denoising_end"],
        "Version": f"triptych {made_by['runtime']['triptych']}",
    }
    lines = [made_by["prompt"]]
    if made_by["negative_prompt"]:
        lines.append(f"Negative prompt: {made_by['negative_prompt']}")
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in fields.items() if value is not None)])


def _stages(settings: Settings, manifest: Manifest) -> list[str]:
    """The stages that this request ran, in the manifest's order."""
    unused = set()
    if settings.init_image is None:
        unused.add("vae_encoder")
    if settings.denoising_end is None:
        unused |= {"refiner_unet", "refiner_text_encoder_2"}
    return [name for name in manifest.stages if name not in unused]
