"""The page: what stands where. What its parts do is in `wiring`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from .fields import ENDINGS, Fields
from .templates import fragment

TITLE = "Triptych"
EXAMPLES = (
    "a 3d render of a red apple",
    "a flat icon of a penguin",
    "a 3d render of a rocket",
    "a drawing of a smiling sun",
)
NO_AXIS = "none"
FAVOUR, FAVOURED = "☆ Favourite", "★ Favourite"


@dataclass
class Results:
    """Where pictures under way and done are shown."""

    progress: Any
    gallery: Any
    ids: Any  # of the gallery's pictures and the words under them, in its order


@dataclass
class Panel:
    """The chosen picture, and what can be done with it; `box` is hidden until there is one."""

    box: Any
    id: Any
    details: Any
    download: Any
    use: Any
    vary: Any
    send: Any
    as_a: Any
    as_b: Any
    favourite: Any
    command: Any
    code: Any


@dataclass
class Compare:
    """Two pictures beside each other."""

    a: Any
    b: Any
    slider: Any
    left: Any
    right: Any
    differences: Any


@dataclass
class Page:
    """All parts of the page."""

    blocks: gr.Blocks
    look: Any
    seen: Any
    look_for_forms: Any
    forms_seen: Any
    banner: Any
    news: Any
    model: Any
    fields: Fields
    problems: Any
    generate: Any
    stop: Any
    live: Any
    redraw: Any
    examples: Any
    results: Results
    grid: Results
    grid_axes: list[Any]
    grid_start: Any
    grid_stop: Any
    grid_problems: Any
    history: Results
    favourites: Any
    archive: Any
    clear: Any
    compare: Compare
    drop: Any
    dropped: Any
    panel: Panel


def theme() -> gr.themes.Base:
    """Make the colours for light and dark. The system's own fonts: nothing is fetched."""
    fonts = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    mono = ("ui-monospace", "Consolas", "monospace")
    made = gr.themes.Default(
        primary_hue="indigo", secondary_hue="indigo", neutral_hue="slate", font=fonts, font_mono=mono
    )
    # Gradio's own greys are too pale to be read by everybody.
    words, dark = "*neutral_600", "*neutral_300"
    return made.set(
        block_info_text_color=words,
        block_info_text_color_dark=dark,
        block_label_text_color=words,
        block_label_text_color_dark=dark,
        block_title_text_color="*neutral_700",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
        button_cancel_background_fill="#b91c1c",
        button_cancel_background_fill_dark="#b91c1c",
        input_border_color_dark="*neutral_600",
        checkbox_border_color="*neutral_400",
        checkbox_border_color_dark="*neutral_400",
        body_background_fill="*neutral_50",
        block_radius="*radius_md",
        button_large_text_size="*text_md",
        button_large_padding="*spacing_md *spacing_lg",
    )


def lay_out() -> Page:
    """Make the components."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as blocks:
        # The page's script presses these when there is news. What models there are changes with a restart at most, and
        # has many parts to look at.
        parts: dict[str, Any] = {"blocks": blocks, "look": _unseen("tp-look"), "seen": gr.State({})}
        parts |= {"look_for_forms": _unseen("tp-look-for-forms"), "forms_seen": gr.State(0)}
        with gr.Row(elem_id="tp-head"):
            gr.Markdown(f"# {TITLE}")
            gr.Button("Light / dark", elem_id="tp-theme", size="sm", scale=0, min_width=110)
        parts["banner"] = _html("tp-banner")
        parts["news"] = _html("tp-news")
        with gr.Row(elem_id="tp-main"):
            with gr.Column(scale=4, min_width=320, elem_id="tp-form"):
                parts |= _form()
            with gr.Column(scale=7, min_width=320, elem_id="tp-made"):
                parts |= _made()
    return Page(**parts)


def _html(elem_id: str | None = None) -> Any:
    # Without Gradio's own click handler, which would make plain words look like a button.
    return gr.HTML("", elem_id=elem_id, js_on_load=None, apply_default_css=False)


def _unseen(elem_id: str) -> Any:
    return gr.Button("", visible="hidden", elem_id=elem_id)


def _form() -> dict[str, Any]:
    fields = Fields()
    with gr.Column(elem_id="tp-ask"):
        model = gr.Radio([], label="Model", elem_id="tp-model")
        fields.prompts()
        with gr.Row():
            generate = gr.Button("Generate", variant="primary", scale=3, elem_id="tp-generate")
            stop = gr.Button("Stop", variant="stop", interactive=False, min_width=80, elem_id="tp-stop")
        live = gr.Checkbox(label="Live: every change is drawn at once", elem_id="tp-live-on", container=False)
        redraw = _unseen("tp-redraw")
        problems = _html("tp-problems")
        examples = gr.Examples([[text] for text in EXAMPLES], [fields.by_name["prompt"]], label="Examples")
    with gr.Column(elem_id="tp-settings"):
        fields.settings()
    asked = {"model": model, "fields": fields, "problems": problems, "generate": generate, "stop": stop}
    return {**asked, "live": live, "redraw": redraw, "examples": examples}


def _made() -> dict[str, Any]:
    parts: dict[str, Any] = {}
    with gr.Tabs(overflow_behavior="wrap"):
        with gr.Tab("Pictures"):
            # The page's script fills it in.
            gr.HTML(fragment("live"), elem_id="tp-live-place", js_on_load=None, apply_default_css=False)
            parts["results"] = _results("Pictures", "tp-results")
        with gr.Tab("Grid"):
            parts |= _grid()
        with gr.Tab("Compare", elem_id="tp-compare-tab"):
            parts["compare"] = _compare()
        with gr.Tab("History"):
            parts |= _history()
        with gr.Tab("Drop a PNG", elem_id="tp-drop-tab"):
            parts |= _drop()
    parts["panel"] = _panel()
    return parts


def _results(label: str, elem_id: str, *, progress: bool = True) -> Results:
    shown = _html(f"{elem_id}-progress") if progress else None
    gallery = gr.Gallery(
        label=label,
        elem_id=elem_id,
        columns=4,
        object_fit="contain",
        interactive=False,
        fit_columns=False,
        height="auto",
        visible=False,
        show_label=False,
        buttons=["download", "fullscreen"],
    )
    return Results(shown, gallery, gr.State([]))


def _compare() -> Compare:
    with gr.Row():
        a = gr.Dropdown(label="A", choices=[], value=None, interactive=True)
        b = gr.Dropdown(label="B", choices=[], value=None, interactive=True)
    differences = _html("tp-differences")
    shown: dict[str, Any] = {
        "interactive": False,
        "type": "filepath",
        "visible": False,
        "show_label": False,
        "buttons": ["fullscreen"],
    }
    slider = gr.ImageSlider(label="A over B", elem_id="tp-slider", max_height=520, **shown)
    with gr.Row():
        left = gr.Image(label="A", elem_id="tp-a", **shown)
        right = gr.Image(label="B", elem_id="tp-b", **shown)
    return Compare(a, b, slider, left, right, differences)


def _grid() -> dict[str, Any]:
    gr.Markdown(
        "Everything as in the form, with one seed for all; one setting changes along each axis. "
        "Values as `4, 6, 8`, `4-8 (+2)` or `4-8 [3]`."
    )
    with gr.Row():
        x_name = gr.Dropdown(label="X: setting", choices=[], value=None, scale=2, min_width=200, elem_id="tp-x")
        x_text = gr.Textbox(label="X: values", placeholder="4, 6, 8", min_width=120, elem_id="tp-x-values")
        y_name = gr.Dropdown(
            label="Y: setting", choices=[NO_AXIS], value=NO_AXIS, scale=2, min_width=200, elem_id="tp-y"
        )
        y_text = gr.Textbox(label="Y: values", min_width=120, elem_id="tp-y-values")
    with gr.Row():
        start = gr.Button("Draw the grid", variant="primary", scale=3, elem_id="tp-grid-start")
        stop = gr.Button("Stop", variant="stop", interactive=False, min_width=80)
    problems = _html("tp-grid-problems")
    found = {"grid_axes": [x_name, x_text, y_name, y_text], "grid_start": start, "grid_stop": stop}
    return {**found, "grid_problems": problems, "grid": _results("Grid", "tp-grid")}


def _history() -> dict[str, Any]:
    gr.Markdown(
        "Pictures of this browser's session, newest first. They are deleted when it has not been used for a day."
    )
    with gr.Row(elem_id="tp-history-deeds"):
        small: dict[str, Any] = {"size": "sm", "scale": 0, "min_width": 150}
        favourites = gr.Checkbox(label="Favourites only", container=False, elem_id="tp-favourites")
        archive = gr.Button("Download these as ZIP", elem_id="tp-zip", **small)
        clear = gr.Button("Delete all but favourites", elem_id="tp-clear", **small)
    history = _results("History", "tp-history", progress=False)
    return {"history": history, "favourites": favourites, "archive": archive, "clear": clear}


def _drop() -> dict[str, Any]:
    gr.Markdown("A picture made by Triptych, A1111 or InvokeAI: its settings are filled into the form.")
    drop = gr.File(label="PNG, JPEG or WebP", file_types=ENDINGS, type="filepath", elem_id="tp-drop")
    return {"drop": drop, "dropped": _html("tp-dropped")}


def _panel() -> Panel:
    with gr.Accordion("Chosen picture", open=True, visible=False, elem_id="tp-panel") as box:
        id = gr.State("")
        with gr.Row(elem_id="tp-deeds"):
            small: dict[str, Any] = {"size": "md", "min_width": 150}
            download = gr.DownloadButton(
                "Download", variant="primary", interactive=False, elem_id="tp-download", **small
            )
            use = gr.Button("Use these settings", elem_id="tp-use", **small)
            vary = gr.Button("Vary the seed", elem_id="tp-vary", **small)
            send = gr.Button("Start from it", elem_id="tp-send", **small)
            as_a = gr.Button("Compare as A", elem_id="tp-as-a", **small)
            as_b = gr.Button("Compare as B", elem_id="tp-as-b", **small)
            favourite = gr.Button(FAVOUR, elem_id="tp-favourite", **small)
        details = _html("tp-details")
        with gr.Accordion("As a command line, as Python", open=False):
            command = gr.Textbox(label="Command line", interactive=False, buttons=["copy"], elem_id="tp-command")
            code = gr.Textbox(
                label="Python", interactive=False, lines=6, max_lines=20, buttons=["copy"], elem_id="tp-code"
            )
    return Panel(box, id, details, download, use, vary, send, as_a, as_b, favourite, command, code)
