"""Where a request's rows begin, where the base hands over, until when guidance is on, what a picture's latents become."""

from __future__ import annotations

import numpy as np
import pytest

from triptych_contract.errors import InvalidRequest
from triptych_contract.parameters import Picture
from triptych_contract.sdxl.card import LatentScale
from triptych_contract.sdxl.settings import SdxlSettings
from triptych_serving.noise import TorchGenerator
from triptych_serving.sdxl import walk as sdxl_walk
from triptych_serving.sdxl.latents import EncodedPicture, initial
from triptych_serving.tables import SamplerTables

from ..cards import REFINER, card

MODEL = card(refiner=REFINER)
PICTURE = Picture("0" * 64, 128, 128)
STEPS = 10
SHAPE = (4, 16, 16)


def tables(rows=STEPS, order=1):
    """One step count, STEPS; timesteps 1000, 900, …; row 4 and on have a warm-up row of their own."""
    count = STEPS + 1
    offsets = np.array([0] * STEPS + [rows], np.int32)
    warm = np.zeros(rows + 1, np.int32)
    warm[5:] = 1
    numbers = np.arange(rows, dtype=np.float32)
    return SamplerTables(
        offsets=offsets,
        order=np.uint8(order),
        init_noise_sigma=np.full(count - 1, 3.0, np.float32),
        timestep=np.linspace(1000, 1000 / rows, rows, dtype=np.float32),
        input_scale=np.ones(rows, np.float32),
        latents=np.stack([numbers, numbers], 1),
        noise_preds=np.stack([numbers, numbers], 1),
        noise=numbers,
        draws=np.zeros(rows, np.uint8),
        clean=1 - numbers / rows,
        added=numbers / rows,
        warm_offsets=warm,
        warm_latents=np.array([[-1, 0]], np.float32),
        warm_noise_preds=np.array([[-2, 0]], np.float32),
        warm_noise=np.array([-3], np.float32),
    )


def walk(model=MODEL, of=None, **given):
    steps = {"num_inference_steps": STEPS}
    settings = SdxlSettings.parse({"prompt": b"a fox", **steps, **given}, model)
    return sdxl_walk.walk(settings, of or tables(), model)


def test_a_request_takes_all_rows_of_the_base():
    made = walk()
    assert len(made.table) == STEPS
    assert set(made.denoisers) == {"unet"}
    assert made.batch_rows == [2] * STEPS
    assert made.remaining[0] == {"unet": 2 * STEPS}
    assert made.remaining[STEPS] == {"unet": 0}


@pytest.mark.parametrize(("strength", "left"), [(0.3, 3), (0.7, 7), (1.0, 10), (0.69, 6)])
def test_strength_leaves_as_many_steps_as_in_diffusers(strength, left):
    made = walk(init_image=PICTURE, strength=strength)
    assert len(made.table) == left
    assert made.table.timestep[-1] == 100


def test_a_run_that_starts_in_the_middle_has_its_own_first_row():
    started = walk(init_image=PICTURE, strength=0.6).table
    assert started.latents[0].tolist() == [-1, 0]
    assert started.noise_preds[0].tolist() == [-2, 0]
    assert started.noise[0] == -3
    assert started.latents[1].tolist() == [5, 5]


def test_the_base_hands_over_where_diffusers_cuts_and_the_refiner_starts_afresh():
    made = walk(denoising_end=0.6)
    assert made.denoisers == ("unet",) * 7 + ("refiner_unet",) * 3
    assert made.table.timestep[6] >= 400 > made.table.timestep[7]
    assert made.remaining[5] == {"unet": 4, "refiner_unet": 6}


def test_a_second_order_step_that_was_cut_is_taken_again():
    made = walk(of=tables(rows=19, order=2), denoising_end=0.45)
    base = made.denoisers.count("unet")
    assert made.denoisers.count("refiner_unet") % 2 == 1
    assert made.table.timestep[base] >= 550  # the row that the base has already taken


def test_a_hand_over_that_leaves_a_model_nothing_is_refused():
    with pytest.raises(InvalidRequest, match=r"denoising_end: 0.95 of 10 steps given; legal: .* leaves the refiner"):
        walk(denoising_end=0.95)
    with pytest.raises(InvalidRequest, match="leaves the base a step"):
        walk(denoising_end=0.2, init_image=PICTURE, strength=0.3)


@pytest.mark.parametrize(("end", "guided"), [(1.0, 10), (0.7, 7), (0.55, 5), (0.0, 0)])
def test_guidance_ends_after_its_share_of_the_calls(end, guided):
    made = walk(guidance_end=end)
    assert made.batch_rows == [2] * guided + [1] * (STEPS - guided)


def test_a_distilled_model_takes_one_row_at_any_guidance():
    assert walk(model=card(guidance_embedding_dim=8), guidance_scale=8.0).batch_rows == [1] * STEPS


def test_a_picture_starts_at_its_row_with_diffusers_order_of_draws():
    moments = np.concatenate([np.full(SHAPE, 2.0), np.zeros(SHAPE)]).astype(np.float32)
    table = tables().steps(STEPS, 4)
    scale = LatentScale(0.5, (1.0,) * 4, (2.0,) * 4)
    begun = initial(table, SHAPE, TorchGenerator(7), EncodedPicture(moments, None), 0.6, scale)
    generator = TorchGenerator(7)
    clean = (2.0 + generator.randn(SHAPE) - 1.0) / 2.0 * 0.5
    np.testing.assert_allclose(begun.latents, 0.6 * clean + 0.4 * generator.randn(SHAPE), rtol=1e-5, atol=1e-6)
    assert begun.blend is None


def test_a_mask_keeps_the_picture_as_noisy_as_each_row_wants_it_and_clean_at_the_end():
    moments = np.zeros((8, 16, 16), np.float32)
    mask = np.zeros((1, 16, 16), np.float32)
    mask[:, :8] = 1
    table, generator = tables().steps(STEPS), TorchGenerator(7)
    scale = LatentScale(1.0, None, None)
    latents, blend, _ = initial(table, SHAPE, generator, EncodedPicture(moments, mask), 1.0, scale)
    assert blend is not None
    np.testing.assert_array_equal(latents, blend.noise * np.float32(3))
    painted = np.full(SHAPE, 9, np.float32)
    midway, last = blend.apply(painted, table, 5), blend.apply(painted, table, STEPS)
    np.testing.assert_allclose(midway[:, 8:], 0.5 * blend.clean[:, 8:] + 0.5 * blend.noise[:, 8:], rtol=1e-6)
    np.testing.assert_array_equal(last[:, 8:], blend.clean[:, 8:])
    assert (midway[:, :8] == 9).all()
    fourth = TorchGenerator(7)
    for _ in range(3):
        fourth.randn(SHAPE)
    np.testing.assert_array_equal(generator.randn(SHAPE), fourth.randn(SHAPE))


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_a_model_that_reads_masks_is_told_what_is_outside_and_keeps_nothing(strength):
    outside = np.concatenate([np.full(SHAPE, 3.0), np.zeros(SHAPE)]).astype(np.float32)
    moments = None if strength == 1.0 else np.zeros((8, 16, 16), np.float32)
    mask, table, generator = np.ones((1, 16, 16), np.float32), tables().steps(STEPS), TorchGenerator(7)
    scale, given = LatentScale(1.0, None, None), EncodedPicture(moments, mask, outside)
    latents, blend, masked_picture = initial(table, SHAPE, TorchGenerator(7), given, strength, scale)
    assert blend is None
    clean = None if moments is None else generator.randn(SHAPE)
    noise = generator.randn(SHAPE)
    first = noise * np.float32(3) if clean is None else table.noised(clean, noise, 0)
    np.testing.assert_array_equal(latents, first)
    np.testing.assert_array_equal(masked_picture, np.concatenate([mask, 3 + generator.randn(SHAPE)])[None])
