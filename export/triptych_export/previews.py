"""Preview maps: latents to colours by a linear map that costs the loop nothing, fitted by least squares.

Where the folder has an encoder, synthetic pictures are encoded and their colours fitted to the latents. Stage C of Cascade has
none: there a few of its own latents go through Stage B, whose latents its own map draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from triptych_contract.cards import PreviewCard
from triptych_contract.sdxl.card import LatentScale
from triptych_serving.previews import draw

from . import to_onnx
from .stable_cascade import wuerstchen
from .weights import Weights

Floats = NDArray[np.float32]

# Pictures to encode, and pixels along a side: 128 keeps a full-size encoder at seconds.
PICTURES, SIDE = 32, 128
# Stage C's latents to draw, at most so many pixels along a side, in batches; and steps of Stage C and of Stage B.
PRIOR_LATENTS, PRIOR_SIDE, PRIOR_BATCH = 288, 256, 8
PRIOR_STEPS, DECODER_STEPS = 8, 4
# Pixels of a preview along each of Stage C's latents, of which there are few.
PRIOR_PATCH = 4
DIGITS = 6
PROMPTS = (
    "a photo of a red apple on a wooden table",
    "a blue ocean under a white sky",
    "a portrait of a woman with dark hair",
    "a yellow flower in green grass",
    "a city street at night with neon lights",
    "a snowy mountain in the evening sun",
    "a 3d render of an orange cat",
    "a flat icon of a purple balloon",
)


def side(multiple: int, default: int) -> int:
    """How large pictures to encode are: a multiple of `multiple` pixels, no more than SIDE or the model's own size."""
    return max(multiple, min(SIDE, default) // multiple * multiple)


def of_sdxl(encoder: Path, scale: LatentScale, side: int) -> PreviewCard:
    """The map for SDXL's latents, from its exported VAE encoder."""
    session = to_onnx.open_session(encoder)

    def encode(pictures: Floats) -> Floats:
        moments: Floats = session.run(["latent_parameters"], {"sample": pictures * 2 - 1})[0]
        mean, _ = np.split(moments, 2, axis=1)
        return (mean - _column(scale.mean or 0.0)) * np.float32(scale.factor) / _column(scale.std or 1.0)

    return from_encoder(encode, side)


def of_vqgan(decoder: Weights, side: int) -> PreviewCard:
    """The map for Stage B's latents, from Stage A's encoder."""
    import torch

    vqgan = decoder.load("vqgan")

    def encode(pictures: Floats) -> Floats:
        with torch.inference_mode():
            latents: Floats = vqgan.encode(torch.from_numpy(pictures)).latents.numpy()
        return latents / np.float32(vqgan.config.scale_factor)

    return from_encoder(encode, side)


def from_encoder(encode: Callable[[Floats], Floats], side: int, count: int = PICTURES) -> PreviewCard:
    """The map that best gives the mean colour below each latent.

    `encode` takes pictures (1, 3, side, side) in 0 … 1 and gives the latents (1, C, h, w) as the loop has them.
    """
    latents, colours = [], []
    for picture in pictures(side, count):
        made = encode(picture[None])[0]
        cell = side // made.shape[-1]
        means = picture.reshape(3, made.shape[1], cell, made.shape[2], cell).mean(axis=(2, 4))
        latents.append(made.reshape(len(made), -1).T)
        colours.append(means.reshape(3, -1).T)
    return fit(np.concatenate(latents), np.concatenate(colours), patch=1)


def fit(latents: Floats, colours: Floats, patch: int) -> PreviewCard:
    """Least squares from latents (N, C) to colours (N, 3·patch²)."""
    inputs = np.concatenate([latents, np.ones((len(latents), 1))], axis=1, dtype=np.float64)
    solution = np.linalg.lstsq(inputs, colours.astype(np.float64), rcond=None)[0]
    rows = [[_rounded(value) for value in row] for row in solution]
    return PreviewCard(patch, rows[:-1], rows[-1])


@dataclass(frozen=True)
class PriorRun:
    """What it takes to run Stages C and B of a build; `sizes` are the named dimensions of one small image."""

    build: Path
    prior: Weights
    decoder: Weights
    sizes: Mapping[str, int]

    def fit(self, decoder_map: PreviewCard) -> PreviewCard:
        """The map for Stage C's latents: of PROMPTS, without guidance, drawn by Stage B's own map."""
        count = math.ceil(PRIOR_LATENTS / (self.sizes["prior_height"] * self.sizes["prior_width"]))
        text = self._encoded("cascade_text_encoder", self.prior, count)
        own_encoder = (self.build / "cascade_decoder_text_encoder").exists()
        pooled = self._encoded("cascade_decoder_text_encoder", self.decoder, count) if own_encoder else text
        no_image = np.zeros((count, 1, self.prior.config("prior")["clip_image_in_channels"]), np.float32)
        embeddings = self._run(
            "prior",
            self.prior,
            PRIOR_STEPS,
            {"clip_text_pooled": text[-1][:, None], "clip_text": text[0], "clip_img": no_image},
        )
        conditioning = {"clip_text_pooled": pooled[-1][:, None], "effnet": embeddings}
        latents = self._run("decoder", self.decoder, DECODER_STEPS, conditioning)
        pictures = np.stack([draw(decoder_map, image) for image in latents]).transpose(0, 3, 1, 2) / np.float32(255)
        targets = _by_latent(_resized(pictures, embeddings.shape[2:]), PRIOR_PATCH)
        return fit(_by_latent(embeddings, 1), targets, PRIOR_PATCH)

    def _encoded(self, stage: str, weights: Weights, count: int) -> list[Floats]:
        """`count` rows of a text encoder's outputs, PROMPTS over and over."""
        tokenizer = weights.load_tokenizer("tokenizer")
        prompts = [PROMPTS[k % len(PROMPTS)] for k in range(count)]
        ids = tokenizer(prompts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True)
        names = ("input_ids", "attention_mask")
        outputs: list[Floats] = self._session(stage).run(None, {name: np.array(ids[name], np.int64) for name in names})
        return outputs

    def _run(self, stage: str, weights: Weights, steps: int, conditioning: Mapping[str, Floats]) -> Floats:
        """The stage's own latents, one for each row of the conditioning."""
        import torch

        session, generator = self._session(stage), torch.Generator().manual_seed(0)
        kind = "prior" if stage == "prior" else "latent"
        shape = (weights.config(stage)["in_channels"], self.sizes[f"{kind}_height"], self.sizes[f"{kind}_width"])
        count, made = len(conditioning["clip_text_pooled"]), []
        for first in range(0, count, PRIOR_BATCH):
            rows = {name: array[first : first + PRIOR_BATCH] for name, array in conditioning.items()}
            scheduler = wuerstchen.Wuerstchen(wuerstchen.scheduler(weights.config("scheduler")))
            scheduler.set_timesteps(steps)
            latents = torch.randn((min(PRIOR_BATCH, count - first), *shape), generator=generator)
            for ratio in scheduler.timesteps:
                inputs = {"sample": latents.numpy(), "timestep_ratio": ratio.expand(len(latents)).numpy(), **rows}
                output = torch.from_numpy(session.run(["out_sample"], inputs)[0])
                latents = scheduler.step(output, ratio, latents, return_dict=False, generator=generator)[0]
            made.append(latents.numpy())
        return np.concatenate(made)

    def _session(self, stage: str) -> Any:
        return to_onnx.open_session(self.build / stage / "model.onnx")


def pictures(side: int, count: int, seed: int = 0) -> Iterator[Floats]:
    """Synthetic pictures (3, side, side) in 0 … 1: blobs and shapes in the colours of photographs, on smooth gradients and,
    every second one, on white, where models of drawings and products work."""
    random = np.random.default_rng(seed)
    for number in range(count):
        image = Image.new("RGB", (side, side), "white") if number % 2 else _gradient(random, side)
        draw = ImageDraw.Draw(image)
        for colour in _colours(random, int(random.integers(1, 8))):
            middle, half = random.random(2) * side, (0.05 + 0.3 * random.random(2)) * side
            shape = draw.ellipse if random.random() < 0.6 else draw.rectangle
            shape((*(middle - half), *(middle + half)), fill=tuple(map(int, colour)))
        values = np.asarray(image, np.float32).transpose(2, 0, 1) / 255
        yield np.clip(values + random.normal(0, 0.02, values.shape), 0, 1).astype(np.float32)


def _gradient(random: np.random.Generator, side: int) -> Image.Image:
    """A few random colours, blended into each other."""
    grid = int(random.integers(2, 7))
    image = Image.fromarray(_colours(random, grid * grid).reshape(grid, grid, 3))
    return image.resize((side, side), Image.Resampling.BICUBIC)


def _colours(random: np.random.Generator, count: int) -> NDArray[np.uint8]:
    """(count, 3): mostly light and dark, some with much colour."""
    light, chroma = random.random((count, 1)), random.normal(0, 1, (count, 3))
    strength = random.choice([0.05, 0.15, 0.4], (count, 1))
    return np.asarray(np.clip(light + strength * chroma, 0, 1) * 255, np.uint8)


def _by_latent(images: Floats, patch: int) -> Floats:
    """(B, C, h·patch, w·patch) → (B·h·w, patch·patch·C), by row, column and channel within a patch."""
    batch, channels, height, width = images.shape
    cells = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return cells.transpose(0, 2, 4, 3, 5, 1).reshape(-1, patch * patch * channels)


def _resized(pictures: Floats, latents: tuple[int, ...]) -> Floats:
    """Pictures averaged down to PRIOR_PATCH pixels a latent."""
    import torch

    size = (PRIOR_PATCH * latents[0], PRIOR_PATCH * latents[1])
    resized: Floats = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(pictures), size).numpy()
    return resized


def _column(values: float | Sequence[float]) -> Floats:
    """By channel, for latents (1, C, h, w)."""
    return np.atleast_1d(np.array(values, np.float32)).reshape(1, -1, 1, 1)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
