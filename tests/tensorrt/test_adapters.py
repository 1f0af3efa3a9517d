"""Rows with adapters on engines, whose graphs are as they are lowered for these, on a simulated GPU."""

from __future__ import annotations

import numpy as np
import pytest

from triptych_export.tensorrt.profiles import make_profiles
from triptych_serving import runtimes, step
from triptych_serving.adapters.graphs import AdaptedDenoiser, AdaptedSteps
from triptych_serving.adapters.mix import GPU_ROWS, INPUTS, Mix, Worn
from triptych_serving.denoiser import Conditioning
from triptych_serving.engines import engine_path, profiles
from triptych_serving.invariance import example, verify
from triptych_serving.manifest import Manifest
from triptych_serving.ort import OrtDenoiser, OrtStage
from triptych_serving.sdxl.walk import BASE, REFINER
from triptych_serving.tensorrt import memory
from triptych_serving.tensorrt.denoiser import TensorRTDenoiser
from triptych_serving.tensorrt.homes import Homes
from triptych_serving.tensorrt.resident import Resident
from triptych_serving.tensorrt.stage import TensorRTStage
from triptych_serving.tensorrt.staging import Staging

from ..engines import simulated_build
from ..serving.loop import table, walk
from ..simulated import MACHINE, SimulatedDevice
from .test_steps import Served, maker, off

SEED = 3  # of the tiny build
NEAR = 0.02  # of the largest number: float16


@pytest.fixture(scope="module")
def manifest(tiny, tmp_path_factory):
    return Manifest.load(simulated_build(tiny(SEED)[1], tmp_path_factory.mktemp("adapted") / "build"))


def loaded(manifest, stage, device, **options):
    made = profiles(manifest, stage)
    engine = device.load(engine_path(manifest, stage, MACHINE), [k for k, one in enumerate(made) if one.one_size])
    if stage not in ("unet", "unet_adapters"):
        return TensorRTStage(device, engine, made)
    inputs, sizes = manifest.stages[stage]["inputs"], manifest.model.default_sizes
    return TensorRTDenoiser(device, engine, made, inputs, sizes, **{"most_rows": 16, **options})


def on_gpu(manifest, device, homes=None):
    return AdaptedSteps(
        loaded(manifest, "unet", device, homes=homes),
        loaded(manifest, "unet_adapters", device, homes=homes, most_rows=GPU_ROWS),
    )


def on_processor(manifest):
    return AdaptedDenoiser(*(OrtDenoiser(manifest.stage_path(name)) for name in ("unet", "unet_adapters")))


def mix(manifest, seed, rank=4):
    layers, random = manifest.stages["unet_adapters"]["layers"].values(), np.random.default_rng(seed)
    width_in, width_out = (sum(layer[k] for layer in layers) for k in range(2))
    a, b = random.standard_normal((width_in, rank)) / 8, random.standard_normal((rank, width_out)) / 8
    return Mix((Worn(a.astype(np.float32), b.astype(np.float32), 0.7),), manifest.model.adapter_rank)


def batch(manifest, *requests):
    """Latents, timesteps and conditioning: of each request its rows, and whether it has adapters."""
    sample, timestep, rows = example(
        manifest.stages["unet"]["inputs"], manifest.model.default_sizes, sum(count for count, _ in requests)
    )
    conditioning, begin = [], 0
    for number, (count, worn) in enumerate(requests):
        own = rows[begin : begin + count]
        arrays = {name: np.concatenate([one.arrays[name] for one in own]) for name in own[0].arrays}
        conditioning.append(Conditioning(arrays, mix(manifest, number) if worn else None))
        begin += count
    return sample, timestep, conditioning


def test_mixed_batches_are_what_the_processor_makes_of_them(manifest):
    ours = on_gpu(manifest, SimulatedDevice())
    exact = on_processor(manifest)
    requests = [(2, True), (1, False), (2, True), (1, True), (2, False), (2, True)]
    sample, timestep, conditioning = batch(manifest, *requests)
    got, wanted = (model.predict(sample, timestep, conditioning) for model in (ours, exact))
    worn = np.repeat([wears for _, wears in requests], [count for count, _ in requests])
    np.testing.assert_array_equal(got[~worn], wanted[~worn])
    assert np.abs(got - wanted).max() < NEAR * np.abs(wanted).max()
    bare = exact.predict(sample, timestep, [Conditioning(one.arrays) for one in conditioning])
    assert np.abs(wanted - bare)[worn].max() > 5 * NEAR * np.abs(wanted).max()  # else nothing was shown


def test_a_requests_slabs_are_uploaded_once_in_half_for_all_of_its_rows(manifest):
    device = SimulatedDevice()
    ours = on_gpu(manifest, device)
    sample, timestep, conditioning = batch(manifest, (2, True), (2, True))
    before = device.done.copy()
    first = ours.predict(sample, timestep, conditioning)
    slabs = sum(2 * np.prod(one.shape(name)) for one in conditioning for name in INPUTS)
    others = sum(array.nbytes for one in conditioning for array in one.arrays.values())
    history, numbers = (step.LATENTS + step.NOISE_PREDS) * sample.nbytes, 4 * (step.NUMBERS + 1 + 2) * 4
    own = history + numbers + timestep.nbytes
    assert (device.done - before)["bytes of uploads"] == slabs + others + own
    before = device.done.copy()
    np.testing.assert_array_equal(ours.predict(sample, timestep, conditioning), first)
    assert (device.done - before)["bytes of uploads"] == own
    pieces = device.pieces
    for one in conditioning:
        ours.release(one)
    assert device.pieces == pieces - sum(len(one.arrays) + len(INPUTS) for one in conditioning)


def test_slabs_are_not_staged_which_would_keep_their_size_page_locked():
    device, ones = SimulatedDevice(), np.ones((3, 2), np.float32)
    worn = Conditioning({"x": np.zeros((2, 1), np.float32)}, Mix((Worn(ones, ones.T, 0.5),), 4))
    memory = Resident(device, dict.fromkeys(INPUTS, np.dtype(np.float16)), Staging(device))[worn]
    device.synchronize()
    for name in INPUTS:
        np.testing.assert_array_equal(device.view(memory[name]).view(np.float16), worn.mix.slab(name).reshape(-1))
    assert not device.locked_bytes


def request(manifest, seed, worn, **ways):
    """What makes a job of its own conditioning, with adapters or without; its refiner wears none."""
    way, sizes = walk(table(4, history=2, noise=0.1), **ways), manifest.model.default_sizes
    _, _, given = batch(manifest, *[(int(max(way.batch_rows)), False)] * (seed + 1))
    arrays = given[seed].arrays
    base = Conditioning(arrays, mix(manifest, seed) if worn else None)
    return maker(way, seed=seed, side=sizes["latent_height"], models={BASE: base, REFINER: Conditioning(arrays)})


def test_steps_of_requests_with_adapters_and_without_are_as_around_a_model(manifest):
    device = SimulatedDevice()
    homes, near = Homes(device), NEAR / 10  # latents are many times what a model adds
    ours = Served(on_gpu(manifest, device, homes), loaded(manifest, "unet", device, homes=homes))
    host = Served(on_processor(manifest), OrtDenoiser(manifest.stage_path("unet")))
    pieces = device.pieces
    kinds = [{}, {"guided_until": 2}, {"refiner_from": 3}, {"refiner_from": 3, "guided": False}]
    makers = {(k, worn): request(manifest, k, worn, **kind) for k, kind in enumerate(kinds) for worn in (True, False)}
    jobs = {}
    for key, make in makers.items():
        jobs[key] = ours.submit(make)
        if not key[1]:
            ours.turn()  # so that they are at different steps, and who is in a batch changes
    ours.finish()
    assert (len(homes), device.pieces) == (0, pieces)
    for key, job in jobs.items():
        wanted = host.alone(makers[key])
        if key[1]:
            assert off(job.reply.latents, wanted) < near, key
        else:
            np.testing.assert_array_equal(job.reply.latents, wanted)
    for k in range(len(kinds)):  # else nothing was shown
        assert off(jobs[k, True].reply.latents, jobs[k, False].reply.latents) > 10 * near


def test_a_step_of_both_kinds_brings_nothing_back(manifest):
    device = SimulatedDevice()
    ours = Served(on_gpu(manifest, device, Homes(device)), None)
    for seed, worn in enumerate((True, False)):
        ours.submit(request(manifest, seed, worn))
    ours.turn()
    ours.turn()
    before = device.done.copy()
    ours.turn()
    moved = device.done - before
    assert (moved["launches"], moved["waits"]) == (2, 2)
    assert not moved["downloads"]
    assert not moved["copies"]
    assert not moved["synchronizations"]


def test_reproducible_rows_with_adapters_have_the_same_bytes_in_any_company(manifest):
    device = SimulatedDevice(tactics=True)
    ours = loaded(manifest, "unet_adapters", device, most_rows=GPU_ROWS, fixed_rows=GPU_ROWS)
    inputs = manifest.stages["unet_adapters"]["inputs"]
    assert verify(ours, inputs, manifest.model.default_sizes, 9)["batch_invariant"]


def test_an_encoder_runs_more_prompts_than_a_call_has_in_parts(manifest):
    stage = "text_encoder_2_adapters"
    ours, exact = loaded(manifest, stage, SimulatedDevice()), OrtStage(manifest.stage_path(stage))
    random, inputs = np.random.default_rng(0), {}
    for name, spec in manifest.stages[stage]["inputs"].items():
        shape = [2 * GPU_ROWS + 1 if dim == "batch" else dim for dim in spec["shape"]]
        inputs[name] = (random.random(shape) * 0.1 + (spec["dtype"] == "int64")).astype(spec["dtype"])
    got, wanted = ours(inputs), exact(inputs)
    for name, array in got.items():
        assert array.shape == wanted[name].shape
        assert np.abs(array - wanted[name]).max() < NEAR * np.abs(wanted[name]).max()


def test_profiles_hold_no_more_rows_with_adapters_than_a_call_has(manifest):
    for stage, facts in manifest.stages.items():
        given = facts["inputs"]
        made = make_profiles(manifest.model, stage, step.inputs(given) if step.taken(given) else given)
        most = max(largest[0] for profile in made for _, _, largest in profile.shapes.values())
        assert (most == GPU_ROWS) == ("layers" in facts), stage


def test_gpu_memory_counts_slabs_and_graphs_for_adapters_where_they_are_served(manifest):
    plain, worn = (memory.need([manifest], MACHINE.capability, adapters=adapters) for adapters in (False, True))
    assert worn.processes == plain.processes
    assert worn.stages.keys() - plain.stages.keys() == {
        stage for stage, facts in manifest.stages.items() if "layers" in facts
    }
    assert worn.conditioning - plain.conditioning == memory.ADAPTER_BYTES
    layers, rank = manifest.stages["unet_adapters"]["layers"].values(), manifest.model.adapter_rank
    slabs = 2 * GPU_ROWS * rank * sum(sum(layer) for layer in layers)
    assert worn.stages["unet_adapters"] == slabs + 2  # weights and activations of a simulated engine


def test_a_server_of_adapters_takes_steps_on_both_engines_with_the_same_homes(manifest, monkeypatch):
    device = SimulatedDevice()
    monkeypatch.setattr(runtimes, "device", lambda _target: device)
    monkeypatch.setattr(runtimes, "machine", lambda _target: MACHINE)
    monkeypatch.setattr(runtimes.Shelf, "of_server", lambda _manifest: object())
    made = runtimes.denoiser(manifest, "unet", most_rows=16, fixed_rows=16)
    assert isinstance(made, AdaptedSteps)
    assert made.adapted._homes is made._plain._homes
    assert (made._plain._rows, made.adapted._rows) == ([16], [GPU_ROWS])
