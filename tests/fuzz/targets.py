"""Everything that reads what strangers write, each with examples of it and the errors by which it may refuse."""

from __future__ import annotations

import io
import json
import lzma
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save

from triptych import receipts
from triptych.cli.shown import safe
from triptych_contract.emphasis import MAX_WEIGHT, sections
from triptych_contract.errors import InvalidRequest, from_wire, invalid, to_wire
from triptych_contract.families import FAMILIES
from triptych_demo import demo_build
from triptych_export import documents, weights
from triptych_export.errors import ExportError
from triptych_lab.simulator.cost import CostModel
from triptych_lab.workload import files as workload
from triptych_page import dropped
from triptych_serving.adapters.files import BadAdapter, File
from triptych_serving.adapters.keys import Names
from triptych_serving.assemble import assemble
from triptych_serving.manifest import Manifest, ManifestError
from triptych_serving.pictures import decoded, inspect, pixels, white
from triptych_serving.proofs import Proofs
from triptych_serving.tables import load_tables

from .. import loras
from ..cards import card, cascade_card
from ..loras import pack
from ..page.described import all_forms
from ..page.test_dropped import A1111, INVOKE, RECEIPT
from ..serving.test_adapters import LAYERS

CARDS = {"sdxl": card(), "stable_cascade": cascade_card()}
FORMS = all_forms()
KEY = Proofs(b"k" * 32)
# What JSON may hold and nobody expects there.
ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 2**31, 2**63, -(2**70), 10**400, 0.5, 1e308, 1e-320, float("nan"), float("inf")),
    *("", "\0", "\x1b[2J", "../../etc/passwd", "/dev/zero", "\ud800", "x" * 5000, "\n", "\x9b1m", "é"),
    *([], {}, [[]], {"": None}, ["a", 1], [None] * 50),
)


@dataclass(frozen=True)
class Target:
    """A reader. `refuses` are the errors it may end with; `json` where what it reads is JSON, or has JSON in it."""

    read: Callable[[bytes, Path], Any]
    refuses: tuple[type[Exception], ...]
    examples: Sequence[bytes]
    json: bool = False


def _file(name: str, read: Callable[[Path], Any]) -> Callable[[bytes, Path], Any]:
    """A reader of files, given bytes."""

    def write(data: bytes, folder: Path) -> Any:
        (folder / name).write_bytes(data)
        return read(folder / name)

    return write


def _settings(data: bytes, _folder: Path) -> None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return
    for name, family in FAMILIES.items():
        try:
            settings = family.settings.parse(document, CARDS[name])
        except InvalidRequest as error:
            from_wire(to_wire(error))
        else:
            json.dumps(settings.to_json(), allow_nan=False)


def _picture(data: bytes, _folder: Path) -> None:
    picture = inspect("init_image", data)
    if picture.height * picture.width <= 1_000_000:
        pixels(decoded("init_image", data))
        white(decoded("mask", data, on_black=True))


def _receipt(path: Path) -> None:
    receipt = receipts.read_receipt(path)
    safe(" ".join([*receipts.differences(receipt, RECEIPT), *receipts.reasons(receipt, RECEIPT)]))
    receipts.request_of(receipt)


def _dropped(path: Path) -> None:
    dropped.read(path, FORMS)


def _in_png(key: str, read: Callable[[bytes, Path], Any]) -> Callable[[bytes, Path], Any]:
    """A reader of pictures, given a text of theirs."""

    def write(data: bytes, folder: Path) -> Any:
        return read(_png(**{key: data.decode("utf-8", "replace")}), folder)

    return write


def _manifest(data: bytes, folder: Path) -> None:
    """What `serve` does with a manifest before it looks at the files."""
    (folder / "manifest.json").write_bytes(data)
    manifest = Manifest.load(folder)
    manifest._check_defaults()
    _ = manifest.one_timestep, manifest.build_hash, manifest.model.default_sizes
    with tempfile.TemporaryDirectory(dir=folder) as name:
        assemble([manifest.build], Path(name, "repository"))


def _tables(data: bytes, folder: Path) -> None:
    (folder / "t.npz.xz").write_bytes(data)
    load_tables(folder / "t.npz.xz").steps(1)


def _safetensors(data: bytes, folder: Path) -> None:
    (folder / "part").mkdir(exist_ok=True)
    (folder / "part/model.safetensors").write_bytes(data)
    weights._check_whole(folder / "part/model.safetensors")
    weights.Weights(folder, {}, weights.Kind("", {}, ()))._stored_type("part")


def _message(data: bytes, _folder: Path) -> None:
    error = from_wire(data.decode("utf-8", "replace"))
    to_wire(error)
    safe(error)


def _prompt(data: bytes, _folder: Path) -> None:
    parts = [part for section in sections("prompt", data.decode("utf-8", "replace")) for part in section]
    assert all(abs(part.weight) <= MAX_WEIGHT for part in parts)


def _adapter(data: bytes, _folder: Path) -> None:
    file = File(io.BytesIO(data), len(data), LAYERS, Names(LAYERS))
    file.slabs(data)


def _passed_on(data: bytes, _folder: Path) -> None:
    KEY.document("settings", data)


def _png(**texts: str) -> bytes:
    info, file = PngInfo(), io.BytesIO()
    for key, text in texts.items():
        info.add_itxt(key, text, zip=len(text) > 100_000)
    Image.effect_noise((24, 16), 50).convert("RGB").save(file, "PNG", pnginfo=info)
    return file.getvalue()


def _pictures() -> list[bytes]:
    noise, made = Image.effect_noise((24, 16), 50).convert("RGB"), []
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, json.dumps(RECEIPT)
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + A1111.encode("utf-16-be")
    palette = noise.convert("P")
    palette.info["transparency"] = 3
    for image, kind, how in (
        (noise, "PNG", {"exif": exif}),
        (palette, "PNG", {}),
        (noise.convert("RGBA"), "PNG", {}),
        (Image.fromarray(np.arange(384, dtype=np.uint16).reshape(16, 24) * 170), "PNG", {}),
        (noise, "JPEG", {"exif": exif, "progressive": True}),
        (noise, "JPEG", {"icc_profile": b"x" * 200}),
        (noise, "WEBP", {"exif": exif}),
        (noise.convert("RGBA"), "WEBP", {"lossless": True}),
    ):
        file = io.BytesIO()
        image.save(file, kind, **how)
        made.append(file.getvalue())
    texts = {"parameters": A1111, "invokeai_metadata": json.dumps(INVOKE), "triptych": json.dumps(RECEIPT)}
    return [*made, *(_png(**{key: text}) for key, text in texts.items())]


def _targets() -> dict[str, Target]:
    pictures, receipt, invoke = _pictures(), json.dumps(RECEIPT).encode(), json.dumps(INVOKE).encode()
    manifests = [(demo_build(name) / "manifest.json").read_bytes() for name in FAMILIES]
    packed = (demo_build() / "samplers/lcm-default.npz.xz").read_bytes()
    requests = [
        {"prompt": "a fox", "seed": 3},
        {**RECEIPT, "init_image": {"sha256": "0" * 64, "height": 64, "width": 64}},
    ]
    lines = [json.dumps({"interval_s": 0.5, "prompt": "a fox", "num_inference_steps": 4}).encode()]
    points = [{"denoiser": "unet", "height": 16, "width": 16, "rows": 2, "seconds": 0.1}]
    costs = [json.dumps({"points": points, "encode_s": 0.1, "decode_s": 0.1, "shared": True}).encode()]
    tensors = {"a.weight": np.zeros((2, 3), np.float16), "b": np.zeros(4, np.float32)}
    signed = [KEY.signed("settings", {"family": "sdxl", "settings": requests[0]})]
    namings = ("kohya", "sgm", "peft", "diffusers")
    adapters = [pack(loras.tensors(LAYERS, naming=naming, stages=tuple(LAYERS))) for naming in namings]
    message = to_wire(invalid("seed", "-1", "0 … 9"))
    asked, harmed = (InvalidRequest,), (ManifestError,)
    return {
        "settings": Target(_settings, (), [json.dumps(one).encode() for one in requests], json=True),
        "passed on": Target(_passed_on, asked, signed),
        "prompt": Target(_prompt, asked, [b"a (fox:1.3) in [snow] BREAK \\(a\\) ((house:.5", b"[a:b:0.5]", b"[a|b]"]),
        "adapter": Target(_adapter, (BadAdapter,), adapters),
        "message": Target(_message, (), [message.encode(), f"in ensemble 'sdxl', {message}".encode()]),
        "picture": Target(_picture, asked, pictures),
        "receipt": Target(_file("a.png", _receipt), asked, pictures),
        "receipt's text": Target(_in_png("triptych", _file("a.png", _receipt)), asked, [receipt], json=True),
        "dropped": Target(_file("a.png", _dropped), asked, pictures),
        "dropped receipt": Target(_in_png("triptych", _file("a.png", _dropped)), asked, [receipt], json=True),
        "dropped of InvokeAI": Target(
            _in_png("invokeai_metadata", _file("a.png", _dropped)), asked, [invoke], json=True
        ),
        "dropped of A1111": Target(_in_png("parameters", _file("a.png", _dropped)), asked, [A1111.encode()]),
        "manifest": Target(_manifest, harmed, manifests, json=True),
        "tables": Target(_tables, harmed, [packed]),
        "unpacked tables": Target(
            lambda d, f: _tables(lzma.compress(d, preset=0), f), harmed, [lzma.decompress(packed)]
        ),
        "workload": Target(_file("w", lambda path: list(workload.load(path))), asked, lines, json=True),
        "costs": Target(
            _file("c", lambda path: CostModel.load(path).per_cost()),
            asked,
            costs,
            json=True,
        ),
        "safetensors": Target(_safetensors, (ExportError,), [save(tensors)]),
        "config": Target(_file("c.json", documents.read_object), (ExportError,), [receipt], json=True),
    }


TARGETS = _targets()


def mutated(random: random.Random, target: Target) -> bytes:
    """Give an example with a few things changed."""
    data = random.choice(target.examples)
    if target.json and random.random() < 0.7:
        document = json.loads(data)
        for _ in range(random.randint(1, 3)):
            document = _changed(random, document)
        data = json.dumps(document).encode()
        if random.random() < 0.8:
            return data
    made = bytearray(data)
    for _ in range(random.randint(1, 6)):
        _EDITS[random.randrange(len(_EDITS))](random, made)
    return bytes(made)


def _changed(random: random.Random, value: Any) -> Any:
    """The document with one value, somewhere, replaced, left out or doubled."""
    if not isinstance(value, (dict, list)) or not value or random.random() < 0.1:
        return random.choice(ODD)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    at, kind = random.choice(list(keys)), random.random()
    if kind < 0.1:
        return (
            {k: v for k, v in value.items() if k != at} if isinstance(value, dict) else [*value[:at], *value[at + 1 :]]
        )
    if kind < 0.15:
        return {**value, str(random.choice(ODD)): random.choice(ODD)} if isinstance(value, dict) else [*value, *value]
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at] = _changed(random, value[at])
    return copy


def _flip(random: random.Random, data: bytearray) -> None:
    if data:
        data[random.randrange(len(data))] = random.choice((0, 1, 127, 128, 255, random.randrange(256)))


def _number(random: random.Random, data: bytearray) -> None:
    """A length, say."""
    size = random.choice((2, 4, 8))
    if len(data) >= size:
        at, order = random.randrange(len(data) - size + 1), random.choice(("little", "big"))
        number = random.choice((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, random.randrange(1000)))
        data[at : at + size] = (number % 256**size).to_bytes(size, order)


def _cut(random: random.Random, data: bytearray) -> None:
    first = random.randrange(len(data) + 1)
    del data[first : first + random.choice((1, 2, 4, 16, len(data)))]


def _double(random: random.Random, data: bytearray) -> None:
    first = random.randrange(len(data) + 1)
    piece = data[first : first + random.choice((1, 8, 64, 1000))]
    data[first:first] = piece * random.choice((1, 2, 100))


def _put(random: random.Random, data: bytearray) -> None:
    piece = random.choice(
        (b"[" * 3000, b'{"a":' * 3000, b"\0", b"\xff\xfe", b'"', b"\\u0000", b"1e999", b"-", b"\n", b"\x1b")
    )
    at = random.randrange(len(data) + 1)
    data[at:at] = piece


_EDITS = (_flip, _flip, _number, _cut, _double, _put)


def tried(target: Target, data: bytes, folder: Path) -> None:
    """Have a target read bytes.

    Raises:
        Exception: it ended with an error by which it may not refuse.
    """
    try:
        target.read(data, folder)
    except target.refuses as error:
        said = str(error)
        assert said, "an error without words"
        assert len(said) < 20_000, "an error too long to read"
