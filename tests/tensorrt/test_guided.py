"""Rows with image prompts, and UNets that read masks, on engines of a simulated GPU."""

from __future__ import annotations

import numpy as np

from triptych_serving import runtimes
from triptych_serving.adapters.graphs import AdaptedDenoiser, AdaptedSteps
from triptych_serving.denoiser import Conditioning
from triptych_serving.invariance import example
from triptych_serving.manifest import Manifest
from triptych_serving.ort import OrtDenoiser
from triptych_serving.sdxl.image_prompts import UNET
from triptych_serving.sdxl.latents import MASKED_PICTURE

from ..engines import simulated_build
from ..simulated import MACHINE, SimulatedDevice
from ..tiny_builds import INPAINTING, PROMPTED


def served(build, folder, monkeypatch):
    """The manifest of a build for GPUs, and its base as the loop has it."""
    manifest, device = Manifest.load(simulated_build(build, folder / "build")), SimulatedDevice()
    monkeypatch.setattr(runtimes, "device", lambda _target: device)
    monkeypatch.setattr(runtimes, "machine", lambda _target: MACHINE)
    return manifest, runtimes.denoiser(manifest, "unet", most_rows=16)


def guided_requests(manifest, stage, count):
    """Latents, timesteps and conditioning of requests of two rows for a stage."""
    sample, timestep, rows = example(manifest.stages[stage]["inputs"], manifest.model.default_sizes, 2 * count)
    pairs = [rows[k : k + 2] for k in range(0, 2 * count, 2)]
    joined = [{name: np.concatenate([one.arrays[name] for one in pair]) for name in pair[0].arrays} for pair in pairs]
    return sample, timestep, joined


def test_rows_with_an_image_prompt_run_beside_others_as_on_a_processor(tiny, tmp_path, monkeypatch):
    manifest, ours = served(tiny(PROMPTED)[1], tmp_path, monkeypatch)
    assert isinstance(ours, AdaptedSteps)
    host = AdaptedDenoiser(*(OrtDenoiser(manifest.stage_path(stage)) for stage in ("unet", UNET)))
    sample, timestep, given = guided_requests(manifest, UNET, 4)
    plain = manifest.stages["unet"]["inputs"]
    mixed = [
        Conditioning(one if k % 2 else {name: array for name, array in one.items() if name in plain})
        for k, one in enumerate(given)
    ]
    wanted = host.predict(sample, timestep, mixed)
    np.testing.assert_array_equal(ours.predict(sample, timestep, mixed), wanted)
    without = host.predict(sample, timestep, [Conditioning({n: one[n] for n in plain if n in one}) for one in given])
    heard = np.abs(wanted - without).max((1, 2, 3)) > 0
    assert heard.tolist() == [False, False, True, True] * 2


def test_a_masked_picture_is_uploaded_once_for_all_rows_of_a_request(tiny, tmp_path, monkeypatch):
    manifest, ours = served(tiny(INPAINTING)[1], tmp_path, monkeypatch)
    sample, timestep, given = guided_requests(manifest, "unet", 3)
    shared = [Conditioning({**one, MASKED_PICTURE: one[MASKED_PICTURE][:1]}) for one in given]
    wanted = OrtDenoiser(manifest.stage_path("unet")).predict(sample, timestep, shared)
    np.testing.assert_array_equal(ours.predict(sample, timestep, shared), wanted)
