"""The loop, turn by turn: who shares a batch, who waits, how everything ends exactly once."""

import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from triptych_contract.errors import InvalidRequest
from triptych_serving.denoiser import only
from triptych_serving.engine import PUBLISH_SECONDS
from triptych_serving.errors import Cancelled, Overloaded, StageFailed, Stopping
from triptych_serving.metrics import Metrics
from triptych_serving.paces import TRUSTED_AFTER, UNCAPPED_EVERY
from triptych_serving.sdxl.walk import BASE

from .loop import STEP_SECONDS, FakeReply, Loop, table


def alone(**options):
    loop = Loop()
    job = loop.submit(**options)
    loop.finish()
    return job.reply.latents


def test_requests_of_different_steps_share_batches_and_equal_themselves_alone():
    loop = Loop(max_batch_rows=16)
    wanted = [
        {"steps": steps, "seed": seed, "guidance": g} for seed, (steps, g) in enumerate([(4, 5), (9, 1), (50, 7.5)])
    ]
    jobs = [loop.submit(**options) for options in wanted]
    loop.finish()
    assert loop.metrics.values["batches_total"] == 50
    for job, options in zip(jobs, wanted, strict=True):
        assert job.reply.answers == 1
        assert np.array_equal(job.reply.latents, alone(**options))


def test_a_model_that_takes_one_timestep_gets_rows_of_one_and_shares_what_it_can():
    loop = Loop(max_batch_rows=16)
    wanted = [{"steps": steps, "seed": seed} for seed, steps in enumerate([4, 9, 4])]
    jobs = [loop.submit(**options, alike={BASE}) for options in wanted]
    loop.finish()
    assert all(len(set(timesteps)) == 1 for timesteps in loop.denoiser.timesteps)
    # The two of four steps go together but for their first row, which all three share.
    assert loop.metrics.values["batches_total"] == 1 + 3 + 8
    for job, options in zip(jobs, wanted, strict=True):
        assert np.array_equal(job.reply.latents, alone(**options))


def test_prompts_of_other_lengths_run_in_batches_of_their_own():
    loop = Loop(max_batch_rows=16)
    jobs = [loop.submit(seed=seed, tokens=tokens) for seed, tokens in enumerate([77, 154, 77, 231, 154])]
    loop.finish()
    assert loop.metrics.values["batches_total"] == 3 * 4
    for seed, job in enumerate(jobs):
        assert np.array_equal(job.reply.latents, alone(seed=seed))


def test_a_step_is_made_within_what_watches_it_and_knows_how_long_such_steps_take():
    loop, usual = Loop(), []

    @contextmanager
    def working(seconds):
        usual.append(seconds)
        yield
        usual.append(loop.clock.now)

    loop.engine._working = working
    loop.submit(steps=2)
    loop.finish()
    pace = loop.policy.seconds_per_cost[BASE]
    assert [usual[1], usual[3]] == pytest.approx([100 + STEP_SECONDS, 100 + 2 * STEP_SECONDS])
    assert usual[0] == pytest.approx(1e-4 * 2 * 16)
    assert usual[0] < usual[2] < pace * 2 * 16


def test_several_timesteps_for_a_model_that_takes_one_are_an_error():
    assert only(np.float32([3, 3])) == 3
    with pytest.raises(ValueError, match=r"timesteps \[3.0, 4.0\] given; legal: one for all rows"):
        only(np.float32([3, 4]))


def test_longer_histories_and_noise_do_not_disturb_neighbours():
    tables = [table(6), table(9, history=2), table(7, noise=0.5)]
    loop = Loop()
    jobs = [loop.submit(job_table=t, seed=k) for k, t in enumerate(tables)]
    loop.finish()
    for k, job in enumerate(jobs):
        assert np.array_equal(job.reply.latents, alone(job_table=tables[k], seed=k))


def test_a_row_is_the_sum_that_its_table_says():
    loop = Loop()
    job = loop.submit(job_table=table(3, history=2, noise=0.5), guidance=1.0, seed=3)
    rows = job.table
    generator_start = job.latents[0].copy()
    x, outs = [generator_start], []
    noise = loop.job(job_table=rows, guidance=1.0, seed=3)
    for k in range(3):
        outs.insert(0, x[0] * rows.input_scale[k] * np.float32(0.5) + rows.timestep[k] * np.float32(1e-3))
        new = sum(a * old for a, old in zip(rows.latents[k], x, strict=False))
        new = (
            new + sum(b * out for b, out in zip(rows.noise_preds[k], outs, strict=False)) + rows.noise[k] * noise.draw()
        )
        x.insert(0, new)
    loop.finish()
    np.testing.assert_allclose(job.reply.latents, x[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("seconds", "rows"),
    [
        ({2: 1.0, 4: 2.0, 8: 4.0, 16: 8.0}, 2),  # in proportion: a larger batch only makes all wait for each other
        ({2: 1.0, 4: 1.9, 8: 3.5, 16: 6.9}, 8),  # sixteen are 1% quicker than eight
        ({2: 1.0, 4: 1.2, 8: 1.6, 16: 2.4}, 10),  # all that is there
        ({2: 1.0, 4: 2.0, 8: 4.0}, 10),  # nobody knows of sixteen yet
    ],
)
def test_batches_grow_while_that_pays(seconds, rows):
    loop = Loop(max_batch_rows=16)
    know(loop, seconds)
    assert rows_of(loop, under_way=5) == rows
    assert rows_of(loop, under_way=10) == 16, "more wait than fill a batch"


def test_one_slow_step_does_not_make_batches_smaller():
    loop = Loop(max_batch_rows=16)
    know(loop, {2: 1.0, 16: 4.0})
    loop.policy.learn(BASE, 16, 16 * 16, 60.0)
    assert rows_of(loop, under_way=5) == 10


def test_a_sizes_first_steps_do_not_count_against_it():
    loop = Loop(max_batch_rows=16)
    know(loop, {2: 1.0})
    loop.policy.learn(BASE, 16, 16 * 16, 60.0)
    assert rows_of(loop, under_way=5) == 10
    for _ in range(TRUSTED_AFTER):
        loop.policy.learn(BASE, 16, 16 * 16, 4.0)
    assert rows_of(loop, under_way=5) == 10


def test_a_size_that_was_slow_for_a_while_is_looked_at_again():
    loop = Loop(max_batch_rows=16)
    know(loop, {2: 1.0, 16: 60.0})
    rows = [rows_of(loop, under_way=8) for _ in range(UNCAPPED_EVERY)]
    assert rows == [2] * (UNCAPPED_EVERY - 1) + [16]


def test_who_has_just_come_begins_at_once_where_there_is_room():
    loop = Loop(max_batch_rows=16)
    know(loop, {2: 1.0, 16: 8.0})
    assert rows_of(loop, under_way=5, new=2) == 2 + 4
    assert rows_of(loop, under_way=8, new=2) == 16


def know(loop, seconds):
    """Batches of so many rows are known to take so many seconds."""
    for size, step in seconds.items():
        for _ in range(TRUSTED_AFTER):
            loop.policy.learn(BASE, size, size * 16, step)


def rows_of(loop, under_way, new=0):
    """Rows of the batch that the policy would make of so many guided requests, the new ones with more to do than the others."""
    jobs = [loop.job(steps=4) for _ in range(under_way)]
    for job in jobs:
        job.steps_done = 1
    return sum(job.rows for job in loop.policy.pick([*jobs, *(loop.job(steps=50) for _ in range(new))], loop.clock()))


def test_a_short_request_overtakes_a_long_one_that_runs():
    loop = Loop()
    long, order = loop.submit(steps=50), []
    loop.turn(10)
    short = loop.submit(steps=4)
    while loop.engine.books.jobs:
        loop.turn()
        order += [job for job in (long, short) if job.reply.answers and job not in order]
    assert order == [short, long]


def test_only_one_latent_shape_a_batch_and_never_more_rows_than_allowed():
    loop = Loop(max_batch_rows=6)
    for k in range(9):
        loop.submit(steps=5, side=4 + 2 * (k % 2), guidance=5 if k % 3 else 1)
    loop.finish()
    assert all(sum(rows) <= 6 for rows in loop.denoiser.batches)
    assert loop.metrics.values["completed_total"] == 9


def test_tenants_take_turns():
    loop = Loop(max_batch_rows=4)
    many = [loop.submit(steps=10, tenant=b"many") for _ in range(20)]
    loop.turn(5)
    one = loop.submit(steps=10, tenant=b"one")
    loop.turn(11)
    assert one.reply.answers == 1
    assert sum(job.reply.answers for job in many) < 10


def test_tenants_take_turns_while_those_who_wait_watch_their_place():
    loop = Loop(max_batch_rows=4)
    jobs = [loop.submit(steps=10, tenant=tenant) for tenant in (b"a", b"b", b"c", b"c", b"d", b"d")]
    for _ in range(6):
        for job in jobs:
            loop.ask("watch", job.id, job.settings.tenant, -1)
        loop.turn()
    steps = {tenant: sum(job.step for job in jobs if job.settings.tenant == tenant) for tenant in "abcd"}
    assert max(steps.values()) - min(steps.values()) <= 1


def test_a_long_request_is_not_starved_by_a_stream_of_short_ones():
    loop = Loop(max_batch_rows=2)
    loop.policy.seconds_per_cost["unet"] = STEP_SECONDS / 32
    long = loop.submit(steps=20)
    for _ in range(300):
        loop.submit(steps=2)
        loop.turn()
        if long.reply.answers:
            break
    assert long.reply.answers == 1


def test_a_step_in_which_all_stood_still_makes_no_queue_look_full():
    loop = Loop()
    loop.policy.seconds_per_cost["unet"] = STEP_SECONDS / 32
    loop.policy.learn("unet", 2, 32, 10.0)
    assert loop.policy.seconds({"unet": 32}) < 1.5 * STEP_SECONDS
    for _ in range(30):  # what is slower from now on is learnt all the same
        loop.policy.learn("unet", 2, 32, 10 * STEP_SECONDS)
    assert loop.policy.seconds({"unet": 32}) > 9 * STEP_SECONDS


def test_a_full_queue_refuses_with_an_estimate_and_then_serves_again():
    loop = Loop(max_queue_seconds=1.0)
    loop.policy.seconds_per_cost["unet"] = STEP_SECONDS / 32
    first, second = loop.submit(steps=8), loop.submit(steps=8)
    with pytest.raises(Overloaded, match=r"queue: about 2 s of work waits, limit 1 s; try again in about 1 s") as full:
        loop.submit(steps=8)
    assert full.value.facts == {"retry_after_s": 1}
    loop.finish()
    assert first.reply.answers == second.reply.answers == 1
    assert loop.metrics.values["rejected_total"] == 1
    assert loop.metrics.values["estimate_seconds"] == 0
    loop.submit(steps=1)


def test_cancel_frees_the_slot_within_one_step():
    loop = Loop()
    job, other = loop.submit(steps=50), loop.submit(steps=50)
    loop.turn(3)
    reply = loop.ask("cancel", job.id, "")
    loop.turn()
    assert isinstance(job.reply.error, Cancelled)
    assert reply.report == {"id": job.id, "cancelled": True}
    assert list(loop.engine.books.jobs) == [other.id]
    assert job.step == 3


def test_cancelling_what_has_ended_changes_nothing():
    loop = Loop()
    job = loop.submit(steps=2)
    loop.finish()
    reply = loop.ask("cancel", job.id, "")
    loop.turn()
    assert reply.report == {"id": job.id, "cancelled": False}
    assert job.reply.answers == 1


def test_a_cancel_that_arrives_before_its_request_waits_for_it():
    loop = Loop()
    job = loop.job(steps=5)
    reply = loop.ask("cancel", job.id, "")
    loop.turn()
    assert reply.answers == 0
    loop.engine.submit(job)
    loop.turn(2)
    assert reply.report["cancelled"] is True
    assert isinstance(job.reply.error, Cancelled)


def test_a_cancel_holds_however_long_its_request_takes_to_arrive():
    loop = Loop()
    job, others = loop.job(steps=5), loop.job(steps=5, tenant=b"another")
    reply = loop.ask("cancel", job.id, "")
    loop.turn()
    loop.clock.now += 60
    loop.turn()
    assert isinstance(reply.error, InvalidRequest)
    others.id = job.id
    loop.engine.submit(others)
    loop.turn(6)
    assert others.reply.latents is not None
    loop.engine.submit(job)
    loop.turn()
    assert isinstance(job.reply.error, Cancelled)


def test_what_is_cut_off_ends_at_its_step_and_what_comes_then_at_once():
    loop = Loop()
    running = loop.submit(steps=50)
    loop.turn(3)
    loop.engine.cut_off()
    loop.turn()
    late = loop.submit(steps=5)
    loop.turn()
    assert str(running.reply.error) == "stopped: at step 3 of 50 the server's time to finish was over"
    assert isinstance(late.reply.error, Stopping)
    assert not loop.engine.books.jobs


@pytest.mark.parametrize("verb", ["cancel", "watch"])
def test_nobody_reaches_another_tenants_job(verb):
    loop = Loop()
    job = loop.submit(steps=60, tenant=b"mine")
    loop.turn()
    arguments = (job.id, "yours") if verb == "cancel" else (job.id, "yours", -1)
    reply = loop.ask(verb, *arguments)
    loop.turn(30)
    assert isinstance(reply.error, InvalidRequest)
    assert job.reply.answers == 0


def test_a_deadline_ends_a_request_running_or_queued():
    loop = Loop(max_batch_rows=2)
    loop.policy.seconds_per_cost["unet"] = STEP_SECONDS / 32
    running = loop.submit(steps=50, deadline_ms=950)
    queued = loop.submit(steps=60, deadline_ms=450)
    loop.turn(12)
    assert str(running.reply.error) == "deadline_ms: 950 ms passed at step 10"
    assert str(queued.reply.error) == "deadline_ms: 450 ms passed at step 0"
    assert queued.reply.error.facts == {"deadline_ms": 450}
    assert loop.metrics.values["expired_total"] == 2


def test_a_failing_model_ends_its_batch_by_name_and_the_loop_goes_on():
    loop = Loop()
    job = loop.submit(steps=5)
    loop.turn(2)
    loop.denoiser.error = MemoryError("no room")
    loop.turn()
    assert str(job.reply.error) == "denoise: the model failed at step 3 (no room)"
    loop.denoiser.error = None
    after = loop.submit(steps=5)
    loop.finish()
    assert after.reply.latents is not None


def test_nan_ends_its_own_request_only():
    loop = Loop()
    bad, good = loop.submit(steps=5, seed=1), loop.submit(steps=5, seed=2)
    loop.denoiser.spoil = bad.conditioning
    loop.finish()
    assert isinstance(bad.reply.error, StageFailed)
    assert np.array_equal(good.reply.latents, alone(steps=5, seed=2))


def test_an_id_belongs_to_one_living_request():
    loop = Loop()
    job = loop.submit(steps=5)
    twin = loop.submit(steps=5, id=job.id)
    loop.finish()
    assert job.reply.latents is not None
    assert isinstance(twin.reply.error, InvalidRequest)
    assert loop.metrics.values["estimate_seconds"] == 0


def test_a_gone_client_frees_its_slot():
    loop = Loop()
    job = loop.submit(steps=50)
    loop.turn(2)
    job.reply.gone = True
    loop.turn()
    assert not loop.engine.books.jobs
    assert job.reply.answers == 1


def test_metrics_are_published_now_and_then_and_after_the_last_job():
    told = []
    loop = Loop()
    loop.engine.metrics = Metrics(lambda name, value: told.append((name, value)))
    loop.submit(steps=20)
    loop.turn()
    assert told == []
    loop.finish()
    assert loop.engine.metrics.unpublished
    loop.clock.now += PUBLISH_SECONDS
    loop.turn()
    assert not loop.engine.metrics.unpublished
    assert sum(value for name, value in told if name == "batches_total") == 20
    assert sum(name == "batches_total" for name, _ in told) <= 2 + 20 * STEP_SECONDS / PUBLISH_SECONDS
    assert [value for name, value in told if name == "running"][-1] == 0


def test_watching_tells_position_steps_and_the_end():
    loop = Loop(max_batch_rows=2)
    first, second = loop.submit(steps=3), loop.submit(steps=4)
    seen, since = [], -1
    for _ in range(30):
        reply = loop.ask("watch", second.id, "", since)
        while not reply.answers:
            loop.turn()
        since = reply.report["seq"]
        seen.append((reply.report["status"], reply.report["position"], reply.report["step"]))
        if reply.report["status"] == "completed":
            break
    assert seen == [
        ("queued", 0, 0),
        ("running", None, 1),
        ("running", None, 2),
        ("running", None, 3),
        ("completed", None, 4),
    ]
    assert first.reply.answers == 1


def test_a_watch_may_come_before_its_request_and_after_its_end():
    loop = Loop()
    job = loop.job(steps=2)
    early = loop.ask("watch", job.id, "", -1)
    loop.turn()
    assert early.answers == 0
    loop.engine.submit(job)
    loop.finish()
    assert early.report["step"] == 1
    late = loop.ask("watch", job.id, "", early.report["seq"])
    loop.turn()
    assert late.report["status"] == "completed"


def test_an_unchanged_state_is_told_after_a_while():
    loop = Loop(max_batch_rows=2)
    job = loop.submit(steps=2)
    loop.finish()
    told = loop.ask("watch", job.id, "", -1)
    loop.turn()
    waiting = loop.ask("watch", job.id, "", told.report["seq"])
    loop.turn()
    assert waiting.answers == 0
    loop.clock.now += 10
    loop.turn()
    assert waiting.report == told.report


def test_a_job_ends_with_its_watcher_only_where_asked():
    loop = Loop()
    tied, free = loop.submit(steps=99, cancel_on_disconnect=True), loop.submit(steps=99)
    loop.turn()
    for job in (tied, free):
        watcher = loop.ask("watch", job.id, "", 10_000)
        loop.turn()
        watcher.gone = True
    loop.turn()
    loop.clock.now += 6
    loop.turn()
    assert isinstance(tied.reply.error, Cancelled)
    assert free.reply.answers == 0


def test_stopping_answers_everybody():
    loop = Loop()
    loop.engine.start()
    release = threading.Event()
    loop.denoiser.error = None
    predict = loop.denoiser.predict

    def slow(*args):
        release.wait(5)
        return predict(*args)

    loop.denoiser.predict = slow
    job = loop.submit(steps=100)
    watcher = loop.ask("watch", job.id, "", 10_000)
    release.set()
    loop.engine.stop()
    assert job.reply.answers == 1
    assert watcher.answers == 1


def test_stats_after_a_cancel_know_of_it():
    loop = Loop()
    job = loop.submit(steps=50)
    loop.turn(2)
    loop.ask("cancel", job.id, "")
    reply = loop.ask("stats")
    loop.turn()
    assert reply.report["running"] == 0


def test_a_defect_ends_what_is_in_the_loop_and_the_loop_goes_on():
    loop = Loop()
    pick, broken = loop.policy.pick, threading.Event()
    loop.policy.pick = lambda jobs, now: pick(jobs, now) if broken.is_set() or not jobs else 1 / 0
    job = loop.submit(steps=3)
    loop.engine.start()
    wait_for(lambda: job.reply.answers)
    assert str(job.reply.error) == "denoise: the loop failed (division by zero)"
    broken.set()
    after = loop.submit(steps=3)
    wait_for(lambda: after.reply.answers)
    loop.engine.stop()
    assert after.reply.latents is not None


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline


def test_stats_are_the_loops_own_figures():
    loop = Loop()
    loop.submit(steps=3)
    loop.finish()
    reply: FakeReply = loop.ask("stats")
    loop.turn()
    assert reply.report["batches_total"] == 3
    assert reply.report["rows_total"] == 6
    assert reply.report["completed_total"] == 1


def test_base_and_refiner_never_share_a_batch_and_equal_themselves_alone():
    wanted = [{"steps": 8, "seed": seed, "on": {"refiner_from": cut}} for seed, cut in enumerate([2, 5, 8])]
    loop = Loop()
    jobs = [loop.submit(**options) for options in wanted]
    loop.finish()
    rows = [sum(map(sum, denoiser.batches)) for denoiser in (loop.denoiser, loop.refiner)]
    assert rows == [2 * (2 + 5 + 8), 2 * (6 + 3)]
    for job, options in zip(jobs, wanted, strict=True):
        assert np.array_equal(job.reply.latents, alone(**options))


def test_a_request_costs_one_row_once_its_guidance_ended():
    loop = Loop()
    loop.submit(steps=5, on={"guided_until": 3})
    loop.finish()
    assert loop.denoiser.batches == [[2], [2], [2], [1], [1]]
    assert loop.metrics.values["rows_total"] == 8
    assert loop.engine.books.estimate == 0


def test_guidance_rescale_changes_its_own_image_only():
    loop = Loop()
    plain, rescaled = loop.submit(seed=1), loop.submit(seed=1, guidance_rescale=0.7)
    loop.finish()
    assert np.array_equal(plain.reply.latents, alone(seed=1))
    assert np.array_equal(rescaled.reply.latents, alone(seed=1, guidance_rescale=0.7))


def test_conditioning_is_released_when_its_request_ends():
    loop = Loop()
    ended, cancelled, waiting = loop.submit(steps=2), loop.submit(steps=9), loop.submit(steps=40)
    loop.turn(3)
    loop.ask("cancel", cancelled.id, "")
    loop.turn()
    for job in (ended, cancelled):
        assert [loop.denoiser.released.count(one) for one in job.conditionings[job.denoiser].values()] == [1]
    assert not {*waiting.conditionings[waiting.denoiser].values()} & {*loop.denoiser.released}
