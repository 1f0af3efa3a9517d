"""Settings in the words of other places: a command line, Python code, a difference."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from .fitting import plain, short

PAIRS = ("original_size", "target_size", "crops_coords_top_left")
PICTURES = ("init_image", "mask")
# Where the command looks by itself.
LOCAL = "localhost:8001"
# What the file is to be called where the reader has to put one of their own.
PLACEHOLDERS = {"init_image": "init_image.png", "mask": "mask.png"}


def command_line(ensemble: str, settings: Mapping[str, Any], n: int = 1, url: str = LOCAL) -> str:
    """The `triptych generate` that makes these pictures; quoted for a POSIX shell."""
    words = ["triptych", "generate"]
    if ensemble != "sdxl":
        words += ["--model", ensemble.replace("_", "-")]
    if n > 1:
        words += ["-n", str(n)]
    if url != LOCAL:
        words.append(f"--url={url}")
    for name, value in _options(settings):
        # With "=", as a value may begin with a dash.
        words.append(f"--{name.replace('_', '-')}={value}")
    return shlex.join([*words, "--", str(settings["prompt"])])


def python_code(ensemble: str, settings: Mapping[str, Any], n: int = 1, url: str = LOCAL) -> str:
    """A program that makes these pictures with the client library."""
    client = repr(url) + ("" if ensemble == "sdxl" else f", model={ensemble!r}")
    arguments = [f"        {name}={_literal(name, value)},\n" for name, value in _given(settings) if name != "prompt"]
    prompt = f"        {str(settings['prompt'])!r},\n"
    head = f"from triptych import Client\n\nwith Client({client}) as client:\n"
    if n == 1:
        return f"{head}    image = client.generate(\n{prompt}{''.join(arguments)}    )\n    print(image.save('out'))\n"
    call = f"    images = client.generate_many(\n{prompt}        {n},\n{''.join(arguments)}    )\n"
    return f"{head}{call}    for image in images:\n        print(image.save('out'))\n"


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, other value) of each setting that two pictures do not share; "–" where one has none."""
    names = dict.fromkeys([*one, *other])
    shown = ((name, plain_value(one.get(name)), plain_value(other.get(name))) for name in names)
    return [(name, left, right) for name, left, right in shown if left != right]


def _given(settings: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    return ((name, value) for name, value in settings.items() if value is not None)


def _options(settings: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    if settings.get("width") is not None and settings.get("height") is not None:
        yield "size", f"{settings['width']}x{settings['height']}"
    for name, value in _given(settings):
        if name in PICTURES:
            yield name, PLACEHOLDERS[name]
        elif name in PAIRS:
            yield name, f"{value[0]},{value[1]}" if name == "crops_coords_top_left" else f"{value[1]}x{value[0]}"
        elif name not in ("prompt", "height", "width"):
            yield name, plain_value(value)


def _literal(name: str, value: Any) -> str:
    if name in PICTURES:
        return repr(PLACEHOLDERS[name])
    return repr(short(value)) if isinstance(value, float) else repr(value)


def plain_value(value: Any) -> str:
    """A value as the command line takes it; "–" for none, a picture by the beginning of its SHA-256."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return plain(value)
    if isinstance(value, Mapping):  # a picture, as receipts name it
        return str(value.get("sha256", ""))[:12]
    return str(value)
