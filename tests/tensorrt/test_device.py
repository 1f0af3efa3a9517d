"""The loop's denoiser and the stages on TensorRT, on a simulated GPU."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from triptych_demo import demo_builds
from triptych_serving import runtimes
from triptych_serving.denoiser import Conditioning
from triptych_serving.engines import engine_path, profiles
from triptych_serving.invariance import example, verify
from triptych_serving.manifest import Manifest
from triptych_serving.ort import OrtDenoiser, OrtStage
from triptych_serving.tensorrt.denoiser import TensorRTDenoiser
from triptych_serving.tensorrt.device import DeviceError, OutOfMemory
from triptych_serving.tensorrt.resident import Resident
from triptych_serving.tensorrt.stage import TensorRTStage
from triptych_serving.tensorrt.staging import Staging

from ..engines import simulated_build
from ..simulated import ACTIVATIONS, MACHINE, SimulatedDevice

DEMOS = {build.name: build for build in demo_builds()}
DENOISERS = [("sdxl", "unet"), ("stable_cascade", "prior"), ("stable_cascade", "decoder")]


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    """Both demo models, for the simulated GPU."""
    folder = tmp_path_factory.mktemp("simulated")
    return {name: Manifest.load(simulated_build(source, folder / name)) for name, source in DEMOS.items()}


def resident(manifest, stage):
    return [k for k, profile in enumerate(profiles(manifest, stage)) if profile.one_size]


class Loaded:
    """A denoiser on a device of its own, and rows to give it."""

    def __init__(self, manifest, stage="unet", device=None, **options):
        self.device, self.stage = device or SimulatedDevice(), stage
        self.manifest, self.inputs = manifest, manifest.stages[stage]["inputs"]
        self.denoiser = TensorRTDenoiser(
            self.device,
            self.device.load(engine_path(manifest, stage, MACHINE), resident(manifest, stage)),
            profiles(manifest, stage),
            self.inputs,
            manifest.model.default_sizes,
            **{"most_rows": 16, **options},
        )

    def example(self, rows, sizes=None):
        return example(self.inputs, sizes or self.manifest.model.default_sizes, rows)

    def predict(self, rows, sizes=None):
        return self.denoiser.predict(*self.example(rows, sizes))


@pytest.fixture(scope="module")
def loaded(builds):
    return Loaded(builds["sdxl"])


@pytest.fixture(scope="module")
def tactical(builds):
    """On a GPU whose results depend on the batch."""
    return Loaded(builds["sdxl"], device=SimulatedDevice(tactics=True))


@pytest.mark.parametrize(("family", "stage"), DENOISERS)
def test_it_predicts_what_onnx_runtime_does_at_any_batch_and_size(builds, family, stage):
    loaded, exact = Loaded(builds[family], stage), OrtDenoiser(builds[family].stage_path(stage))
    model = builds[family].model
    other = model.sizes(model.default_height // 2 // 32 * 32 or 64, model.default_width)
    for sizes, batches in ((model.default_sizes, (1, 2, 5, 16)), (other, (3, 11))):
        for rows in batches:
            wanted = exact.predict(*loaded.example(rows, sizes))
            np.testing.assert_array_equal(loaded.predict(rows, sizes), wanted)


def test_graphs_are_captured_before_any_request_and_started_by_own_size_batches(builds, loaded):
    assert loaded.device.done["captures"] == 16
    before = loaded.device.done.copy()
    for rows in (1, 2, 5, 16):
        loaded.predict(rows)
    after = loaded.device.done - before
    assert after["launches"] == 4
    assert not after["captures"]
    assert not after["enqueues"]
    loaded.predict(4, builds["sdxl"].model.sizes(64, 128))
    assert (loaded.device.done - before)["enqueues"] == 1


@pytest.mark.parametrize("rows", [1, 2, 5, 7, 9, 13])
def test_no_batch_is_padded(loaded, tactical, rows):
    np.testing.assert_array_equal(tactical.predict(rows), loaded.predict(rows) * np.float32(1 + 1e-6 * rows))


def test_more_rows_than_a_profile_holds_become_several_calls_that_split_no_request(loaded):
    sizes = loaded.manifest.model.sizes(64, 64)
    sample, timestep, rows = loaded.example(14, sizes)
    sizes_of_requests = (2, 1, 2, 2, 2, 2, 2, 1)
    requests, begin = [], 0
    for count in sizes_of_requests:
        members = rows[begin : begin + count]
        requests.append(Conditioning({k: np.concatenate([m.arrays[k] for m in members]) for k in members[0].arrays}))
        begin += count
    before = loaded.device.done["enqueues"]
    got = loaded.denoiser.predict(sample, timestep, requests)
    np.testing.assert_array_equal(got, loaded.denoiser.predict(sample, timestep, rows))
    assert (
        loaded.device.done["enqueues"] - before == 2 + 2
    )  # 7 + 7 rows, and 8 + 6 rows, which any size's profile holds


def test_a_size_that_no_profile_holds_is_named(loaded):
    with pytest.raises(ValueError, match=r"no profile of the engine holds latents of shape \(4, 99, 16\)"):
        loaded.predict(2, {**loaded.manifest.model.default_sizes, "latent_height": 99, "latent_width": 16})


def test_conditioning_is_uploaded_once_and_kept_until_its_request_ends(loaded):
    sample, timestep, conditioning = loaded.example(3)
    pieces, before = loaded.device.pieces, loaded.device.done.copy()
    first = loaded.denoiser.predict(sample, timestep, conditioning)
    names = len(conditioning[0].arrays)
    own = 6  # two of history, timesteps, numbers, two of places
    assert (loaded.device.done - before)["uploads"] == own + 3 * names
    before = loaded.device.done.copy()
    for _ in range(5):
        np.testing.assert_array_equal(loaded.denoiser.predict(sample, timestep, conditioning), first)
    after = loaded.device.done - before
    assert after["uploads"] == 5 * own
    assert not after["copies"]  # nor moved, while the batch is the same, but within a graph
    assert not after["allocations"]
    # Others in the batch: what lies there is copied within the device only.
    loaded.denoiser.predict(sample[:2], timestep[:2], conditioning[::-1][:2])
    assert (loaded.device.done - before)["uploads"] == 6 * own
    for one in conditioning:
        loaded.denoiser.release(one)
        loaded.denoiser.release(one)
    assert loaded.device.pieces == pieces
    np.testing.assert_array_equal(loaded.denoiser.predict(sample, timestep, conditioning), first)


X = {"x": np.dtype(np.float32)}


def conditionings(count, nbytes):
    return [Conditioning({"x": np.full((1, nbytes // 4), k, np.float32)}) for k in range(count)]


def test_resident_conditioning_is_bounded_and_what_went_is_uploaded_again():
    device = SimulatedDevice()
    resident, many = Resident(device, X, Staging(device), limit_bytes=1000), conditionings(5, 400)
    for one in many:
        resident[one]
    assert len(resident) == 2
    assert resident.nbytes == 800
    assert device.pieces == 2
    resident[many[3]]
    assert device.done["uploads"] == 5
    memory = resident[many[0]]["x"]
    device.synchronize()
    np.testing.assert_array_equal(device.view(memory).view(np.float32), 0)
    assert device.done["uploads"] == 6


def test_what_went_in_the_middle_of_a_batch_was_copied_before():
    device = SimulatedDevice()
    resident, target = Resident(device, X, Staging(device), limit_bytes=400), device.allocate(1200, "target")
    for k, one in enumerate(conditionings(3, 400)):
        device.copy(resident[one]["x"], target.part(400 * k, 400))
    device.synchronize()
    np.testing.assert_array_equal(device.view(target).view(np.float32).reshape(3, 100)[:, 0], [0, 1, 2])


def test_out_of_memory_says_what_for_how_much_and_how_much_there_is(builds):
    with pytest.raises(
        OutOfMemory, match=r"^GPU memory: \S+ MB asked for \(tensor \w+\), .* of 0.10 MB free; end other"
    ):
        Loaded(builds["sdxl"], device=SimulatedDevice(capacity=100_000))
    device = SimulatedDevice()
    resident, (one,) = Resident(device, X, Staging(device)), conditionings(1, 400)
    device.capacity = 100
    with pytest.raises(OutOfMemory, match=r"400|0\.00 MB asked for \(conditioning x\), 0\.00 MB of 0\.00 MB free"):
        resident[one]
    assert (len(resident), resident.nbytes, device.pieces) == (0, 0, 0)


def test_a_failed_upload_leaves_the_next_batch_right(loaded):
    sample, timestep, conditioning = loaded.example(2)
    first = loaded.denoiser.predict(sample[:1], timestep[:1], conditioning[:1])
    capacity, loaded.device.capacity = loaded.device.capacity, 0
    with pytest.raises(DeviceError):
        loaded.denoiser.predict(sample, timestep, conditioning[::-1])
    loaded.device.capacity = capacity
    np.testing.assert_array_equal(loaded.denoiser.predict(sample[:1], timestep[:1], conditioning[:1]), first)


LOSE = """
from tests.tensorrt.test_device import *
manifest = Manifest.load(sys.argv[1])
loaded = Loaded(manifest, fixed_rows=2)
rows = loaded.example(2)
loaded.device.lost = True
try:
    loaded.denoiser.predict(*rows)
finally:
    print("still here")
"""


def test_a_lost_gpu_ends_the_process(builds):
    command = [sys.executable, "-c", LOSE, str(builds["sdxl"].build)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 70
    assert "cudaErrorIllegalAddress" in done.stderr
    assert "still here" not in done.stdout


@pytest.mark.parametrize("rows", [2, 4])
def test_reproducible_rows_have_the_same_bytes_alone_and_in_company(builds, rows):
    loaded = Loaded(builds["sdxl"], device=SimulatedDevice(tactics=True), fixed_rows=rows)
    model = builds["sdxl"].model
    for sizes in (model.default_sizes, model.sizes(64, 96)):
        assert verify(loaded.denoiser, loaded.inputs, sizes, 9)["batch_invariant"]
    assert loaded.device.done["captures"] == 1
    assert not loaded.device.done["contexts, kernels lazy"]


def test_without_it_they_have_not_on_such_a_gpu(tactical):
    sizes = tactical.manifest.model.default_sizes
    assert not verify(tactical.denoiser, tactical.inputs, sizes, 16)["batch_invariant"]


def test_fixed_rows_that_no_profile_holds_are_named(builds):
    for rows in (1, 99):
        with pytest.raises(ValueError, match=rf"rows: {rows} given; legal: 2 or more, in one of profiles own-size-2, "):
            Loaded(builds["sdxl"], fixed_rows=rows)


@pytest.mark.parametrize(
    ("family", "stage", "most"),
    [("sdxl", "text_encoder_2", 3), ("sdxl", "vae_encoder", 1), ("stable_cascade", "vqgan", 1)],
)
def test_stages_give_what_onnx_runtime_gives(builds, family, stage, most):
    manifest, device = builds[family], SimulatedDevice()
    engine = device.load(engine_path(manifest, stage, MACHINE), resident(manifest, stage))
    ours, theirs = TensorRTStage(device, engine, profiles(manifest, stage)), OrtStage(manifest.stage_path(stage))
    random = np.random.default_rng(1)
    for sizes, batch in ((manifest.model.default_sizes, 1), (manifest.model.sizes(64, 128), most)):
        inputs = {
            name: (random.random([{**sizes, "batch": batch}.get(dim, dim) for dim in spec["shape"]]) * 2).astype(
                spec["dtype"]
            )
            for name, spec in manifest.stages[stage]["inputs"].items()
        }
        wanted, got = theirs(inputs), ours(inputs)
        assert wanted.keys() == got.keys()
        for name in wanted:
            np.testing.assert_array_equal(got[name], wanted[name])
            assert got[name].dtype == wanted[name].dtype


def test_another_size_takes_memory_for_its_run_only_and_fails_alone_without(builds):
    manifest, device = builds["sdxl"], SimulatedDevice()
    made = profiles(manifest, "vae_decoder")
    decode = TensorRTStage(
        device, device.load(engine_path(manifest, "vae_decoder", MACHINE), resident(manifest, "vae_decoder")), made
    )
    own, other = (np.zeros((1, 4, side, side), np.float32) for side in (16, 8))
    pieces = device.pieces
    decode({"latent_sample": other})
    assert device.pieces == pieces
    device.capacity -= device.free_bytes - ACTIVATIONS // 2
    with pytest.raises(OutOfMemory, match="activations at this size"):
        decode({"latent_sample": other})
    assert decode({"latent_sample": own})["sample"].shape == (1, 128, 128, 3)


def test_what_cannot_be_captured_runs_without_graphs(builds, loaded):
    plain = Loaded(builds["sdxl"], device=SimulatedDevice(captures=False))
    np.testing.assert_array_equal(plain.predict(3), loaded.predict(3))
    assert not plain.device.done["captures"]


def test_models_that_load_beside_each_other_share_one_device_in_turns(builds, monkeypatch):
    manifest, made = builds["stable_cascade"], []

    @functools.cache
    def device(_target):
        made.append(SimulatedDevice())
        time.sleep(0)  # lets the other thread run
        return made[-1]

    monkeypatch.setattr(runtimes, "machine", lambda _target: MACHINE)
    for _ in range(20):
        monkeypatch.setattr(runtimes, "device", device)
        ready = threading.Barrier(2)

        def load(name, ready=ready):
            ready.wait()
            return runtimes.denoiser(manifest, name, most_rows=4)

        with ThreadPoolExecutor(2) as pool:
            denoisers = list(pool.map(load, ("prior", "decoder")))
        assert len(denoisers) == len({id(one._device) for one in denoisers}) + 1
        device.cache_clear()
    assert len(made) == 20


# The simulation itself: what it must not let pass.


def test_the_simulation_finds_use_after_free():
    device = SimulatedDevice()
    memory, other = device.allocate(8, "x"), device.allocate(8, "y")
    device.free(memory)
    with pytest.raises(AssertionError, match="not allocated"):
        device.copy(memory, other)
    with pytest.raises(AssertionError, match="freed twice"):
        device.free(memory)


def test_the_simulation_finds_allocation_while_a_graph_is_captured():
    device = SimulatedDevice()
    with pytest.raises(AssertionError, match="allocate while a graph"):
        device.capture(lambda: device.allocate(8, "x"))


def test_the_simulation_reads_page_locked_arrays_late():
    device = SimulatedDevice()
    memory, array = device.allocate(4, "x"), device.page_locked(4)
    array[:] = 1
    device.upload(array, memory)
    array[:] = 2
    device.synchronize()
    np.testing.assert_array_equal(device.view(memory), 2)
