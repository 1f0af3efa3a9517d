"""What made an image, complete enough to make it again."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from typing import Any

from triptych_contract.settings import Settings, parameters

from .pipeline import Pipeline
from .tensorrt.library import package_version
from .tensorrt.machine import facts


def runtime(target: str, processor: str, *, reproducible: bool) -> dict[str, str]:
    """What ran the model. Two runs that agree in it give the same bytes; on a GPU only reproducible ones."""
    return {
        "target": target,
        "processor": processor,
        "machine": platform.machine(),
        **facts(target, reproducible=reproducible),
        **{package: package_version(package) for package in ("triptych", "onnxruntime", "numpy", "pillow")},
    }


def receipt(
    settings: Settings, pipeline: Pipeline[Any, Any], ran_on: Mapping[str, str], cut: Mapping[str, str]
) -> dict[str, Any]:
    """Write the JSON receipt; `cut` holds the words of each prompt that no encoder saw."""
    manifest, unused = pipeline.manifest, pipeline.unused_stages(settings)
    asked = remembered(settings)
    made_by = {"model": manifest.model.name, "family": manifest.family, **asked}
    return {
        **made_by,
        **({"cut": dict(cut)} if cut else {}),
        **manifest.model.told,
        "build": manifest.build_hash,
        "stages": {name: manifest.stages[name]["sha256"][:16] for name in manifest.stages if name not in unused},
        "runtime": dict(ran_on),
    }


def remembered(settings: Settings) -> dict[str, Any]:
    """Give the settings that the picture depends on."""
    declared = parameters(type(settings))
    return {name: value for name, value in settings.to_json().items() if not declared[name].delivery}


def asked_for(settings: Settings) -> dict[str, Any]:
    """Give the settings that the picture depends on, and whose it is: where they agree, one picture answers both requests."""
    return {**remembered(settings), "tenant": settings.tenant}


def infotext(made_by: Mapping[str, Any], pipeline: Pipeline[Any, Any]) -> str:
    """The receipt as A1111 writes it, which other tools read: prompt, negative prompt, one line of settings."""
    fields = {**pipeline.a1111_fields(made_by), "Version": f"triptych {made_by['runtime']['triptych']}"}
    lines = [
        made_by["prompt"] + "".join(f" <lora:{one['name']}:{one['scale']:g}>" for one in made_by.get("lora") or ())
    ]
    if made_by["negative_prompt"]:
        lines.append(f"Negative prompt: {made_by['negative_prompt']}")
    return "\n".join(
        [*lines, ", ".join(f"{name}: {_quoted(value)}" for name, value in fields.items() if value is not None)]
    )


def _quoted(value: Any) -> str:
    """A value as A1111 writes it: one that could be read as several fields is put in quotes."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if set(text) & set(",:\n") else text
