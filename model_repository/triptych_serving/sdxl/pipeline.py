"""SDXL, base and refiner: `Pipeline` of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych_contract.sdxl import FAMILY
from triptych_contract.sdxl.card import SdxlCard
from triptych_contract.sdxl.settings import SdxlSettings

from ..denoiser import Conditioning, Floats
from ..encoded import Read, checked, read_one
from ..noise import TorchGenerator
from ..phase import Outline, Phase, Start
from ..pipeline import Pipeline
from ..tokenizers import PromptTokenizer
from ..walk import Walk
from .conditioning import conditionings
from .latents import EncodedPicture, initial
from .walk import walk


class Sdxl(Pipeline[SdxlSettings, SdxlCard]):
    """One phase, in which base and refiner take turns."""

    family = FAMILY

    def encoder_inputs(
        self, settings: SdxlSettings, tokenizers: Sequence[PromptTokenizer]
    ) -> dict[str, NDArray[np.int64]]:
        guided = settings.guided(self.card)
        prompts = [settings.negative_prompt or "", settings.prompt] if guided else [settings.prompt]
        clip_skip = [0, settings.clip_skip] if guided else [settings.clip_skip]
        input_ids, input_ids_2 = (tokenizer(prompts) for tokenizer in tokenizers)
        skipped_layers = np.array(clip_skip, np.int64)[:, None]
        return {"input_ids": input_ids, "input_ids_2": input_ids_2, "skipped_layers": skipped_layers}

    def outline(self, settings: SdxlSettings) -> list[Outline]:
        card, sizes = self.card, self.card.sizes(settings.height, settings.width)
        way = walk(settings, self.tables(card.samplers[settings.sampler].schedules[settings.schedule]), card)
        return [Outline(way, (card.latent_channels, sizes["latent_height"], sizes["latent_width"]))]

    def phases(self, settings: SdxlSettings, read: Read) -> list[Phase]:
        card, sizes = self.card, self.card.sizes(settings.height, settings.width)
        ((way, shape),) = self.outline(settings)
        rows = 1 + settings.guided(card)
        made = {
            stage: checked(conditioning, self.manifest.stages[stage], rows, sizes)
            for stage, conditioning in conditionings(settings, card, read).items()
        }
        picture = self._picture(settings, shape, read)
        return [
            Phase(
                way,
                shape,
                settings.guidance_scale,
                partial(self._begin, way, shape, picture, settings.strength, made),
                settings.guidance_rescale,
                card.prediction_type,
                card.previews,
                self.manifest.one_timestep,
            )
        ]

    def unused_stages(self, settings: SdxlSettings) -> set[str]:
        unused = set()
        if settings.init_image is None:
            unused.add("vae_encoder")
        if settings.denoising_end is None:
            unused |= {"refiner_unet", "refiner_text_encoder_2"}
        return unused

    def a1111_fields(self, made_by: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "Steps": made_by["num_inference_steps"],
            "Sampler": self.card.samplers[made_by["sampler"]].a1111,
            "Schedule type": made_by["schedule"].replace("_", " ").capitalize(),
            "CFG scale": f"{made_by['guidance_scale']:g}",
            "Seed": made_by["seed"],
            "Size": f"{made_by['width']}x{made_by['height']}",
            "Model hash": made_by["stages"]["unet"][:10],
            "Model": made_by["model"],
            "Denoising strength": made_by["strength"],
            "Clip skip": made_by["clip_skip"] + 1 if made_by["clip_skip"] else None,
            "Refiner switch at": made_by["denoising_end"],
        }

    def _begin(
        self,
        way: Walk,
        shape: tuple[int, int, int],
        picture: EncodedPicture | None,
        strength: float | None,
        made: Mapping[str, Conditioning],
        generator: TorchGenerator,
        _previous: Floats | None,
    ) -> Start:
        latents, blend = initial(way.table, shape, generator, picture, strength, self.card.latent_scale)
        return Start(latents, made, blend)

    def _picture(self, settings: SdxlSettings, shape: tuple[int, int, int], read: Read) -> EncodedPicture | None:
        """What the VAE encoder made of the request's picture; None without one."""
        if settings.init_image is None:
            return None
        channels, *sides = shape
        moments = read_one(read, "latent_parameters", (1, 2 * channels, *sides))[0]
        mask = None if settings.mask is None else read_one(read, "latent_mask", (1, 1, *sides))[0]
        return EncodedPicture(moments, mask)
