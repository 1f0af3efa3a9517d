"""What is served is what diffusers makes: random tiny Stable Cascades through export, Triton and the loop."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from triptych_server import Server
from triptych_serving.manifest import Manifest

from .. import plain
from .. import tiny_cascade as tiny_cascades
from ..tiny_builds import CASCADES

PROMPTS = ["a 3d render of a red apple", "fox " * 90]
# Guidance of the prior and of the decoder; above 1 it is on.
BOTH, PRIOR, DECODER, NONE = (4.0, 2.5), (4.0, 0.0), (1.0, 3.0), (0.0, 1.0)
SETTINGS = [
    {"seed": 1, "steps": (5, 4), "guidance": PRIOR},
    {"seed": 2**40, "steps": (4, 3), "guidance": BOTH, "negative_prompt": "blurred red things"},
    {"seed": 3, "steps": (3, 5), "guidance": DECODER, "negative_prompt": ""},
    {"seed": 0, "steps": (4, 4), "guidance": NONE},
    {"seed": 5, "steps": (1, 1), "guidance": BOTH},
    {"seed": 6, "steps": (7, 2), "guidance": PRIOR, "negative_prompt": "grey"},
    {"seed": 7, "steps": (2, 6), "guidance": DECODER, "negative_prompt": "fox"},
]


@pytest.fixture(params=CASCADES)
def model(request, tiny_cascade):
    """A served tiny model and diffusers' pipelines of the same weights."""
    weights, build = tiny_cascade(request.param)
    with Server(build, http_port=0, grpc_port=0, metrics_port=0) as server:
        yield Model(server.addresses.grpc, weights, Manifest.load(build).model, request.param)


class Model:
    def __init__(self, url, weights, card, seed):
        self.url, self.card, self.seed = url, card, seed
        self.prior, self.decoder = tiny_cascades.load(weights)
        self.combined = None if card.own_text_encoder else tiny_cascades.combined(weights)

    def asked(self, number, settings):
        """A request's settings: its prompt, and a size that is another for each, most of them not square."""
        sides = [side for side in self.card.legal_sizes if side <= 2 * self.card.min_size] or [self.card.min_size]
        return {
            "prompt": PROMPTS[number % 2],
            "seed": settings["seed"],
            "height": sides[number % len(sides)] if number else self.card.default_height,
            "width": sides[number // 2 % len(sides)] if number else self.card.default_width,
            **dict(zip(("prior_num_inference_steps", "num_inference_steps"), settings["steps"], strict=True)),
            **dict(zip(("prior_guidance_scale", "decoder_guidance_scale"), settings["guidance"], strict=True)),
            **{name: value for name, value in settings.items() if name == "negative_prompt"},
        }

    def separately(self, given):
        """diffusers' two pipelines, one generator through both."""
        generator = torch.Generator("cpu").manual_seed(given["seed"])
        both = {"prompt": given["prompt"], "negative_prompt": given.get("negative_prompt"), "generator": generator}
        embeddings = self.prior(
            **both,
            height=given["height"],
            width=given["width"],
            num_inference_steps=given["prior_num_inference_steps"],
            guidance_scale=given["prior_guidance_scale"],
        ).image_embeddings
        return self.decoder(
            embeddings,
            **both,
            num_inference_steps=given["num_inference_steps"],
            guidance_scale=given["decoder_guidance_scale"],
        ).images[0]

    def together(self, given):
        """diffusers' combined pipeline, which takes Stage B's embeddings from the prior's text encoder."""
        known = {name: value for name, value in given.items() if name != "seed"}
        return self.combined(generator=torch.Generator("cpu").manual_seed(given["seed"]), **known).images[0]

    def takes_together(self, given):
        """Not other encoders; and without the prior's guidance it has no negative embeddings for Stage B."""
        return self.combined is not None and (given["prior_guidance_scale"] > 1 or given["decoder_guidance_scale"] <= 1)


def test_the_served_image_is_diffusers(model):
    for number, settings in enumerate(SETTINGS):
        given = model.asked(number, settings)
        answer = plain.grpc(model.url, model="stable_cascade", **given)
        ours = np.asarray(Image.open(io.BytesIO(answer["image"]))).astype(int)
        references = [model.separately(given), *([model.together(given)] if model.takes_together(given) else [])]
        for theirs in references:
            difference = np.abs(ours - np.asarray(theirs).astype(int)).max()
            assert difference <= 1, f"seed {model.seed}, {given}: {difference}/255"
        assert ours.std() > 1
        assert ("cut" in answer["receipt"]) == (given["prompt"] == PROMPTS[1])
