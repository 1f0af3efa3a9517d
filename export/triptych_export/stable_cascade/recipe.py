"""Stable Cascade: the folder of Stage C, the prior, and the folder of Stages B and A, the decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from triptych_contract.cards import PreviewCard, TableCard, TokenizerCard
from triptych_contract.stable_cascade import FAMILY
from triptych_contract.stable_cascade.card import CascadeCard

from .. import previews
from ..errors import ExportError
from ..options import ExportOptions
from ..parts import PreviewRecipe, StageRecipe, TableRecipe, require_equal
from ..stages import StageSpec
from ..tokenizers import alike
from ..weights import Kind, Weights, read_index
from . import wuerstchen
from .stages import MODULES, decoder_specs, prior_specs

CLIP = {"text_encoder": "CLIPTextModelWithProjection"}
UNET, VQGAN = "StableCascadeUNet", "PaellaVQModel"
PRIOR = Kind("StableCascadePriorPipeline", {**CLIP, "prior": UNET}, ("tokenizer",))
DECODER = Kind("StableCascadeDecoderPipeline", {**CLIP, "decoder": UNET, "vqgan": VQGAN}, ("tokenizer",))
OPTIONS = ("decoder", "prior_num_inference_steps", "prior_guidance_scale", "decoder_guidance_scale", "size")
# Batch, height and width that stages are checked at, of the three smallest sides that they take.
CHECKS = ((2, 1, 2), (1, 0, 1), (3, 2, 0))
NO_TABLE = TableCard("", 0, False)


class CascadeExport:
    """The folders of a Stable Cascade, checked."""

    name = FAMILY.name

    def __init__(self, prior: Weights, decoder: Weights, options: ExportOptions) -> None:
        self.prior, self.decoder, self.options = prior, decoder, options
        _check_folders(prior, decoder)
        if self._size not in self._sides:
            raise ExportError(f"size: {self._size} pixels; legal: {', '.join(map(str, self._sides))}")

    @classmethod
    def open(cls, folder: Path, options: ExportOptions) -> CascadeExport:
        """Open the prior's folder and the decoder's.

        Raises:
            ExportError: one is not supported, or an option is missing or another family's.
        """
        options.check("Stable Cascade", OPTIONS)
        if read_index(folder)["_class_name"] == DECODER.pipeline:
            raise ExportError(f"{folder}: a {DECODER.pipeline}; the prior's folder comes first, this one as --decoder")
        if options.decoder is None:
            raise ExportError(f"--decoder: missing; Stable Cascade also needs the folder of a {DECODER.pipeline}")
        return cls(Weights.open(folder, PRIOR), Weights.open(options.decoder, DECODER), options)

    @property
    def tokenizers(self) -> dict[str, Weights]:
        return {"tokenizer": self.prior}

    def stages(self, tokens: int) -> dict[str, StageRecipe]:
        own = decoder_specs(self.decoder, tokens, own_text_encoder=self._own_text_encoder)
        stages = {name: self._stage(name, self.prior, spec) for name, spec in prior_specs(self.prior, tokens).items()}
        return stages | {name: self._stage(name, self.decoder, spec) for name, spec in own.items()}

    def tables(self) -> dict[str, TableRecipe]:
        return {name: _table(name, weights.config("scheduler")) for name, weights in self._folders.items()}

    def previews(self, build: Path) -> dict[str, PreviewRecipe]:
        """Stage B's from Stage A's encoder; Stage C's, which has none, from Stage B."""
        side = previews.side(self._card.vqgan_scale_factor, self._size)
        encoder = (self.decoder.source("vqgan"), self.decoder.config("vqgan"), side)
        small = max(side for side in self._sides if side <= max(previews.PRIOR_SIDE, self._sides[0]))
        run = previews.PriorRun(build, self.prior, self.decoder, self._card.sizes(small, small))
        schedulers = [weights.config("scheduler") for weights in self._folders.values()]
        everything = (self.sources(), schedulers, run.sizes)
        first, code = "preview decoder", "previews to_onnx stable_cascade/wuerstchen"
        return {
            "decoder": PreviewRecipe(first, encoder, lambda _made: previews.of_vqgan(self.decoder, side), code),
            "prior": PreviewRecipe("preview prior", everything, lambda made: run.fit(made[first]), code),
        }

    def card(
        self,
        tokenizers: tuple[TokenizerCard, ...],
        tables: Mapping[str, TableCard],
        previews: Mapping[str, PreviewCard],
    ) -> CascadeCard:
        prior, decoder = tables["prior"], tables["decoder"]
        made = replace(self._card, tokenizers=tokenizers, previews=previews, prior_table=prior, decoder_table=decoder)
        smallest = min(side for side in self._sides if 4 * side >= self._size)
        return replace(made, min_size=smallest, max_size=self._sides[-1])

    def layout(self) -> dict[str, bytes]:
        """Optimum has no pipeline for Stable Cascade."""
        return {}

    def sources(self) -> dict[str, str]:
        return {
            (component if component in (name, "vqgan") else f"{name}_{component}"): weights.source(component)
            for name, weights in self._folders.items()
            for component in weights.kind.components
        }

    @property
    def _folders(self) -> dict[str, Weights]:
        return {"prior": self.prior, "decoder": self.decoder}

    @cached_property
    def _own_text_encoder(self) -> bool:
        return len({weights.source("text_encoder") for weights in self._folders.values()}) > 1

    @property
    def _size(self) -> int:
        return self.options.size or int(self.prior.call_defaults["height"])

    @cached_property
    def _card(self) -> CascadeCard:
        """The card without what the export makes, and with sizes from 1 pixel on."""
        options, defaults = self.options, [weights.call_defaults for weights in (self.prior, self.decoder)]
        prior, decoder, vqgan = self.prior.config("prior"), self.decoder.config("decoder"), self.decoder.config("vqgan")
        return CascadeCard(
            name=options.name or "stable-cascade",
            latent_channels=vqgan["latent_channels"],
            min_size=1,
            max_size=2 * self._size,
            default_height=self._size,
            default_width=self._size,
            default_num_inference_steps=_chosen(options.num_inference_steps, defaults[1]["num_inference_steps"]),
            tokenizers=(),
            previews={},
            prior_channels=prior["in_channels"],
            resolution_multiple=self.prior.index.get("resolution_multiple", 42.67),
            latent_dim_scale=self.decoder.index.get("latent_dim_scale", 10.67),
            vqgan_scale_factor=vqgan["up_down_scale_factor"] * 2 ** (vqgan["levels"] - 1),
            prior_multiple=prior["patch_size"],
            latent_multiple=decoder["patch_size"],
            default_prior_num_inference_steps=_chosen(
                options.prior_num_inference_steps, defaults[0]["num_inference_steps"]
            ),
            default_prior_guidance_scale=_chosen(options.prior_guidance_scale, defaults[0]["guidance_scale"]),
            default_decoder_guidance_scale=_chosen(options.decoder_guidance_scale, defaults[1]["guidance_scale"]),
            own_text_encoder=self._own_text_encoder,
            prior_table=NO_TABLE,
            decoder_table=NO_TABLE,
        )

    @cached_property
    def _sides(self) -> list[int]:
        """The sides that come out as they are asked for and that both UNets can halve as often as they do."""
        card = self._card
        least = [_halvings(self.prior.config("prior")), _halvings(self.decoder.config("decoder"))]
        sides = []
        for side in card.legal_sizes:
            prior = card.prior_size(side)
            halved = (prior // card.prior_multiple, card.latent_size(prior) // card.latent_multiple)
            sides += [side] if all(latents >= 2**times for latents, times in zip(halved, least, strict=True)) else []
        if not sides:
            raise ExportError(f"size: no side up to {card.max_size} pixels comes out as it is asked for")
        return sides

    def _stage(self, name: str, weights: Weights, spec: StageSpec) -> StageRecipe:
        sides = (self._sides + 2 * self._sides[-1:])[:3]
        sizes = [{**self._card.sizes(sides[h], sides[w]), "batch": batch} for batch, h, w in CHECKS]
        return StageRecipe(
            weights, spec, MODULES[name], sizes, "stable_cascade/stages", as_stored=name in CascadeCard.denoisers
        )


def _table(name: str, config: Mapping[str, Any]) -> TableRecipe:
    make = partial(wuerstchen.tables, dict(config))
    return TableRecipe(f"samplers/{name}.npz.xz", (config,), make, "stable_cascade/wuerstchen samplers tracing")


def _chosen(option: Any, default: Any) -> Any:
    return default if option is None else option


def _halvings(unet: Mapping[str, Any]) -> int:
    """How often a UNet halves its latents; `switch_level` says where it does, without it every level but the first does."""
    levels = unet.get("switch_level")
    return len(unet["block_out_channels"]) - 1 if levels is None else sum(levels)


def _check_folders(prior: Weights, decoder: Weights) -> None:
    """Stage B takes over Stage C's latents and prompts, Stage A those of Stage B.

    Raises:
        ExportError: they do not fit; names what differs.
    """
    for name, weights in (("prior", prior), ("decoder", decoder)):
        wuerstchen.check_scheduler(name, weights.config("scheduler"))
    if not alike(prior.load_tokenizer("tokenizer"), decoder.load_tokenizer("tokenizer")):
        raise ExportError("decoder tokenizer: differs from the prior's; supported: the same")
    stage_c, stage_b, stage_a = prior.config("prior"), decoder.config("decoder"), decoder.config("vqgan")
    text, pooled = prior.config("text_encoder"), decoder.config("text_encoder")["projection_dim"]
    if not stage_c.get("clip_image_in_channels"):
        raise ExportError("prior/config.json: clip_image_in_channels None; supported: the image embeddings' width")
    must_be = (
        ("prior", stage_c, "out_channels", stage_c["in_channels"], "as many as in_channels"),
        ("prior", stage_c, "clip_text_in_channels", text["hidden_size"], "the text encoder's hidden_size"),
        ("prior", stage_c, "clip_text_pooled_in_channels", text["projection_dim"], "the text encoder's projection_dim"),
        ("decoder", stage_b, "clip_text_pooled_in_channels", pooled, "the text encoder's projection_dim"),
        ("decoder", stage_b, "effnet_in_channels", stage_c["in_channels"], "the prior's in_channels"),
        ("decoder", stage_b, "in_channels", stage_a["latent_channels"], "the VQGAN's latent_channels"),
        ("decoder", stage_b, "out_channels", stage_a["latent_channels"], "the VQGAN's latent_channels"),
        ("vqgan", stage_a, "latent_channels", 4, "as many as diffusers' pipeline draws"),
    )
    for part, config, field, legal, whose in must_be:
        require_equal(f"{part}/config.json: {field}", config.get(field), legal, whose)
