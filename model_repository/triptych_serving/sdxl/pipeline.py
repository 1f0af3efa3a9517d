"""SDXL, base and refiner: `Pipeline` of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triptych_contract.adapters import Adapter
from triptych_contract.errors import invalid
from triptych_contract.sdxl import FAMILY
from triptych_contract.sdxl.card import CONTROLLED, MAX_CHUNKS, SdxlCard, control_stage, picture_stage
from triptych_contract.sdxl.settings import A1111, SdxlSettings

from ..adapters import WORN
from ..adapters.graphs import worn
from ..adapters.shelf import Shelf
from ..canvas import Canvas
from ..denoiser import Conditioning, Floats, Follow
from ..encoded import CONTROL_PICTURES, Read, checked, read_one
from ..noise import TorchGenerator
from ..phase import Outline, Phase, Start
from ..pipeline import Pipeline
from ..tokenizers import Chunks, PromptTokenizer
from ..walk import Walk
from .conditioning import conditionings, token_weights
from .image_prompts import prompted
from .latents import MASKED_PICTURE, EncodedPicture, initial
from .walk import BASE, walk

# Of both prompts; Triton gives a text encoder no more at once.
MAX_ROWS = 2 * MAX_CHUNKS


class Sdxl(Pipeline[SdxlSettings, SdxlCard]):
    """One phase, in which base and refiner take turns."""

    family = FAMILY

    @cached_property
    def adapters(self) -> Shelf | None:
        """The server's adapters, where it has any for this build."""
        return Shelf.of_server(self.manifest)

    def resolved(self, settings: SdxlSettings) -> SdxlSettings:
        if settings.lora is None:
            return settings
        if self.adapters is None:
            raise invalid(
                "lora", ", ".join(map(str, settings.lora)), "nothing: this server was started without --adapters"
            )
        return replace(settings, lora=self.adapters.resolve(settings.lora))

    def soon(self, settings: SdxlSettings) -> bool:
        return settings.lora is None or self.adapters is None or self.adapters.at_hand(settings.lora)

    def described(self) -> dict[str, Any]:
        if self.adapters is None:
            return {}
        served = {name: asdict(facts) for name, facts in self.adapters.served().items()}
        return {"adapters": served, "refused_adapters": self.adapters.refused()}

    def encoder_inputs(self, settings: SdxlSettings, tokenizers: Sequence[PromptTokenizer]) -> dict[str, NDArray[Any]]:
        """Each prompt's chunks are rows, as many for one prompt and encoder as for the others."""
        guided = settings.guided(self.card)
        prompts = [settings.negative_prompt or "", settings.prompt] if guided else [settings.prompt]
        clip_skip = [0, settings.clip_skip] if guided else [settings.clip_skip]
        read = [[self._chunks(settings, tokenizer, prompt) for prompt in prompts] for tokenizer in tokenizers]
        most = max(len(chunks.ids) for of_prompts in read for chunks in of_prompts)
        (ids, weights), (ids_2, weights_2) = (
            zip(*(_filled_up(chunks, most, tokenizer) for chunks in of_prompts), strict=True)
            for of_prompts, tokenizer in zip(read, tokenizers, strict=True)
        )
        made = {
            "input_ids": np.concatenate(ids),  # (rows · chunks, tokens of a chunk)
            "input_ids_2": np.concatenate(ids_2),
            "skipped_layers": np.repeat(np.array(clip_skip, np.int64), most)[:, None],
        }
        return {
            **(self._worn(settings, made) if {*FAMILY.adapted.values()} & self.manifest.stages.keys() else made),
            "token_weights": np.stack([weights, weights_2], axis=1),  # (rows, encoders, chunks · tokens)
        }

    def _worn(self, settings: SdxlSettings, rows: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The rows, and the adapters that each wears; once more without any where a refiner reads the same encoder."""
        adapters, count = worn(self._of_encoders(settings)), len(rows["input_ids"])
        each = [adapters, b""] if adapters and _refined_by_shared(settings, self.card) else [adapters]
        if len(each) * count > MAX_ROWS:
            prompts = 1 + settings.guided(self.card)
            given = f"with denoising_end and {count // prompts} chunks of a prompt"
            raise invalid("lora", given, f"at most {MAX_ROWS // 2 // prompts} where both models read one text encoder")
        twice = {name: np.tile(array, (len(each), 1)) for name, array in rows.items()}
        return {**twice, WORN: np.repeat(np.array(each, object), count)[:, None]}

    def unread(self, settings: SdxlSettings, tokenizer: PromptTokenizer, prompt: str) -> str:
        if settings.prompt_syntax != A1111:
            return super().unread(settings, tokenizer, prompt)
        return self._chunks(settings, tokenizer, prompt).cut

    def _chunks(self, settings: SdxlSettings, tokenizer: PromptTokenizer, prompt: str) -> Chunks:
        return tokenizer.chunks(settings.sections(prompt), MAX_CHUNKS if settings.prompt_syntax == A1111 else 1)

    def outline(self, settings: SdxlSettings) -> list[Outline]:
        card, sizes = self.card, self.card.sizes(settings.height, settings.width)
        way = walk(settings, self.tables(card.samplers[settings.sampler].schedules[settings.schedule]), card)
        return [Outline(way, (card.latent_channels, sizes["latent_height"], sizes["latent_width"]))]

    def phases(self, settings: SdxlSettings, read: Read) -> list[Phase]:
        card, sizes = self.card, self.card.sizes(settings.height, settings.width)
        ((way, shape),) = self.outline(settings)
        rows = 1 + settings.guided(card)
        weights = token_weights(read, rows, card)
        sizes["tokens"] = weights.shape[-1]
        encoded = conditionings(settings, card, read, weights)
        graphs: Mapping[str, str] = {}
        if settings.ip_adapter_image is not None:
            encoded[BASE], graphs = prompted(encoded[BASE], settings, card, read), FAMILY.prompted
        made = {
            stage: checked(
                conditioning, self.manifest.stages[graphs.get(stage, stage)], rows, sizes, later=(MASKED_PICTURE,)
            )
            for stage, conditioning in encoded.items()
        }
        if settings.lora and self.adapters:
            made[BASE] = replace(made[BASE], mix=self.adapters.mix(settings.lora, BASE))
        if settings.control:
            made[BASE] = replace(made[BASE], follows=self._follows(settings, read))
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
                sizes["tokens"],
            )
        ]

    def unused_stages(self, settings: SdxlSettings) -> set[str]:
        unused = set()
        if not self.encodes(settings):
            unused.add("vae_encoder")
        if settings.ip_adapter_image is None:
            unused |= {*FAMILY.prompted.values()}
        if settings.denoising_end is None:
            unused |= {"refiner_unet", "refiner_text_encoder_2"}
        if settings.lora is None:
            unused |= {*FAMILY.adapted.values()}
        asked = [stage(one.name) for one in settings.control or () for stage in (picture_stage, control_stage)]
        unused |= {*self.card.more_stages} - ({CONTROLLED, *asked} if asked else set())
        return unused

    def encodes(self, settings: SdxlSettings) -> bool:
        """Whether the VAE's encoder has something to do; a model that reads masks is told of one by every request."""
        return self.card.inpainting or settings.init_image is not None

    def reads_pictures(self, settings: SdxlSettings) -> bool:
        """Whether the model of pictures has something to do."""
        return self.encodes(settings) or bool(settings.ip_adapter_image or settings.control_images)

    def begins_with_picture(self, settings: SdxlSettings) -> bool:
        """Whether the first latents are a picture's; of a model that reads masks not at full strength, as in diffusers."""
        return settings.init_image is not None and not (self.card.inpainting and settings.strength == 1.0)

    def lays_over(self, settings: SdxlSettings) -> bool:
        return settings.padding_mask_crop is not None

    def finished(
        self, settings: SdxlSettings, painted: NDArray[np.uint8], read: Callable[[str], bytes]
    ) -> NDArray[np.uint8]:
        if not self.lays_over(settings):
            return painted
        return Canvas.of(read, settings).finished(painted)

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
            "Mask blur": made_by["mask_blur"] or None,
            "Masked area padding": made_by["padding_mask_crop"],
            "Clip skip": made_by["clip_skip"] + 1 if made_by["clip_skip"] else None,
            "Refiner switch at": made_by["denoising_end"],
            "Prompt syntax": made_by["prompt_syntax"] if made_by["prompt_syntax"] == A1111 else None,
            **{
                f"ControlNet {place}": _as_a1111s_extension(one, made_by["stages"])
                for place, one in enumerate(made_by.get("control") or ())
            },
        }

    def _of_encoders(self, settings: SdxlSettings) -> Sequence[Adapter]:
        return self.adapters.for_encoders(settings.lora) if self.adapters and settings.lora else ()

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
        begun = initial(way.table, shape, generator, picture, strength, self.card.latent_scale)
        if begun.masked_picture is not None:
            arrays = {**made[BASE].arrays, MASKED_PICTURE: begun.masked_picture}
            made = {**made, BASE: replace(made[BASE], arrays=arrays)}
        return Start(begun.latents, made, begun.blend)

    def _follows(self, settings: SdxlSettings, read: Read) -> tuple[Follow, ...]:
        """A request's controls with their pictures."""
        asked, count = settings.control or (), len(settings.control_images or ())
        pictures = read_one(read, CONTROL_PICTURES, (count, 3, settings.height, settings.width))
        return tuple(Follow(control_stage(one.name), pictures[one.image], one.scale) for one in asked)

    def _picture(self, settings: SdxlSettings, shape: tuple[int, int, int], read: Read) -> EncodedPicture | None:
        """What the VAE encoder made of the request's picture; None without one."""
        if not self.encodes(settings):
            return None
        channels, *sides = shape
        legal = {
            "latent_parameters": (1, 2 * channels, *sides),
            "latent_mask": (1, 1, *sides),
            "outside_parameters": (1, 2 * channels, *sides),
        }
        wanted = {
            "latent_parameters": self.begins_with_picture(settings),
            "latent_mask": settings.masked or self.card.inpainting,
            "outside_parameters": self.card.inpainting,
        }
        return EncodedPicture(*(read_one(read, name, legal[name])[0] if wanted[name] else None for name in legal))


def _filled_up(chunks: Chunks, most: int, tokenizer: PromptTokenizer) -> tuple[NDArray[np.int64], Floats]:
    """The ids of so many chunks, (most, L), the last ones of no words, and the weights of their tokens, (most · L,)."""
    missing = most - len(chunks.ids)
    ids = np.concatenate([chunks.ids, np.repeat(tokenizer([""]), missing, axis=0)])
    weights = np.pad(chunks.weights, ((0, missing), (0, 0)), constant_values=1)
    return ids, weights.reshape(-1)


def _as_a1111s_extension(one: Mapping[str, Any], stages: Mapping[str, str]) -> str:
    """A control of a receipt as sd-webui-controlnet writes its units; its picture came as the control wants it."""
    model = f"Module: none, Model: {one['name']} [{stages[control_stage(one['name'])][:8]}]"
    share = f"Guidance Start: {one['start']:g}, Guidance End: {one['end']:g}"
    return f"{model}, Weight: {one['scale']:g}, Resize Mode: Just Resize, {share}, Pixel Perfect: False, Control Mode: Balanced"


def _refined_by_shared(settings: SdxlSettings, card: SdxlCard) -> bool:
    """Whether a refiner reads what the base's own text encoder makes."""
    return settings.denoising_end is not None and card.refiner is not None and not card.refiner.own_text_encoder
