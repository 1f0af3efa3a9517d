"""The settings of an SDXL request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..adapters import Adapter, Adapters
from ..cards import TableCard
from ..control import MAX_CONTROLS, Control, Controls
from ..emphasis import Part, sections
from ..parameters import Choice, Edges, File, Files, Integer, Number, OfModel, Pair, Picture, parameter
from ..settings import MAX_GUIDANCE_SCALE, Reading, Settings
from .card import SdxlCard

A1111 = "a1111"
MAX_COORDINATE = 65_536
MAX_BLUR, MAX_PADDING, MAX_EXTENSION = 256, 4_096, 4_096
MAX_CANVAS = 64_000_000  # pixels, as of a picture's file
MAX_AESTHETIC_SCORE = 10.0
MAX_IP_ADAPTER_SCALE = 2.0
# The defaults of diffusers' pipelines for pictures and for pictures with a mask.
STRENGTH, MASKED_STRENGTH = 0.3, 0.9999


def _most_steps(card: SdxlCard) -> int:
    return max(table.max_steps for sampler in card.samplers.values() for table in sampler.schedules.values())


def _schedules(card: SdxlCard) -> list[str]:
    return list(dict.fromkeys(name for sampler in card.samplers.values() for name in sampler.schedules))


@dataclass(frozen=True)
class SdxlSettings(Settings):
    """A checked request. Pairs are (height, width) or (top, left).

    None stands for what was not asked for: no picture to start from (`init_image`, `strength`), no refiner (`denoising_end`,
    the scores).
    """

    num_inference_steps: int = parameter(
        Integer(1, OfModel(_most_steps, "100")),
        "Steps.",
        default=OfModel(lambda card: card.default_num_inference_steps),
        note="`lcm` and `tcd` end at 50",
        group="sampling",
        label="Steps",
        main=True,
        options=("--steps",),
        a1111="Steps",
    )
    guidance_scale: float = parameter(
        Number(0, MAX_GUIDANCE_SCALE),
        "How closely to follow the prompt; at 1 or below guidance is off and a step costs one row, not two.",
        default=OfModel(lambda card: card.default_guidance_scale),
        group="sampling",
        label="Guidance",
        main=True,
        options=("--guidance", "--cfg"),
        a1111="CFG scale",
    )
    guidance_rescale: float = parameter(
        Number(0, 1),
        "How much of the guided prediction's contrast is taken back.",
        default=0.0,
        note="[Lin et al.](https://arxiv.org/abs/2305.08891), section 3.4",
        group="sampling",
        label="Guidance rescale",
        a1111="CFG Rescale",
    )
    guidance_end: float = parameter(
        Number(0, 1),
        "The share of the model calls, rounded down, that guidance is on for; a step costs one row from there on.",
        default=1.0,
        group="sampling",
        label="Guidance end",
    )
    clip_skip: int = parameter(
        Integer(0, OfModel(lambda card: card.max_clip_skip, "one less than the layers of the shorter encoder")),
        "Last layers of the text encoders to leave out.",
        default=0,
        note="left out for the prompt, not for the negative prompt, as diffusers does",
        group="sampling",
        label="Clip skip",
        a1111="Clip skip",
    )
    original_size: tuple[int, int] = parameter(
        Pair(1, MAX_COORDINATE, ("height", "width")),
        "The size that the model is told the picture had.",
        default_words="the picture's size",
        group="picture",
    )
    target_size: tuple[int, int] = parameter(
        Pair(1, MAX_COORDINATE, ("height", "width")),
        "The size that the model is told the picture gets.",
        default_words="the picture's size",
        group="picture",
    )
    crops_coords_top_left: tuple[int, int] = parameter(
        Pair(0, MAX_COORDINATE, ("top", "left")),
        "Where the model is told the picture was cut.",
        default=(0, 0),
        group="picture",
    )
    sampler: str = parameter(
        Choice(
            OfModel(lambda card: sorted(card.samplers), "the samplers that were exported"),
            OfModel(lambda card: card.sampler_names),
            OfModel(lambda card: {name: sampler.a1111 for name, sampler in card.samplers.items()}),
        ),
        "As euler or dpmpp_2m; `triptych samplers` lists them.",
        default=OfModel(lambda card: card.default_sampler),
        note="[list](samplers.md); also A1111's name, or diffusers' where that class is one sampler only",
        group="sampling",
        label="Sampler",
        main=True,
        a1111="Sampler",
    )
    schedule: str = parameter(
        Choice(OfModel(_schedules, "the sampler's own")),
        "Noise schedule, as karras; each sampler has its own.",
        default_words="the model's",
        group="sampling",
        label="Schedule",
        main=True,
        a1111="Schedule type",
    )
    init_image: Picture | None = parameter(
        File(),
        "The picture to start from: PNG, JPEG or WebP.",
        note="resized to `height` × `width`",
        group="start",
        label="Picture to start from",
        options=("--image",),
    )
    mask: Picture | None = parameter(
        File(),
        "White is painted anew, black is kept.",
        needs="init_image",
        group="start",
        label="Mask: white is painted anew",
    )
    strength: float | None = parameter(
        Number(0, 1),
        "How far to go from the picture.",
        needs="init_image",
        default_words="0.3; with `mask` 0.9999",
        note="at least one step",
        group="start",
        label="Strength",
        a1111="Denoising strength",
    )
    denoising_end: float | None = parameter(
        Number(0, 1, between=True),
        "The share of the steps after which the base hands over to the refiner.",
        default_words="base only",
        note="needs a build with a refiner; not with `mask`",
        group="refiner",
        label="Hand-over to the refiner",
        main=True,
        a1111="Refiner switch at",
    )
    aesthetic_score: float | None = parameter(
        Number(0, MAX_AESTHETIC_SCORE),
        "What the refiner is told of the prompt.",
        needs="denoising_end",
        default_words="6",
        group="refiner",
        label="Aesthetic score",
    )
    negative_aesthetic_score: float | None = parameter(
        Number(0, MAX_AESTHETIC_SCORE),
        "What the refiner is told of the negative prompt.",
        needs="denoising_end",
        default_words="2.5",
        group="refiner",
        label="Negative aesthetic score",
    )
    prompt_syntax: str = parameter(
        Choice(("plain", A1111)),
        "How prompts are read: as they are, or with A1111's weights and as many words as one likes.",
        default="plain",
        note="`a1111`: (more), [less], (word:1.3), BREAK; [what it means](prompts.md)",
        group="picture",
        label="Prompt syntax",
        a1111="Prompt syntax",
    )
    lora: tuple[Adapter, ...] | None = parameter(
        Adapters(),
        "Adapters (LoRAs) of the server's folder, whose effects add up; the base wears them, a refiner does not.",
        note='JSON, `[{"name": "ink", "scale": 0.8}]`, or text, `ink:0.8, fog`; needs a build with '
        "[`--adapters RANK`](export.md#adapters), the most that their ranks may be in all",
        group="sampling",
        label="LoRAs",
    )
    mask_blur: int | None = parameter(
        Integer(0, MAX_BLUR),
        "How softly the mask ends: the radius, in its own pixels, of the Gaussian that blurs it before all else.",
        needs="init_image",
        default_words="0",
        note="only with `mask` or `extend`; painted is what is half white or more, and `padding_mask_crop` lays over softly",
        group="start",
        label="Mask blur",
        a1111="Mask blur",
    )
    padding_mask_crop: int | None = parameter(
        Integer(0, MAX_PADDING),
        "Paint only the part of the picture around the mask, with so many pixels more at each side, at `height` × `width`, and "
        "lay it over the picture, which keeps its own size.",
        needs="init_image",
        note="only with `mask`, of the picture's size, or `extend`; `height` and `width` are the model's unless they are given",
        group="start",
        label="Only around the mask, with a padding of",
        a1111="Masked area padding",
    )
    extend: tuple[int, int, int, int] | None = parameter(
        Edges(0, MAX_EXTENSION),
        "How many pixels to add at each edge of the picture, which are painted anew.",
        needs="init_image",
        note="with `mask`, of the picture's size, what is white there as well; at most 64 megapixels in all",
        group="start",
        label="Extend the picture",
    )
    ip_adapter_image: Picture | None = parameter(
        File(),
        "A picture to draw like: its middle square is an image prompt beside the text.",
        note="needs a build with [`--ip-adapter`](export.md#image-prompts); the base sees it, a refiner does not",
        group="start",
        label="Picture to draw like",
    )
    ip_adapter: str | None = parameter(
        Choice(OfModel(lambda card: card.ip_adapters, "the names given to `--ip-adapter`")),
        "The image prompt (IP-Adapter) that reads the picture.",
        needs="ip_adapter_image",
        default_words="the model's first",
        group="start",
        label="Image prompt",
    )
    ip_adapter_scale: float | None = parameter(
        Number(0, MAX_IP_ADAPTER_SCALE),
        "How closely to follow the picture; from 1 on it says more than the text.",
        needs="ip_adapter_image",
        default_words="1",
        group="start",
        label="Image prompt's weight",
    )
    control: tuple[Control, ...] | None = parameter(
        Controls(),
        "Controls (ControlNets) of the model, which add up: each follows a picture of `control_images`; a refiner goes without.",
        needs="control_images",
        note='JSON, `[{"name": "edges", "image": 0, "scale": 0.8, "start": 0, "end": 0.5}]`, or text, `edges:0.8:0-0.5`; '
        "`image` is else the control's own place; needs a build with [`--control`](export.md#controls); `describe` lists them",
        group="control",
        label="Controls",
    )
    control_images: tuple[Picture, ...] | None = parameter(
        Files(MAX_CONTROLS),
        "The pictures that controls follow: edges, depth, a pose, ready as the control wants them.",
        needs="control",
        note="a tensor of as many files; resized to `height` × `width`",
        group="control",
        label="Pictures to follow",
    )

    def guided(self, model: SdxlCard) -> bool:
        """Tell whether there is an unconditional row beside the conditional one, as long as guidance is on."""
        return self.guidance_scale > 1.0 and model.guidance_embedding_dim is None

    @property
    def masked(self) -> bool:
        """Whether a part of a picture is kept."""
        return self.mask is not None or self.extend is not None

    @classmethod
    def complete(cls, reading: Reading) -> None:
        super().complete(reading)
        _tables(reading)
        _told_sizes(reading)
        _start(reading)
        _mask(reading)
        _refiner(reading)
        _adapters(reading)
        _image_prompt(reading)
        _controls(reading)
        if reading.values.get("prompt_syntax") == A1111:
            for name in ("prompt", "negative_prompt"):
                reading.judge(name, lambda prompt, name=name: _readable(name, prompt))

    def sections(self, prompt: str) -> list[list[Part]]:
        """Give what a prompt of this request says, by section; the weights were checked."""
        return sections("prompt", prompt) if self.prompt_syntax == A1111 else [[Part(prompt, 1.0)]]

    @classmethod
    def own_size(cls, reading: Reading) -> dict[str, int]:
        picture = reading.values.get("init_image")
        if picture is None or "padding_mask_crop" in reading.given:
            return super().own_size(reading)
        height, width = canvas(picture, reading.values.get("extend"))
        multiple = _multiple(reading.card, reading.given)
        return {"height": height // multiple * multiple, "width": width // multiple * multiple}

    @classmethod
    def sides(cls, card: SdxlCard, given: Mapping[str, Any]) -> range:
        multiple = _multiple(card, given)
        return range(-(-card.min_size // multiple) * multiple, card.max_size + 1, multiple)


def canvas(picture: Picture, extend: tuple[int, int, int, int] | None) -> tuple[int, int]:
    """Give the height and width in pixels of a picture with what is added to it."""
    left, top, right, bottom = extend or (0, 0, 0, 0)
    return top + picture.height + bottom, left + picture.width + right


def _readable(name: str, prompt: str) -> str:
    sections(name, prompt)
    return prompt


def _multiple(card: SdxlCard, given: Mapping[str, Any]) -> int:
    refined = card.refiner is not None and given.get("denoising_end") is not None
    return card.refiner.size_multiple if card.refiner and refined else card.size_multiple


def _tables(reading: Reading) -> None:
    """Schedule, steps and masks are those of the sampler's table; a wrong sampler or schedule is a problem of its own."""
    card, values = reading.card, reading.values
    if "sampler" not in values:
        return
    schedules: Mapping[str, TableCard] = card.samplers[values["sampler"]].schedules
    own = card.default_schedule if card.default_schedule in schedules else next(iter(schedules))
    reading.default("schedule", own)
    reading.narrow("schedule", Choice(schedules))
    if "schedule" not in values:
        return
    table = schedules[values["schedule"]]
    reading.narrow("num_inference_steps", Integer(1, table.max_steps))
    if (masking := _masking(reading)) and not table.inpaint and not card.inpainting:
        legal = "any sampler without a hidden state, such as euler"
        reading.refuse(masking, f"with sampler {values['sampler']}", legal)


def _told_sizes(reading: Reading) -> None:
    if {"height", "width"} <= reading.values.keys():
        size = (reading.values["height"], reading.values["width"])
        for name in ("original_size", "target_size"):
            reading.default(name, size)


def _start(reading: Reading) -> None:
    if "init_image" not in reading.given:
        return
    reading.default("strength", MASKED_STRENGTH if _masking(reading) else STRENGTH)
    steps, strength = reading.values.get("num_inference_steps"), reading.values.get("strength")
    if steps is not None and strength is not None and int(steps * strength) < 1:
        least = math.ceil(1000 / steps) / 1000
        reading.refuse("strength", f"{strength:g} of {steps} steps", f"at least {least}, for one step")


def _masking(reading: Reading) -> str:
    """What says that a part of the picture is kept, "" where nothing does."""
    return next((name for name in ("mask", "extend") if name in reading.given), "")


def _mask(reading: Reading) -> None:
    """What hangs on a mask, and on the size that it and the picture have."""
    given, values = reading.given, reading.values
    if _masking(reading):
        reading.default("mask_blur", 0)
    else:
        for name in given.keys() & {"mask_blur", "padding_mask_crop"}:
            reading.refuse(name, "without mask or extend", "only together with one of them")
    picture, mask = values.get("init_image"), values.get("mask")
    if picture is None:
        return
    if "extend" in values and not any(values["extend"]):
        reading.refuse("extend", "0 at every edge", "more at one of them")
    height, width = canvas(picture, values.get("extend"))
    if height * width > MAX_CANVAS:
        reading.refuse("extend", f"{width}×{height} pixels in all", f"at most {MAX_CANVAS} pixels")
    needs = next((name for name in ("extend", "padding_mask_crop") if name in given), "")
    if needs and mask and (mask.height, mask.width) != (picture.height, picture.width):
        legal = f"with {needs} the picture's size, {picture.width}×{picture.height}"
        reading.refuse("mask", f"{mask.width}×{mask.height} pixels", legal)


def _refiner(reading: Reading) -> None:
    if "denoising_end" not in reading.given:
        return
    if reading.card.refiner is None:
        given = reading.given["denoising_end"]
        reading.refuse("denoising_end", given, "nothing: this model was exported without a refiner")
    elif masking := _masking(reading):
        reading.refuse("denoising_end", f"with {masking}", f"only without {masking}")
    reading.default("aesthetic_score", 6.0)
    reading.default("negative_aesthetic_score", 2.5)


def _adapters(reading: Reading) -> None:
    if not reading.values.get("lora"):
        reading.values["lora"] = None  # an empty list is none
    elif not reading.card.adapter_rank:
        names = ", ".join(one.name for one in reading.values["lora"])
        reading.refuse("lora", names, "nothing: this model was exported without --adapters")


def _image_prompt(reading: Reading) -> None:
    names = reading.card.ip_adapters
    if "ip_adapter_image" not in reading.given:
        return
    if not names:
        reading.refuse("ip_adapter_image", "a picture", "nothing: this model was exported without --ip-adapter")
        return
    reading.default("ip_adapter", names[0])
    reading.default("ip_adapter_scale", 1.0)


def _controls(reading: Reading) -> None:
    asked, card = reading.values.get("control"), reading.card
    if not asked:
        if "control" in reading.values:
            reading.refuse("control", "an empty list", "1 … 4 controls, or no `control`")
        return
    if not card.controls:
        reading.refuse(
            "control", ", ".join(one.name for one in asked), "nothing: this model was exported without --control"
        )
        return
    for one in asked:
        if one.name not in card.controls:
            reading.refuse("control", f"{one.name}, which this model does not have", ", ".join(card.controls))
    pictures = reading.values.get("control_images")
    if pictures is None:
        return
    followed = {one.image for one in asked}
    if max(followed) >= len(pictures):
        reading.refuse("control", f"image {max(followed)} of {len(pictures)}", f"0 … {len(pictures) - 1}")
    elif len(followed) < len(pictures):
        reading.refuse("control_images", f"{len(pictures)} pictures for {len(followed)}", "as many as controls follow")
