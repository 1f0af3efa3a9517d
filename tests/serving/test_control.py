"""Rows that follow pictures: where they run, what is added to them, in which steps."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from triptych_contract.parameters import Picture
from triptych_contract.sdxl.settings import SdxlSettings
from triptych_serving import control
from triptych_serving.control import Control, ControlledDenoiser
from triptych_serving.denoiser import Conditioning, Follow, Kind
from triptych_serving.sdxl import walk as sdxl_walk

from ..cards import REFINER, card
from .test_walk import tables

MODEL = card(refiner=REFINER, controls=("edges", "depth"))
PICTURE = Picture("0" * 64, 128, 128)


class Graph:
    """Notes what it is called with; the UNet's adds up what it is given, a control's is its number times what was read."""

    def __init__(self, number=None):
        self.number, self.rows, self.released = number, [], []

    def predict(self, sample, timestep, conditioning, more=None):
        assert len(sample) == len(timestep) == sum(map(len, conditioning))
        self.rows.append(len(sample))
        if self.number is None:
            return sample if more is None else sample + more["control"][:, :1]
        return self.number * more["embedded"][:, :1, :1, :1]

    def release(self, conditioning):
        self.released.append(conditioning)


class Reader:
    """Reads a picture as its levels, and counts how many it has read."""

    def __init__(self):
        self.read = 0

    def __call__(self, inputs):
        self.read += 1
        return {"embedded": inputs["controlnet_cond"]}


def follow(name, level, scale=1.0):
    return Follow(f"control_{name}", np.full((3, 8, 8), level, np.uint8), scale)


def conditioning(*follows, rows=2):
    return Conditioning({"text_embeds": np.zeros((rows, 3), np.float32)}, follows=follows)


@pytest.fixture
def model():
    numbers = {"control_edges": 1, "control_depth": 10}
    made = ControlledDenoiser(
        Graph(), Graph(), {stage: Control(Reader(), Graph(np.float32(number))) for stage, number in numbers.items()}
    )
    made.called = lambda: [graph.rows for graph in (made.plain, *made.graphs.values())]
    return made


def added(model, *batch):
    rows = sum(map(len, batch))
    sample = np.arange(rows, dtype=np.float32).reshape(-1, 1, 1, 1)
    return (model.predict(sample, np.zeros(rows, np.float32), batch) - sample).reshape(-1).tolist()


def test_each_row_gets_what_its_own_controls_add(model):
    edges, depth = follow("edges", 255), follow("depth", 255, 0.5)
    batch = [
        conditioning(),
        conditioning(edges),
        conditioning(depth, edges, rows=1),
        conditioning(rows=1),
        conditioning(follow("edges", 51, 2.0), rows=1),
    ]
    assert added(model, *batch) == pytest.approx([0, 0, 1, 1, 6, 0, 0.4])
    # Rows without controls go to the plain graph, the others to the one that takes what the controls' own graphs make of theirs.
    assert model.called() == [[3], [4], [4], [1]]


def test_those_who_follow_nothing_call_no_other_graph(model):
    assert added(model, conditioning(), conditioning(rows=1)) == [0, 0, 0]
    assert model.called() == [[3], [], [], []]


def test_a_call_has_no_more_rows_than_memory_is_stated_for(model):
    added(model, *[conditioning(follow("edges", 255)) for _ in range(5)])
    assert model.called() == [[], [4, 4, 2], [4, 4, 2], []]
    assert control.MOST_ROWS == 4


def test_one_control_may_follow_two_pictures(model):
    both = conditioning(follow("edges", 255), follow("edges", 51, 5.0), rows=1)
    assert added(model, both) == [2]


def test_a_picture_is_read_once_and_kept_as_long_as_its_request():
    reader = Reader()
    model = ControlledDenoiser(Graph(), Graph(), {"control_edges": Control(reader, Graph(np.float32(1)))})
    one, other = conditioning(follow("edges", 255)), conditioning(follow("edges", 51))
    for step in (one, one.of_step(Kind(guided=False, follows=(0,))), one):
        added(model, step, other)
    assert reader.read == 2
    del one, step
    gc.collect()
    assert [*model._read_of] == [*other.follows]


def test_all_graphs_forget_a_request(model):
    one = conditioning(follow("edges", 255))
    model.release(one)
    assert all(graph.released == [one] for graph in (model.plain, *model.graphs.values()))


@pytest.mark.parametrize(
    ("controls", "on"),
    [
        ("edges", [[0]] * 10),
        ("edges:1:0-0.5", [[0]] * 5 + [[]] * 5),
        ("edges:1:0.25-1", [[]] * 3 + [[0]] * 7),
        ("edges:1:0-0.35, depth:1:0.3-1", [[0]] * 3 + [[1]] * 7),
        ("edges, depth:1:0-0.2", [[0, 1]] * 2 + [[0]] * 8),
        ("edges:0", [[]] * 10),
    ],
)
def test_a_control_works_in_the_steps_that_are_whole_within_its_share(controls, on):
    assert [[*kind.follows] for kind in walk(controls).kinds] == on


def test_the_refiner_goes_without():
    way = walk("edges", denoising_end=0.8)
    assert [kind.follows for kind in way.kinds] == [(0,)] * way.denoisers.count("unet") + [()] * way.denoisers.count(
        "refiner_unet"
    )
    assert set(way.denoisers) == {"unet", "refiner_unet"}


def test_a_share_is_of_the_steps_that_a_picture_leaves():
    way = walk("edges:1:0-0.5", init_image=PICTURE, strength=0.4)
    assert [kind.follows for kind in way.kinds] == [(0,), (0,), (), ()]


def walk(controls, **given):
    pictures = [PICTURE] * (controls.count(",") + 1)
    asked = {"prompt": "a fox", "num_inference_steps": 10, "control": controls, "control_images": pictures, **given}
    return sdxl_walk.walk(SdxlSettings.parse(asked, MODEL), tables(), MODEL)


def test_a_step_reads_the_rows_and_controls_of_its_kind():
    edges, depth = follow("edges", 1), follow("depth", 2)
    whole = conditioning(edges, depth)
    assert whole.of_step(Kind(guided=True, follows=(1,))).follows == (depth,)
    assert len(whole.of_step(Kind(guided=False))) == 1
    assert whole.of_step(Kind(guided=False)).follows == ()
