"""Preview maps: how much of a picture they show."""

from __future__ import annotations

import numpy as np
import pytest

from triptych_contract.cards import PreviewCard
from triptych_demo import demo_build
from triptych_export import previews, to_onnx
from triptych_serving.manifest import Manifest
from triptych_serving.previews import draw


def explained(wanted, drawn):
    """R²: the share of the variance."""
    return 1 - np.square(wanted - drawn).sum() / np.square(wanted - wanted.mean()).sum()


def means(picture, cells):
    """The mean colour (cells, cells, 3) of a picture (3, side, side) below each latent."""
    cell = picture.shape[1] // cells
    return picture.reshape(3, cells, cell, cells, cell).mean(axis=(2, 4)).transpose(1, 2, 0)


def test_a_preview_shows_the_picture_that_was_encoded():
    model = Manifest.load(demo_build()).model
    encoder = demo_build() / "vae_encoder/model.onnx"
    card = previews.of_sdxl(encoder, model.latent_scale, 128)
    session = to_onnx.open_session(encoder)
    wanted, shown = [], []
    for picture in previews.pictures(128, 6, seed=1):
        moments = session.run(None, {"sample": picture[None] * 2 - 1})[0]
        latents = moments[0, : model.latent_channels] * model.latent_scale.factor
        shown.append(draw(card, latents) / 255)
        wanted.append(means(picture, shown[-1].shape[0]))
    assert explained(np.stack(wanted), np.stack(shown)) > 0.5


def test_a_linear_map_is_found_whatever_the_latents_scale():
    random = np.random.default_rng(0)
    true = PreviewCard(1, (random.standard_normal((4, 3)) / 50).tolist(), [0.4, 0.5, 0.6])

    def encode(pictures):
        colours = means(pictures[0], 8).reshape(-1, 3) - true.bias
        return (colours @ np.linalg.pinv(true.weights)).T.reshape(1, 4, 8, 8)

    card = previews.from_encoder(encode, 64)
    picture = next(previews.pictures(64, 1, seed=9))
    np.testing.assert_allclose(draw(card, encode(picture[None])[0]) / 255, means(picture, 8), atol=0.005)


@pytest.mark.parametrize(("multiple", "default", "side"), [(32, 1024, 128), (32, 96, 96), (4, 128, 128), (64, 32, 64)])
def test_pictures_to_encode_are_small_and_legal(multiple, default, side):
    assert previews.side(multiple, default) == side
