"""SDXL: a base, and perhaps a refiner that takes over in the middle."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

from triptych_contract.cards import PreviewCard, TableCard, TokenizerCard
from triptych_contract.sdxl import FAMILY
from triptych_contract.sdxl.card import CONTROLLED, LatentScale, RefinerCard, SamplerCard, SdxlCard, control_stage
from triptych_serving.sdxl.image_prompts import ENCODER, UNET

from .. import previews, samplers
from ..errors import ExportError
from ..optimum import AdaptedStageRecipe, OptimumFolder, layout, open_folder
from ..options import ExportOptions
from ..parts import PreviewRecipe, StageRecipe, TableRecipe, require_equal
from ..stages import StageSpec
from ..tokenizers import alike
from ..weights import Kind, Weights, read_index
from . import adapters, control, image_prompts, residuals
from .image_prompts import ImagePromptedUNetStage, ImagePromptStage, IpAdapter
from .loras import Lora, MergedWeights
from .stages import MODULES, base_specs, inpainting, refiner_specs

CLASSES = {
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
}
BASE = Kind("StableDiffusionXLPipeline", CLASSES, ("tokenizer", "tokenizer_2"))
INPAINTING = replace(BASE, pipeline="StableDiffusionXLInpaintPipeline")
REFINED = {part: CLASSES[part] for part in ("text_encoder_2", "unet")}
REFINER = Kind("StableDiffusionXLImg2ImgPipeline", REFINED, ("tokenizer_2",))
OPTIONS = (
    *("refiner", "guidance_scale", "samplers", "lora", "distilled"),
    *("adapters", "ip_adapter", "image_encoder", "control"),
)
# What stages are checked at: batch; height and width in units of the smallest legal side; chunks of a prompt.
CHECKS = ((2, 1, 2, 2), (1, 2, 1, 1), (3, 2, 3, 3))


class Distilled(NamedTuple):
    """What weights of a few steps are sampled with, as their makers say."""

    pair: tuple[str, str]  # sampler, schedule
    num_inference_steps: int
    guidance_scale: float


# ByteDance/SDXL-Lightning, ByteDance/Hyper-SD, latent-consistency/lcm-lora-sdxl, tianweiy/DMD2: what their model cards use.
DISTILLED = {
    "lightning": Distilled(("euler", "trailing"), 4, 0.0),
    "hyper-sd": Distilled(("ddim", "trailing"), 4, 0.0),
    "lcm": Distilled(("lcm", "default"), 4, 1.0),
    "dmd2": Distilled(("lcm", "dmd2"), 4, 0.0),
}


class SdxlExport:
    """The folders of an SDXL, checked."""

    name = FAMILY.name

    def __init__(self, base: Weights, refiner: Weights | None, options: ExportOptions) -> None:
        self.base, self.refiner, self.options = base, refiner, options
        _check_unet(base, masks=not isinstance(base, OptimumFolder))
        if refiner is not None:
            _check_unet(refiner, masks=False)
        samplers.check(base.config("scheduler"))
        if options.adapters is not None:
            _check_adapters(base, options)
        self.ip_adapters = [IpAdapter.parse(given) for given in options.ip_adapter or ()]
        self.image_encoder = _image_encoder(base, options, self.ip_adapters)
        self.controls = _controls(base, options) if options.control else ()
        if refiner is not None:
            _check_refiner(base, refiner)
            if any(side % self._refined_multiple for side in self._default_sides):
                own = " × ".join(str(side) for side in dict.fromkeys(self._default_sides))
                raise ExportError(
                    f"refiner unet: takes multiples of {self._refined_multiple} pixels; "
                    f"supported: those that divide the base's own size, {own}"
                )

    @classmethod
    def open(cls, folder: Path, options: ExportOptions) -> SdxlExport:
        """Open the base's folder and the refiner's.

        Raises:
            ExportError: one is not supported, or an option is another family's.
        """
        options.check("SDXL", OPTIONS)
        if options.distilled not in (None, *DISTILLED):
            raise ExportError(f"--distilled: {options.distilled!r} given; legal: {', '.join(DISTILLED)}")
        loras = [Lora.parse(given) for given in options.lora or ()]
        refiner = None if options.refiner is None else open_folder(options.refiner, REFINER)
        kind = INPAINTING if read_index(folder)["_class_name"] == INPAINTING.pipeline else BASE
        base = open_folder(folder, kind)
        return cls(MergedWeights.of(base, loras) if loras else base, refiner, options)

    @property
    def tokenizers(self) -> dict[str, Weights]:
        return dict.fromkeys(self.base.kind.tokenizers, self.base)

    def stages(self, tokens: int) -> dict[str, StageRecipe]:
        specs = base_specs(self.base, tokens)
        stages = {name: self._stage(name, self.base, spec, tokens) for name, spec in specs.items()}
        if self.options.adapters is not None:
            adapted = adapters.adapted_specs(self.base, specs, self.options.adapters)
            stages |= {name: self._adapted(spec, tokens) for name, spec in adapted.items()}
        if self.image_encoder is not None:
            stages |= self._image_prompts(self.image_encoder, specs["unet"], tokens)
        if self.controls:
            second = next((one for one in (UNET, FAMILY.adapted["unet"]) if one in stages), "unet")
            stages |= self._controlled(specs["unet"], stages[second], tokens)
        if self.refiner is not None:
            specs = refiner_specs(self.refiner, tokens, own_text_encoder=self._own_text_encoder)
            stages |= {name: self._stage(name, self.refiner, spec, tokens) for name, spec in specs.items()}
        return stages

    def tables(self) -> dict[tuple[str, str], TableRecipe]:
        config = self.base.config("scheduler")
        return {pair: _table(config, pair[0], samplers.canonical(config, *pair)) for pair in self._pairs()}

    def previews(self, build: Path) -> dict[str, PreviewRecipe]:
        """One map: both UNets make the same latents."""
        path, own = build / "vae_encoder/model.onnx", (self.base.source("vae"), self.base.config("vae"))
        side = previews.side(self._size_multiple(self.base), min(self._default_sides))
        fit = PreviewRecipe(
            "preview", (*own, side), lambda _made: previews.of_sdxl(path, self._scale, side), "previews"
        )
        return dict.fromkeys([name for name in SdxlCard.denoisers if name == "unet" or self.refiner], fit)

    def card(
        self,
        tokenizers: tuple[TokenizerCard, ...],
        tables: Mapping[tuple[str, str], TableCard],
        previews: Mapping[str, PreviewCard],
    ) -> SdxlCard:
        base, options = self.base, self.options
        defaults = {**base.call_defaults, **(self._distilled._asdict() if self._distilled else {})}
        unet, vae, scheduler = (base.config(part) for part in ("unet", "vae", "scheduler"))
        (height, width), multiple = self._default_sides, self._size_multiple(base)
        sampler, schedule = self._default_pair
        steps, guidance = options.num_inference_steps, options.guidance_scale
        layers = [base.config(part)["num_hidden_layers"] for part in ("text_encoder", "text_encoder_2")]
        return SdxlCard(
            name=options.name or FAMILY.name,
            latent_channels=vae["latent_channels"],
            latent_scale=self._scale,
            vae_scale_factor=_vae_scale_factor(base),
            size_multiple=multiple,
            min_size=max(multiple, min(height, width) // 4 // multiple * multiple),
            max_size=2 * max(height, width) // multiple * multiple,
            default_height=height,
            default_width=width,
            default_num_inference_steps=defaults["num_inference_steps"] if steps is None else steps,
            default_guidance_scale=defaults["guidance_scale"] if guidance is None else guidance,
            guidance_embedding_dim=unet.get("time_cond_proj_dim"),
            max_clip_skip=min(layers) - 1,
            num_train_timesteps=scheduler.get("num_train_timesteps", 1000),
            prediction_type=scheduler.get("prediction_type", "epsilon"),
            default_sampler=sampler,
            default_schedule=schedule,
            force_zeros_for_empty_prompt=base.index.get("force_zeros_for_empty_prompt", True),
            refiner=self._refiner_card(),
            adapter_rank=self.options.adapters or 0,
            controls=tuple(one.name for one in self.controls),
            control_bytes=self._control_bytes if self.controls else 0,
            tokenizers=tokenizers,
            samplers=_sampler_cards(tables),
            merged=tuple(lora.card for lora in base.loras) if isinstance(base, MergedWeights) else (),
            previews=previews,
            inpainting=inpainting(base),
            ip_adapters=tuple(one.name for one in self.ip_adapters),
        )

    def layout(self) -> dict[str, bytes]:
        """What Optimum's pipelines read beside the graphs. Graphs that Optimum made have their own folder.

        One with masks reads them among the latents, ours beside them.
        """
        return {} if isinstance(self.base, OptimumFolder) or inpainting(self.base) else layout(self.base)

    def sources(self) -> dict[str, str]:
        parts = {
            f"{prefix}{component}": weights.source(component)
            for prefix, weights in self._folders.items()
            for component in weights.kind.components
        }
        if self.image_encoder is not None:
            parts |= {"image_encoder": self.image_encoder.source(*self.image_encoder.kind.components)}
        parts |= {control_stage(one.name): one.source(control.COMPONENT) for one in self.controls}
        return parts | {f"ip_adapter {one.name}": one.source.split()[-1] for one in self.ip_adapters}

    @property
    def _folders(self) -> dict[str, Weights]:
        return {"": self.base, **({"refiner_": self.refiner} if self.refiner else {})}

    def _adapted(self, spec: StageSpec, tokens: int) -> StageRecipe:
        module, code = adapters.MODULES[spec.component], f"{self._code(self.base)} sdxl/adapters"
        return StageRecipe(self.base, spec, module, self._checked_at(self.base, tokens), code)

    def _image_prompts(self, encoder: Weights, unet: StageSpec, tokens: int) -> dict[str, StageRecipe]:
        ours, also = {"adapters": self.ip_adapters}, tuple(one.source for one in self.ip_adapters)
        specs = (
            image_prompts.encoder_spec(encoder, self.base, self.ip_adapters),
            image_prompts.unet_spec(unet, self.base, self.ip_adapters),
        )
        sizes = [{"batch": batch} for batch, *_ in CHECKS], self._checked_at(self.base, tokens)
        code = f"{self._code(self.base)} sdxl/image_prompts"
        return {
            ENCODER: StageRecipe(encoder, specs[0], partial(ImagePromptStage, **ours), sizes[0], code, also=also),
            UNET: StageRecipe(self.base, specs[1], partial(ImagePromptedUNetStage, **ours), sizes[1], code, also=also),
        }

    def _controlled(self, unet: StageSpec, plain: StageRecipe, tokens: int) -> dict[str, StageRecipe]:
        """The UNet that takes what controls add, of the one that takes all else, and the controls' own graphs."""
        config = self.base.config("unet")
        spec = control.controlled_spec(plain.spec, config)
        made = {CONTROLLED: replace(plain, spec=spec, code=f"{plain.code} sdxl/residuals", shares="unet")}
        of_pictures = control.picture_specs(self.controls, config), itertools.repeat(control.PictureStage)
        of_steps = control.control_specs(self.controls, unet, config), [one.module for one in self.controls]
        sizes = self._checked_at(self.base, tokens)
        for specs, modules in (of_pictures, of_steps):
            for folder, (name, one), module in zip(self.controls, specs.items(), modules, strict=False):
                made[name] = StageRecipe(folder, one, module, sizes, "sdxl/control sdxl/residuals")
        return made

    @property
    def _control_bytes(self) -> int:
        height, width = self._default_sides
        multiple = self._size_multiple(self.base)
        return 4 * residuals.channels(self.base.config("unet")) * (height // multiple) * (width // multiple)

    def _stage(self, name: str, weights: Weights, spec: StageSpec, tokens: int) -> StageRecipe:
        sizes = self._checked_at(weights, tokens)
        if isinstance(weights, OptimumFolder):
            return AdaptedStageRecipe.of(name, weights, spec, sizes)
        return StageRecipe(weights, spec, MODULES[name], sizes, self._code(weights))

    @staticmethod
    def _code(weights: Weights) -> str:
        return "sdxl/stages sdxl/loras" if isinstance(weights, MergedWeights) else "sdxl/stages"

    def _checked_at(self, weights: Weights, tokens: int) -> list[dict[str, int]]:
        multiple, scale = self._size_multiple(weights), _vae_scale_factor(self.base)
        return [
            {
                **_sizes(batch, height * multiple, width * multiple, scale),
                "tokens": chunks * tokens,
                "least_height": height,
                "least_width": width,
            }
            for batch, height, width, chunks in CHECKS
        ]

    @cached_property
    def _own_text_encoder(self) -> bool:
        return len({weights.source("text_encoder_2") for weights in self._folders.values()}) > 1

    @cached_property
    def _scale(self) -> LatentScale:
        """Our own VAE encoder's graph scales the latents."""
        if not isinstance(self.base, OptimumFolder):
            return LatentScale(1.0, None, None)
        vae = self.base.config("vae")
        return LatentScale(vae["scaling_factor"], vae.get("latents_mean"), vae.get("latents_std"))

    def _pairs(self) -> list[tuple[str, str]]:
        config = self.base.config("scheduler")
        own, default, legal = samplers.default_sampler(config), self._default_pair, samplers.legal_pairs(config)
        legal = legal if own in legal else [own, *legal]
        if default not in legal:
            why = samplers.illegal_pairs(config)[default]
            raise ExportError(
                f"--distilled: {self.options.distilled} given; its sampler does not fit this folder: {why}"
            )
        wanted = [tuple(name.split(":", 1)) for name in self.options.samplers or ()]
        for name in wanted:
            if not any(pair[: len(name)] == name for pair in legal):
                raise ExportError(f"sampler: {':'.join(name)!r} given; legal: {', '.join(':'.join(p) for p in legal)}")
        chosen = [pair for pair in legal if not wanted or any(pair[: len(name)] == name for name in wanted)]
        return chosen if default in chosen else [default, *chosen]

    @property
    def _distilled(self) -> Distilled | None:
        return DISTILLED[self.options.distilled] if self.options.distilled else None

    @property
    def _default_pair(self) -> tuple[str, str]:
        """Sampler and schedule of a request that names none: the distillation's, or the folder's own."""
        return self._distilled.pair if self._distilled else samplers.default_sampler(self.base.config("scheduler"))

    def _size_multiple(self, weights: Weights) -> int:
        """A UNet halves its latents once per block but the first; sizes must divide evenly all the way down."""
        halvings = len(weights.config("unet")["block_out_channels"]) - 1
        return _vae_scale_factor(self.base) * int(2**halvings)

    @property
    def _refined_multiple(self) -> int:
        """What the sizes that base and refiner both take are multiples of."""
        return math.lcm(*(self._size_multiple(weights) for weights in self._folders.values()))

    @property
    def _default_sides(self) -> tuple[int, int]:
        """The model's own height and width in pixels."""
        return tuple(side * _vae_scale_factor(self.base) for side in _sample_sides(self.base))  # type: ignore[return-value]

    def _refiner_card(self) -> RefinerCard | None:
        if self.refiner is None:
            return None
        return RefinerCard(
            size_multiple=self._refined_multiple,
            force_zeros_for_empty_prompt=self.refiner.index.get("force_zeros_for_empty_prompt", True),
            requires_aesthetics_score=self.refiner.index.get("requires_aesthetics_score", False),
            own_text_encoder=self._own_text_encoder,
        )


def _sample_sides(base: Weights) -> tuple[int, int]:
    """Height and width of the UNet's own latents; a config gives one number for both, or two.

    Raises:
        ExportError: it gives neither.
    """
    given = base.config("unet")["sample_size"]
    sides = given if isinstance(given, list) else [given, given]
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ExportError(
            f"unet/config.json: sample_size {given!r}; supported: latents along a side, or [height, width]"
        )
    return sides[0], sides[1]


def _vae_scale_factor(base: Weights) -> int:
    """Pixels per latent, along a side."""
    return int(2 ** (len(base.config("vae")["block_out_channels"]) - 1))


def _sizes(batch: int, height: int, width: int, scale: int) -> dict[str, int]:
    latents = {"latent_height": height // scale, "latent_width": width // scale}
    return {"batch": batch, "height": height, "width": width, **latents}


def _table(config: Mapping[str, Any], sampler: str, schedule: str) -> TableRecipe:
    make = partial(samplers.tables, dict(config), sampler, schedule)
    return TableRecipe(f"samplers/{sampler}-{schedule}.npz.xz", (config, (sampler, schedule)), make, "samplers tracing")


def _sampler_cards(tables: Mapping[tuple[str, str], TableCard]) -> dict[str, SamplerCard]:
    schedules: dict[str, dict[str, TableCard]] = {}
    for (sampler, schedule), card in tables.items():
        schedules.setdefault(sampler, {})[schedule] = card
    known = samplers.SAMPLERS
    return {name: SamplerCard(known[name].scheduler, known[name].a1111, schedules[name]) for name in sorted(schedules)}


def _check_unet(weights: Weights, *, masks: bool) -> None:
    """A UNet must be of SDXL's kind, and read latents; where `masks`, it may read a mask and the latents outside it as well."""
    config = weights.config("unet")
    if config.get("addition_embed_type") != "text_time":
        raise ExportError(
            f"unet/config.json: addition_embed_type {config.get('addition_embed_type')!r}; supported: 'text_time'"
        )
    if config["in_channels"] != config["out_channels"] and not (masks and inpainting(weights)):
        more = f", or {2 * config['out_channels'] + 1} (with a mask and what is outside it)" if masks else ""
        raise ExportError(
            f"unet/config.json: in_channels {config['in_channels']}; supported: as many as out_channels, "
            f"{config['out_channels']}{more}"
        )


def _check_adapters(base: Weights, options: ExportOptions) -> None:
    if options.target == "tensorrt":
        raise ExportError(
            f"--adapters: {options.adapters} with target tensorrt given; legal: targets cpu, cuda and tensorrt-rtx: Triton's own "
            "backend runs tensorrt's text encoders, and it knows no adapters. For it merge LoRAs at export: --lora FILE"
        )
    if isinstance(base, OptimumFolder):
        raise ExportError("--adapters: given with Optimum's graphs; supported: a folder of weights in diffusers layout")


def _image_encoder(base: Weights, options: ExportOptions, ip_adapters: Sequence[IpAdapter]) -> Weights | None:
    """The encoder of the pictures that a build's image prompts are made of, None where it has none.

    Raises:
        ExportError: an option lacks the other, or does not go with others; a file does not fit.
    """
    if not ip_adapters and options.image_encoder is None:
        return None
    if not ip_adapters or options.image_encoder is None:
        given, missing = ("--ip-adapter", "--image-encoder") if ip_adapters else ("--image-encoder", "--ip-adapter")
        raise ExportError(f"{missing}: missing; {given} also needs it")
    if options.adapters is not None or isinstance(base, OptimumFolder):
        beside = "Optimum's graphs" if isinstance(base, OptimumFolder) else "--adapters"
        raise ExportError(f"--ip-adapter: with {beside} given; legal: one of them")
    names = [one.name for one in ip_adapters]
    if len({*names}) < len(names):
        raise ExportError(f"--ip-adapter: {', '.join(names)} given; legal: each name once")
    encoder = image_prompts.image_encoder(options.image_encoder)
    for one in ip_adapters:
        one.check(base, encoder)
    return encoder


def _controls(base: Weights, options: ExportOptions) -> tuple[control.ControlFolder, ...]:
    """The controls' folders, checked beside the base.

    Raises:
        ExportError: one does not fit, or the target or Optimum's graphs take none.
    """
    if options.target != "cpu":
        raise ExportError(f"--control: given with target {options.target}; supported: target cpu")
    if isinstance(base, OptimumFolder):
        raise ExportError("--control: given with Optimum's graphs; supported: a folder of weights in diffusers layout")
    controls = control.parsed(options.control or ())
    for one in controls:
        one.check_beside(base.config("unet"), _vae_scale_factor(base))
    return controls


def _check_refiner(base: Weights, refiner: Weights) -> None:
    """The refiner takes over the base's latents, prompt ids and sampler table, so these must be its own as well.

    Raises:
        ExportError: they are not; names what differs.
    """
    ours, theirs = (samplers.completed(weights.config("scheduler")) for weights in (base, refiner))
    for name in sorted({*ours, *theirs} - {"_diffusers_version", "skip_prk_steps", "trained_betas"}):
        require_equal(f"refiner scheduler: {name}", theirs.get(name), ours.get(name), "the base's")
    if not alike(base.load_tokenizer("tokenizer_2"), refiner.load_tokenizer("tokenizer_2")):
        raise ExportError("refiner tokenizer_2: differs from the base's; supported: the same")
    channels = base.config("unet")["out_channels"], refiner.config("unet")["in_channels"]
    require_equal("refiner unet: in_channels", channels[1], channels[0], "the base's latents")
