"""`triptych export`: weights to a build folder that `triptych serve` or a Triton of your own can run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


class TargetName(str, Enum):
    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


def export(
    weights: Annotated[
        Path,
        typer.Argument(
            help="Folder in diffusers layout (safetensors): SDXL, or Stable Cascade's prior; or Optimum's ONNX export of SDXL",
            exists=True,
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Build folder; what is up to date in it is kept")],
    target: Annotated[TargetName, typer.Option(help="What will run the model")] = TargetName.CPU,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(help="tensorrt-rtx: GPUs to build for, as 8.9 (repeat); default those that are here"),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            help="cuda, tensorrt…: a stage's precision, as vae_decoder=fp16 (repeat); fp32, fp16, bf16, tensorrt… UNets also fp8"
        ),
    ] = None,
    calibration_prompts: Annotated[
        Path | None,
        typer.Option(
            help="tensorrt…, fp8: prompts, one a line, whose pictures set its scales", exists=True, dir_okay=False
        ),
    ] = None,
    engine_store: Annotated[
        Path | None,
        typer.Option(help="tensorrt…: folder that keeps engines between exports; default in the user's cache"),
    ] = None,
    decoder: Annotated[
        Path | None, typer.Option(help="Stable Cascade decoder's folder, which its prior needs", exists=True)
    ] = None,
    refiner: Annotated[
        Path | None, typer.Option(help="SDXL refiner's folder; its UNet takes over at `denoising_end`", exists=True)
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name in receipts; default: the family's")] = None,
    num_inference_steps: Annotated[
        int | None, typer.Option(help="Default number of steps; Cascade: of its decoder", min=1, max=100)
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="SDXL: default guidance", min=0.0, max=50.0)] = None,
    prior_num_inference_steps: Annotated[
        int | None, typer.Option(help="Cascade: default number of the prior's steps", min=1, max=100)
    ] = None,
    prior_guidance_scale: Annotated[
        float | None, typer.Option(help="Cascade: default guidance of the prior", min=0.0, max=50.0)
    ] = None,
    decoder_guidance_scale: Annotated[
        float | None, typer.Option(help="Cascade: default guidance of the decoder", min=0.0, max=50.0)
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Cascade: the model's own height and width in pixels; default 1024", min=1)
    ] = None,
    sampler: Annotated[
        list[str] | None, typer.Option(help="SDXL: only these samplers, as euler or euler:karras (repeat); default all")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:WEIGHT]", help="SDXL: a LoRA to merge into the weights (repeat); safetensors"),
    ] = None,
    distilled: Annotated[
        str | None,
        typer.Option(help="SDXL: default sampler, steps and guidance of lightning, hyper-sd, lcm or dmd2 weights"),
    ] = None,
    adapters: Annotated[
        int | None,
        typer.Option(
            help="SDXL: graphs for LoRAs by request beside the plain ones; the ranks of a request's are at most this in all",
            metavar="RANK",
            min=1,
            max=1024,
        ),
    ] = None,
    ip_adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="SDXL: an IP-Adapter, which draws like a picture (repeat); safetensors"),
    ] = None,
    image_encoder: Annotated[
        Path | None,
        typer.Option(
            help="SDXL: folder of the CLIP image encoder that --ip-adapter needs", exists=True, file_okay=False
        ),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER[:MODE]",
            help="SDXL: a ControlNet that requests may name (repeat); as diffusers saves it",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress")] = False,
) -> None:
    """Turn weights into ONNX stages, sampler tables and a Triton repository, each checked against PyTorch."""
    _require_exporter()
    # ONNX Runtime's wheels report to their maker unless told not to.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    from triptych_export.build import ExportOptions
    from triptych_export.build import export as build
    from triptych_export.errors import ExportError
    from triptych_serving.tensorrt import memory

    options = ExportOptions(
        target=target.value,
        compute_capabilities=[
            f"sm{one.lower().removeprefix('sm').replace('.', '')}" for one in compute_capability or ()
        ],
        precisions=_by_stage(precision or ()),
        calibration_prompts=_lines(calibration_prompts),
        engine_store=engine_store,
        name=name,
        num_inference_steps=num_inference_steps,
        refiner=refiner,
        guidance_scale=guidance_scale,
        samplers=tuple(sampler) if sampler else None,
        lora=tuple(lora) if lora else None,
        distilled=distilled,
        adapters=adapters,
        ip_adapter=tuple(ip_adapter) if ip_adapter else None,
        image_encoder=image_encoder,
        control=tuple(control) if control else None,
        decoder=decoder,
        prior_num_inference_steps=prior_num_inference_steps,
        prior_guidance_scale=prior_guidance_scale,
        decoder_guidance_scale=decoder_guidance_scale,
        size=size,
    )
    started = time.monotonic()
    console = Console(stderr=True, quiet=quiet, soft_wrap=True)
    try:
        with _progress(console) as report:
            manifest = build(weights, output, options, report)
    except ExportError as error:
        typer.secho(f"triptych export: {error}", fg="red", err=True)
        raise typer.Exit(1) from None
    for stage, facts in manifest.stages.items():
        unit = " of 255" if any(out["dtype"] == "uint8" for out in facts["outputs"].values()) else ""
        console.print(
            f"{stage:28} differs from {facts['made_of']} by {facts['max_difference']:.1e}{unit}", highlight=False
        )
        if stage in manifest.one_timestep:
            console.print(f"{'':28} takes one timestep a batch: requests at different steps wait for each other")
        if manifest.target == TargetName.CUDA.value:
            console.print(f"{'':28} {facts['precision']} graph for ONNX Runtime's CUDA provider", highlight=False)
        for capability, engine in facts.get("engines", {}).items():
            took = f"{engine['seconds']:.0f} s, at most {engine['peak_bytes'] / 1e9:.1f} GB"
            console.print(f"{'':28} {facts['precision']} engine for {capability}: {took}", highlight=False)
    for capability in next(iter(manifest.stages.values())).get("engines", {}):
        console.print(f"{'':28} GPU memory on {capability}: {memory.need([manifest], capability)}", highlight=False)
    console.print(f"{len(manifest.artifacts)} artifacts in {time.monotonic() - started:.0f} s")
    typer.echo(manifest.build)


def _by_stage(choices: Sequence[str]) -> dict[str, str]:
    """ "STAGE=PRECISION" as a mapping."""
    pairs = [choice.partition("=") for choice in choices]
    for stage, equals, _ in pairs:
        if not (stage and equals):
            raise typer.BadParameter(f"{stage!r} given; legal: STAGE=PRECISION", param_hint="--precision")
    return {stage: precision for stage, _, precision in pairs}


def _lines(file: Path | None) -> list[str] | None:
    """The lines of a file that are not blank."""
    lines = None if file is None else [line for line in file.read_text("utf-8").splitlines() if line.strip()]
    if lines == []:
        raise typer.BadParameter(f"{file} has no prompt", param_hint="--calibration-prompts")
    return lines


def _require_exporter() -> None:
    try:
        import diffusers  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        typer.echo(f"triptych export: {error.name} is missing; pip install 'triptych[export]'", err=True)
        raise typer.Exit(1) from None


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str, float], None]]:
    columns = (
        TextColumn("{task.description:28}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading the folder", total=1.0)

        def report(what: str, share: float) -> None:
            progress.update(task, description=what, completed=share)
            if not console.is_terminal:
                console.print(f"{share:4.0%} {what}", highlight=False)

        yield report
