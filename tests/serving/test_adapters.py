"""Files of adapters, good ones and bad ones; what is kept of them; who wears which."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import struct
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

from triptych_contract.adapters import Adapter
from triptych_contract.errors import InvalidRequest
from triptych_serving.adapters import WORN
from triptych_serving.adapters.files import MAX_HEADER_BYTES, BadAdapter, File
from triptych_serving.adapters.graphs import AdaptedDenoiser, AdaptedStage, AdaptedSteps, worn
from triptych_serving.adapters.keys import Names
from triptych_serving.adapters.mix import Mix, Worn
from triptych_serving.adapters.shelf import Shelf
from triptych_serving.denoiser import Conditioning, Kind
from triptych_serving.steps import Steps

from .. import loras
from ..loras import framed, pack, tensors

ATTENTION, MIDDLE, UP = "down_blocks.1.attentions.0.", "mid_block.attentions.0.", "up_blocks.0.attentions.1."
BLOCK = "transformer_blocks.0."
UNET = {
    f"{ATTENTION}proj_in": [6, 8],
    f"{ATTENTION}{BLOCK}attn1.to_q": [8, 8],
    f"{ATTENTION}{BLOCK}attn2.to_k": [12, 8],
    f"{ATTENTION}{BLOCK}attn1.to_out.0": [8, 8],
    f"{MIDDLE}{BLOCK}ff.net.0.proj": [8, 16],
    f"{UP}{BLOCK}ff.net.2": [16, 8],
}
CLIP = {"encoder.layers.0.self_attn.q_proj": [6, 6], "encoder.layers.1.mlp.fc1": [6, 12]}
LAYERS = {"unet": UNET, "text_encoder": CLIP, "text_encoder_2": CLIP}
EVERY = tuple(LAYERS)
RANK = 16
TO_Q = f"unet.{ATTENTION}{BLOCK}attn1.to_q"


def opened(data):
    return File(io.BytesIO(data), len(data), LAYERS, Names(LAYERS))


def refused(data):
    with pytest.raises(BadAdapter) as error:
        opened(data)
    return str(error.value)


def products(slabs, sizes):
    """What slabs add to each layer, (out, in)."""
    a, b = slabs
    made, at_in, at_out = {}, 0, 0
    for layer, (width_in, width_out) in sizes.items():
        made[layer] = (a[at_in : at_in + width_in] @ b[:, at_out : at_out + width_out]).T
        at_in, at_out = at_in + width_in, at_out + width_out
    return made


# what a file says


@pytest.mark.parametrize("naming", ["kohya", "sgm", "peft", "diffusers"])
@pytest.mark.parametrize("ranks", [(1,), (4,), (3, 5, 8)])
def test_every_layer_gets_its_own_product(naming, ranks):
    given = tensors(LAYERS, naming=naming, ranks=ranks, stages=EVERY)
    file = opened(pack(given))
    assert file.facts.rank == max(ranks)
    assert set(file.facts.stages) == set(EVERY)
    halves = list(given.values())
    found = [array for array in halves if array.ndim]
    pairs = iter(zip(found[::2], found[1::2], strict=True))
    slabs = file.slabs(pack(given))
    for stage in EVERY:
        for product in products(slabs[stage], LAYERS[stage]).values():
            down, up = next(pairs)
            strength = 2.0 / len(down) if naming in ("kohya", "sgm") else 1.0
            np.testing.assert_allclose(product, up @ down * strength, rtol=1e-5, atol=1e-6)


def test_what_a_file_does_not_have_stays_as_it_is():
    slabs = opened(
        pack({f"{TO_Q}.lora_A.weight": np.ones((2, 8), "<f4"), f"{TO_Q}.lora_B.weight": np.ones((8, 2), "<f4")})
    )
    assert slabs.facts.stages == ("unet",)


@pytest.mark.parametrize(
    "older", ["unet.{}attn1.processor.to_q_lora.down.weight", "base_model.model.{}attn1.to_q.lora_A.weight"]
)
def test_older_and_barer_names_are_known(older):
    name = older.format(f"{ATTENTION}{BLOCK}")
    assert Names(LAYERS).find(name).layer == TO_Q.removeprefix("unet.")


def test_out_has_a_number_where_old_names_have_none():
    name = f"unet.{ATTENTION}{BLOCK}attn1.processor.to_out_lora.up.weight"
    assert Names(LAYERS).find(name).layer == f"{ATTENTION}{BLOCK}attn1.to_out.0"


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", "bfloat16"])
def test_types_of_numbers_mean_the_same(dtype):
    half = np.array([[0.5, -2.0, 0.0, 1.25, 3.0, 0.75, -0.125, 8.0]], np.float32)
    stored = (half.view(np.uint32) >> 16).astype("<u2") if dtype == "bfloat16" else half.astype(dtype)
    data = pack({f"{TO_Q}.lora_A.weight": stored, f"{TO_Q}.lora_B.weight": np.ascontiguousarray(stored.T)})
    np.testing.assert_array_equal(
        products(opened(data).slabs(data)["unet"], UNET)[TO_Q.removeprefix("unet.")], half.T @ half
    )


def test_alphas_of_a_peft_configuration_count():
    given = tensors(LAYERS, naming="peft", ranks=(4,))
    configuration = {"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 2}}
    data = pack(given, {"lora_adapter_metadata": json.dumps(configuration)})
    plain, strong = opened(pack(given)).slabs(pack(given))["unet"], opened(data).slabs(data)["unet"]
    for layer, product in products(plain, UNET).items():
        factor = 0.5 if layer.endswith("attn1.to_q") else 2.0
        np.testing.assert_allclose(products(strong, UNET)[layer], factor * product, rtol=1e-6)
    data = pack(given, {"lora_adapter_metadata": json.dumps({**configuration, "unet.use_rslora": True})})
    rooted = opened(data).slabs(data)["unet"]
    np.testing.assert_allclose(rooted[1], 2 * strong[1], rtol=1e-6)


@pytest.mark.parametrize("written", ["[", "7", '{"unet.lora_alpha": "much"}', '{"unet.alpha_pattern": [1]}'])
def test_a_configuration_that_is_none_is_refused_by_name(written):
    data = pack(tensors(LAYERS, naming="peft"), {"lora_adapter_metadata": written})
    with pytest.raises(BadAdapter, match="lora_adapter_metadata: not what diffusers writes"):
        opened(data).slabs(data)


def test_trigger_words_are_one_line():
    made = opened(pack(tensors(LAYERS), {"modelspec.trigger_phrase": "inky\n\x1b[2J drawing" + "x" * 9999}))
    assert made.facts.trigger_words.startswith("inky[2J drawing")
    assert len(made.facts.trigger_words) <= 500


# what is refused

ONE = tensors({"unet": {TO_Q.removeprefix("unet."): [8, 8]}}, naming="peft")
A, B = f"{TO_Q}.lora_A.weight", f"{TO_Q}.lora_B.weight"
CONV = "unet.down_blocks.0.resnets.0.conv1.lora_A.weight"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({**ONE, f"{TO_Q}.lora_magnitude_vector.weight": ONE[B]}, "DoRA"),
        ({f"lora_unet_{MIDDLE.replace('.', '_')}ff.dora_scale": ONE[B]}, "DoRA"),
        ({"lora_unet_mid_block.hada_w1_a": ONE[A]}, "LoHa"),
        ({"lora_unet_mid_block.lokr_w1": ONE[A]}, "LoKr"),
        ({**ONE, "lora_unet_mid.lora_mid.weight": ONE[A]}, "LoCon"),
        ({**ONE, CONV: np.zeros((4, 8, 3, 3), "<f4")}, "LoCon"),
        ({"lora_unet_mid_block.oft_blocks": ONE[A]}, "OFT"),
        ({**ONE, f"{TO_Q}.lora_B.bias": ONE[B]}, "biases"),
        ({f"{TO_Q}.diff": ONE[A]}, "differences of whole weights"),
        ({A: ONE[A]}, "its up half is missing"),
        ({B: ONE[B]}, "its down half is missing"),
        ({A: ONE[A], B: ONE[B][:, :3].copy()}, "shape [8, 3]; legal: [8, 4]"),
        ({A: np.zeros((4, 9), "<f4"), B: ONE[B]}, "shape [4, 9]; legal: [4, 8]"),
        ({A: np.zeros((0, 8), "<f4"), B: np.zeros((8, 0), "<f4")}, "shape [0, 8]"),
        ({**ONE, f"lora_unet_{TO_Q.removeprefix('unet.').replace('.', '_')}.lora_down.weight": ONE[A]}, "the same as"),
        ({"transformer.blocks.0.attn.to_q.lora_A.weight": ONE[A]}, "no layer of this model that adapters change"),
        ({"unet.time_embedding.linear_1.lora_A.weight": ONE[A]}, "no layer of this model that adapters change"),
        ({"../../etc/passwd": ONE[A]}, "../../etc/passwd: no layer of this model"),
        ({"weight": ONE[A]}, "no layer of this model"),
        ({}, "no tensors"),
    ],
)
def test_what_is_no_lora_of_this_model_is_refused_by_name(given, words):
    assert words in refused(pack(given))


def test_another_base_model_is_named():
    given = {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight": ONE[A]}
    assert "made for sd_v1" in refused(pack(given, {"ss_base_model_version": "sd_v1"}))


def entry(dtype="F32", shape=(4, 8), offsets=(0, 128)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def handmade(header, data=b"\0" * 256):
    return framed(header if isinstance(header, bytes) else json.dumps(header).encode()) + data


WHOLE = pack(ONE)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04pickle",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}" * 99,
        struct.pack("<Q", 1),
        WHOLE[:-1],
        WHOLE + b"\0",
        WHOLE[:100],
        handmade(b"[1]"),
        handmade(b"\xff\xff"),
        handmade(b"[" * 5000),
        handmade(b'{"a": 1, "a": 2}'),
        handmade({"__metadata__": {"a": 1}, A: entry(), B: entry(shape=(8, 4), offsets=(128, 256))}),
        handmade({"__metadata__": 7, A: entry()}),
        handmade({A: entry(), B: entry(shape=(8, 4))}),  # they overlap
        handmade({A: entry(), B: entry(shape=(8, 4), offsets=(129, 257))}, b"\0" * 257),  # a hole
        handmade({A: entry(offsets=(128, 0))}),
        handmade({A: entry(offsets=(-128, 0))}),
        handmade({A: entry(offsets=(2**62, 2**62 + 128))}),
        handmade({A: entry(shape=(-4, -8))}),
        handmade({A: entry(shape=(2**40, 2**40))}),
        handmade({A: entry(shape=(4.0, 8))}),
        handmade({A: entry(shape=(True, 32))}),
        handmade({A: entry(shape="48")}),
        handmade({A: entry(dtype=["F32"])}),
        handmade({A: entry(dtype="F8_E4M3")}),
        handmade({A: {"dtype": "F32"}}),
        handmade({A: 7}),
    ],
)
def test_a_hostile_file_is_refused_before_anything_is_made_of_it(data):
    assert refused(data)


def test_numbers_that_are_not_finite_are_refused_when_they_are_read():
    given = {A: ONE[A], B: np.full_like(ONE[B], np.nan)}
    with pytest.raises(BadAdapter, match="not finite"):
        opened(pack(given)).slabs(pack(given))


# the shelf


def shelf(tmp_path, max_bytes=10**9, rank=RANK):
    stages = {f"{stage}_adapters": {"layers": sizes} for stage, sizes in LAYERS.items()}
    manifest = SimpleNamespace(family="sdxl", stages=stages, model=SimpleNamespace(adapter_rank=rank))
    for folder in ("loras", "shelf"):
        (tmp_path / folder).mkdir(exist_ok=True)
    return Shelf(manifest, tmp_path / "loras", tmp_path / "shelf", max_bytes)


def put(tmp_path, name, seed=0, **more):
    """A file in the folder, whole from the moment it is there; its SHA-256."""
    data = pack(tensors(LAYERS, seed, **more))
    (tmp_path / "new").write_bytes(data)
    os.replace(tmp_path / "new", tmp_path / "loras" / f"{name}.safetensors")
    return hashlib.sha256(data).hexdigest()


def problem(of, *asked):
    with pytest.raises(InvalidRequest) as error:
        of.resolve(asked)
    return str(error.value)


def test_new_files_are_found_and_removed_ones_forgotten(tmp_path):
    of = shelf(tmp_path)
    assert of.served() == {}
    assert "which this server does not have given; legal: none: its folder is empty" in problem(of, Adapter("ink"))
    sha256 = put(tmp_path, "ink")
    assert of.resolve([Adapter("ink", 0.5)]) == (Adapter("ink", 0.5, sha256),)
    (tmp_path / "loras/ink.safetensors").unlink()
    put(tmp_path, "fog")
    assert "ink, which this server does not have given; legal: fog" in problem(of, Adapter("ink"))


def test_a_replaced_file_is_another_and_the_old_one_is_kept_by_who_has_begun(tmp_path):
    of = shelf(tmp_path)
    old = put(tmp_path, "ink", 1)
    (before,) = of.resolve([Adapter("ink")])
    held = of.mix([before], "unet")
    slab = held.slab("lora_a")
    new = put(tmp_path, "ink", 2)
    (after,) = of.resolve([Adapter("ink")])
    assert (before.sha256, after.sha256) == (old, new)
    np.testing.assert_array_equal(of.mix([before], "unet").slab("lora_a"), slab)
    assert (of.mix([after], "unet").slab("lora_a") != slab).any()


def test_a_file_that_is_written_over_in_place_is_read_again(tmp_path):
    of = shelf(tmp_path)
    path = tmp_path / "loras/ink.safetensors"
    hashes = []
    for seed in range(3):
        path.write_bytes(pack(tensors(LAYERS, seed)))
        hashes.append(of.resolve([Adapter("ink")])[0].sha256)
    assert len(set(hashes)) == 3


def test_a_thousand_files_of_which_a_hundred_are_used_stay_under_the_bound(tmp_path):
    of = shelf(tmp_path)
    put(tmp_path, "0")
    of.resolve([Adapter("0")])
    each = sum(file.stat().st_size for file in (tmp_path / "shelf").rglob("*.npy"))
    of = shelf(tmp_path, max_bytes=each * 10)
    for number in range(1000):
        put(tmp_path, str(number), number)
    assert len(of.served()) == 1000
    first, *_ = of.resolve([Adapter("0")])
    held = of.mix([first], "unet")
    slab = held.slab("lora_b")
    for number in range(1, 100):
        of.resolve([Adapter(str(number))])
        assert sum(file.stat().st_size for file in (tmp_path / "shelf").rglob("*.npy")) <= each * 10
    assert not (tmp_path / "shelf" / first.sha256).exists()
    np.testing.assert_array_equal(held.slab("lora_b"), slab)  # a job that has begun has it all the same
    np.testing.assert_array_equal(of.mix([first], "unet").slab("lora_b"), slab)  # from its file, which is there


def test_what_has_left_folder_and_shelf_is_refused(tmp_path):
    of = shelf(tmp_path, max_bytes=1)
    put(tmp_path, "ink")
    put(tmp_path, "fog", 1)
    (ink,) = of.resolve([Adapter("ink")])
    of.resolve([Adapter("fog")])
    put(tmp_path, "ink", 2)
    with pytest.raises(InvalidRequest, match="ink, which was replaced before it was begun"):
        of.mix([ink], "unet")


def test_ranks_add_up_to_what_was_exported(tmp_path):
    of = shelf(tmp_path, rank=8)
    for name, rank in (("ink", 8), ("fog", 1), ("big", 9)):
        put(tmp_path, name, ranks=(rank,))
    assert of.resolve([Adapter("ink")])
    assert "rank 8 + 1 = 9 given; legal: at most 8 in all" in problem(of, Adapter("ink"), Adapter("fog"))
    assert "rank 9 given; legal: at most 8" in problem(of, Adapter("big"))


def test_all_names_that_are_wrong_are_told_at_once(tmp_path):
    of = shelf(tmp_path)
    (tmp_path / "loras/bad.safetensors").write_bytes(b"no")
    words = problem(of, Adapter("../shelf/x"), Adapter("bad"), Adapter("/etc/passwd"))
    assert "../shelf/x, which this server does not have" in words
    assert "bad, which is not served (2 bytes; legal: a whole safetensors file)" in words
    assert "/etc/passwd, which" in words
    assert of.refused() == {"bad": "2 bytes; legal: a whole safetensors file"}


def test_only_files_of_the_folder_itself_are_served(tmp_path):
    of = shelf(tmp_path)
    put(tmp_path, "ink")
    (tmp_path / "loras/in.safetensors").mkdir()
    (tmp_path / "loras/dangling.safetensors").symlink_to("nowhere")
    (tmp_path / "loras/note.txt").write_text("")
    os.mkfifo(tmp_path / "loras/pipe.safetensors")
    assert list(of.served()) == ["ink"]


def test_a_folder_that_is_gone_is_an_empty_one(tmp_path):
    of = shelf(tmp_path)
    put(tmp_path, "ink")
    assert of.served()
    shutil.rmtree(tmp_path / "loras")
    assert of.served() == of.refused() == {}


@pytest.mark.parametrize("sha256", ["", "../../loras", "a" * 63, "A" * 64, f"{'a' * 64}/../.."])
def test_a_hash_is_never_a_path(tmp_path, sha256):
    of = shelf(tmp_path)
    put(tmp_path, "ink")
    with pytest.raises(InvalidRequest, match="legal: what the ensemble passes on"):
        of.mix([Adapter("ink", 1.0, sha256)], "unet")


def test_a_name_that_a_stranger_passes_on_is_looked_up(tmp_path):
    of = shelf(tmp_path)
    (tmp_path / "outside.safetensors").write_bytes(pack(tensors(LAYERS)))
    sha256 = hashlib.sha256((tmp_path / "outside.safetensors").read_bytes()).hexdigest()
    with pytest.raises(InvalidRequest, match="legal: the same once more"):
        of.mix([Adapter("../outside", 1.0, sha256)], "unet")


def test_encoders_are_told_only_of_what_changes_them(tmp_path):
    of = shelf(tmp_path)
    put(tmp_path, "ink")
    put(tmp_path, "fog", stages=EVERY)
    ink, fog = of.resolve([Adapter("ink"), Adapter("fog")])
    assert of.for_encoders([ink, fog]) == (fog,)
    assert of.mix([ink], "text_encoder") is None


# who wears what


def test_a_mix_adds_up_its_adapters_and_fills_the_ranks_with_zeros():
    random = np.random.default_rng(0)
    parts = [
        Worn(
            random.standard_normal((5, rank)).astype(np.float32),
            random.standard_normal((rank, 7)).astype(np.float32),
            scale,
        )
        for rank, scale in ((2, 0.5), (3, -1.0))
    ]
    mix = Mix(tuple(parts), 8)
    a, b = mix.slab("lora_a"), mix.slab("lora_b")
    assert (a.shape, b.shape) == ((5, 8), (8, 7))
    assert not a[:, 5:].any()
    assert not b[5:].any()
    np.testing.assert_allclose(a @ b, sum(part.a @ part.b * part.scale for part in parts), rtol=1e-5, atol=1e-6)


class Stub(NamedTuple):
    """What is asked of a job here."""

    id: int
    conditioning: Conditioning


class Model:
    """A graph that adds `number` to its rows."""

    def __init__(self, number):
        self.number, self.rows, self.released = number, [], []

    def predict(self, sample, timestep, conditioning):
        assert len(sample) == len(timestep) == sum(map(len, conditioning))
        self.rows.append(len(sample))
        return sample + self.number

    def release(self, conditioning):
        self.released.append(conditioning)


def test_each_row_goes_to_the_graph_that_it_needs():
    plain, adapted = Model(1), Model(2)
    model, mix = AdaptedDenoiser(plain, adapted), Mix((), 4)
    two = {"text_embeds": np.zeros((2, 3), np.float32)}
    batch = [
        Conditioning(two),
        Conditioning(two, mix),
        Conditioning(two, mix).of_step(Kind(guided=False)),
        Conditioning(two),
    ]
    sample = np.arange(7, dtype=np.float32).reshape(7, 1, 1, 1)
    added = (model.predict(sample, np.zeros(7, np.float32), batch) - sample).reshape(-1)
    assert added.tolist() == [1, 1, 2, 2, 2, 1, 1]
    assert (plain.rows, adapted.rows) == ([4], [3])
    model.predict(sample[:2], np.zeros(2, np.float32), batch[:1])
    model.release(batch[1])
    assert (plain.rows, adapted.rows) == ([4, 2], [3])
    assert plain.released == adapted.released == [batch[1]]


class Stepping(Model):
    """Takes steps, of which it makes `number`, unless it is broken."""

    def __init__(self, number, *, broken=False):
        super().__init__(number)
        self.broken, self.done = broken, []

    def admit(self, job):
        self.done.append(("admit", job.id))

    def leave(self, job):
        self.done.append(("leave", job.id))

    def start(self, jobs, wanted):
        if self.broken:
            raise RuntimeError("out of memory")
        self.done.append(("start", *(job.id for job in jobs)))
        return SimpleNamespace(wait=lambda: self.done.append("wait") or dict.fromkeys(wanted & {*jobs}, self.number))


def test_each_job_takes_its_steps_where_its_graph_is():
    plain, adapted = Stepping(1), Stepping(2)
    steps, one = AdaptedSteps(plain, adapted), {"x": np.zeros((1, 1), np.float32)}
    jobs = [Stub(k, Conditioning(one, Mix((), 4) if k % 2 else None)) for k in range(4)]
    for job in jobs:
        steps.admit(job)
    assert isinstance(steps, Steps)
    assert steps.start(jobs, {*jobs[1:]}).wait() == {jobs[1]: 2, jobs[2]: 1, jobs[3]: 2}
    steps.start(jobs[:1], set()).wait()
    steps.leave(jobs[0])
    assert plain.done == [("admit", 0), ("admit", 2), ("start", 0, 2), "wait", ("start", 0), "wait", ("leave", 0)]
    assert adapted.done == [("admit", 1), ("admit", 3), ("start", 1, 3), "wait", ("leave", 0)]


def test_a_step_that_is_only_half_started_is_waited_for():
    adapted, one = Stepping(2), {"x": np.zeros((1, 1), np.float32)}
    steps = AdaptedSteps(Stepping(1, broken=True), adapted)
    with pytest.raises(RuntimeError, match="out of memory"):
        steps.start([Stub(0, Conditioning(one)), Stub(1, Conditioning(one, Mix((), 4)))], set())
    assert adapted.done == [("start", 1), "wait"]


def test_an_encoders_rows_wear_what_they_are_told():
    ink, fog = (Adapter(name, 1.0, "0" * 64) for name in ("ink", "fog"))
    part = Worn(np.ones((2, 1), np.float32), np.ones((1, 2), np.float32), 1.0)
    stage = AdaptedStage(
        lambda inputs: {"out": inputs["ids"] * 0},
        lambda inputs: {"out": inputs["ids"] + inputs["lora_a"].sum((1, 2))[:, None]},
        lambda asked: Mix((part,) * len(asked), 4) if asked[0].name == "ink" else None,
    )
    told = [worn([ink]), b"", worn([ink, fog]), worn([fog])]
    inputs = {"ids": np.arange(4.0)[:, None], WORN: np.array(told, object)[:, None]}
    assert stage(inputs)["out"].reshape(-1).tolist() == [0 + 2, 0, 2 + 4, 0]


@pytest.mark.parametrize(
    "text", [b"[", b"7", b"[7]", b'[["a"]]x', b"[" * 9999, b'[["a", "b", "c"]]', b'[["a", 99, ""]]']
)
def test_what_a_stranger_tells_an_encoder_is_refused(text):
    stage = AdaptedStage(lambda inputs: inputs, lambda inputs: inputs, lambda _: None)
    with pytest.raises(InvalidRequest):
        stage({"ids": np.zeros((1, 1)), WORN: np.array([[text]], object)})


def test_the_generator_of_these_tests_writes_what_the_format_says():
    safetensors = pytest.importorskip("safetensors.numpy")
    given = loras.tensors(LAYERS)
    found = safetensors.load(loras.pack(given, {"a": "b"}))
    assert all((found[name] == given[name]).all() for name in given)
