"""Stable Cascade's requests in the loop: Stage C, the hand-over, Stage B, what a watcher is told and shown."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych_contract.cards import PreviewCard
from triptych_contract.errors import InvalidRequest
from triptych_serving.denoiser import Made
from triptych_serving.manifest import Manifest
from triptych_serving.noise import TorchGenerator
from triptych_serving.previews import draw, estimate
from triptych_serving.stable_cascade.pipeline import StableCascade
from triptych_serving.walk import Walk

from ..cards import cascade_card
from .loop import DECODER, PRIOR, FakeReply, Loop, phase, table

MODEL = cascade_card()
MAP_16 = PreviewCard(2, [[0.1] * 12] * 16, [0.5] * 12)
MAP = PreviewCard(2, [[0.5] * 12] + [[0.0] * 12] * 3, [0.25] * 12)


def cascade(model):
    """Its family, of a build that has no files."""
    return StableCascade(Manifest(Path(), "stable_cascade", "cpu", model, {}, {}))


def way(stage, steps, *, guided=False, noise=0.0):
    return Walk(table(steps, noise=noise), (stage,) * steps, np.full(steps, guided))


def two_stages(loop, *, prior_steps=3, steps=2, guided=False, **options):
    """A job of Stage C, then Stage B, whose conditioning is what Stage C ended with."""
    stage_c = phase(way(PRIOR, prior_steps, guided=guided, noise=0.1), 2, channels=16)
    stage_b = phase(way(DECODER, steps, noise=0.1), 6, effnet=lambda previous: previous[None])
    job = loop.of([stage_c, stage_b], **options)
    loop.engine.submit(job)
    return job


def test_stage_b_begins_with_what_stage_c_ended_with():
    loop = Loop()
    job = two_stages(loop)
    loop.turn(2)
    assert (job.denoiser, job.steps_done, job.shape) == (PRIOR, 2, (16, 2, 2))
    loop.turn()
    assert (job.denoiser, job.steps_done, job.shape) == (DECODER, 3, (4, 6, 6))
    assert job.conditioning.arrays["effnet"].shape == (1, 16, 2, 2)
    assert np.abs(job.conditioning.arrays["effnet"]).max() > 0
    loop.turn(2)
    assert job.reply.latents.shape == (4, 6, 6)
    assert [len(loop.prior.batches), len(loop.decoder.batches)] == [3, 2]


def test_one_stream_of_noise_runs_through_both_stages():
    loop = Loop()
    job = two_stages(loop, prior_steps=1, steps=1)
    loop.turn()
    generator = TorchGenerator(0)
    for _ in range(2):  # the first latents, and the step's noise
        generator.randn((16, 2, 2))
    np.testing.assert_array_equal(job.latents[0], generator.randn((4, 6, 6)) * np.float32(2))


def test_each_stage_batches_with_its_own_kind_across_requests():
    loop = Loop()
    ahead = two_stages(loop, prior_steps=1, steps=3)
    loop.turn()
    for _ in range(2):
        two_stages(loop, prior_steps=2, steps=3)
    loop.finish()
    assert ahead.reply.latents is not None
    assert loop.prior.batches == [[1], [1, 1], [1, 1]]
    assert [1, 1] in loop.decoder.batches


def test_a_request_has_the_same_latents_in_company_of_other_families():
    alone, together = Loop(), Loop()
    lonely = two_stages(alone, guided=True)
    alone.finish()
    accompanied = two_stages(together, guided=True)
    for seed in range(3):
        two_stages(together, prior_steps=seed + 1, steps=4)
        together.submit(steps=3, side=6, seed=seed)
    together.finish()
    np.testing.assert_array_equal(lonely.reply.latents, accompanied.reply.latents)


def test_no_work_is_owed_after_the_last_stage():
    loop = Loop()
    job = two_stages(loop, guided=True)
    assert job.cost == {PRIOR: 3 * 2 * 4, DECODER: 2 * 36}
    loop.finish()
    assert loop.engine.books.estimate == 0


def test_a_job_is_cancelled_in_either_stage():
    for turns in (1, 4):
        loop = Loop()
        job = two_stages(loop)
        loop.turn(turns)
        loop.ask("cancel", job.id, "")
        loop.turn()
        assert "cancelled" in str(job.reply.error)
        assert loop.engine.books.estimate == 0


def watched(loop, job, since=-1, **options):
    reply = FakeReply()
    loop.engine.watch(job.id, "", since, reply, **options)
    loop.turn()
    return reply.report


def test_a_watcher_is_told_the_stage_and_steps_over_all_stages():
    loop = Loop()
    job = two_stages(loop)
    states = [watched(loop, job) for _ in range(5)]
    assert [(state["stage"], state["step"]) for state in states] == [
        (PRIOR, 1),
        (PRIOR, 2),
        (DECODER, 3),
        (DECODER, 4),
        (None, 5),
    ]
    assert {state["num_steps"] for state in states} == {5}


def test_a_preview_comes_where_it_is_asked_for_and_there_is_a_map():
    loop = Loop()
    job = two_stages(loop)
    job._ahead[0].previews.update({DECODER: MAP})
    shown = [watched(loop, job, preview=preview)["preview"] for preview in (True, True, True, False)]
    assert shown == [None] * 4  # Stage C has no map, Stage B has just begun; the last was not asked for
    loop = Loop()
    job = two_stages(loop)
    job.phase.previews.update({PRIOR: MAP_16})
    picture = Image.open(io.BytesIO(base64.b64decode(watched(loop, job, preview=True)["preview"])))
    assert (picture.format, picture.size) == ("PNG", (4, 4))


def test_a_map_draws_patches_row_by_row():
    latents = np.zeros((4, 1, 2), np.float32)
    latents[0, 0, 1] = 1
    card = PreviewCard(2, [[0.5] * 12] + [[0.0] * 12] * 3, [0.25] * 9 + [0, 1, 2])
    pixels = draw(card, latents)
    assert pixels.shape == (2, 4, 3)
    assert pixels[0, 0].tolist() == [64, 64, 64]
    assert pixels[0, 2].tolist() == [191, 191, 191]
    assert pixels[1, 1].tolist() == [0, 255, 255]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_preview_shows_what_the_newest_prediction_means(prediction_type):
    """Signal 0.8, noise 0.6 of unit variance; the model is right."""
    loop, random = Loop(), np.random.default_rng(0)
    clean, noise = random.standard_normal((2, 4, 4, 4)).astype(np.float32)
    job = loop.job()
    job.phase = job.phase.__class__(**{**vars(job.phase), "prediction_type": prediction_type})
    job.table.clean[:], job.table.added[:] = 0.8, 0.6
    predicted = {"epsilon": noise, "v_prediction": np.float32(0.8) * noise - np.float32(0.6) * clean}
    newest = Made(0, 0.8 * clean + 0.6 * noise, predicted[prediction_type])
    np.testing.assert_allclose(estimate(job, newest), clean, atol=1e-5)


def settings(**given):
    return cascade(MODEL).parse({"prompt": b"a fox", **given})


def test_what_is_not_given_is_the_models_own():
    made = settings()
    assert (made.prior_num_inference_steps, made.num_inference_steps) == (20, 10)
    assert (made.prior_guidance_scale, made.decoder_guidance_scale) == (4.0, 0.0)
    assert (made.prior_guided, made.decoder_guided) == (True, False)
    assert (made.height, made.width) == (128, 128)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"height": 127}, "height: 127 given; legal: 4 sizes from 40 to 256, the nearest 40 or 128"),
        ({"width": 257}, "width: 257 given; legal: 4 sizes from 40 to 256, the nearest 256"),
        ({"width": 0}, "the nearest 40"),
        ({"num_inference_steps": 51}, "num_inference_steps: 51 given; legal: 1 … 50"),
        ({"prior_num_inference_steps": 0}, "prior_num_inference_steps: 0 given; legal: 1 … 100"),
        ({"prior_guidance_scale": float("nan")}, "prior_guidance_scale: nan"),
        ({"decoder_guidance_scale": -1.0}, "decoder_guidance_scale: -1 given; legal: 0 … 50"),
        ({"guidance_scale": 4.0}, "guidance_scale: an unknown input given; legal: prompt"),
        ({"sampler": b"euler"}, "sampler: an unknown input given"),
        ({"output_format": b"gif"}, "output_format: 'gif' given; legal: png, jpeg, webp"),
    ],
)
def test_what_is_wrong_is_refused_by_name(given, words):
    with pytest.raises(InvalidRequest) as refused:
        settings(**given)
    assert words in str(refused.value)


def test_legal_sizes_are_those_that_diffusers_rounding_leaves_alone():
    for size in MODEL.legal_sizes:
        latents = MODEL.latent_size(MODEL.prior_size(size))
        assert latents * 4 == size
        assert latents % 2 == 0
    assert MODEL.legal_sizes == [40, 128, 168, 256]


def test_settings_survive_the_way_to_the_loop():
    made = settings(seed=3, negative_prompt=b"", width=256, tenant=b"t", deadline_ms=5)
    assert cascade(MODEL).parse(json.loads(json.dumps(made.to_json()))) == made


def test_stage_c_keeps_nothing_of_a_request_that_went_on_to_stage_b():
    loop = Loop()
    job = two_stages(loop, prior_steps=2, steps=2)
    first = job.conditionings
    loop.turn()
    assert not loop.prior.released
    loop.turn()
    assert loop.prior.released == [*first[PRIOR].values()]
    assert not loop.decoder.released
    loop.finish()
    assert loop.decoder.released == [*job.conditionings[DECODER].values()]
