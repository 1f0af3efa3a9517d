"""A1111's HTTP, for the tools that speak it. What cannot be honoured is an error that names it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from triptych.async_client import AsyncJob
from triptych.errors import InvalidRequest, RequestCancelled, TriptychError, invalid
from triptych.types import GeneratedImage
from triptych_contract.errors import shown
from triptych_contract.parameters import Choice
from triptych_web.a1111 import EMPHASIS, FIRST, names, schedule, split_sampler

from .asked import Asked, Reading, body_of, finished
from .errors import Json
from .events import unless_gone
from .models import Models
from .pictures import inverted, picture
from .record import record_of

# A field of its HTTP → its name in A1111's text, by which the contract knows it.
SETTINGS = {
    "steps": "Steps",
    "cfg_scale": "CFG scale",
    "seed": "Seed",
    "denoising_strength": "Denoising strength",
    "clip_skip": "Clip skip",
    "refiner_switch_at": "Refiner switch at",
}
# What its clients send with every request, and the values with which it changes nothing here.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "enable_hr": (False,),
    "firstphase_width": (0,),
    "firstphase_height": (0,),
    "styles": ([],),
    "subseed_strength": (0,),
    "seed_resize_from_h": (0, -1),
    "seed_resize_from_w": (0, -1),
    "restore_faces": (False,),
    "tiling": (False,),
    "eta": (1,),
    "s_min_uncond": (0,),
    "s_churn": (0,),
    "s_tmax": (0,),
    "s_tmin": (0,),
    "s_noise": (1,),
    "script_name": ("",),
    "script_args": ([],),
    "alwayson_scripts": ({},),
    "send_images": (True,),
    "save_images": (False,),
    "resize_mode": (0,),
    "initial_noise_multiplier": (1,),
    "include_init_images": (False,),
}
# The same, where there is a mask: from what the picture shows there.
MASKED: Mapping[str, tuple[Any, ...]] = {"inpainting_fill": (1,)}
# What says nothing by itself: how a file is kept that nobody keeps, what belongs to something that is off.
SILENT = re.compile(
    "hr_.*|subseed|do_not_save_(samples|grid)|override_settings_restore_afterwards|image_cfg_scale"
    "|sampler_index|force_task_id"
)
# What the contract calls as it does, or has beside it.
OURS = ("width", "height", "extend")
# The same of a unit of its ControlNet extension, whose picture has to come as the control wants it; and what a unit has for us.
UNIT_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "module": ("none", "None"),
    "resize_mode": (0, "Just Resize"),
    "control_mode": (0, "Balanced"),
    "mask": ("",),
}
UNIT_SILENT = re.compile(
    "enabled|processor_res|threshold_[ab]|pixel_perfect|low_?vram|hr_option|save_detected_map|advanced_weighting"
)
UNIT = {"weight": "scale", "guidance_start": "start", "guidance_end": "end"}
OVERRIDES = {"sd_model_checkpoint": "model", "CLIP_stop_at_last_layers": "clip_skip"}
LORA = re.compile(r"<lora:([^<>:]{1,200}):?([^<>:]{0,20})>")
AROUND = ("mask_blur", "inpaint_full_res", "inpaint_full_res_padding")
MAX_PICTURES = 64


class A1111:
    """The routes below /sdapi/v1."""

    def __init__(self, models: Models) -> None:
        self._models = models
        # By caller, what is being drawn.
        self._active: dict[str, list[list[AsyncJob]]] = {}
        lists = {
            "samplers": self.samplers,
            "schedulers": self.schedulers,
            "sd-models": self.sd_models,
            "loras": self.loras,
            "options": self.options,
            "progress": self.progress,
        }
        self.routes = [
            Route("/sdapi/v1/txt2img", self.txt2img, methods=["POST"]),
            Route("/sdapi/v1/img2img", self.img2img, methods=["POST"]),
            Route("/sdapi/v1/interrupt", self.interrupt, methods=["POST"]),
            Route("/sdapi/v1/options", self.set_options, methods=["POST"]),
            *(Route(f"/sdapi/v1/{name}", endpoint, methods=["GET"]) for name, endpoint in lists.items()),
            Route("/controlnet/model_list", self.controls, methods=["GET"]),
        ]

    async def txt2img(self, request: Request) -> Response:
        """Draw pictures."""
        return await self._answer(request, {"init_images", "mask"})

    async def img2img(self, request: Request) -> Response:
        """Draw pictures that begin with one."""
        return await self._answer(request, set())

    async def _answer(self, request: Request, foreign: set[str]) -> Response:
        record = record_of(request)
        body = await body_of(request)
        model = await self._models.get(_checkpoint(body))
        reading = Reading(model)
        await asyncio.to_thread(_read, reading, body, foreign)
        wanted = await finished(reading, record.caller)
        with record.begun(wanted):
            images = await unless_gone(request, self._drawn(record.caller.id, wanted))
            record.drawn(images)
        return Json(await asyncio.to_thread(_written, body, wanted, images))

    async def _drawn(self, caller: str, wanted: Asked) -> list[GeneratedImage]:
        """Draw; what is interrupted is left out."""
        drawing = wanted.model.client.submit_many(n=wanted.n, **wanted.settings)
        active = self._active.setdefault(caller, [])
        active.append(drawing)
        try:
            with wanted.told(self._models):
                return [image for image in await asyncio.gather(*map(_unless_cancelled, drawing)) if image]
        finally:
            active.remove(drawing)
            if not active:
                self._active.pop(caller, None)
            await asyncio.gather(*(one.cancel() for one in drawing), return_exceptions=True)

    async def progress(self, request: Request) -> Response:
        """Tell how far the caller's oldest request is."""
        drawing = next(iter(self._active.get(record_of(request).caller.id, ())), [])
        one = next((one for one in drawing if not one.task.done()), None)
        told: Mapping[str, Any] = {}
        if one is not None:
            with contextlib.suppress(TriptychError):
                previews = request.query_params.get("skip_current_image", "false").lower() != "true"
                told = await one.status(previews=previews)
        done, step, steps = sum(one.task.done() for one in drawing), told.get("step", 0), told.get("num_steps", 0)
        share = (done + step / max(1, steps)) / len(drawing) if drawing else 0.0
        state = {"skipped": False, "interrupted": False, "job": one.id if one else "", "job_count": len(drawing)}
        state |= {"job_no": done, "sampling_step": step, "sampling_steps": steps, "job_timestamp": "0"}
        eta, shown_now = told.get("remaining_s") or 0.0, told.get("preview")
        return Json(
            {"progress": share, "eta_relative": eta, "state": state, "current_image": shown_now, "textinfo": None}
        )

    async def interrupt(self, request: Request) -> Response:
        """Stop all that the caller draws."""
        drawing = [one for many in self._active.get(record_of(request).caller.id, ()) for one in many]
        await asyncio.gather(*(one.cancel() for one in drawing), return_exceptions=True)
        return Json({})

    async def samplers(self, _: Request) -> Response:
        """List the samplers of every model, by A1111's names."""
        found = {name: title for kind in await self._choices("Sampler") for name, title in _titles(kind)}
        return Json([{"name": title, "aliases": [name], "options": {}} for name, title in found.items()])

    async def schedulers(self, _: Request) -> Response:
        """List the schedules of every model."""
        found = {"automatic": None} | {
            name: None for kind in await self._choices("Schedule type") for name in kind.names
        }
        empty = {"aliases": None, "default_rho": -1, "need_inner_model": False}
        return Json([{"name": name, "label": name.replace("_", " ").capitalize(), **empty} for name in found])

    async def sd_models(self, _: Request) -> Response:
        """List the models."""
        nothing = {"hash": None, "sha256": None, "filename": "", "config": None}
        return Json([{"title": name, "model_name": name, **nothing} for name in await self._models.all()])

    async def loras(self, _: Request) -> Response:
        """List the adapters."""
        found = {name: None for one in (await self._models.all()).values() for name in one.adapters}
        return Json([{"name": name, "alias": name, "path": "", "metadata": {}} for name in found])

    async def controls(self, _: Request) -> Response:
        """List the controls, as its ControlNet extension does."""
        found = {
            name: None for one in (await self._models.all()).values() for name in getattr(one.card, "controls", ())
        }
        return Json({"model_list": [*found]})

    async def options(self, _: Request) -> Response:
        """Tell the settings that requests have which override none."""
        return Json({"sd_model_checkpoint": next(iter(await self._models.all())), "samples_format": "png"})

    async def set_options(self, request: Request) -> Response:
        """Refuse settings for all requests to come: this front keeps nothing of one for the next."""
        for name, value in (await body_of(request)).items():
            if (name, value) != ("sd_model_checkpoint", next(iter(await self._models.all()))):
                raise invalid(name, shown(value)[:60], "override_settings of each request")
        return Json({})

    async def _choices(self, called: str) -> list[Any]:
        kinds = []
        for model in (await self._models.all()).values():
            ours = names(model.family).get(called)
            kind = model.family.parameters[ours].kind.of(model.card) if ours else None
            if isinstance(kind, Choice):
                kinds.append(kind)
        return kinds


async def _unless_cancelled(one: AsyncJob) -> GeneratedImage | None:
    try:
        return await one.get()
    except RequestCancelled:
        return None


def _titles(kind: Any) -> Iterator[tuple[str, str]]:
    return ((name, kind.titles.get(name, name)) for name in kind.names)


def _checkpoint(body: Mapping[str, Any]) -> Any:
    overrides = body.get("override_settings")
    return overrides.get("sd_model_checkpoint") if isinstance(overrides, dict) else None


def _read(reading: Reading, body: Mapping[str, Any], foreign: set[str]) -> None:
    given = {name: value for name, value in body.items() if value is not None}
    neutral = {**NEUTRAL, **(MASKED if "mask" in given else {})}
    ours = names(reading.model.family)
    _overrides(reading, given)
    _prompts(reading, given)
    _sampler(reading, given, ours)
    _pictures(reading, given, foreign)
    _controls(reading, given)
    if "init_image" not in reading.settings:
        given.pop("denoising_strength", None)  # of a second pass, which is off
    if given.get("seed") == -1:
        del given["seed"]
    reading.fields["n"] = _count(reading, given)
    for name, value in given.items():
        parameter = ours.get(SETTINGS.get(name, ""), name if name in OURS else "")
        if parameter:
            reading.take(parameter, value, name)
        elif name in neutral:
            if value not in neutral[name]:
                reading.refuse(name, shown(value), " or ".join(map(str, neutral[name])))
        elif name not in MASKED and not SILENT.fullmatch(name):
            known = ", ".join(sorted({"prompt", "negative_prompt", *OURS, *SETTINGS, *NEUTRAL}))
            reading.refuse(name, "what this server does not have", known)


def _count(reading: Reading, given: dict[str, Any]) -> int:
    n = 1
    for name in ("batch_size", "n_iter"):
        count = given.pop(name, 1)
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= n * count <= MAX_PICTURES:
            reading.refuse(name, shown(count), f"1 … {MAX_PICTURES}, and so many in all")
        else:
            n *= count
    return n


def _overrides(reading: Reading, given: dict[str, Any]) -> None:
    overrides = given.pop("override_settings", {})
    if not isinstance(overrides, dict):
        reading.refuse("override_settings", shown(overrides), "an object")
        return
    for name, value in overrides.items():
        if name not in OVERRIDES:
            reading.refuse(f"override_settings.{name}", shown(value), ", ".join(OVERRIDES))
        elif OVERRIDES[name] == "clip_skip":
            given.setdefault("clip_skip", value)
    for name, first in FIRST.items():  # it counts from another number
        if isinstance(given.get(name), int):
            given[name] -= first


def _prompts(reading: Reading, given: dict[str, Any]) -> None:
    declared = reading.model.family.parameters
    adapters: list[dict[str, Any]] = []
    for name in ("prompt", "negative_prompt"):
        text = given.pop(name, None)
        if isinstance(text, str):
            tags = LORA.finditer(text)
            adapters += [{"name": tag[1], "scale": _weight(reading, tag[0], tag[2])} for tag in tags]
            text = LORA.sub("", text).strip() if "lora" in declared else text
            if "prompt_syntax" not in declared and (found := EMPHASIS.search(text)):
                reading.refuse(name, found[0], "words without weights")
        if text is not None:
            reading.take(name, text)
    if adapters and "lora" not in declared:
        reading.refuse("prompt", f"<lora:{adapters[0]['name']}>", "no adapters: this model has none")
    elif adapters:
        reading.take("lora", adapters, "prompt")
    if "prompt_syntax" in declared:
        reading.take("prompt_syntax", "a1111")


def _weight(reading: Reading, tag: str, text: str) -> float:
    try:
        return float(text or 1)
    except ValueError:
        reading.refuse("prompt", tag, "<lora:name:weight>")
        return 1.0


def _sampler(reading: Reading, given: dict[str, Any], ours: Mapping[str, str]) -> None:
    index = given.pop("sampler_index", None)
    named, kind = given.pop("sampler_name", index), given.pop("scheduler", "")
    if not all(isinstance(text, (str, type(None))) for text in (named, kind)):
        reading.refuse("sampler_name", shown(named), "a text, as scheduler")
        return
    sampler, suffix = split_sampler(named or "")
    schedules = "" if not kind or kind.lower() == "automatic" else schedule(kind)
    for called, value in (("Sampler", sampler), ("Schedule type", schedules or suffix)):
        field = {"Sampler": "sampler_name", "Schedule type": "scheduler"}[called]
        if value and called in ours:
            reading.take(ours[called], value, field)
        elif value:
            reading.refuse(field, shown(value), "nothing: this model has one of its own")


def _pictures(reading: Reading, given: dict[str, Any], foreign: set[str]) -> None:
    for name in foreign & given.keys():
        reading.refuse(name, "a picture", "nothing: /sdapi/v1/img2img starts from one")
        del given[name]
    images = given.pop("init_images", None)
    invert, mask = given.pop("inpainting_mask_invert", 0), given.pop("mask", None)
    if not foreign and (not isinstance(images, list) or len(images) != 1):
        reading.refuse("init_images", shown(images)[:40] if not isinstance(images, list) else f"{len(images)}", "one")
    elif images:
        reading.take("init_image", images[0], "init_images")
    _around_the_mask(reading, given, masked=mask is not None)
    if invert not in (0, 1):
        reading.refuse("inpainting_mask_invert", shown(invert), "0 or 1")
    elif mask is not None:
        try:
            reading.take("mask", inverted(picture("mask", mask)) if invert else mask)
        except InvalidRequest as error:
            reading.problems += error.problems


def _around_the_mask(reading: Reading, given: dict[str, Any], *, masked: bool) -> None:
    """Take how the mask ends, and whether only its surroundings are painted; without a mask that says nothing."""
    blur, only, padding = (given.pop(name, None) for name in AROUND)
    if masked and blur is not None:
        reading.take("mask_blur", blur)
    if masked and only not in (None, False, True):
        reading.refuse("inpaint_full_res", shown(only), "true or false")
    elif masked and only:
        reading.take("padding_mask_crop", padding or 0, "inpaint_full_res_padding")


def _controls(reading: Reading, given: dict[str, Any]) -> None:
    """Take the units of the ControlNet extension that are on."""
    scripts, field = given.get("alwayson_scripts"), "alwayson_scripts.controlnet"
    if not isinstance(scripts, dict) or "controlnet" not in scripts:
        return
    given["alwayson_scripts"] = {name: script for name, script in scripts.items() if name != "controlnet"}
    units = scripts["controlnet"].get("args") if isinstance(scripts["controlnet"], dict) else None
    if not isinstance(units, list) or not all(isinstance(unit, dict) for unit in units):
        reading.refuse(field, shown(scripts["controlnet"])[:40], "an object with a list of units as args")
        return
    if units := [unit for unit in units if unit.get("enabled", True)]:
        reading.take("control", [_unit(reading, unit, field) for unit in units], field)
        reading.take("control_images", [unit.get("image", unit.get("input_image")) for unit in units], field)


def _unit(reading: Reading, unit: Mapping[str, Any], field: str) -> dict[str, Any]:
    control: dict[str, Any] = {"name": ""}
    for name, value in unit.items():
        if name == "model" and isinstance(value, str):
            control["name"] = value.partition(" [")[0]  # its hash
        elif name in UNIT:
            control[UNIT[name]] = value
        elif name in UNIT_NEUTRAL:
            if value not in UNIT_NEUTRAL[name]:
                reading.refuse(f"{field}.{name}", shown(value), " or ".join(map(str, UNIT_NEUTRAL[name])))
        elif name not in ("image", "input_image") and not UNIT_SILENT.fullmatch(name):
            known = ", ".join(["image", "model", *UNIT, *UNIT_NEUTRAL])
            reading.refuse(f"{field}.{name}", "what this server does not have", known)
    return control


def _written(body: Mapping[str, Any], wanted: Asked, images: Sequence[GeneratedImage]) -> dict[str, Any]:
    """Write A1111's answer; `info` is JSON as text."""
    receipts = [dict(image.receipt) for image in images]
    seeds = [image.seed for image in images]
    info = {"prompt": body.get("prompt", ""), "negative_prompt": body.get("negative_prompt", ""), "all_seeds": seeds}
    info |= {"seed": seeds[0] if seeds else -1, "sd_model_name": wanted.model.name, "batch_size": len(images)}
    info |= {"interrupted": len(images) < wanted.n, "infotexts": [*map(_infotext, images)], "triptych": receipts}
    if receipts:
        info |= {name: receipts[0][name] for name in ("width", "height")}
    sent = {name: value for name, value in body.items() if name not in ("init_images", "mask", "alwayson_scripts")}
    return {
        "images": [base64.b64encode(image.data).decode() for image in images],
        "parameters": sent,
        "info": json.dumps(info),
    }


def _infotext(image: GeneratedImage) -> str:
    """Give what A1111 calls the parameters of a file; the server wrote it."""
    from PIL import Image

    with Image.open(io.BytesIO(image.data)) as read:
        return str(read.info.get("parameters", ""))
