"""`triptych generate`: pictures from a running server, all in flight at once."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from triptych.async_client import AsyncClient, AsyncJob
from triptych.errors import ServerUnavailable, TriptychError, invalid
from triptych.files import save_in
from triptych.types import Completed, GeneratedImage
from triptych_contract.families import family_of, stranger

from .options import LOCAL, model_option, spelled
from .progress import Progress, progress

# Where `--help` shows an option.
_picture = partial(typer.Option, rich_help_panel="Picture")
_sampling = partial(typer.Option, rich_help_panel="Sampling")
_start = partial(typer.Option, rich_help_panel="Start from a picture")
_cascade = partial(typer.Option, rich_help_panel="Stable Cascade")
_refiner = partial(typer.Option, rich_help_panel="Refiner")
OUTPUT = "Output and server"
_output = partial(typer.Option, rich_help_panel=OUTPUT)


class Format(str, Enum):
    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"


def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    n: Annotated[int, _picture("-n", "--n", min=1, help="Number of pictures, with seeds seed, seed + 1, …")] = 1,
    seed: Annotated[int | None, _picture(help="The same seed makes the same picture; default: any.")] = None,
    negative_prompt: Annotated[str | None, _picture(help="What not to draw.")] = None,
    size: Annotated[str | None, _picture(metavar="WxH", help="Pixels, as 128x96; default: the model's.")] = None,
    original_size: Annotated[str | None, _picture(metavar="WxH", help="Size the model is told it had.")] = None,
    target_size: Annotated[str | None, _picture(metavar="WxH", help="Size the model is told it gets.")] = None,
    crops_coords_top_left: Annotated[
        str | None, _picture(metavar="TOP,LEFT", help="Where the model is told it was cut.")
    ] = None,
    sampler: Annotated[str | None, _sampling(help="As euler; triptych samplers lists them.")] = None,
    schedule: Annotated[str | None, _sampling(help="Noise schedule, as karras.")] = None,
    num_inference_steps: Annotated[
        int | None, _sampling(help="Steps (stable-cascade: Stage B's); default: the model's.")
    ] = None,
    guidance_scale: Annotated[float | None, _sampling(help="1 or less turns guidance off.")] = None,
    guidance_rescale: Annotated[float | None, _sampling(help="0 to 1: take back contrast.")] = None,
    guidance_end: Annotated[float | None, _sampling(help="0 to 1: share of the steps with guidance.")] = None,
    clip_skip: Annotated[int | None, _sampling(help="Text encoder layers to leave out.")] = None,
    prior_num_inference_steps: Annotated[int | None, _cascade(help="Stage C's steps; default: the model's.")] = None,
    prior_guidance_scale: Annotated[float | None, _cascade(help="Stage C's; 1 or less turns guidance off.")] = None,
    decoder_guidance_scale: Annotated[float | None, _cascade(help="Stage B's; 1 or less turns guidance off.")] = None,
    init_image: Annotated[
        Path | None, _start("--init-image", "--image", metavar="FILE", help="PNG, JPEG or WebP to begin with.")
    ] = None,
    mask: Annotated[Path | None, _start(metavar="FILE", help="White is painted anew.")] = None,
    strength: Annotated[float | None, _start(help="0 to 1: how far to go from it.")] = None,
    denoising_end: Annotated[float | None, _refiner(help="0 to 1: where the refiner takes over.")] = None,
    aesthetic_score: Annotated[float | None, _refiner(help="0 to 10; default: 6.")] = None,
    negative_aesthetic_score: Annotated[float | None, _refiner(help="0 to 10; default: 2.5.")] = None,
    output_format: Annotated[Format | None, _output(help="File format.")] = None,
    output: Annotated[
        Path, _output("-o", "--output", "--output-dir", metavar="DIR", help="Folder for the files.")
    ] = Path("."),
    url: Annotated[str, _output(envvar="TRIPTYCH_URL", help="The server's gRPC address.")] = LOCAL,
    model: Annotated[str, model_option(help="The model to ask.", rich_help_panel=OUTPUT)] = "sdxl",
    timeout: Annotated[
        float | None, _output("--timeout", "--deadline", min=0.001, help="Seconds that each picture may take.")
    ] = None,
    tenant: Annotated[str | None, _output(help="Whom the requests belong to.")] = None,
    as_json: Annotated[bool, _output("--json", help="One JSON object a picture on stdout.")] = False,
    quiet: Annotated[bool, _output("--quiet", help="No progress.")] = False,
) -> None:
    """Draw pictures and save them; prints their paths."""
    options = {
        "seed": seed,
        "negative_prompt": negative_prompt,
        **_size(size),
        "original_size": _pair("original_size", original_size),
        "target_size": _pair("target_size", target_size),
        "crops_coords_top_left": _corner(crops_coords_top_left),
        "sampler": sampler,
        "schedule": schedule,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "guidance_rescale": guidance_rescale,
        "guidance_end": guidance_end,
        "clip_skip": clip_skip,
        "prior_num_inference_steps": prior_num_inference_steps,
        "prior_guidance_scale": prior_guidance_scale,
        "decoder_guidance_scale": decoder_guidance_scale,
        "init_image": init_image,
        "mask": mask,
        "strength": strength,
        "denoising_end": denoising_end,
        "aesthetic_score": aesthetic_score,
        "negative_aesthetic_score": negative_aesthetic_score,
        "output_format": output_format and output_format.value,
    }
    parameters = {name: value for name, value in options.items() if value is not None}
    _refuse_strangers(model, parameters)
    client = {"url": url, "timeout": timeout, "tenant": tenant, "model": model}
    output.mkdir(parents=True, exist_ok=True)  # before any work is done for it
    show = _show_json if as_json else _show_path
    failures = asyncio.run(_draw(client, prompt, n, parameters, output, show, quiet))
    if failures:
        for words in dict.fromkeys(map(str, failures[1:])).keys() - {str(failures[0])}:
            sys.stderr.write(f"error: {words}\n")
        raise failures[0]


def _refuse_strangers(model: str, given: Mapping[str, Any]) -> None:
    """Raise InvalidRequest where an option is another model's."""
    legal = family_of(model).parameters
    for name in given:
        if name not in legal:
            options = dict.fromkeys(
                _option(name) for name, one in legal.items() if name != "prompt" and not one.delivery
            )
            raise invalid(_option(name), stranger("an option", name, model), ", ".join(options))


def _option(name: str) -> str:
    return "--size" if name in ("height", "width") else f"--{spelled(name)}"


def _size(text: str | None) -> dict[str, int]:
    pair = _pair("size", text)
    return {"height": pair[0], "width": pair[1]} if pair else {}


def _pair(name: str, text: str | None) -> tuple[int, int] | None:
    """WIDTHxHEIGHT, which people write, as (height, width), which the contract has."""
    if text is None:
        return None
    if not (match := re.fullmatch(r"(\d{1,9})[x×](\d{1,9})", text)):
        raise invalid(name, repr(text), "WIDTHxHEIGHT in pixels, as 128x96")
    return int(match[2]), int(match[1])


def _corner(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    if not (match := re.fullmatch(r"(\d{1,9}), ?(\d{1,9})", text)):
        raise invalid("crops_coords_top_left", repr(text), "TOP,LEFT in pixels, as 0,64")
    return int(match[1]), int(match[2])


async def _draw(
    client: dict[str, Any], prompt: str, n: int, parameters: dict[str, Any], output: Path, show: Any, quiet: bool
) -> list[TriptychError]:
    """Draw all; each is saved and shown as it ends, whatever becomes of the others. Returns the failures, worst first."""
    with ExitStack() as stack:
        async with AsyncClient(**client) as connected:
            jobs = connected.submit_many(prompt, n, **parameters)
            bars = stack.enter_context(progress(jobs, quiet, staged=_staged(connected.model, parameters)))
            drawn = [_follow(job, bars, output, show) for job in jobs]
            results = await asyncio.gather(*drawn, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, TriptychError):
            raise result
    failures = [result for result in results if isinstance(result, TriptychError)]
    return sorted(failures, key=lambda error: isinstance(error, ServerUnavailable))


def _staged(model: str, parameters: Mapping[str, Any]) -> bool:
    """Whether the picture is made by more than one denoiser."""
    return family_of(model).staged(parameters)


async def _follow(job: AsyncJob, bars: Progress, output: Path, show: Any) -> None:
    try:
        async for event in job.iter_events():
            bars.tell(job, event)
            if isinstance(event, Completed):
                show(save_in(output, event.image.format, event.image.data), event.image)
    except TriptychError:
        bars.fail(job)
        raise


def _show_path(path: Path, _image: GeneratedImage) -> None:
    sys.stdout.write(f"{path}\n")
    sys.stdout.flush()


def _show_json(path: Path, image: GeneratedImage) -> None:
    facts = {
        "path": str(path),
        "seed": image.seed,
        "cached": image.cached,
        "timings": image.timings,
        "receipt": image.receipt,
    }
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()
