"""Receipts: what a file says of itself, the request that makes it again, and what two of them say differently."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from triptych_contract.errors import InvalidRequest, invalid
from triptych_contract.families import DEFAULT, known
from triptych_contract.family import Family
from triptych_contract.parameters import File, Files

IMAGE_DESCRIPTION = 0x010E
# What receipts say → what a difference there is about, and how it is told. The first that fits counts.
GROUPS = {
    "model": ("other model", "{old} → {new}"),
    "family": ("other model", "{old} → {new}"),
    "merged": ("other weights", "{name}: {old} → {new}"),
    "stages": ("other weights", "{name}: {old} → {new}"),
    "lora": ("other adapters", "{leaf} {old} → {new}"),
    "runtime.processor": ("other CPU", "{old} → {new}"),
    "runtime.machine": ("other CPU", "{old} → {new}"),
    "runtime.gpu": ("other GPU", "{old} → {new}"),
    "runtime": ("other runtime", "{leaf} {old} → {new}"),
    "build": ("other build", "{old} → {new}"),
}
UNSAID = ("not in the file's receipt", "{name}: {new}")


def read_receipt(path: Path) -> dict[str, Any]:
    """The receipt inside a PNG, JPEG or WebP that Triptych made.

    Raises:
        InvalidRequest: the file is no picture, or holds no receipt of a family that is known here.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            text = image.info.get("triptych") or image.getexif().get(IMAGE_DESCRIPTION)
        receipt = json.loads(text or "null")
    except (Image.DecompressionBombError, OSError, RecursionError, SyntaxError, TypeError, ValueError) as error:
        raise invalid(str(path), f"an unreadable file ({error})", "a picture that Triptych made") from None
    if not isinstance(receipt, dict) or not _complete(path, receipt):
        raise invalid(str(path), "a picture without a receipt", "a picture that Triptych made")
    return receipt


def _complete(path: Path, receipt: Mapping[str, Any]) -> bool:
    try:
        return set(family_of(receipt).always) <= set(receipt)
    except InvalidRequest as error:
        raise InvalidRequest(error.problems, f"{path}: {error}") from None


def family_of(receipt: Mapping[str, Any]) -> Family:
    """Give the family that made the picture.

    Raises:
        InvalidRequest: it is not known here.
    """
    return known(receipt.get("family", DEFAULT.name))  # the first receipts did not say


def pictures_of(receipt: Mapping[str, Any]) -> dict[str, list[str]]:
    """The SHA-256 of the files that the picture was made from, by input.

    Raises:
        InvalidRequest: the receipt says something else there, or is of a family that is not known here.
    """
    files = _files(family_of(receipt))
    named = {name: receipt[name] for name in files if receipt.get(name) is not None}
    return {name: _hashes(name, given, many=isinstance(files[name], Files)) for name, given in named.items()}


def _hashes(name: str, given: Any, *, many: bool) -> list[str]:
    pictures = given if many and isinstance(given, list) else [given]
    # Never a path: a receipt comes from anywhere, and what it names is not to be read and sent.
    if not all(isinstance(one, Mapping) and isinstance(one.get("sha256"), str) for one in pictures):
        raise invalid(name, "a receipt with something else", "a receipt with the SHA-256 of a file")
    return [one["sha256"] for one in pictures]


def request_of(receipt: Mapping[str, Any], files: Mapping[str, bytes] | None = None) -> dict[str, Any]:
    """The parameters of `Client.generate` that ask for the same picture.

    Args:
        receipt: what `read_receipt` gives; a setting that an older version did not write is not asked for.
        files: the pictures that it was made from, by SHA-256 in hex.

    Raises:
        InvalidRequest: its family is not known here, or a picture that it was made from is not among `files`.
    """
    family = family_of(receipt)
    asked = {name: receipt[name] for name in family.remembered if name in receipt and name not in _files(family)}
    for name, hashes in pictures_of(receipt).items():
        if missing := [sha256 for sha256 in hashes if sha256 not in (files or {})]:
            raise invalid(name, "nothing", f"the file with SHA-256 {missing[0]}")
        given = [(files or {})[sha256] for sha256 in hashes]
        asked[name] = given if isinstance(_files(family)[name], Files) else given[0]
    return asked


def _files(family: Family) -> dict[str, File | Files]:
    return {name: one.kind for name, one in family.parameters.items() if isinstance(one.kind, (File, Files))}


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What two receipts say differently of what made their pictures, as `runtime.onnxruntime: 1.30.0 → 1.31.1`."""
    return [f"{name}: {old} → {new}" for name, old, new in _differing(before, after)]


def reasons(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """`differences` by what they are about, as `other runtime (onnxruntime 1.30.0 → 1.31.1)`; else field by field."""
    told: dict[str, list[str]] = {}
    for name, old, new in _differing(before, after):
        about, words = _group(name) or (UNSAID if name.split(".")[0] not in before else ("{name}: {old} → {new}", ""))
        facts = {"name": name, "leaf": name.split(".")[-1], "old": old, "new": new}
        told.setdefault(about.format(**facts), []).append(words.format(**facts))
    if "other weights" in told:
        told.pop("other build", None)  # its hash is over the weights as well
    return [f"{about} ({', '.join(words)})" if any(words) else about for about, words in told.items()]


def _group(name: str) -> tuple[str, str] | None:
    return next((group for key, group in GROUPS.items() if f"{name}.".startswith(f"{key}.")), None)


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    old, new = dict(_flat(before)), dict(_flat(after))
    return [(name, old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)]


def _flat(receipt: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in receipt.items():
        if isinstance(value, list) and all(isinstance(one, Mapping) and "name" in one for one in value):
            value = {one["name"]: one.get("sha256", {key: one[key] for key in one if key != "name"}) for one in value}
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
