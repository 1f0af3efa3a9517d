"""The loop's models before any request: warm, and known by what they take, without minutes for a large one."""

import numpy as np
import pytest

from triptych_demo import demo_build
from triptych_serving.manifest import Manifest
from triptych_serving.warm_up import MAX_STEP_SECONDS, STEPS, warm_up

from .loop import FakeClock


class Timed:
    """A denoiser that takes so many seconds for a latent pixel of a row."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds, self.shapes, self.kept = clock, seconds, [], set()

    def predict(self, sample, _timestep, conditioning):
        self.shapes.append(sample.shape)
        self.kept |= set(conditioning)
        self.clock.now += self.seconds * sample[:, 0].size
        return np.zeros_like(sample)

    def release(self, conditioning):
        self.kept.remove(conditioning)


@pytest.mark.parametrize(("family", "name"), [("sdxl", "unet"), ("stable_cascade", "prior")])
@pytest.mark.parametrize("slow", [False, True])
def test_a_model_is_run_at_its_own_size_unless_that_would_take_long(family, name, slow):
    manifest, clock = Manifest.load(demo_build(family)), FakeClock()
    specs, card = manifest.stages[name]["inputs"], manifest.model
    sizes = [
        tuple({**sizes, "batch": 2}.get(dim, dim) for dim in specs["sample"]["shape"])
        for sizes in (card.smallest_sizes, card.default_sizes)
    ]
    own_size = 2 * np.prod(sizes[1][2:])
    seconds = MAX_STEP_SECONDS / own_size * (1.01 if slow else 0.99)
    model = Timed(clock, seconds)
    assert warm_up(model, specs, card, clock) == pytest.approx(seconds)
    assert model.shapes == sizes[:1] * STEPS + ([] if slow else sizes[1:] * STEPS)
    assert not model.kept
