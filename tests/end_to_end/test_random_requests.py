"""Five hundred random requests, alone and in company twice: the same bytes each time, and every one a picture."""

from __future__ import annotations

import asyncio
import io
import random

import numpy as np
from PIL import Image, ImageDraw

from triptych import AsyncClient, ServerUnavailable
from triptych_demo import demo_build
from triptych_server import Server
from triptych_serving.manifest import Manifest

from ..tiny_builds import INPAINTING, PROMPTED

REQUESTS = 500
REFINED_SEED = 0  # a tiny model that has a refiner
PROMPTS = ["a 3d render of a red apple", "a flat icon of a penguin", "fox " * 90]
SIDES = [32, 64]


def random_request(choose, model, files):
    sampler = choose.choice(sorted(model.samplers))
    schedule = choose.choice(sorted(model.samplers[sampler].schedules))
    most = min(8, model.samplers[sampler].schedules[schedule].max_steps)
    asked = {
        "prompt": choose.choice(PROMPTS),
        "seed": choose.randrange(2**63),
        "num_inference_steps": choose.randint(2, most),
        "guidance_scale": choose.choice([0.0, 1.0, 3.0, 7.5]),
        "height": choose.choice(SIDES),
        "width": choose.choice(SIDES),
        "sampler": sampler,
        "schedule": schedule,
        "tenant": choose.choice(["", "a", "b"]),
    }
    maybe = {
        "negative_prompt": ["", "grey"],
        "guidance_rescale": [0.3, 0.7],
        "guidance_end": [0.0, 0.5],
        "clip_skip": list(range(model.max_clip_skip + 1)),
        "original_size": [(512, 300)],
        "crops_coords_top_left": [(3, 9)],
    }
    asked |= {name: choose.choice(values) for name, values in maybe.items() if choose.random() < 0.3}
    if model.ip_adapters and choose.random() < 0.5:
        asked |= {"ip_adapter_image": choose.choice(files), "ip_adapter": choose.choice(model.ip_adapters)}
        asked["ip_adapter_scale"] = choose.choice([0.3, 1.0, 2.0])
    if model.controls and choose.random() < 0.4:
        names = choose.sample(model.controls, choose.randint(1, len(model.controls)))
        asked["control"] = ", ".join(name + choose.choice(["", ":0.5", ":1.5:0-0.5", ":0.8:0.3-1"]) for name in names)
        asked["control_images"] = choose.choices(files, k=len(names))
    if choose.random() < 0.3:
        asked |= {"init_image": choose.choice(files), "strength": choose.choice([0.5, 0.8, 1.0])}
        if (model.samplers[sampler].schedules[schedule].inpaint or model.inpainting) and choose.random() < 0.5:
            return asked | {"mask": choose.choice(files)} | around_the_mask(choose, asked["init_image"])
    if model.refiner is not None and choose.random() < 0.5:
        asked |= {
            "denoising_end": choose.choice([0.5, 0.6]),
            "num_inference_steps": max(6, asked["num_inference_steps"]),
        }
        asked.pop("strength", None)
        asked.pop("init_image", None)
    return asked


def around_the_mask(choose, picture):
    """What sets masks apart; a part and an extension want one of the picture's size."""
    asked = {"mask_blur": choose.randint(0, 9)} if choose.random() < 0.3 else {}
    more = {"padding_mask_crop": choose.randint(0, 20), "extend": tuple(choose.choices(range(20), k=4))}
    chosen = {name: value for name, value in more.items() if choose.random() < 0.3 and value != (0, 0, 0, 0)}
    return asked | chosen | ({"mask": picture} if chosen else {})


def pictures():
    files = []
    for seed in range(3):
        image = Image.effect_noise((70 + seed, 90), 60).convert("RGB")
        ImageDraw.Draw(image).rectangle((10, 10, 30 + seed, 60), fill=(250, 250, 250))
        file = io.BytesIO()
        image.save(file, "PNG")
        files.append(file.getvalue())
    return files


async def served(url, requests, choose=None):
    """The files of all requests: one by one, or in groups of random size, each at once."""
    made = []
    async with AsyncClient(url, timeout=300) as client:
        while len(made) < len(requests):
            group = requests[len(made) : len(made) + (choose.randint(1, 64) if choose else 1)]
            made += await asyncio.gather(*(patiently(client, request) for request in group))
    return [image.data for image in made]


async def patiently(client, request):
    """Sent once more where a machine that stood still made Triton take a process for dead; see test_standstill.py."""
    try:
        return await client.submit(**request).get()
    except ServerUnavailable:
        while not await client.ready():
            await asyncio.sleep(0.1)
        return await client.submit(**request).get()


def assert_bytes_are_kept(build, count, seed):
    choose = random.Random(seed)
    model = Manifest.load(build).model
    files = pictures()
    requests = [random_request(choose, model, files) for _ in range(count)]
    with Server(build, http_port=0, grpc_port=0, metrics_port=0, cache_mb=0) as server:
        url = server.addresses.grpc
        alone = asyncio.run(served(url, requests))
        for _ in range(2):
            together = asyncio.run(served(url, requests, choose))
            differ = [request for request, a, b in zip(requests, alone, together, strict=True) if a != b]
            assert not differ, f"seed {seed}: {len(differ)} of {count} differ, the first {differ[0]}"
    spread = [np.asarray(Image.open(io.BytesIO(data))).std() for data in alone]
    assert min(spread) > 0
    return requests


def test_five_hundred_requests_keep_their_bytes_in_any_company(tiny):
    requests = assert_bytes_are_kept(tiny(REFINED_SEED)[1], REQUESTS, seed=3)
    assert sum("denoising_end" in request for request in requests) > REQUESTS / 5
    assert sum("mask" in request for request in requests) > REQUESTS / 20


def test_requests_to_a_model_that_reads_masks_do_so_too(tiny):
    requests = assert_bytes_are_kept(tiny(INPAINTING)[1], 60, seed=5)
    assert 5 < sum("mask" in request for request in requests) < 50


def test_requests_with_and_without_pictures_of_all_kinds_do_so_too(tiny):
    requests = assert_bytes_are_kept(tiny(PROMPTED)[1], 150, seed=6)
    assert 50 < sum("ip_adapter_image" in request for request in requests) < 100
    assert sum({"ip_adapter_image", "control"} <= request.keys() for request in requests) > 15
    assert sum("control" in request for request in requests) > 40
    assert sum("init_image" in request for request in requests) > 30
    assert sum("denoising_end" in request for request in requests) > 30


def test_the_demo_models_requests_do_so_too():
    assert_bytes_are_kept(demo_build(), 40, seed=4)
