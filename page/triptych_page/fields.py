"""The form's components: made once for all models, shown and bounded for the one that is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from .checking import MAX_IMAGES
from .desk import PICTURES
from .forms import FORMATS, Form
from .sizes import presets

# Name → what people call it, and what it does.
NUMBERS: Mapping[str, tuple[str, str]] = {
    "num_inference_steps": ("Steps", ""),
    "guidance_scale": ("Guidance", ""),
    "prior_num_inference_steps": ("Stage C steps", ""),
    "prior_guidance_scale": ("Stage C guidance", ""),
    "decoder_guidance_scale": ("Stage B guidance", ""),
    "denoising_end": ("Hand-over to the refiner", "the share of the steps that the base does"),
    "aesthetic_score": ("Aesthetic score", "what the refiner is told of the prompt"),
    "negative_aesthetic_score": ("Negative aesthetic score", "what the refiner is told of the negative prompt"),
    "guidance_rescale": ("Guidance rescale", "how much contrast is taken back"),
    "guidance_end": ("Guidance end", "the share of the steps that guidance is on for"),
    "clip_skip": ("Clip skip", "last layers of the text encoders to leave out"),
    "strength": ("Strength", "how far to go from the picture; 0.3, with a mask 0.9999, where left empty"),
}
# In the order in which a picture meets them.
MAIN: tuple[str, ...] = ("prior_num_inference_steps", "prior_guidance_scale", "num_inference_steps")
MAIN += ("guidance_scale", "decoder_guidance_scale", "denoising_end")
MORE = ("guidance_rescale", "guidance_end", "clip_skip", "aesthetic_score", "negative_aesthetic_score")
FILES = [".png", ".jpg", ".jpeg", ".webp"]


class Fields:
    """The components, by the contract's names; `components` are in the order of `names`. Made where the page has them."""

    def __init__(self) -> None:
        self.by_name: dict[str, Any] = {}

    def settings(self) -> None:
        """Make the fields of all settings; after the prompts."""
        with gr.Row(elem_id="tp-main-numbers"):
            for name in MAIN:
                self._number(name)
        self._sampling()
        self._size()
        self._seed()
        self._more()
        self._start()

    @property
    def names(self) -> list[str]:
        return list(self.by_name)

    @property
    def components(self) -> list[Any]:
        return list(self.by_name.values())

    def values(self, given: Sequence[Any]) -> dict[str, Any]:
        """What the components hold, by name."""
        return dict(zip(self.by_name, given, strict=True))

    def shown(self, form: Form, settings: Mapping[str, Any]) -> dict[Any, Any]:
        """Updates, by component, for a form with these settings; what they leave out gets the form's default."""
        return {component: self._update(name, form, settings) for name, component in self.by_name.items()}

    def _update(self, name: str, form: Form, settings: Mapping[str, Any]) -> Any:
        visible = name in form.names()
        if name in NUMBERS:
            return _number_update(name, form, settings)
        if name in PICTURES:  # settings cannot fill these in
            return gr.update(visible=visible, value=None)
        if name == "sampler":
            chosen = settings.get("sampler") or form.sampler
            choices = [(f"{sampler.a1111} ({key})", key) for key, sampler in form.samplers.items()]
            return gr.update(choices=choices, value=chosen or None, visible=visible)
        if name == "schedule":
            return schedules(form, settings.get("sampler"), settings.get("schedule"))
        default = {"width": form.width, "height": form.height, "output_format": "png"}.get(name, "")
        value = settings.get(name, default)
        return gr.update(value=str(value) if name == "seed" else value, visible=visible)

    def prompts(self) -> None:
        """Make the fields of the prompts."""
        self.by_name["prompt"] = gr.Textbox(
            label="Prompt", lines=3, max_lines=8, elem_id="tp-prompt", placeholder="What to draw", autofocus=True
        )
        self.by_name["negative_prompt"] = gr.Textbox(
            label="Negative prompt", lines=1, max_lines=4, placeholder="What not"
        )

    def _number(self, name: str) -> None:
        label, info = NUMBERS[name]
        # The bounds come with the form, when the server has told them.
        self.by_name[name] = gr.Number(label=label, info=info or None, value=None, visible=False, min_width=140)

    def _sampling(self) -> None:
        # Filled in and shown when the server has told what it has.
        unknown: dict[str, Any] = {"choices": [], "value": None, "allow_custom_value": True, "visible": False}
        with gr.Row():
            # Any text is let through to our own check, which says what is legal.
            self.by_name["sampler"] = gr.Dropdown(label="Sampler", **unknown)
            self.by_name["schedule"] = gr.Dropdown(label="Schedule", **unknown)

    def _size(self) -> None:
        with gr.Row():
            self.preset = gr.Dropdown(
                label="Size", choices=[], value=None, allow_custom_value=True, scale=2, min_width=150
            )
            self.by_name["width"] = gr.Number(label="Width", precision=0, value=None, visible=False, min_width=70)
            self.by_name["height"] = gr.Number(label="Height", precision=0, value=None, visible=False, min_width=70)

    def _seed(self) -> None:
        with gr.Row(elem_id="tp-seed"):
            self.by_name["seed"] = gr.Textbox(
                label="Seed",
                placeholder="any",
                max_length=19,
                scale=2,
                min_width=190,
                html_attributes=gr.InputHTMLAttributes(autocomplete="off"),
            )
            with gr.Column(min_width=130, elem_id="tp-seeds"):
                self.dice = gr.Button("⚄ New seed", size="sm")
                self.keep_seed = gr.Checkbox(label="Keep seed", value=False, container=False)
        with gr.Row():
            self.count = gr.Slider(
                1, MAX_IMAGES, value=1, step=1, precision=0, label="Pictures", scale=2, min_width=190
            )
            self.by_name["output_format"] = gr.Dropdown(FORMATS, value="png", label="Format", min_width=90)

    def _more(self) -> None:
        with gr.Accordion("More settings", open=False), gr.Row():
            for name in MORE:
                self._number(name)

    def _start(self) -> None:
        with gr.Accordion("Start from a picture", open=False) as self.start:
            with gr.Row():
                for name, label in (("init_image", "Picture to start from"), ("mask", "Mask: white is painted anew")):
                    # As a file and in its own mode, so that its very bytes are sent.
                    self.by_name[name] = gr.Image(
                        label=label,
                        type="filepath",
                        image_mode=None,
                        sources=["upload", "clipboard"],
                        height=220,
                        buttons=[],
                    )
            self._number("strength")


def _number_update(name: str, form: Form, settings: Mapping[str, Any]) -> Any:
    number = form.numbers.get(name)
    if number is None:
        return gr.update(visible=False, value=None)
    label, info = NUMBERS[name]
    if name == "num_inference_steps" and "prior_num_inference_steps" in form.numbers:
        label = "Stage B steps"
    value = settings.get(name, number.default)
    return gr.update(visible=True, value=value, step=number.step, label=f"{label} ({number.legal})", info=info or None)


def schedules(form: Form, sampler: str | None, chosen: str | None) -> Any:
    """The update of the schedules for a sampler."""
    if not form.samplers:
        return gr.update(visible=False, value=None)
    known = form.samplers.get(sampler or form.sampler)
    names = list(known.schedules) if known else []
    value = chosen if chosen in names else form.schedule_of(sampler, None) if known else None
    return gr.update(choices=names, value=value, visible=True)


def preset_choices(form: Form, settings: Mapping[str, Any]) -> Any:
    """The update of the sizes to choose from; chosen is that of `settings`, else the model's own."""
    sizes = [f"{width} × {height}" for width, height in presets(form.width, form.height, form.sides)]
    chosen = f"{settings.get('width') or form.width} × {settings.get('height') or form.height}"
    return gr.update(choices=sizes, value=chosen)


def preset_sides(text: str | None, form: Form) -> tuple[int, int]:
    """Width and height of a chosen size; the model's own where it is none."""
    parts = [part.strip() for part in (text or "").replace("x", "×").split("×")]
    if len(parts) == 2 and all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        return int(parts[0]), int(parts[1])
    return form.width, form.height
