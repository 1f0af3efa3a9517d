"""The benchmark's own logic: turns, ratios, searches, peers, reports. What they measure is not tested here."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from triptych.errors import InvalidRequest
from triptych_demo import demo_build
from triptych_export.peers.answering import reply_to, seconds
from triptych_lab.bench.against import Change, changes, load
from triptych_lab.bench.bare import BareSdxl
from triptych_lab.bench.capacity import highest_rate
from triptych_lab.bench.cost import attainable, full_rate
from triptych_lab.bench.errors import BenchError
from triptych_lab.bench.interleave import Samples, interleave
from triptych_lab.bench.load import Answer, Counted, Replay
from triptych_lab.bench.markdown import table
from triptych_lab.bench.memory import Peak, of_children
from triptych_lab.bench.peers.environment import MARK, environment
from triptych_lab.bench.peers.process import OPTIMUM, ProcessPeer
from triptych_lab.bench.peers.weights import check_same
from triptych_lab.bench.plots import draw
from triptych_lab.bench.policies import OneAtATime, SameStep
from triptych_lab.bench.portrait import AtLoad, Portrait, split
from triptych_lab.bench.report import Ratio, Report
from triptych_lab.bench.requests import arrivals_at, lateness, same, varied
from triptych_lab.bench.serving import with_policy
from triptych_lab.bench.target import Setting, Sides, Target, at_least, at_most, within
from triptych_lab.bench.targets import TARGETS, chosen
from triptych_lab.bench.targets.vs_diffusers_batch import best_batch
from triptych_lab.simulator import simulate
from triptych_lab.workload import Arrival, save

from .farms import arrival, farm, flat, planner

# Ratios.


def test_sides_are_measured_in_turns():
    order = []

    def side(name, figures):
        remaining = iter(figures)

        def measure():
            order.append(name)
            return {"x": next(remaining)}

        return measure

    samples = interleave(Sides(side("A", [2.0, 9.0, 4.0]), side("B", [4.0, 3.0, 1.0])), 3)["x"]
    assert order == ["A", "B"] * 3
    assert samples == Samples((2.0, 9.0, 4.0), (4.0, 3.0, 1.0))
    assert samples.ratio == 9.0 / 3.0, "the median of the repeats' ratios"
    assert samples.spread == (0.5, 4.0)


@pytest.mark.parametrize(
    ("bound", "holding", "failing", "text"),
    [
        (at_least(1.5, aim=2), 1.5, 1.499, ">=1.5"),
        (at_most(1.05), 1.05, 1.051, "<=1.05"),
        (within(0.2), 1.2, 1.21, "0.8..1.2"),
        (within(0.2), 0.8, 0.79, "0.8..1.2"),
        (at_most(1.05), 0.0, float("nan"), "<=1.05"),
    ],
)
def test_a_bound_knows_its_side(bound, holding, failing, text):
    assert bound.holds(holding)
    assert not bound.holds(failing)
    assert str(bound) == text


def test_targets_are_found_by_their_name_and_by_their_ratios_in_the_reports_order():
    assert [target for target in TARGETS if target not in chosen([])] == chosen(["growth_depths"])
    assert [target.name for target in chosen(["growth_memory", "overhead", "growth"])] == ["overhead", "growth"]
    with pytest.raises(
        InvalidRequest, match="--only: 'speed' given; legal: overhead, front_overhead, cluster_overhead, "
    ):
        chosen(["speed"])


def test_no_two_targets_share_a_ratio():
    names = [name for target in TARGETS for name in target.bounds]
    assert len(names) == len(set(names))


# The report.


def target(name="speed", first=3.0, second=2.0, **options):
    @contextmanager
    def sides(_setting):
        yield Sides(lambda: {name: first}, lambda: {name: second})

    return Target(name, f"what {name} is", {name: at_least(1.4)}, sides, **options)


def broken():
    @contextmanager
    def sides(_setting):
        raise BenchError("no such thing here")
        yield

    return Target("broken", "nothing", {"broken": at_most(1)}, sides)


def test_a_ratio_is_a_line_that_programs_find(tmp_path):
    report = Report(Setting(output=tmp_path, repeats=2))
    assert list(report.measure(target())) == ["RATIO speed 1.500 >=1.4"]
    assert report.holds
    assert list(report.measure(target("slow", 1.0))) == ["RATIO slow 0.500 >=1.4"]
    assert not report.holds


def test_what_needs_weights_is_skipped_without_and_what_fails_is_told(tmp_path):
    report = Report(Setting((tmp_path,), output=tmp_path, repeats=1))
    assert list(report.measure(target(needs_weights=True))) == []
    assert report.holds
    assert list(report.measure(broken())) == []
    assert not report.holds
    assert set(report.to_json()["seconds"]) == {"broken"}
    for setting in (Setting((tmp_path,), tmp_path), Setting()):
        with_weights = Report(replace(setting, output=tmp_path, repeats=1))
        assert len(list(with_weights.measure(target(needs_weights=True)))) == 1
    text = report.write()[0].read_text()
    assert "a build of your own; --weights" in text
    assert "no such thing here" in text


def test_the_report_holds_everything_that_was_measured(tmp_path):
    report = Report(Setting(output=tmp_path / "new", repeats=2), facts={"processor": "some"})
    list(report.measure(target()))
    markdown, document = report.write()
    (ratio,) = json.loads(document.read_text())["ratios"]
    assert ratio == {
        "name": "speed", "value": 1.5, "target": ">=1.4", "aim": None, "holds": True, "first": [3.0, 3.0], "second": [2.0, 2.0]
    }  # fmt: skip
    assert "| speed | 1.5 | >=1.4 | yes | 1.5 to 1.5 | 3 | 2 |" in markdown.read_text()
    assert "what speed is" in markdown.read_text()


def test_a_ratio_that_misses_its_target_stands_out(tmp_path):
    report = Report(Setting(output=tmp_path, repeats=1))
    report.ratios.append(Ratio("slow", Samples((1.0,), (2.0,)), at_least(1.4)))
    assert "| **no** |" in report.write()[0].read_text()


def test_a_quick_run_is_marked_as_none(tmp_path):
    assert "quick run" in Report(Setting(output=tmp_path, quick=True)).write()[0].read_text()


PORTRAIT = Portrait(
    [AtLoad(0.3, 1.0, 0.4, 0.9), AtLoad(0.9, 3.0, 0.7, 2.0)],
    {"loop": [(0.1, 0.4), (0.9, 0.9)], "same-step": [(0.1, 0.4), (0.9, 1.4)], "one-at-a-time": [(0.1, 0.5)]},
    [(0.25, 2.0), (0.5, 6.0)],
    {4: dict.fromkeys(("encoding", "queue", "steps", "decoding and file"), 0.1)},
)


def test_plots_are_pictures_of_their_own(tmp_path):
    plots = draw(PORTRAIT, tmp_path)
    assert [path.name for path in plots] == ["latency-over-load.png", "rows-per-batch.png", "where-time-goes.png"]
    assert len({path.read_bytes() for path in plots}) == 3
    report = Report(Setting(output=tmp_path), portrait=PORTRAIT)
    assert "![rows per batch](rows-per-batch.png)" in report.write()[0].read_text()


def test_a_table_puts_numbers_to_the_right_and_bars_where_they_do_no_harm():
    text = table(("name", "value"), [("a|b", 0.12345), ("c", 12)])
    assert text == "| name | value |\n| --- | ---: |\n| a\\|b | 0.123 |\n| c | 12 |"


# The search for the highest rate.


@given(st.floats(0.05, 20), st.floats(0.2, 5))
def test_the_highest_rate_is_where_the_promise_breaks(limit, guess):
    """A server that keeps its promise up to a rate, and never above it."""
    rate = highest_rate(lambda rate: 0.9 if rate <= limit else 1.1, guess * limit)
    assert 0.999 * limit / 1.25 <= rate <= 1.001 * limit * 1.25


def test_between_two_rates_it_is_interpolated():
    """All of the time at a rate of 2, and with the rate more, by a power."""
    rate = highest_rate(lambda rate: (rate / 2) ** 1.7, 1.9)
    assert rate == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize(("needed", "words"), [(0.1, "always"), (2.0, "never")])
def test_a_promise_that_never_breaks_or_never_holds_is_no_rate(needed, words):
    with pytest.raises(BenchError, match=f"it {words} holds"):
        highest_rate(lambda _rate: needed, 1.0)


# Other policies in the same loop.


def test_one_at_a_time_ends_each_request_before_the_next():
    over = farm(flat(0.01), policy=OneAtATime)
    report = simulate([arrival(0.001, 10, guidance_scale=5.0) for _ in range(5)], planner(), over)
    assert report["batches"] == {"2": 50}
    assert report["latency_s"]["p99"] == pytest.approx(0.5, rel=0.05)


def test_same_step_batches_begin_together_and_let_nobody_join():
    over = farm(flat(0.01), max_batch_rows=16, policy=SameStep)
    first = [arrival(0.0, 10, guidance_scale=5.0)]
    later = [arrival(0.001, 10, guidance_scale=5.0) for _ in range(3)]
    report = simulate([*first, *later], planner(), over)
    assert report["batches"] == {"2": 10, "6": 10}


def test_same_step_batches_take_only_what_is_alike():
    over = farm(flat(0.01), max_batch_rows=16, policy=SameStep)
    first = [arrival(0.0, 1, guidance_scale=1.0)]
    kinds = [
        {"steps": 10},
        {"steps": 5},
        {"steps": 10, "guidance_scale": 1.0},
        {"steps": 10, "height": 96},
        {"steps": 10},
    ]
    report = simulate([*first, *(arrival(0.001, **kind) for kind in kinds)], planner(), over)
    assert report["batches"] == {"1": 1 + 10, "2": 5 + 10, "4": 10}


def test_same_step_batches_keep_to_the_rows():
    over = farm(flat(0.01), max_batch_rows=4, policy=SameStep)
    report = simulate([arrival(0.0, 3, guidance_scale=5.0) for _ in range(6)], planner(), over)
    assert max(map(int, report["batches"])) == 4


def test_a_repository_with_another_policy_has_it_in_the_loops_model(tmp_path):
    with_policy(SameStep, [demo_build()], tmp_path / "repository")
    text = (tmp_path / "repository/denoise/1/model.py").read_text()
    names = {"Policy": None}
    exec(text[text.index("# Of the benchmark") :], names)
    assert names["Policy"] is SameStep
    assert text.index("from triptych_serving.policy import Policy") < text.index("import SameStep as Policy")


# Peers.

PROGRAM = """
import sys, time
from triptych_export.peers.answering import answer

class Image:
    def save(self, file, format, compress_level):
        assert (format, compress_level) == ("PNG", 1)

def draw(requests):
    print("libraries talk")
    if any(request["prompt"] == "bad" for request in requests):
        raise ValueError("bad prompt")
    return [Image()] * len(requests)

answer(draw, ("numpy",))
"""


@pytest.fixture
def peer(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    peer = ProcessPeer("fake", [sys.executable, str(tmp_path / "program.py")])
    yield peer
    peer.close()


def test_a_peer_answers_with_seconds_and_goes_on_after_an_error(peer):
    assert set(peer.versions) == {"numpy"}
    assert 0 <= peer.draw([{"prompt": "a fox", "seed": 1}] * 3, batch=2) < 10
    with pytest.raises(BenchError, match="fake: ValueError: bad prompt"):
        peer.draw([{"prompt": "bad", "seed": 1}])
    assert peer.draw([{"prompt": "a fox", "seed": 1}]) >= 0


def test_a_peer_that_has_ended_is_an_error(peer):
    peer.close()
    with pytest.raises(BenchError, match="fake: it "):
        peer.draw([{"prompt": "a fox", "seed": 1}])


def test_a_peer_that_does_not_load_says_its_words():
    with pytest.raises(BenchError, match="nobody: it ended without a word"):
        ProcessPeer("nobody", [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(BenchError, match="nobody: hello"):
        ProcessPeer("nobody", [sys.executable, "-c", "print('hello')"])


def test_requests_go_to_a_peer_in_batches():
    calls = []

    class Image:
        def save(self, file, _format, compress_level):  # noqa: ARG002 - Pillow's signature
            file.write(b"x")

    def draw(requests):
        calls.append([request["seed"] for request in requests])
        return [Image() for _ in requests]

    assert seconds(draw, same(5), 2) >= 0
    assert calls == [[0, 1], [2, 3], [4]]
    assert reply_to(draw, {"picture": same(1)[0]}) == {"picture": "eA=="}


def test_the_best_batch_is_the_fastest():
    class Peer:
        name = "fake"

        def draw(self, requests, *, batch=1):
            return {1: 4.0, 2: 3.0, 4: 2.5, 8: 2.6}[batch] * len(requests)

    assert best_batch(Peer(), 16) == 4


def test_an_environment_with_the_same_packages_is_used_again(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").write_text("")
    (tmp_path / MARK).write_bytes(OPTIMUM.read_bytes())
    assert environment(tmp_path, OPTIMUM) == tmp_path / "bin/python"


class Painter:
    """A peer whose picture is as large as it should be, and everywhere a little brighter or darker."""

    name = "painter"

    def __init__(self, picture, brighter):
        self.file = io.BytesIO()
        Image.fromarray(np.clip(picture.astype(int) + brighter, 0, 255).astype(np.uint8)).save(self.file, "PNG")

    def picture(self, _request):
        return self.file.getvalue()


def test_a_peer_with_other_weights_is_none(monkeypatch):
    ours = np.full((8, 8, 3), 100, np.uint8)
    monkeypatch.setattr("triptych_lab.bench.peers.weights.pixels", lambda _url, _request: ours)
    check_same(Painter(ours, -1), "nowhere")
    with pytest.raises(BenchError, match="painter: its picture differs from ours by 2 of 255"):
        check_same(Painter(ours, 2), "nowhere")
    with pytest.raises(BenchError, match="by 255 of 255"):
        check_same(Painter(ours[:4], 0), "nowhere")


# What is asked for, and what is made of the answers.


def test_no_two_of_eight_users_ask_for_the_same():
    asked = {(request["num_inference_steps"], request["guidance_scale"]) for request in varied(8)}
    assert len(asked) == 8
    assert [request["seed"] for request in varied(10)] == list(range(10))


def test_lateness_is_by_each_requests_own_solo_time():
    arrivals = [Arrival(0, {"num_inference_steps": steps}) for steps in (4, 4, 50)]
    latencies, solo = [0.5, 0.7, 4.9], {4: 0.1, 50: 1.0}
    assert [lateness(latencies, arrivals, solo, share) for share in (0.3, 0.6, 0.95)] == pytest.approx([4.9, 5.0, 7.0])


def test_rows_per_batch_are_those_between_two_readings():
    run = Replay([], [Counted(0, 10, 20), Counted(1, 12, 28), Counted(2, 12, 28), Counted(3, 13, 31)])
    assert list(run.rows_per_batch()) == [(1, 4.0), (3, 3.0)]


def test_a_requests_time_is_split_without_rest():
    timings = {"before_ms": 10.0, "queue_ms": 5.0, "denoise_ms": 100.0, "total_ms": 150.0}
    answer = Answer(0, 1, {"num_inference_steps": 4}, timings)
    parts = split(
        [
            answer,
            replace(answer, timings={**timings, "total_ms": 170.0}),
            replace(answer, parameters={"num_inference_steps": 20}),
        ]
    )
    assert parts[4] == pytest.approx({"encoding": 0.01, "queue": 0.005, "steps": 0.1, "decoding and file": 0.045})
    assert sum(parts[20].values()) == pytest.approx(0.15)


def test_the_bare_stages_draw_a_picture_of_the_models_size():
    assert Image.open(io.BytesIO(BareSdxl(demo_build()).draw(1))).size == (128, 128)


def test_memory_is_that_of_processes_below_this_one():
    before = of_children()
    hold = "b = bytearray(b'x' * 50_000_000); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        with Peak() as peak:
            pass
        child.communicate(b"\n")
    assert peak.children - before > 50e6
    assert peak.own > 10e6


def test_nothing_of_the_benchmark_imports_torch():
    modules = sorted(
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
        for package in ("bench", "simulator", "workload")
        for path in (ROOT / "triptych_lab" / package).rglob("*.py")
    )
    assert len(modules) > 40
    code = f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


ROOT = Path(__file__).parents[2] / "lab"


def test_a_workload_takes_the_place_of_chance(tmp_path):
    save(tmp_path / "w.jsonl", [Arrival(0.5, {"prompt": "a fox", "seed": 3})])
    arrivals = arrivals_at(Setting(workload=tmp_path / "w.jsonl"), 0.7)
    assert arrivals(0) == arrivals(1) == [Arrival(0.5, {"prompt": "a fox", "seed": 3})]


def test_a_run_is_held_against_an_earlier_one(tmp_path):
    report = Report(Setting(output=tmp_path, repeats=1))
    list(report.measure(target()))
    then = load(report.write()[1])
    assert then == {"speed": 1.5}
    (same_as, differing) = changes({**then, "slow": 1.0, "gone": 2.0}, {"speed": 1.6, "slow": 1.2, "new": 1.0})
    assert (same_as.line, differing.line) == ("AGAINST speed 1.500 1.600", "AGAINST slow 1.000 1.200 differs")
    assert Change("x", 1.15, 1.0).agrees


def test_an_earlier_run_that_is_none_is_refused(tmp_path):
    (tmp_path / "r.json").write_text('{"ratios": [{}]}')
    with pytest.raises(InvalidRequest, match="--against: "):
        load(tmp_path / "r.json")


def test_what_a_device_can_gain_by_batches_is_in_its_times():
    points = [
        {"denoiser": "unet", "rows": rows, "seconds": seconds} for rows, seconds in ((1, 1.0), (2, 1.5), (8, 3.0))
    ]
    document = {"points": points, "encode_s": 1.0, "decode_s": 1.0}
    assert attainable(document, 10) == pytest.approx((2 + 15) / (2 + 7.5))
    assert full_rate(document, 10) == pytest.approx(1 / (2 + 7.5))


def test_where_a_machine_leaves_no_room_less_is_enough(tmp_path):
    @contextmanager
    def sides(_setting):
        yield Sides(lambda: {"rate": 1.2}, lambda: {"rate": 1.0}, {"rate": 1.1})

    report = Report(Setting(output=tmp_path, repeats=1))
    assert list(report.measure(Target("rate", "rates", {"rate": at_least(1.5)}, sides))) == ["RATIO rate 1.200 >=1.1"]
    assert report.holds
    assert at_least(1.5).eased(9.0) == at_least(1.5)


def test_what_is_no_build_ends_in_a_line(tmp_path):
    answer = subprocess.run(
        [Path(sys.executable).with_name("triptych"), "bench", tmp_path], capture_output=True, text=True
    )
    assert answer.returncode == 1
    assert answer.stderr == f"error: {tmp_path}/manifest.json: missing; is this a folder that `triptych export` made?\n"
