"""The form's components: made once for all models, shown and bounded for the one that is chosen."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import gradio as gr

from triptych_contract.listed import Listed
from triptych_contract.parameters import (
    Choice,
    File,
    Files,
    Flag,
    Integer,
    Integers,
    LongInteger,
    Number,
    Parameter,
    Side,
)
from triptych_contract.settings import Reading

from .forms import EVERY, FILES, LISTS, PICTURES, STACKS, Form
from .loading import without_stubs
from .seeds import MAX_IMAGES
from .sizes import presets
from .weights import offered, picked, weights

ENDINGS = [".png", ".jpg", ".jpeg", ".webp"]
IN_ORDER = '<p class="tp-note">One picture for each control, in their order, or one for all.</p>'

with without_stubs():

    class Slider(gr.Slider):  # type: ignore[misc]  # Gradio has no types
        """Gradio's slider, with a number field, which lets any number through to the contract's check."""

        def preprocess(self, payload: Any) -> Any:
            return payload

        def get_block_name(self) -> str:
            return "slider"


class Fields:
    """The components, by the contract's names; `components` are in the order of `names`. Made where the page has them."""

    def __init__(self) -> None:
        self.by_name: dict[str, Any] = {}

    def settings(self) -> None:
        """Make the fields of all settings; after the prompts."""
        main = {name: one for name, one in EVERY.items() if one.main}
        start = [name for name, one in EVERY.items() if one.group == EVERY[PICTURES[0]].group]
        choices = {name for name, one in main.items() if isinstance(one.kind, Choice)}
        follow = [name for name, one in EVERY.items() if one.group == EVERY[STACKS[0]].group]
        with gr.Row(elem_id="tp-main-numbers"):
            self._make_all(main.keys() - choices)
        with gr.Row():
            self._make_all(choices)
        self._size()
        self._seed()
        self._make_all(set(LISTS) - set(follow))
        with gr.Accordion("More settings", open=False), gr.Row(elem_id="tp-more"):
            self._make_all(EVERY.keys() - self.by_name.keys() - {*start, *follow}, told=True)
        with gr.Accordion("Follow pictures", open=False, elem_id="tp-follow", visible=False) as self.follow:
            self._make_all(follow)
            gr.HTML(IN_ORDER)
        with gr.Accordion("Start from a picture", open=False, elem_id="tp-start") as self.start:
            with gr.Row():
                self._make_all(PICTURES)
            self.draw = gr.Button("Draw the mask", size="sm", elem_id="tp-draw-mask")
            self._make_all(set(start) - set(PICTURES), told=True)

    @property
    def names(self) -> list[str]:
        """The names of the settings that have a field."""
        return list(self.by_name)

    @property
    def components(self) -> list[Any]:
        """The components, in the order of their names."""
        return list(self.by_name.values())

    @property
    def changes(self) -> list[Any]:
        """The events by which somebody changes a field; of a text the one when it is left."""
        parts = [part for name, part in self.by_name.items() if name not in FILES]
        return [*(part.blur if isinstance(part, gr.Textbox) else part.input for part in parts), *self._stacked]

    @property
    def moves(self) -> list[Any]:
        """The events by which a field moves under somebody's hand, key by key; not of those that move others first."""
        plain = [part.input for name, part in self.by_name.items() if name not in (*FILES, "sampler")]
        pictures = [self.by_name[name] for name in PICTURES if name != "mask"]
        return [*plain, *(event for part in pictures for event in (part.upload, part.clear)), *self._stacked]

    @property
    def _stacked(self) -> list[Any]:
        """The events by which somebody changes fields of several pictures."""
        return [event for name in STACKS for event in (self.by_name[name].upload, self.by_name[name].delete)]

    def values(self, given: Sequence[Any]) -> dict[str, Any]:
        """Give what the components hold, by name."""
        return dict(zip(self.by_name, given, strict=True))

    def shown(self, form: Form, settings: Mapping[str, Any]) -> dict[Any, Any]:
        """Give updates, by component, for a form with these settings; what they leave out gets the form's default."""
        reading = form.read(settings)
        return {component: _update(name, form, settings, reading) for name, component in self.by_name.items()}

    def prompts(self) -> None:
        """Make the fields of the prompts."""
        # To be written in before the server has told what it takes.
        shown: dict[str, Any] = {"visible": True, "autofocus": True, "elem_id": "tp-prompt"}
        self._make("prompt", lines=3, max_lines=8, placeholder="What to draw", **shown)
        self._make("negative_prompt", lines=1, max_lines=4, placeholder="What not", visible=True)

    def _make_all(self, names: Collection[str], *, told: bool = False) -> None:
        """Make fields in the contract's order; where `told`, with words on what they are about."""
        for name, one in EVERY.items():
            if name in names:
                self._make(name, **({"info": _info(one)} if told else {}))

    def _make(self, name: str, **options: Any) -> None:
        self.by_name[name] = _component(EVERY[name], **options)

    def _size(self) -> None:
        with gr.Row(elem_id="tp-size"):
            self.preset = gr.Dropdown(
                label="Size", choices=[], value=None, allow_custom_value=True, scale=2, min_width=150
            )
            self._make("width", min_width=70)
            self._make("height", min_width=70)

    def _seed(self) -> None:
        with gr.Row(elem_id="tp-seed"):
            whole: dict[str, Any] = {"visible": True, "max_length": 19, "scale": 2, "min_width": 190}
            no_history = gr.InputHTMLAttributes(autocomplete="off")
            self._make("seed", placeholder="any", html_attributes=no_history, **whole)
            with gr.Column(min_width=130, elem_id="tp-seeds"):
                self.dice = gr.Button("⚄ New seed", size="sm")
                self.keep_seed = gr.Checkbox(label="Keep seed", value=False, container=False)
        with gr.Row():
            self.count = gr.Slider(
                1, MAX_IMAGES, value=1, step=1, precision=0, label="Pictures", scale=2, min_width=190, buttons=[]
            )
            self._make("output_format", min_width=90)


def _component(one: Parameter, **options: Any) -> Any:
    """Make the field of a parameter; choices and bounds come with the form, when the server has told them."""
    facts: dict[str, Any] = {"label": _label(one), "visible": False, **options}
    if isinstance(one.kind, File):
        # As a file and in its own mode, so that its very bytes are sent.
        facts |= {"type": "filepath", "image_mode": None, "sources": ["upload", "clipboard"]}
        return gr.Image(height=220, buttons=[], elem_id=f"tp-{one.name}", **facts)
    if isinstance(one.kind, Files):
        look: dict[str, Any] = {
            "columns": 4,
            "fit_columns": False,
            "height": 190,
            "object_fit": "contain",
            "buttons": [],
            "interactive": True,
        }
        return gr.Gallery(
            type="filepath",
            file_types=["image"],
            sources=["upload", "clipboard"],
            elem_id=f"tp-{one.name}",
            **look,
            **facts,
        )
    if isinstance(one.kind, Choice):
        # Any text is let through to the contract's check, which says what is legal.
        return gr.Dropdown(choices=[], value=None, allow_custom_value=True, **facts)
    if isinstance(one.kind, Flag):
        return gr.Checkbox(**facts)
    if isinstance(one.kind, Listed):
        return weights(one.kind, **{key: value for key, value in facts.items() if key != "info"})
    if _slides(one):
        return Slider(**{"min_width": 140, **_range(one.kind), **facts})
    return gr.Number(value=None, **{"min_width": 140, **facts}) if _is_number(one) else gr.Textbox(**facts)


def _range(kind: Any) -> dict[str, Any]:
    """Give a slider's ends and what one press of an arrow key changes; a limit that is the model's comes with the form."""
    low, high = kind.low, kind.high if isinstance(kind.high, (int, float)) else kind.low + 1
    step = 1 if isinstance(kind, Integer) else 0.05 if high <= 1 else 0.1
    return {"minimum": low, "maximum": max(high, low + step), "step": step, "buttons": []}


def _is_number(one: Parameter) -> bool:
    return isinstance(one.kind, (Integer, Number)) and not isinstance(one.kind, LongInteger)


def _slides(one: Parameter) -> bool:
    """Tell whether a number has a slider, which always stands somewhere; pixels that may be left out have a field, as sides."""
    whole = isinstance(one.kind, Integer)
    return _is_number(one) and not isinstance(one.kind, Side) and not (whole and one.default is None)


def _label(one: Parameter) -> str:
    label = one.label or one.name.replace("_", " ").capitalize()
    return f"{label} ({one.kind.legal})" if isinstance(one.kind, Integers) else label


def _info(one: Parameter) -> str:
    empty = f" Left empty: {one.default_words}." if one.default_words and not _slides(one) else ""
    return f"{one.words}{empty}".replace("`", "")


def _update(name: str, form: Form, settings: Mapping[str, Any], reading: Reading) -> Any:
    one = form.parameters.get(name)
    if one is None:
        return gr.update(visible=False, value=None)
    kind, value = reading.kind(name), settings.get(name, one.default)
    if isinstance(kind, (File, Files)):  # settings cannot fill these in
        return gr.update(visible=True, value=None)
    if isinstance(kind, Choice):
        return _chosen(kind, value, reading.values.get(name))
    if isinstance(kind, Flag):
        return gr.update(visible=True, value=bool(value))
    if isinstance(kind, Listed):
        names = form.listed(name)
        shown = names is not None
        return gr.update(visible=shown, value=picked(kind, name, value) if shown else [], **offered(kind, names or {}))
    if _slides(one):
        value = form.stand_in(name) if value is None else value
        return gr.update(visible=True, value=value, label=_label(one), **_range(kind))
    if _is_number(one):
        return gr.update(visible=True, value=value, label=_label(one))
    words = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str("" if value is None else value)
    return gr.update(visible=True, value=words, label=_label(one))


def _chosen(kind: Choice, value: Any, own: Any) -> Any:
    names: Any = kind.names
    titles: Any = kind.titles
    choices = [(f"{titles[name]} ({name})" if name in titles else name, name) for name in names]
    return gr.update(visible=True, choices=choices, value=value if value in names else own)


def schedules(form: Form, sampler: str | None, chosen: str | None) -> Any:
    """Give the update of the schedules for a sampler."""
    return _update("schedule", form, {"schedule": chosen}, form.read({"sampler": sampler}))


def steps(form: Form, sampler: str | None) -> Any:
    """Give the update of the steps for a sampler; the number stays, and is judged."""
    return gr.update(**_range(form.read({"sampler": sampler}).kind("num_inference_steps")))


def masked(form: Form, strength: float | None, *, mask: bool) -> Any:
    """Give the strength where a mask comes or goes: the one that stands in, unless somebody has set another."""
    with_mask, without = (form.stand_in("strength", *also) for also in (("mask",), ()))
    return with_mask if mask and strength == without else without if not mask and strength == with_mask else gr.skip()


def preset_choices(form: Form, settings: Mapping[str, Any]) -> Any:
    """Give the update of the sizes to choose from; chosen is that of `settings`, else the model's own."""
    own = (form.card.default_width, form.card.default_height)
    sizes = [f"{width} × {height}" for width, height in presets(*own, form.sides)]
    chosen = f"{settings.get('width') or own[0]} × {settings.get('height') or own[1]}"
    return gr.update(choices=sizes, value=chosen)


def preset_sides(text: str | None, form: Form) -> tuple[int, int]:
    """Give width and height of a chosen size; the model's own where it is none."""
    parts = [part.strip() for part in (text or "").replace("x", "×").split("×")]
    if len(parts) == 2 and all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        return int(parts[0]), int(parts[1])
    return form.card.default_width, form.card.default_height
