"""Settings in the words of other places: a command line, Python code, a difference."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from triptych.cli.options import LOCAL, spelled
from triptych_contract.adapters import Adapters
from triptych_contract.control import Controls
from triptych_contract.families import DEFAULT
from triptych_contract.parameters import Files, Integers, Side

from .fitting import plain, short
from .forms import EVERY, PICTURES


def command_line(ensemble: str, settings: Mapping[str, Any], n: int = 1, url: str = LOCAL) -> str:
    """Write the `triptych generate` that makes these pictures; quoted for a POSIX shell."""
    words = ["triptych", "generate"]
    if ensemble != DEFAULT.name:
        words += ["--model", spelled(ensemble)]
    if n > 1:
        words += ["-n", str(n)]
    if url != LOCAL:
        words.append(f"--url={url}")
    # With "=", as a value may begin with a dash.
    words += [f"--{spelled(name)}={value}" for name, value in _options(settings)]
    return shlex.join([*words, "--", str(settings["prompt"])])


def python_code(ensemble: str, settings: Mapping[str, Any], n: int = 1, url: str = LOCAL) -> str:
    """Write a program that makes these pictures with the client library."""
    client = repr(url) + ("" if ensemble == DEFAULT.name else f", model={ensemble!r}")
    asked = [(name, value) for name, value in _given(settings) if name != "prompt"]
    arguments = [f"        {name}={_literal(name, value)},\n" for name, value in asked]
    prompt = f"        {str(settings['prompt'])!r},\n"
    head = f"from triptych import Client\n\nwith Client({client}) as client:\n"
    if n == 1:
        return f"{head}    image = client.generate(\n{prompt}{''.join(arguments)}    )\n    print(image.save('out'))\n"
    call = f"    images = client.generate_many(\n{prompt}        {n},\n{''.join(arguments)}    )\n"
    return f"{head}{call}    for image in images:\n        print(image.save('out'))\n"


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Give (name, value, other value) of each setting that two pictures do not share; "–" where one has none."""
    names = dict.fromkeys([*one, *other])
    shown = ((name, plain_value(one.get(name)), plain_value(other.get(name))) for name in names)
    return [(name, left, right) for name, left, right in shown if left != right]


def _given(settings: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    return ((name, value) for name, value in settings.items() if value is not None)


def _options(settings: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    if settings.get("width") is not None and settings.get("height") is not None:
        yield "size", f"{settings['width']}x{settings['height']}"
    for name, value in _given(settings):
        kind = EVERY[name].kind
        if name in PICTURES:
            yield name, _placeholder(name)
        elif isinstance(kind, Adapters):
            yield from ((name, str(one)) for one in kind.typed(name, value))
        elif isinstance(kind, Controls):
            for one in kind.typed(name, value):
                scale = str(one).removeprefix(one.name)
                yield name, f"{one.name}={_placeholder(f'{name}_{one.image + 1}')}{scale}"
        elif isinstance(kind, Integers):  # sizes as people write them
            sides = kind.of_what == ("height", "width")
            yield name, f"{value[1]}x{value[0]}" if sides else ",".join(map(str, value))
        elif name != "prompt" and not isinstance(kind, (Side, Files)):
            yield name, plain_value(value)


def _literal(name: str, value: Any) -> str:
    if name in PICTURES:
        return repr(_placeholder(name))
    if isinstance(kind := EVERY[name].kind, Adapters):
        return repr([{"name": one.name, "scale": one.scale} for one in kind.typed(name, value)])
    if isinstance(kind, Controls):
        return repr([one._asdict() for one in kind.typed(name, value)])
    if isinstance(kind, Files):
        return repr([_placeholder(f"control_{place + 1}") for place in range(len(value))])
    return repr(short(value)) if isinstance(value, float) else repr(value)


def _placeholder(name: str) -> str:
    """Name a file that the reader has to put there."""
    return f"{name}.png"


def plain_value(value: Any) -> str:
    """Write a value as the command line takes it; "–" for none, a picture by the beginning of its SHA-256."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return plain(value)
    if isinstance(value, (list, tuple)) and value and not isinstance(value[0], int):
        return ", ".join(map(_told, value))
    if isinstance(value, Mapping):  # a picture, as receipts name it
        return str(value.get("sha256", ""))[:12]
    return str(value)


def _told(one: Any) -> str:
    """Write an adapter, a control or a picture of a list, each by what the list says of it."""
    if not isinstance(one, Mapping):
        return str(one)
    if "name" not in one:
        return plain_value(one)
    kind = Controls() if "start" in one else Adapters()
    return str(kind.typed("", [one])[0])
