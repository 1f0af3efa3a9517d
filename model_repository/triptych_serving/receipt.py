"""What made an image, complete enough to make it again."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from .families import Family
from .settings import Settings
from .tensorrt.machine import facts

# What the caller is told but the image does not depend on.
NOT_IN_RECEIPT = ("deadline_ms", "tenant", "cancel_on_disconnect")


def runtime(target: str, processor: str, *, reproducible: bool) -> dict[str, str]:
    """What ran the model. Two runs that agree in it give the same bytes; on a GPU only reproducible ones."""
    return {
        "target": target,
        "processor": processor,
        "machine": platform.machine(),
        **facts(target, reproducible=reproducible),
        **{package: version(package) for package in ("triptych", "onnxruntime", "numpy", "pillow")},
    }


def receipt(
    settings: Settings, family: Family[Any, Any], ran_on: Mapping[str, str], cut: Mapping[str, str]
) -> dict[str, Any]:
    """The JSON receipt; `cut` holds the words of each prompt that no encoder saw."""
    manifest, unused = family.manifest, family.unused_stages(settings)
    asked = {name: value for name, value in settings.to_json().items() if name not in NOT_IN_RECEIPT}
    made_by = {"model": manifest.model.name, "family": manifest.family, **asked}
    return {
        **made_by,
        **({"cut": dict(cut)} if cut else {}),
        "build": manifest.build_hash,
        "stages": {name: manifest.stages[name]["sha256"][:16] for name in manifest.stages if name not in unused},
        "runtime": dict(ran_on),
    }


def parameters(made_by: Mapping[str, Any], family: Family[Any, Any]) -> str:
    """The receipt as A1111 writes it, which other tools read: prompt, negative prompt, one line of settings."""
    fields = {**family.a1111_fields(made_by), "Version": f"triptych {made_by['runtime']['triptych']}"}
    lines = [made_by["prompt"]]
    if made_by["negative_prompt"]:
        lines.append(f"Negative prompt: {made_by['negative_prompt']}")
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in fields.items() if value is not None)])
