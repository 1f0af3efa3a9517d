"""A1111's `parameters` text, which many tools write: prompt, negative prompt, one line of settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from triptych_contract.families import DEFAULT, FAMILIES
from triptych_contract.family import Family
from triptych_contract.parameters import Integer, Number
from triptych_web.a1111 import EMPHASIS, FIRST, names, schedule, split_sampler

NEGATIVE = "Negative prompt: "
LAST_LINE = re.compile(r"^Steps: \d+")
# The grammar of A1111's own reader: a quoted value may hold commas. Names and tags have an end, so that no text takes long.
FIELD = re.compile(r'\s*(\w[\w \-/]{0,60}):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')
MAX_CHARACTERS = 100_000
SIZE = re.compile(r"^(\d{1,6})x(\d{1,6})$")
# What A1111 reads in a prompt, and a family without this input sends as it stands.
SYNTAX = "prompt_syntax"
LORA = re.compile(r" ?<lora:([^<>:]{1,200}(?::-?[\d.]{1,9})?)>", re.IGNORECASE)
NETWORK = re.compile(r"<(?:lora|lyco|hypernet):[^<>]{1,200}>", re.IGNORECASE)
# Fields that change nothing, or that are read elsewhere.
SILENT = {"Version", "Model hash", "VAE", "VAE hash", "RNG", "Size", "Hashes", "TI hashes", "Eta"}
# Names that other tools have for what the contract has A1111's name for.
ALIASES = {"CFG Rescale φ": "CFG Rescale"}


@dataclass
class Read:
    """Settings by the contract's names, and what of the text they leave out, a sentence each.

    Most tools draw what the default family draws.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    model: str = ""
    family: Family = DEFAULT


def parse(text: str) -> Read | None:
    """Read what `text` says; None where it is not in this grammar."""
    lines = text[:MAX_CHARACTERS].strip().splitlines()
    if not lines or not LAST_LINE.match(lines[-1].strip()):
        return None
    found = ((name.strip(), _unquoted(value.strip())) for name, value in FIELD.findall(lines[-1]))
    fields = {ALIASES.get(name, name): value for name, value in found}
    read = Read(_prompts(lines[:-1]), model=fields.pop("Model", ""), family=_family(fields))
    _take(fields, read)
    _note_prompts(read, ours=fields.get("Version", "").startswith("triptych"))
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


def _family(fields: Mapping[str, str]) -> Family:
    """Give the family that has most of these names."""
    return max(FAMILIES.values(), key=lambda family: len(names(family).keys() & fields.keys()))


def _take(fields: dict[str, str], read: Read) -> None:
    """Take over the fields that the family has, and those that say several things at once."""
    if size := SIZE.match(fields.get("Size", "")):
        read.settings |= {"width": int(size[1]), "height": int(size[2])}
    sampler, suffix = split_sampler(fields.get("Sampler", ""))
    named = fields.get("Schedule type", "")
    fields |= {"Sampler": sampler, "Schedule type": schedule(named) or suffix}
    for theirs, ours in names(read.family).items():
        text = fields.pop(theirs, "")
        is_number = isinstance(read.family.parameters[ours].kind, (Integer, Number))
        value: Any = number(text) if is_number else text
        if value not in (None, ""):
            read.settings[ours] = value - FIRST[ours] if ours in FIRST else value
    if refiner := fields.pop("Refiner", ""):
        read.left_out.append(f"Refiner: {refiner} (this server has its own)")


def number(text: Any) -> int | float | None:
    """Give the finite number that a text is; None for anything else."""
    text = str(text).strip()
    if not re.fullmatch(r"-?\d{1,19}(\.\d{1,18})?", text):
        return None
    return float(text) if "." in text else int(text)


def _note_prompts(read: Read, *, ours: bool) -> None:
    """Say how the prompts are to be read; a text of ours that does not say means plain ones."""
    if SYNTAX in read.family.parameters and not ours:
        read.settings[SYNTAX] = "a1111"
    texts = [str(read.settings.get(name, "")) for name in ("prompt", "negative_prompt")]
    if SYNTAX not in read.family.parameters and any(EMPHASIS.search(text) for text in texts):
        read.left_out.append("weights in the prompt, as (word:1.2): the text is sent as it stands")
    if "prompt" in read.settings and (found := LORA.findall(texts[0])):
        read.settings |= {"prompt": LORA.sub("", texts[0]).strip(), "lora": ", ".join(found)}
    rest = [LORA.sub("", texts[0]), *texts[1:]]
    read.left_out += [f"network {found}" for text in rest for found in NETWORK.findall(text)]


def others(fields: Mapping[str, Any], known: set[str]) -> list[str]:
    """List what of a foreign record is not taken over, a short line each."""
    return [f"{name}: {str(value)[:80]}" for name, value in fields.items() if name not in known and value]
