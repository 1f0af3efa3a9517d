"""What the page shows of pictures under way, as HTML; everything that somebody wrote is escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from triptych_contract.families import family_of

from .health import Health, State
from .jobs import Batch, Picture, Status
from .store import Entry
from .templates import escape, fragment
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


def banner(health: Health) -> str:
    """Show the server's state in a line."""
    tone = TONES.get(health.state, "warn" if health.state is State.UNKNOWN else "bad")
    return fragment("banner", health=health, tone=tone)


def problems(found: Sequence[object]) -> str:
    """List what is wrong with the form, a line each; nothing where all is well."""
    return fragment("problems", found=found) if found else ""


def news(batch: Batch | None) -> str:
    """Tell a screen reader how many are done, not every step."""
    if batch is None:
        return ""
    done = sum(picture.status is Status.DONE for picture in batch.pictures)
    left = sum(not picture.status.ended for picture in batch.pictures)
    words = f"{done} of {len(batch.pictures)} pictures done"
    return escape(words + (f", {left} under way." if left else "."))


def progress(batch: Batch | None, now: float) -> str:
    """Show pictures under way: each one, and how long it takes; nothing once all have ended well."""
    if batch is None:
        return fragment("hint", words=NO_PICTURES)
    rows = [
        _row(picture, f"{batch.id}/{index}" if len(batch.pictures) > 1 else "")
        for index, picture in enumerate(batch.pictures)
        if picture.status is not Status.DONE
    ]
    return fragment("progress", times=_times(batch, now), rows=rows) if rows else ""


def _times(batch: Batch, now: float) -> str:
    remaining = batch.remaining_s()
    expected = "" if remaining is None or batch.ended else f", about {remaining:.0f} s to go"
    return f"{batch.elapsed_s(now):.0f} s{expected}"


def live(batch: Batch | None) -> dict[str, Any] | None:
    """Tell how far the picture is that follows a form; `look` is another with every look that it has, "" before the first."""
    if batch is None:
        return None
    (picture,) = batch.pictures
    words = _what(picture)
    if picture.entry:
        words = caption(picture.entry)
    elif picture.sketched and not picture.status.ended:
        words = f"sketch, {words}" if picture.step else "sketch"
    return {
        "look": f"{batch.id}-{picture.looks}" if picture.entry or picture.preview else "",
        "busy": not picture.status.ended,
        "done": picture.entry is not None,
        "words": words,
        "step": picture.step,
        "total": picture.total,
    }


def _row(picture: Picture, stop: str) -> dict[str, Any]:
    return {
        "stop": "" if picture.status.ended else stop,
        "status": picture.status.name.lower(),
        "name": f"seed {picture.seed}" + (f", {picture.label}" if picture.label else ""),
        "what": _what(picture),
        "preview": base64.b64encode(picture.preview).decode() if picture.preview else "",
        "blank": not picture.status.ended,
        "step": picture.step,
        "total": picture.total if picture.status is Status.RUNNING else 0,
    }


def _what(picture: Picture) -> str:
    if picture.status is Status.QUEUED:
        ahead = picture.position or 0
        return f"queued, {ahead} ahead" if ahead else "queued, next"
    if picture.status is Status.RUNNING:
        stage = STAGES.get(picture.stage or "", picture.stage or "")
        return f"step {picture.step} of {picture.total}" + (f" ({stage})" if stage else "")
    return f"{picture.status.value}: {picture.words}" if picture.words else picture.status.value


def caption(entry: Entry, label: str = "") -> str:
    """Describe a picture of a gallery: `label` of a grid's cell or its seed and settings, and its marks. Gradio escapes it."""
    told = (("★ favourite", entry.favourite), ("cached", entry.cached), ("replayable", entry.replayable))
    marks = [word for word, there in told if there]
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
    """Show the settings of the chosen picture as a table."""
    took = "" if entry.milliseconds is None else f" · {entry.milliseconds / 1000:.1f} s on the server"
    heading = f"Settings of {entry.path.name}"
    return fragment("details", marks=caption(entry) + took, caption=heading, rows=_plain(shown_settings(entry)))


def shown_settings(entry: Entry) -> Iterable[tuple[str, Any]]:
    """Give the settings that were asked for or stood in, without what a request leaves empty."""
    names = family_of(entry.ensemble).remembered
    return ((name, entry.settings[name]) for name in names if entry.settings.get(name) is not None)


def _plain(settings: Iterable[tuple[str, Any]]) -> list[tuple[str, str]]:
    return [(name, plain_value(value)) for name, value in settings]


def compared(one: Entry | None, other: Entry | None) -> str:
    """Show what two pictures do not share, as a table; the settings that differ are marked."""
    if one is None or other is None:
        return fragment("hint", words="Choose two pictures of this session.")
    rows = differences(dict(shown_settings(one)), dict(shown_settings(other)))
    return fragment("compared", rows=rows) if rows else fragment("hint", words="These two have the same settings.")


def dropped(written_by: str, settings: Mapping[str, Any], left_out: Sequence[str]) -> str:
    """Show what was read from a dropped picture, and what cannot be honoured."""
    heading = f"Read from a file of {written_by}"
    return fragment("dropped", caption=heading, rows=_plain(settings.items()), left_out=left_out)


def glance(entry: Entry) -> str:
    """Tell a picture on one line, for lists to choose from."""
    prompt = str(entry.settings.get("prompt", ""))
    short = prompt if len(prompt) <= 40 else f"{prompt[:39]}…"
    return " · ".join([*_glances(entry), short])
