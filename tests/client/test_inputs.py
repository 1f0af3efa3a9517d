"""What a request carries: pairs, files, pictures; and what comes back with the picture."""

from __future__ import annotations

import io
import os
import typing

import numpy as np
import pytest
from PIL import Image
from tritonclient.grpc import model_config_pb2

from triptych import (
    AnyParameters,
    AsyncClient,
    CascadeParameters,
    Client,
    InvalidRequest,
    Parameters,
    ServerError,
    request,
)
from triptych import async_client as under_test
from triptych.pictures import MAX_BYTES
from triptych.transport import TritonTransport, is_loopback
from triptych_contract import verbs
from triptych_contract.families import FAMILIES
from triptych_serving.assemble import ensemble

from .. import plain
from .fakes import RECEIPT, FakeTransport

NUMBERS = {
    "guidance_rescale": 0.7,
    "guidance_end": 0.5,
    "clip_skip": 1,
    "strength": 0.6,
    "prompt_syntax": "a1111",
    "denoising_end": 0.8,
    "aesthetic_score": 6,
    "negative_aesthetic_score": 2.5,
}


async def sent(**parameters):
    transport = FakeTransport()
    async with AsyncClient(transport=transport) as client:
        await client.generate("a fox", **parameters)
    return transport.requests[0]


def png(mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, (4, 3)).save(file, "PNG")
    return file.getvalue()


def _names(hints):
    return hints.__annotations__  # of its bases as well


@pytest.mark.parametrize(("model", "hints"), [("sdxl", Parameters), ("stable_cascade", CascadeParameters)])
def test_the_contract_has_one_list_of_inputs(model, hints):
    assert {"prompt", *_names(hints)} == set(FAMILIES[model].parameters)


def test_every_input_has_a_hint_and_the_type_that_strangers_send():
    assert plain.TYPES.items() <= verbs.DATATYPES.items()  # as a stranger wrote them down
    assert {"prompt", *_names(AnyParameters)} == set().union(*(family.parameters for family in FAMILIES.values()))


@pytest.mark.parametrize("model", FAMILIES)
def test_the_ensembles_take_what_the_contract_declares(model):
    config = ensemble(FAMILIES[model], ["tokenizer", "cascade_tokenizer", "denoise"])
    types = {name: name.removeprefix("TYPE_").replace("STRING", "BYTES") for name in model_config_pb2.DataType.keys()}  # noqa: SIM118
    inputs = {given.name: types[model_config_pb2.DataType.Name(given.data_type)] for given in config.input}
    assert inputs == {name: one.kind.datatype for name, one in FAMILIES[model].parameters.items()}
    assert dict(config.ensemble_scheduling.step[0].input_map) == {name: name for name in inputs}


async def test_numbers_and_pairs_are_sent_as_given():
    given = {**NUMBERS, "original_size": (96, 128), "target_size": [64, 32], "crops_coords_top_left": np.array([3, 0])}
    pairs = {"original_size": (96, 128), "target_size": (64, 32), "crops_coords_top_left": (3, 0)}
    assert {name: value for name, value in (await sent(**given)).items() if name in given} == {**NUMBERS, **pairs}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"original_size": 128}, "original_size: 128 given; legal: two whole numbers, height and width"),
        ({"original_size": (1, 2, 3)}, r"original_size: \(1, 2, 3\) given; legal: two whole numbers, height and width"),
        ({"target_size": "12"}, "target_size: '12' given; legal: two whole numbers"),
        ({"target_size": b"12"}, "target_size: b'12' given; legal: two whole numbers"),
        ({"target_size": (1.5, 2)}, "target_size: 1.5 given; legal: a whole number below 2\\^31"),
        ({"target_size": (1, None)}, "target_size: None given; legal: a number"),
        ({"crops_coords_top_left": (0, 2**31)}, "crops_coords_top_left: 2147483648 given"),
        ({"crops_coords_top_left": {0: 1, 1: 2}}, "crops_coords_top_left: .* legal: two whole numbers, top and left"),
        ({"clip_skip": 0.5}, "clip_skip: 0.5 given"),
        ({"strength": "all"}, "strength: 'all' given; legal: a number"),
        ({"aesthetic_score": 1e39}, "aesthetic_score: 1e[+]39 given"),
        ({"init_image": 7}, "init_image: a int given; legal: a PNG, JPEG or WebP file"),
        ({"mask": "/no/such.png"}, r"mask: '/no/such.png' \(No such file or directory\) given; legal: a PNG"),
        ({"init_image": os.curdir}, r"init_image: '.' \(Is a directory\) given"),
        ({"init_image": "a\0b"}, "init_image: .*null"),
    ],
)
async def test_what_cannot_be_sent_is_refused_by_name(given, message):
    with pytest.raises(InvalidRequest, match=message) as error:
        await sent(**given)
    assert error.value.field == next(iter(given))


async def test_a_picture_is_its_files_bytes(tmp_path):
    path = tmp_path / "start.png"
    path.write_bytes(png())
    for given in (png(), bytearray(png()), path, str(path)):
        request = await sent(init_image=given, mask=given)
        assert request["init_image"] == request["mask"] == png()


async def test_bytes_are_never_taken_for_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "start").write_bytes(png())
    assert (await sent(init_image=b"start"))["init_image"] == b"start"


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "F", "I;16"])
async def test_a_pil_image_is_sent_as_the_png_that_saving_it_makes(tmp_path, mode):
    image = Image.new(mode, (4, 3))
    data = (await sent(init_image=image))["init_image"]
    assert Image.open(io.BytesIO(data)).size == (4, 3)
    if mode in ("L", "RGB", "RGBA"):
        image.save(tmp_path / "start.png")
        assert data == (tmp_path / "start.png").read_bytes()


async def test_a_pil_image_that_cannot_be_read_is_refused():
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "PNG")
    image = Image.open(io.BytesIO(file.getvalue()[:1000]))
    with pytest.raises(InvalidRequest, match="init_image: a PIL image that PNG cannot hold"):
        await sent(init_image=image)


async def test_an_endless_file_ends(monkeypatch):
    monkeypatch.setattr("triptych.pictures.MAX_BYTES", 1000)
    assert MAX_BYTES > 32 * 2**20
    with pytest.raises(InvalidRequest, match="mask: more than 1000 bytes given"):
        await sent(mask="/dev/zero")


async def test_many_read_a_file_once(tmp_path, monkeypatch):
    transport, reads = FakeTransport(), []
    path = tmp_path / "start.png"
    path.write_bytes(png())
    monkeypatch.setattr(request, "file_bytes", lambda name, given: reads.append(name) or given.read_bytes())
    async with AsyncClient(transport=transport) as client:
        await client.generate_many("a fox", 3, seed=5, init_image=path)
    assert [(r["seed"], r["init_image"]) for r in transport.requests] == [(5, png()), (6, png()), (7, png())]
    assert reads == ["init_image"]


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("localhost:8001", True),
        ("127.0.0.1:8001", True),
        ("127.9.0.1:8001", True),
        ("[::1]:8001", True),
        ("dns:///LOCALHOST:8001", True),
        ("dns://8.8.8.8/localhost:8001", True),
        ("ipv4:127.0.0.1:8001", True),
        ("localhost", True),
        ("localhost.example.org:8001", False),
        ("10.0.0.1:8001", False),
        ("dns:///gpu:8001", False),
        ("[::", False),
        ("", False),
    ],
)
def test_loopback_is_known_in_every_spelling(url, own):
    assert is_loopback(url) == own


def test_tensors_have_the_contracts_types_and_shapes():
    transport = TritonTransport("127.0.0.1:1")
    checked = request.check(
        "sdxl", {**NUMBERS, "original_size": (96, 128), "init_image": b"\x89PNG\0\0", "prompt": "x"}
    )
    tensors = {name: transport._tensor(name, value) for name, value in checked.items()}
    assert {name: tensor.datatype() for name, tensor in tensors.items()} == {
        n: FAMILIES["sdxl"].parameters[n].kind.datatype for n in tensors
    }
    shapes = {name: list(tensor.shape()) for name, tensor in tensors.items()}
    assert shapes.pop("original_size") == [2]
    assert set(map(tuple, shapes.values())) == {(1,)}
    assert tensors["init_image"]._get_content() == b"\x06\0\0\0\x89PNG\0\0"
    assert tensors["original_size"]._get_content() == np.array([96, 128], np.int32).tobytes()


@pytest.mark.parametrize(("said", "cached"), [({"cached": True}, True), ({"cached": False}, False), ({}, False)])
async def test_a_picture_tells_whether_it_was_cached_and_its_receipt_does_not(said, cached):
    async with AsyncClient(transport=FakeTransport(receipt={**RECEIPT, **said})) as client:
        image = await client.generate("a fox")
    assert image.cached is cached
    assert image.receipt == {"output_format": "png"}


async def test_describe_and_verify_are_verbs():
    models = {"sdxl": {"build": "b1"}, "stable_cascade": {"build": "b2"}}
    transport = FakeTransport(reports={"describe": {"models": models}, "verify": {"denoisers": {}}})
    async with AsyncClient(transport=transport) as client:
        assert await client.describe() == {"build": "b1"}
        assert await client.models() == models
        assert await client.verify() == {"denoisers": {}}
        with pytest.raises(InvalidRequest, match="timeout: 0 given"):
            await client.verify(timeout=0)
    assert transport.verbs == ["describe", "describe", "verify"]
    async with AsyncClient(transport=transport, model="stable_cascade") as client:
        assert await client.describe() == {"build": "b2"}


@pytest.mark.parametrize("model", ["stable_cascade", "mine"])
async def test_a_model_that_is_not_served_is_refused_with_those_that_are(model):
    transport = FakeTransport(reports={"describe": {"models": {"sdxl": {}, "other": {}}}})
    async with AsyncClient(transport=transport, model=model) as client:
        with pytest.raises(InvalidRequest) as error:
            await client.describe()
    assert str(error.value) == f"model: {model} given; legal: sdxl, other"


@pytest.mark.parametrize("report", [{"model": {}, "family": "sdxl"}, {"models": None}, {"models": 3}, []])
async def test_a_description_of_another_version_is_the_servers_error(report):
    async with AsyncClient(transport=FakeTransport(reports={"describe": report})) as client:
        with pytest.raises(ServerError, match="the answer is not this version's"):
            await client.describe()


def test_the_sync_client_has_them_as_well(monkeypatch):
    transport = FakeTransport(reports={"describe": {"models": {"sdxl": {"model": {}}}}, "verify": {"denoisers": {}}})
    monkeypatch.setattr(under_test, "TritonTransport", lambda *_, **__: transport)
    with Client() as client:
        assert client.describe() == {"model": {}}
        assert client.models() == {"sdxl": {"model": {}}}
        assert client.verify() == {"denoisers": {}}


def test_the_parameters_are_told_to_editors():
    for method in ("generate", "generate_many", "stream", "submit"):
        for kind in (Client, AsyncClient):
            assert typing.cast(dict, getattr(kind, method).__annotations__)["parameters"] == "Unpack[AnyParameters]"
