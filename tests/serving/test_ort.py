"""Small denoisers on ONNX Runtime: two halves of a batch beside each other, and the same bytes."""

from __future__ import annotations

import os

import numpy as np
import pytest

from triptych_demo import demo_build
from triptych_serving import ort
from triptych_serving.denoiser import Conditioning
from triptych_serving.invariance import example
from triptych_serving.manifest import Manifest

MODELS = [("sdxl", "unet"), ("stable_cascade", "prior"), ("stable_cascade", "decoder")]
LANES = min(ort.LANES, len(os.sched_getaffinity(0)))


class Watched(ort.OrtDenoiser):
    """Notes the rows of each call, and fails where its sample begins with `harmed`."""

    harmed = None

    def _run(self, inputs):
        self.calls = sorted([*vars(self).get("calls", []), len(inputs["sample"])])
        if self.harmed is not None and np.array_equal(inputs["sample"][0], self.harmed):
            raise RuntimeError("harmed")
        return super()._run(inputs)


def model(family, name, rows):
    manifest = Manifest.load(demo_build(family))
    inputs, sizes = manifest.stages[name]["inputs"], manifest.model.default_sizes
    return manifest.stage_path(name), [example(inputs, sizes, count) for count in rows]


@pytest.mark.parametrize(("family", "name"), MODELS)
def test_halves_are_the_whole(family, name):
    path, examples = model(family, name, (1, 2, 5, 16))
    whole, halves = ort.OrtDenoiser(ort.OrtStage(path)), Watched(path)
    for given in examples:
        np.testing.assert_array_equal(halves.predict(*given), whole.predict(*given))
    assert halves.calls == ([1, 1, 1, 2, 3, 8, 8] if LANES == 2 else [1, 2, 5, 16])


def test_what_is_wrong_in_either_half_is_told_and_the_next_batch_is_right():
    path, (given,) = model("sdxl", "unet", (4,))
    denoiser = Watched(path)
    wanted = denoiser.predict(*given)
    for first_row in range(0, 4, 4 // LANES):
        denoiser.harmed = given[0][first_row]
        with pytest.raises(RuntimeError, match="harmed"):
            denoiser.predict(*given)
        denoiser.harmed = None
        np.testing.assert_array_equal(denoiser.predict(*given), wanted)


def test_a_large_model_keeps_all_threads_for_each_call(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"x" * 10)
    assert ort.lanes(path) == LANES
    monkeypatch.setattr(ort, "SMALL_BYTES", 15)
    (tmp_path / "model.onnx_data").write_bytes(b"x" * 10)
    assert ort.lanes(path) == 1


def test_rows_are_those_of_their_requests_whoever_comes_and_goes():
    path, ((sample, timestep, single),) = model("sdxl", "unet", (8,))
    rows = [[0, 1], [2], [3, 4], [5], [6, 7]]
    members = [
        Conditioning({name: np.concatenate([single[row][name] for row in mine]) for name in single[0].arrays})
        for mine in rows
    ]
    kept, fresh, random = ort.OrtDenoiser(path), ort.OrtDenoiser(path), np.random.default_rng(0)
    for turn in range(20):
        some = random.permutation(len(members))[: random.integers(1, len(members) + 1)]
        given = sample[mine := np.concatenate([rows[k] for k in some])], timestep[mine], [members[k] for k in some]
        np.testing.assert_array_equal(kept.predict(*given), fresh.predict(*given))
        for one in members:
            fresh.release(one)
        if turn % 3 == 2:
            kept.release(members[some[0]])
    for one in members:
        kept.release(one)
    assert not kept._rows._arrays
