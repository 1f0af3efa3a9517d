"""Manifests that nobody exported: each is refused in one line that names the file and the field."""

from __future__ import annotations

import json
import os
import tracemalloc

import pytest

from triptych_demo import demo_build, demo_builds
from triptych_serving import schema
from triptych_serving.manifest import Manifest, ManifestError

GONE = object()


def changed(document, path, value):
    *parents, last = path.split("/")
    for key in parents:
        document = document[int(key) if isinstance(document, list) else key]
    if value is GONE:
        del document[last]
    else:
        document[last] = value


@pytest.mark.parametrize("build", demo_builds(), ids=lambda build: build.name)
def test_what_an_export_wrote_is_taken(build):
    assert Manifest.load(build).build == build


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("family", ["x"], 'family: ["x"] given; legal: sdxl, stable_cascade'),
        ("family", "sd15", "family: 'sd15' given; legal: sdxl, stable_cascade"),
        ("family", GONE, "family: missing"),
        ("target", "../x", "target: '../x' given; legal: cpu, tensorrt, tensorrt-rtx, cuda"),
        ("stages/../x", {}, "stages.../x.batch_invariant: missing"),
        ("stages", [], "stages: [] given; legal: an object"),
        ("stages/unet", GONE, "stages.unet: missing"),
        ("stages/unet/files", "unet/model.onnx", "stages.unet.files: 'unet/model.onnx' given; legal: a list"),
        (
            "stages/unet/inputs/sample/dtype",
            "str",
            "stages.unet.inputs.sample.dtype: 'str' given; legal: float32, float16",
        ),
        (
            "stages/unet/inputs/sample/shape",
            [-1],
            "shape[0]: -1 given; legal: a whole number from 0 on or printable text",
        ),
        ("artifacts/a\0b", {"sha256": "", "bytes": 0}, "artifacts: 'a\\x00b' given; legal: printable names"),
        ("artifacts/a", {"sha256": 7, "bytes": 0}, "artifacts.a.sha256: 7 given; legal: printable text"),
        ("artifacts/a", {"sha256": "", "bytes": True}, "artifacts.a.bytes: true given; legal: a whole number"),
        ("model/name", "red\x1b[31m\n", "model.name: 'red\\x1b[31m\\n' given; legal: printable text"),
        ("model/name", GONE, "model.name: missing"),
        ("model/more", 1, "model.more: unknown to this version of Triptych"),
        ("model/default_height", "128", "model.default_height: '128' given; legal: a whole number"),
        ("model/default_height", 10**40, "given; legal: a whole number from 0 on"),
        ("model/refiner", {"size_multiple": 8}, "model.refiner.force_zeros_for_empty_prompt: missing"),
        ("model/refiner", 7, "model.refiner: 7 given; legal: an object"),
        ("model/latent_scale/mean", ["x"], "model.latent_scale.mean[0]: 'x' given; legal: a number"),
        ("model/tokenizers/0/path", "a\0", "model.tokenizers[0].path: 'a\\x00' given; legal: printable text"),
        ("model/samplers/ddim/schedules/default/max_steps", None, "max_steps: null given; legal: a whole number"),
        ("model/previews/unet/bias", {}, "model.previews.unet.bias: {} given; legal: a list"),
        ("format", 2, "not a manifest of format 3"),
    ],
)
def test_a_mistyped_or_missing_field_is_named(path, value, words, tmp_path):
    document = json.loads((demo_build("sdxl") / "manifest.json").read_text("utf-8"))
    if path == "stages/../x":
        document["stages"]["../x"] = value
    else:
        changed(document, path, value)
    assert words in refusal(tmp_path, json.dumps(document).encode())


def test_a_stage_of_no_family_is_refused(tmp_path):
    document = json.loads((demo_build("sdxl") / "manifest.json").read_text("utf-8"))
    document["stages"]["../x"] = document["stages"]["unet"]
    assert "stages.../x: unknown; legal: image_prompt_encoder, refiner_text_encoder_2, refiner_unet" in refusal(
        tmp_path, json.dumps(document).encode()
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"[]", "not a manifest of format 3"),
        (b'{"format": NaN}', "NaN is no JSON"),
        (b"\xff\xfe\0", "unreadable"),
        (b"", "unreadable"),
        (b"9" * 10_000, "unreadable"),
        (b" " * (schema.MAX_BYTES + 1), f"more than {schema.MAX_BYTES} bytes"),
    ],
)
def test_what_is_no_manifest_is_refused(text, words, tmp_path):
    assert words in refusal(tmp_path, text)


def refusal(folder, text):
    (folder / "manifest.json").write_bytes(text)
    return refused(folder)


def refused(folder):
    with pytest.raises(ManifestError) as raised:
        Manifest.load(folder)
    words = str(raised.value)
    assert words.startswith(f"{folder / 'manifest.json'}: ")
    assert words.isprintable()
    return words


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "manifest.json")
    assert "not a regular file" in refused(tmp_path)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/full", "/"])
def test_devices_and_folders_are_not_read(device, tmp_path):
    (tmp_path / "manifest.json").symlink_to(device)
    tracemalloc.start()
    assert "not a regular file" in refused(tmp_path) or device == "/"
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_an_artifact_that_is_no_file_is_missing(tmp_path):
    document = json.loads((demo_build("sdxl") / "manifest.json").read_text("utf-8"))
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    (tmp_path / "unet").mkdir()
    os.mkfifo(tmp_path / "unet/model.onnx")
    with pytest.raises(ManifestError, match=r"unet/model.onnx: missing"):
        Manifest.load(tmp_path).verified("unet/model.onnx")
