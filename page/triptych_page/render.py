"""What the page shows of pictures under way, as HTML; everything that somebody wrote is escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape as html_escape
from typing import Any

from triptych_contract.families import family_of

from .health import Health, State
from .jobs import Batch, Picture, Status
from .store import Entry
from .words import differences, plain_value

NO_PICTURES = "Pictures appear here: write what to draw and press Generate, or take an example."
STAGES = {"unet": "", "refiner_unet": "refiner", "prior": "Stage C", "decoder": "Stage B"}
# Settings that tell pictures apart at a glance.
GLANCE = (
    "num_inference_steps",
    "prior_num_inference_steps",
    "guidance_scale",
    "prior_guidance_scale",
    "sampler",
    "schedule",
)
TONES = {State.READY: "good", State.RESTARTED: "good", State.OVERLOADED: "warn", State.LOADING: "warn"}


def escape(text: str) -> str:
    """Text as HTML; also nothing that Gradio's own templates would take for code."""
    coded = html_escape(text)
    return coded.replace("{", "&#123;").replace("$", "&#36;").replace("`", "&#96;")


def banner(health: Health) -> str:
    """The server's state in a line."""
    tone = TONES.get(health.state, "warn" if health.state is State.UNKNOWN else "bad")
    return f'<p class="tp-banner tp-{tone}" data-state="{health.state.value}">{escape(health.text)}</p>'


def problems(found: Sequence[object]) -> str:
    """What is wrong with the form, a line each; nothing where all is well."""
    if not found:
        return ""
    lines = "".join(f"<li>{escape(str(problem))}</li>" for problem in found)
    return f'<ul class="tp-problems" role="alert">{lines}</ul>'


def news(batch: Batch | None) -> str:
    """What a screen reader is told: how many are done, not every step."""
    if batch is None:
        return ""
    done = sum(picture.status is Status.DONE for picture in batch.pictures)
    left = sum(not picture.status.ended for picture in batch.pictures)
    words = f"{done} of {len(batch.pictures)} pictures done"
    return escape(words + (f", {left} under way." if left else "."))


def progress(batch: Batch | None, now: float) -> str:
    """Pictures under way: each one, and how long it takes; nothing once all have ended well."""
    if batch is None:
        return f'<p class="tp-hint">{NO_PICTURES}</p>'
    if all(picture.status is Status.DONE for picture in batch.pictures):
        return ""
    rows = "".join(_row(picture) for picture in batch.pictures if picture.status is not Status.DONE)
    return f'<div class="tp-progress"><p class="tp-time">{_times(batch, now)}</p><ul>{rows}</ul></div>'


def _times(batch: Batch, now: float) -> str:
    remaining = batch.remaining_s()
    expected = "" if remaining is None or batch.ended else f", about {remaining:.0f} s to go"
    return f"{batch.elapsed_s(now):.0f} s{expected}"


def _row(picture: Picture) -> str:
    name = f"seed {picture.seed}" + (f", {picture.label}" if picture.label else "")
    return (
        f'<li data-status="{picture.status.name.lower()}">{_preview(picture, name)}'
        f'<span class="tp-name">{escape(name)}</span><span class="tp-what">{escape(_what(picture))}</span>'
        f"{_bar(picture, name)}</li>"
    )


def _what(picture: Picture) -> str:
    if picture.status is Status.QUEUED:
        ahead = picture.position or 0
        return f"queued, {ahead} ahead" if ahead else "queued, next"
    if picture.status is Status.RUNNING:
        stage = STAGES.get(picture.stage or "", picture.stage or "")
        return f"step {picture.step} of {picture.total}" + (f" ({stage})" if stage else "")
    return f"{picture.status.value}: {picture.words}" if picture.words else picture.status.value


def _bar(picture: Picture, name: str) -> str:
    if picture.status is not Status.RUNNING or not picture.total:
        return ""
    return f'<progress max="{picture.total}" value="{picture.step}" aria-label="{escape(name)}"></progress>'


def _preview(picture: Picture, name: str) -> str:
    if not picture.preview:
        return "" if picture.status.ended else '<div class="tp-blank"></div>'
    data = base64.b64encode(picture.preview).decode()
    return f'<img src="data:image/png;base64,{data}" alt="Preview of {escape(name)}">'


def caption(entry: Entry, label: str = "") -> str:
    """Under a picture in a gallery: `label` of a grid's cell or its seed and settings, and its marks. Gradio escapes it."""
    marks = [word for word, there in (("cached", entry.cached), ("replayable", entry.replayable)) if there]
    return " · ".join([*([label] if label else _glances(entry)), *marks])


def _glances(entry: Entry) -> Iterable[str]:
    told = {name: plain_value(entry.settings[name]) for name in GLANCE if entry.settings.get(name) is not None}
    yield f"seed {entry.seed}"
    # Of Stage C and Stage B, where there are two.
    steps = [told[name] for name in ("prior_num_inference_steps", "num_inference_steps") if name in told]
    if steps:
        yield f"{'+'.join(steps)} steps"
    yield from (f"guidance {told[name]}" for name in ("prior_guidance_scale", "guidance_scale") if name in told)
    yield from (told[name] for name in ("sampler", "schedule") if told.get(name, "default") != "default")


def details(entry: Entry) -> str:
    """The settings of the chosen picture as a table."""
    took = "" if entry.milliseconds is None else f" · {entry.milliseconds / 1000:.1f} s on the server"
    rows = "".join(_setting(name, value) for name, value in shown_settings(entry))
    return (
        f'<p class="tp-marks">{escape(caption(entry) + took)}</p>'
        f'<table class="tp-settings"><caption>Settings of {escape(entry.path.name)}</caption>{rows}</table>'
    )


def shown_settings(entry: Entry) -> Iterable[tuple[str, Any]]:
    """The settings that were asked for or stood in, without what a request leaves empty."""
    names = family_of(entry.ensemble).remembered
    return ((name, entry.settings[name]) for name in names if entry.settings.get(name) is not None)


def _setting(name: str, value: Any) -> str:
    return f'<tr><th scope="row">{escape(name)}</th><td>{escape(plain_value(value))}</td></tr>'


def compared(one: Entry | None, other: Entry | None) -> str:
    """What two pictures do not share, as a table; the settings that differ are marked."""
    if one is None or other is None:
        return '<p class="tp-hint">Choose two pictures of this session.</p>'
    rows = differences(dict(shown_settings(one)), dict(shown_settings(other)))
    if not rows:
        return '<p class="tp-hint">These two have the same settings.</p>'
    body = "".join(_difference(*row) for row in rows)
    head = '<tr><th scope="col">Setting</th><th scope="col">A</th><th scope="col">B</th></tr>'
    return f'<table class="tp-settings"><caption>Settings that differ</caption>{head}{body}</table>'


def _difference(name: str, left: str, right: str) -> str:
    return (
        f'<tr><th scope="row">{escape(name)}</th><td><mark>{escape(left)}</mark></td>'
        f"<td><mark>{escape(right)}</mark></td></tr>"
    )


def dropped(written_by: str, settings: Mapping[str, Any], left_out: Sequence[str]) -> str:
    """What was read from a dropped picture, and what cannot be honoured."""
    taken = "".join(_setting(name, value) for name, value in settings.items())
    table = f'<table class="tp-settings"><caption>Read from a file of {escape(written_by)}</caption>{taken}</table>'
    if not left_out:
        return f"{table}<p>All of its settings can be honoured.</p>"
    lines = "".join(f"<li>{escape(line)}</li>" for line in left_out)
    return f'{table}<p>Cannot be honoured here:</p><ul class="tp-left-out">{lines}</ul>'


def glance(entry: Entry) -> str:
    """A picture on one line, for lists to choose from."""
    prompt = str(entry.settings.get("prompt", ""))
    short = prompt if len(prompt) <= 40 else f"{prompt[:39]}…"
    return " · ".join([*_glances(entry), short])
