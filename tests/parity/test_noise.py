"""The noise of a seed is torch's."""

import numpy as np
import pytest
import torch

from triptych_serving.noise import TorchGenerator

SHAPES = [(1, 4, 16, 16), (1, 4, 128, 128), (1, 16, 24, 24), (1, 4, 13, 7), (2, 8)]


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31, 2**32 + 5, 2**53, 2**63 - 1])
def test_draws_equal_torchs_one_after_another(seed):
    ours, theirs = TorchGenerator(seed), torch.Generator("cpu").manual_seed(seed)
    for shape in SHAPES:
        expected = torch.randn(shape, generator=theirs).numpy()
        assert np.abs(ours.randn(shape) - expected).max() <= 1e-6


def test_fewer_values_than_a_block_are_refused():
    with pytest.raises(ValueError, match=r"shape: \(3, 5\) given; legal: at least 16"):
        TorchGenerator(0).randn((3, 5))
