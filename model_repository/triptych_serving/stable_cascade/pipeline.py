"""Stable Cascade: `Pipeline` of it. Stage C makes latents of the whole picture, Stage B latents of its detail from them.

The order of rows, draws and sizes is diffusers': `StableCascadePriorPipeline`, then `StableCascadeDecoderPipeline` with the
same generator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych_contract.cards import TableCard
from triptych_contract.stable_cascade import FAMILY
from triptych_contract.stable_cascade.card import CascadeCard
from triptych_contract.stable_cascade.settings import CascadeSettings

from ..denoiser import Conditioning, Floats
from ..encoded import Read, checked, read_all
from ..noise import TorchGenerator
from ..phase import Outline, Phase, Start, noise_alone
from ..pipeline import Pipeline
from ..tokenizers import PromptTokenizer
from ..walk import Walk

PRIOR, DECODER = CascadeCard.denoisers


class StableCascade(Pipeline[CascadeSettings, CascadeCard]):
    """Two phases: Stage C, then Stage B."""

    family = FAMILY

    def encoder_inputs(
        self, settings: CascadeSettings, tokenizers: Sequence[PromptTokenizer]
    ) -> dict[str, NDArray[np.int64]]:
        guided = settings.prior_guided or settings.decoder_guided
        prompts = [settings.negative_prompt or "", settings.prompt] if guided else [settings.prompt]
        (tokenizer,) = tokenizers
        return {"input_ids": tokenizer(prompts), "attention_mask": tokenizer.attention_mask(prompts)}

    def outline(self, settings: CascadeSettings) -> list[Outline]:
        card, sizes = self.card, self.card.sizes(settings.height, settings.width)
        prior = self._walk(PRIOR, card.prior_table, settings.prior_num_inference_steps, settings.prior_guided)
        decoder = self._walk(DECODER, card.decoder_table, settings.num_inference_steps, settings.decoder_guided)
        return [
            Outline(prior, (card.prior_channels, sizes["prior_height"], sizes["prior_width"])),
            Outline(decoder, (card.latent_channels, sizes["latent_height"], sizes["latent_width"])),
        ]

    def phases(self, settings: CascadeSettings, read: Read) -> list[Phase]:
        sizes = self.card.sizes(settings.height, settings.width)
        hidden_states, text_embeds = read_all(read, "hidden_states", "text_embeds")
        pooled = text_embeds
        if self.card.own_text_encoder:
            (pooled,) = read_all(read, "decoder_text_embeds")
        prior, decoder = self.outline(settings)
        return [
            self._prior(settings, prior, sizes, hidden_states, text_embeds),
            self._decoder(settings, decoder, sizes, pooled),
        ]

    def unused_stages(self, settings: CascadeSettings) -> set[str]:  # noqa: ARG002 - every request runs all
        return set()

    def a1111_fields(self, made_by: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "Steps": made_by["prior_num_inference_steps"],
            "Sampler": "DDPM Wuerstchen",
            "CFG scale": f"{made_by['prior_guidance_scale']:g}",
            "Seed": made_by["seed"],
            "Size": f"{made_by['width']}x{made_by['height']}",
            "Model hash": made_by["stages"][PRIOR][:10],
            "Model": made_by["model"],
            "Decoder steps": made_by["num_inference_steps"],
            "Decoder CFG scale": f"{made_by['decoder_guidance_scale']:g}",
        }

    def _prior(
        self,
        settings: CascadeSettings,
        outline: Outline,
        sizes: Mapping[str, int],
        hidden_states: Floats,
        text_embeds: Floats,
    ) -> Phase:
        guided = settings.prior_guided
        inputs = self.manifest.stages[PRIOR]["inputs"]
        arrays = {
            "clip_text_pooled": _rows(text_embeds, guided)[:, None],
            "clip_text": _rows(hidden_states, guided),
            # Zeros where no picture is given, in the pipeline as well.
            "clip_img": np.zeros((1 + guided, *inputs["clip_img"]["shape"][1:]), np.float32),
        }
        conditioning = checked(Conditioning(arrays), self.manifest.stages[PRIOR], 1 + guided, sizes)
        way, shape = outline

        def begin(generator: TorchGenerator, _previous: Floats | None) -> Start:
            return noise_alone(way, shape, generator, {PRIOR: conditioning})

        return Phase(way, shape, settings.prior_guidance_scale, begin, previews=self.card.previews)

    def _decoder(self, settings: CascadeSettings, outline: Outline, sizes: Mapping[str, int], pooled: Floats) -> Phase:
        way, shape = outline
        begin = partial(self._begin_decoder, way, shape, _rows(pooled, settings.decoder_guided)[:, None], sizes)
        return Phase(way, shape, settings.decoder_guidance_scale, begin, previews=self.card.previews)

    def _begin_decoder(
        self,
        way: Walk,
        shape: tuple[int, int, int],
        pooled: Floats,
        sizes: Mapping[str, int],
        generator: TorchGenerator,
        image_embeddings: Floats | None,
    ) -> Start:
        """Stage B sees what Stage C made, and nothing of it in the unconditional row."""
        assert image_embeddings is not None  # noqa: S101 - the second phase
        effnet = np.stack([np.zeros_like(image_embeddings), image_embeddings])[-len(pooled) :]
        conditioning = Conditioning({"clip_text_pooled": pooled, "effnet": effnet})
        checked(conditioning, self.manifest.stages[DECODER], len(pooled), sizes)
        return noise_alone(way, shape, generator, {DECODER: conditioning})

    def _walk(self, stage: str, table: TableCard, steps: int, guided: bool) -> Walk:
        rows = self.tables(table).steps(steps)
        return Walk(rows, (stage,) * len(rows), np.full(len(rows), guided))


def _rows(array: Floats, guided: bool) -> Floats:
    """The rows that a stage reads of the encoder's: both, or the prompt's alone."""
    return array[-1 - guided :]
