"""A1111's `parameters` text, which many tools write: prompt, negative prompt, one line of settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NEGATIVE = "Negative prompt: "
LAST_LINE = re.compile(r"^Steps: \d+")
# The grammar of A1111's own reader: a quoted value may hold commas. Names and tags have an end, so that no text takes long.
FIELD = re.compile(r'\s*(\w[\w \-/]{0,60}):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')
MAX_CHARACTERS = 100_000
SIZE = re.compile(r"^(\d{1,6})x(\d{1,6})$")
# Older files name the schedule at the end of the sampler.
SCHEDULES = {
    "Karras": "karras",
    "Exponential": "exponential",
    "Beta": "beta",
    "Uniform": "default",
    "Automatic": "default",
    "Normal": "default",
}
# What A1111 reads in a prompt and we send as it stands.
EMPHASIS = re.compile(r"[(\[][^()\[\]]+:\s*[\d.]+\s*[)\]]")
NETWORK = re.compile(r"<(?:lora|lyco|hypernet):[^<>]{1,200}>", re.IGNORECASE)
# Fields that change nothing, or that are read elsewhere.
SILENT = {"Version", "Model hash", "VAE", "VAE hash", "RNG", "Size", "Hashes", "TI hashes", "Eta"}
NUMBERS = {
    "Steps": "num_inference_steps",
    "CFG scale": "guidance_scale",
    "CFG Rescale": "guidance_rescale",
    "CFG Rescale φ": "guidance_rescale",
    "Denoising strength": "strength",
    "Refiner switch at": "denoising_end",
}


@dataclass
class Read:
    """Settings by the contract's names, and what of the text they leave out, a sentence each."""

    settings: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    model: str = ""


def parse(text: str) -> Read | None:
    """What `text` says, None where it is not in this grammar."""
    lines = text[:MAX_CHARACTERS].strip().splitlines()
    if not lines or not LAST_LINE.match(lines[-1].strip()):
        return None
    fields = {name.strip(): _unquoted(value.strip()) for name, value in FIELD.findall(lines[-1])}
    read = Read(_prompts(lines[:-1]), model=fields.pop("Model", ""))
    _take_numbers(fields, read)
    _take_others(fields, read)
    _note_prompt(read)
    read.left_out += [f"{name}: {value}" for name, value in fields.items() if name not in SILENT and value]
    return read


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value[1:-1]


def _prompts(lines: list[str]) -> dict[str, Any]:
    at = next((k for k, line in enumerate(lines) if line.startswith(NEGATIVE.strip())), len(lines))
    prompt, negative = "\n".join(lines[:at]).strip(), "\n".join(lines[at:])[len(NEGATIVE) - 1 :].strip()
    return {"prompt": prompt, **({"negative_prompt": negative} if negative else {})}


def _take_numbers(fields: dict[str, str], read: Read) -> None:
    for theirs, ours in NUMBERS.items():
        text = fields.pop(theirs, None)
        if text is not None and (value := number(text)) is not None:
            read.settings[ours] = value
    seed = fields.pop("Seed", "")
    if seed.isascii() and seed.isdigit():
        read.settings["seed"] = int(seed)
    skip = number(fields.pop("Clip skip", "1")) or 1
    if skip > 1:
        read.settings["clip_skip"] = int(skip) - 1  # A1111 counts the last layer as 1
    # Stable Cascade's two, which only our own files have.
    steps, scale = number(fields.pop("Decoder steps", "")), number(fields.pop("Decoder CFG scale", ""))
    if steps is not None:
        read.settings |= {"prior_num_inference_steps": read.settings["num_inference_steps"]}
        read.settings |= {"num_inference_steps": steps, "decoder_guidance_scale": scale}


def number(text: Any) -> int | float | None:
    """A finite number that a text is; None for anything else."""
    if not re.fullmatch(r"-?\d{1,18}(\.\d{1,18})?", str(text).strip()):
        return None
    value = float(text)
    return int(value) if value == int(value) and "." not in str(text) else value


def _take_others(fields: dict[str, str], read: Read) -> None:
    if size := SIZE.match(fields.get("Size", "")):
        read.settings |= {"width": int(size[1]), "height": int(size[2])}
    sampler, schedule = split_sampler(fields.pop("Sampler", ""))
    if sampler:
        read.settings["sampler"] = sampler
    named = fields.pop("Schedule type", "")
    if chosen := SCHEDULES.get(named, named.lower().replace(" ", "_")) or schedule:
        read.settings["schedule"] = chosen
    if refiner := fields.pop("Refiner", ""):
        read.left_out.append(f"Refiner: {refiner} (this server has its own)")


def split_sampler(name: str) -> tuple[str, str]:
    """`DPM++ 2M Karras` as the sampler's name and our name of the schedule, "" where it names none."""
    for word, schedule in SCHEDULES.items():
        if name.endswith(f" {word}"):
            return name[: -len(word) - 1], schedule
    return name, ""


def _note_prompt(read: Read) -> None:
    texts = [str(read.settings.get(name, "")) for name in ("prompt", "negative_prompt")]
    if any(EMPHASIS.search(text) for text in texts):
        read.left_out.append("weights in the prompt, as (word:1.2): the text is sent as it stands")
    read.left_out += [f"network {found}" for text in texts for found in NETWORK.findall(text)]


def others(fields: Mapping[str, Any], known: set[str]) -> list[str]:
    """What of a foreign record is not taken over, a short line each."""
    return [f"{name}: {str(value)[:80]}" for name, value in fields.items() if name not in known and value]
