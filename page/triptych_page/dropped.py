"""A dropped picture: what it says made it, whichever tool wrote that, fitted to this server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.errors import InvalidRequest, invalid
from triptych.receipts import family_of, read_receipt
from triptych_contract.family import Family

from . import a1111, invokeai
from .fitting import fit, form_for
from .forms import Form

EXIF_IFD, USER_COMMENT = 0x8769, 0x9286
MAX_BYTES = 32 * 2**20
LEGAL = "a PNG, JPEG or WebP with its settings inside, as Triptych, A1111 and InvokeAI write them"


@dataclass(frozen=True)
class Dropped:
    """Settings for the form `form`, who wrote them, and a sentence for each that cannot be honoured."""

    form: str
    written_by: str
    settings: Mapping[str, Any]
    left_out: tuple[str, ...]


def read(path: Path, forms: Mapping[str, Form]) -> Dropped:
    """Read the settings inside a picture.

    Raises:
        InvalidRequest: no picture, none that says how it was made, or made by a family that this server does not have.
    """
    if path.stat().st_size > MAX_BYTES:
        raise invalid("file", f"{path.stat().st_size} bytes", f"at most {MAX_BYTES} bytes")
    try:
        receipt = read_receipt(path)
    except InvalidRequest:
        return _foreign(path, forms)
    return of_receipt(receipt, forms)


def of_receipt(receipt: Mapping[str, Any], forms: Mapping[str, Form]) -> Dropped:
    """Give the settings of a receipt.

    Raises:
        InvalidRequest: of a family that is not known, or that this server does not have.
    """
    family = family_of(receipt)
    settings = {name: receipt[name] for name in family.remembered if name in receipt}
    return _dropped(forms, family, str(receipt.get("model", "")), "Triptych", settings, [])


def _foreign(path: Path, forms: Mapping[str, Form]) -> Dropped:
    texts = _texts(path)
    for writer, key, parse in (
        ("InvokeAI", "invokeai_metadata", invokeai.parse),
        ("InvokeAI", "sd-metadata", invokeai.parse),
        ("A1111", "parameters", a1111.parse),
    ):
        found = parse(texts[key]) if key in texts else None
        if found:
            return _dropped(forms, found.family, found.model, writer, found.settings, found.left_out)
    raise invalid("file", "a picture that does not say how it was made", LEGAL)


def _dropped(
    forms: Mapping[str, Form], family: Family, model: str, writer: str, settings: Mapping[str, Any], left_out: list[str]
) -> Dropped:
    form = form_for(forms, family, settings, model)
    if form is None:
        raise invalid(
            "file", f"a picture of {family.name}", ", ".join(form.title for form in forms.values()) or "no model"
        )
    if model and model != form.card.name:
        left_out = [f"model: {model}; this server has {form.card.name}", *left_out]
    fitted, unfit = fit(form, settings)
    return Dropped(form.key, writer, fitted, (*left_out, *unfit))


def _texts(path: Path) -> dict[str, str]:
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
            texts = {key: value for key, value in image.info.items() if isinstance(key, str) and isinstance(value, str)}
            comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT)
    except (Image.DecompressionBombError, OSError, SyntaxError, TypeError, ValueError):
        raise invalid("file", "no readable picture", LEGAL) from None
    if "parameters" not in texts and (text := _comment(comment)):
        texts["parameters"] = text
    return texts


def _comment(comment: Any) -> str:
    """Read an EXIF UserComment as A1111 writes it into JPEG and WebP."""
    if isinstance(comment, bytes) and comment.startswith(b"UNICODE\0"):
        return comment[8:].decode("utf-16-be", "replace")
    if isinstance(comment, bytes) and comment.startswith(b"ASCII\0\0\0"):
        return comment[8:].decode("ascii", "replace")
    return comment if isinstance(comment, str) else ""
