"""Every table reproduces its diffusers scheduler: the same random latents, outputs and noise through both."""

from __future__ import annotations

import contextlib
import itertools
import sys

import numpy as np
import pytest
import torch

from triptych.demo import demo_build
from triptych_export import samplers
from triptych_export.errors import ExportError
from triptych_serving.manifest import Manifest
from triptych_serving.tables import SamplerTable, load_tables, weighted_sum

CONFIG = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
SHAPE = (1, 4, 8, 8)
RELATIVE = 1e-5


def table(config, sampler, schedule, steps):
    solved = samplers.solve(samplers.trace(samplers.scheduler(config, sampler, schedule), steps), "test")
    sigma = float(solved.pop("init_noise_sigma")[0])
    draws = solved.pop("draws").astype(np.uint8)
    return SamplerTable(sigma, draws=draws, **{name: array.astype(np.float32) for name, array in solved.items()})


@contextlib.contextmanager
def drawing(scheduler, noises):
    module = sys.modules[type(scheduler).__module__]
    original = getattr(module, "randn_tensor", None)
    module.randn_tensor = lambda *_, **__: next(noises)
    try:
        yield
    finally:
        module.randn_tensor = original


def theirs(scheduler, steps, outputs, noises, latents):
    scheduler.set_timesteps(steps)
    latents, seen = latents * scheduler.init_noise_sigma, []
    with drawing(scheduler, noises):
        for k, timestep in enumerate(scheduler.timesteps):
            seen.append((float(timestep), scheduler.scale_model_input(latents, timestep).numpy()))
            latents = scheduler.step(outputs[k], timestep, latents, return_dict=False)[0]
    return seen, latents.numpy()


def ours(rows, outputs, noises, latents):
    history, old_outputs, seen = [latents.numpy()[0] * np.float32(rows.init_noise_sigma)], [], []
    for k in range(len(rows)):
        seen.append((float(rows.timestep[k]), history[0][None] * rows.input_scale[k]))
        old_outputs.insert(0, outputs[k].numpy()[0])
        width_x, width_out = rows.latents.shape[1], rows.noise_preds.shape[1]
        new = weighted_sum([rows.latents[k]], [history[:width_x]])
        new += weighted_sum([rows.noise_preds[k]], [old_outputs[:width_out]])
        for _ in range(rows.draws[k]):
            new += rows.noise[k] * next(noises).numpy()
        history.insert(0, new[0])
    return seen, history[0][None]


def difference(config, sampler, schedule, steps):
    rows = table(config, sampler, schedule, steps)
    generator = torch.Generator().manual_seed(steps)
    tensors = [torch.randn(SHAPE, generator=generator) for _ in range(2 * len(rows) + 1)]
    outputs, noises, latents = tensors[: len(rows)], tensors[len(rows) : -1], tensors[-1]
    their_inputs, their_latents = theirs(
        samplers.scheduler(config, sampler, schedule), steps, outputs, iter(noises), latents
    )
    our_inputs, our_latents = ours(rows, outputs, iter(noises), latents)
    assert [t for t, _ in our_inputs] == pytest.approx([t for t, _ in their_inputs], rel=1e-6)
    pairs = [*zip(our_inputs, their_inputs, strict=True)]
    worst = max(np.abs(a[1] - b[1]).max() / np.abs(b[1]).max() for a, b in pairs)
    return max(worst, np.abs(our_latents - their_latents).max() / np.abs(their_latents).max())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("sampler", "schedule"), samplers.legal_pairs(CONFIG))
def test_a_table_is_its_scheduler(sampler, schedule, prediction_type):
    config = {**CONFIG, "prediction_type": prediction_type}
    for steps in (1, 4, 11, 20):
        assert difference(config, sampler, schedule, steps) <= RELATIVE, (sampler, schedule, steps)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_the_folders_own_spacing_is_kept(spacing):
    config = {**CONFIG, "timestep_spacing": spacing}
    for sampler, steps in itertools.product(["euler", "dpmpp_2m", "ddim"], [1, 7]):
        assert difference(config, sampler, "default", steps) <= RELATIVE


def test_a_pair_that_the_scheduler_does_not_have_is_refused_by_name():
    with pytest.raises(ExportError, match="ddim × karras: DDIMScheduler has no use_karras_sigmas"):
        samplers.scheduler(CONFIG, "ddim", "karras")


def test_a_scheduler_that_no_table_can_hold_is_refused_by_name():
    with pytest.raises(ExportError, match="scheduler: DPMSolverSDEScheduler; supported: DDIMScheduler, "):
        samplers.default_sampler({"_class_name": "DPMSolverSDEScheduler"})


def test_the_shipped_tables_are_those_of_the_shipped_scheduler():
    model = Manifest.load(demo_build()).model
    tables = load_tables(demo_build() / model.samplers["dpmpp_2m"]["karras"])
    for steps in (1, 20, 100):
        shipped, made = tables.steps(steps), table({**CONFIG, "steps_offset": 1}, "dpmpp_2m", "karras", steps)
        assert len(shipped) == len(made)
        np.testing.assert_allclose(shipped.timestep, made.timestep, rtol=1e-6)
        np.testing.assert_allclose(shipped.latents[:, : made.latents.shape[1]], made.latents, rtol=1e-4, atol=1e-5)
