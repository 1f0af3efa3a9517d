"""Every table reproduces its diffusers scheduler: the same random latents, outputs and noise through both."""

from __future__ import annotations

import functools
import random

import numpy as np
import pytest
import torch

from triptych_demo import demo_build
from triptych_export import parity, samplers
from triptych_export.errors import ExportError
from triptych_export.tracing import apart, begin, run_scheduler, run_table, tapped
from triptych_serving.manifest import Manifest
from triptych_serving.tables import load_tables

CONFIG = parity.SDXL
EDM = parity.FOLDERS["EDM"][0]
SHAPE = (1, 4, 8, 8)
HIDDEN = ["sa_solver", "unipc"]
DEFAULTS = [(CONFIG, name) for name, schedule in samplers.legal_pairs(CONFIG) if schedule == "default"] + [
    (EDM, name) for name, schedule in samplers.legal_pairs(EDM) if schedule == "default"
]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def both(config, sampler, schedule, steps, first=0, replaced=False):
    """How far a table and its scheduler are apart, and may be, from row `first` on, over random tensors."""
    rows = samplers.table(config, sampler, schedule, steps, middle=first > 0).steps(1, first)
    generator = torch.Generator().manual_seed(steps)
    randoms = [torch.randn(SHAPE, generator=generator) for _ in range(3 * len(rows) + 3)]
    image, image_noise, latents = randoms[:3]
    outputs, noises = randoms[3 : 3 + len(rows)], randoms[3 + len(rows) :]
    mask = torch.linspace(0, 1, 8)  # soft, so that what was replaced counts later on

    def their_blend(latents, k, scheduler):
        if first + k + 1 == len(scheduler.timesteps):
            return latents
        blend = scheduler.add_noise(image, image_noise, scheduler.timesteps[first + k + 1 :][:1])
        return mask * latents + (1 - mask) * blend

    def our_blend(latents, k, rows):
        if k + 1 == len(rows):
            return latents
        blend = rows.clean[k + 1] * image.numpy() + rows.added[k + 1] * image_noise.numpy()
        return mask.numpy() * latents + (1 - mask.numpy()) * blend

    made = samplers.scheduler(config, sampler, schedule)
    with tapped(made, integrals=False) as draws:
        started = samplers.scheduler(config, sampler, schedule)
        started.set_timesteps(steps)
        begin(started, first)
        their_start = started.add_noise(image, image_noise, started.timesteps[first : first + 1]) if first else latents
        our_start = rows.clean[0] * image + rows.added[0] * image_noise if first else latents
        draws.source = iter(noises)
        theirs = run_scheduler(
            made, steps, their_start, lambda _x, _t, k: outputs[k], first, their_blend if replaced else None
        )
        ours = run_table(
            rows,
            our_start.numpy(),
            lambda _x, _t, k: outputs[k].numpy(),
            (noise.numpy() for noise in noises),
            first,
            our_blend if replaced else None,
        )
    return apart(ours, theirs)


def test_a_random_tenth_of_all_pairs_ends_where_diffusers_does():
    seed = random.SystemRandom().randrange(1000)
    print(f"repeat: python -m triptych_export.parity --fraction 0.1 --seed {seed}")  # noqa: T201
    assert parity.main(["--fraction", "0.1", "--seed", str(seed)]) == 0


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", [name for config, name in DEFAULTS if config is CONFIG])
def test_a_table_is_its_scheduler(sampler, prediction_type):
    for steps in (1, 2, 3, 11):
        difference, allowed = both({**CONFIG, "prediction_type": prediction_type}, sampler, "default", steps)
        assert difference <= allowed, steps


@pytest.mark.parametrize(("config", "sampler"), DEFAULTS)
def test_a_run_may_start_in_the_middle(config, sampler):
    order = samplers.scheduler(config, sampler, "default").order
    for steps, first in ((2, 1), (9, 1), (9, 2), (9, 4), (9, 8), (16, 7)):
        difference, allowed = both(config, sampler, "default", steps, first * order)
        assert difference <= allowed, (steps, first)


@pytest.mark.parametrize(("config", "sampler"), [pair for pair in DEFAULTS if pair[1] not in HIDDEN])
def test_latents_may_be_replaced_between_steps(config, sampler):
    for steps, first in ((7, 0), (16, 0), (16, 5)):
        order = samplers.scheduler(config, sampler, "default").order
        difference, allowed = both(config, sampler, "default", steps, first * order, replaced=True)
        assert difference <= allowed, (steps, first)


@pytest.mark.parametrize("sampler", HIDDEN)
def test_a_sampler_that_keeps_latents_to_itself_is_not_for_inpainting(sampler):
    difference, allowed = both(CONFIG, sampler, "default", 16, replaced=True)
    assert difference > 10 * allowed
    with tapped(made := samplers.scheduler(CONFIG, sampler, "default")) as draws, torch.inference_mode():
        assert not samplers.trace(made, draws, 4).inpaint


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_the_folders_own_spacing_is_kept(spacing):
    for sampler in ("euler", "dpmpp_2m", "ddim"):
        difference, allowed = both({**CONFIG, "timestep_spacing": spacing}, sampler, "default", 7)
        assert difference <= allowed
        assert samplers.canonical({**CONFIG, "timestep_spacing": spacing}, sampler, spacing) == "default"


@functools.cache
def made_tables(sampler, schedule):
    return samplers.tables(CONFIG, sampler, schedule)


def test_a_file_holds_all_step_counts_with_their_warm_ups(tmp_path):
    arrays, facts = made_tables("dpmpp_2m", "default")
    assert facts == {"max_steps": 100, "inpaint": True}
    (tmp_path / "table").write_bytes(samplers.packed(arrays))
    assert (tmp_path / "table").read_bytes() == samplers.packed(arrays)
    stored = load_tables(tmp_path / "table")
    for steps, first in ((1, 0), (20, 0), (37, 11), (100, 99)):
        ours = stored.steps(steps, first)
        alone = samplers.table(CONFIG, "dpmpp_2m", "default", steps, middle=True).steps(1, first)
        for name, array in vars(ours).items():
            wanted = np.asarray(getattr(alone, name))
            array = array[:, : wanted.shape[1]] if wanted.ndim == 2 else array
            np.testing.assert_array_equal(array, wanted, err_msg=name)
    assert stored.steps(20, 5).noise_preds[0, 1] == 0 != stored.steps(20).noise_preds[5, 1]


def test_a_scheduler_that_takes_fewer_steps_has_a_shorter_table():
    arrays, facts = made_tables("lcm", "default")
    assert facts == {"max_steps": 50, "inpaint": True}
    assert len(arrays["init_noise_sigma"]) == 50
    with pytest.raises(samplers.StepsRefused, match="lcm × default: LCMScheduler does not take 51 steps"):
        samplers.table(CONFIG, "lcm", "default", 51)


def test_every_pair_is_legal_or_has_a_reason():
    legal, illegal = samplers.legal_pairs(CONFIG), samplers.illegal_pairs(CONFIG)
    assert len(legal) + len(illegal) == len(samplers.SAMPLERS) * len(samplers.SCHEDULES)
    assert illegal["ddim", "karras"] == "DDIMScheduler has no use_karras_sigmas"
    assert illegal["ddim", "zero_snr"] == "coefficients are not finite"
    assert illegal["lcm", "trailing"] == "LCMScheduler ignores timestep_spacing"
    assert illegal["edm_euler", "default"] == "the model was not trained with EDM preconditioning"
    assert {sampler.partition("_")[0] for sampler, _ in samplers.legal_pairs(EDM)} == {"edm"}


def test_schedules_that_mean_the_same_share_a_table():
    assert samplers.canonical(CONFIG, "euler", "scaled_linear") == "default"
    assert samplers.canonical(CONFIG, "euler", "karras") == "karras"
    karras = {**CONFIG, "use_karras_sigmas": True}
    assert samplers.default_sampler(karras) == ("euler", "karras")
    assert samplers.canonical(karras, "euler", "karras") == "default"
    assert samplers.canonical(EDM, "edm_euler", "karras") == "default"


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"_class_name": "LCMScheduler"}, "lcm"),
        ({"_class_name": "TCDScheduler"}, "tcd"),
        ({"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}, "euler_a"),
        ({"_class_name": "DPMSolverMultistepScheduler"}, "dpmpp_2m"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3, "algorithm_type": "dpmsolver++"},
            "dpmpp_3m",
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 2, "algorithm_type": "sde-dpmsolver++"},
            "dpmpp_2m_sde",
        ),
        ({"_class_name": "EDMDPMSolverMultistepScheduler"}, "edm_dpmpp_2m"),
    ],
)
def test_a_folders_scheduler_has_a_name_of_ours_and_keeps_its_options(config, name):
    assert samplers.default_sampler(config) == (name, "default")
    own = samplers.scheduler({**config, "final_sigmas_type": "sigma_min"}, name, "default").config
    assert config.items() - {"_class_name": config["_class_name"]}.items() <= own.items()
    assert own.get("final_sigmas_type", "sigma_min") == "sigma_min"


def test_a_scheduler_that_clips_is_refused_by_name():
    config = {**CONFIG, "_class_name": "DDIMScheduler", "clip_sample": True}
    with pytest.raises(ExportError, match=r"ddim × default, 1 steps: is not linear .*; does it clip"):
        samplers.tables(config, "ddim", "default")


def test_a_pair_that_the_scheduler_does_not_have_is_refused_by_name():
    with pytest.raises(ExportError, match="ddim × karras: DDIMScheduler has no use_karras_sigmas"):
        samplers.scheduler(CONFIG, "ddim", "karras")


def test_a_scheduler_that_no_table_can_hold_is_refused_by_name():
    with pytest.raises(ExportError, match="scheduler: DPMSolverSDEScheduler; supported: DDIMScheduler, "):
        samplers.default_sampler({"_class_name": "DPMSolverSDEScheduler"})


def test_the_shipped_tables_are_those_of_the_shipped_scheduler():
    model = Manifest.load(demo_build()).model
    tables = load_tables(demo_build() / model.samplers["dpmpp_2m"].schedules["karras"].path)
    for steps in (1, 20, 100):
        shipped, made = tables.steps(steps), samplers.table(CONFIG, "dpmpp_2m", "karras", steps).steps(1)
        assert len(shipped) == len(made)
        np.testing.assert_allclose(shipped.timestep, made.timestep, rtol=1e-6)
        np.testing.assert_allclose(shipped.latents[:, : made.latents.shape[1]], made.latents, rtol=1e-4, atol=1e-5)
