"""The demo models on this machine's GPU, compared with this machine's processor. Figures are printed: run with `-s`."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from triptych import AsyncClient, Client
from triptych_serving import runtimes
from triptych_serving.invariance import example, verify
from triptych_serving.ort import OrtDenoiser, OrtStage
from triptych_serving.tensorrt.device import OutOfMemory

pytestmark = pytest.mark.gpu

DENOISERS = [("sdxl", "unet"), ("stable_cascade", "prior"), ("stable_cascade", "decoder")]
STAGES = [
    *(("sdxl", stage) for stage in ("text_encoder", "text_encoder_2", "vae_decoder", "vae_encoder")),
    *(("stable_cascade", stage) for stage in ("cascade_text_encoder", "vqgan")),
]
REQUESTS = {
    "sdxl": {"num_inference_steps": 8, "sampler": "euler"},
    "stable_cascade": {"prior_num_inference_steps": 8, "num_inference_steps": 4},
}
# Half precision: stages are near, whole pictures may differ where a step tips over.
STAGE_LIMIT, PICTURE_LIMIT = 0.03, 12.0
ROWS = (1, 2, 4, 8, 16)


def difference(got, wanted) -> float:
    """The largest, relative to the largest value."""
    return float(np.abs(got.astype(np.float64) - wanted).max() / max(np.abs(wanted).max(), 1e-9))


@pytest.fixture(scope="module", params=DENOISERS, ids=[stage for _, stage in DENOISERS])
def denoiser(request, manifests):
    """A denoiser on the GPU, with its manifest and name."""
    family, stage = request.param
    return runtimes.denoiser(manifests[family], stage, most_rows=16), manifests[family], stage


def test_a_denoiser_predicts_what_the_processor_does(denoiser):
    ours, manifest, stage = denoiser
    exact, model = OrtDenoiser(manifest.stage_path(stage)), manifest.model
    for sizes in (model.default_sizes, model.sizes(64, 128)):
        for rows in (1, 2, 3, 5, 11, 16):
            given = example(manifest.stages[stage]["inputs"], sizes, rows)
            off = difference(ours.predict(*given), exact.predict(*given))
            print(f"{stage} {rows:2} rows: {off:.1e} from the processor")  # noqa: T201
            assert off < STAGE_LIMIT


def test_time_of_a_step(denoiser):
    """Medians of 20, on the GPU and back; a size that has no graph beside one that has."""
    ours, manifest, stage = denoiser
    for what, sizes in (("graph", manifest.model.default_sizes), ("no graph", manifest.model.sizes(64, 128))):
        for rows in ROWS:
            given = example(manifest.stages[stage]["inputs"], sizes, rows)
            seconds = []
            for _ in range(25):
                begun = time.perf_counter()
                ours.predict(*given)
                seconds.append(time.perf_counter() - begun)
            print(f"{stage} {rows:2} rows, {what}: {np.median(seconds[5:]) * 1e3:.2f} ms")  # noqa: T201
            assert np.isfinite(seconds).all()


@pytest.mark.parametrize(("family", "stage"), DENOISERS)
@pytest.mark.parametrize("rows", [2, 8])
def test_reproducible_rows_have_the_same_bytes_in_any_company(manifests, family, stage, rows):
    ours = runtimes.denoiser(manifests[family], stage, most_rows=16, fixed_rows=rows)
    sizes = manifests[family].model.default_sizes
    assert verify(ours, manifests[family].stages[stage]["inputs"], sizes, 16)["batch_invariant"]


@pytest.mark.parametrize(("family", "stage"), STAGES)
def test_a_stage_gives_what_the_processor_gives(manifests, family, stage):
    manifest, random = manifests[family], np.random.default_rng(1)
    ours, theirs = runtimes.stage(manifest, stage), OrtStage(manifest.stage_path(stage))
    sizes = {**manifest.model.default_sizes, "batch": 2}
    inputs = {
        name: (random.random([sizes.get(dim, dim) for dim in spec["shape"]]) * 2).astype(spec["dtype"])
        for name, spec in manifest.stages[stage]["inputs"].items()
    }
    wanted, got = theirs(inputs), ours(inputs)
    for name in wanted:
        off = difference(got[name], wanted[name])
        print(f"{stage} {name}: {off:.1e} from the processor")  # noqa: T201
        assert got[name].shape == wanted[name].shape
        assert off < STAGE_LIMIT


def test_too_large_a_piece_is_refused_by_name_and_the_next_is_given(target):
    device = runtimes.device(target)
    with pytest.raises(OutOfMemory, match=r"^GPU memory: 1\d+\.\d\d GB asked for \(everything\), .* GB free"):
        device.allocate(1 << 50, "everything")
    device.free(device.allocate(1 << 20, "little"))
    device.synchronize()


@pytest.mark.parametrize("model", REQUESTS)
def test_pictures_are_near_those_of_the_processor(gpu, url, model):
    pictures = []
    for address in (gpu, url):
        with Client(address, model=model) as client:
            image = client.generate("a flat icon of a penguin", seed=3, **REQUESTS[model])
            pictures.append(np.asarray(image.image).astype(float))
    off = np.abs(pictures[0] - pictures[1]).mean()
    print(f"{model}: {off:.2f} of 255 from the processor's on average")  # noqa: T201
    assert off < PICTURE_LIMIT


async def test_requests_at_once_are_answered_and_equal_themselves_where_promised(gpu):
    async with AsyncClient(gpu, model="sdxl") as client:
        alone = [await client.generate("a fox", seed=seed, num_inference_steps=4 + seed) for seed in range(6)]
        jobs = [client.submit("a fox", seed=seed, num_inference_steps=4 + seed) for seed in range(6)]
        together = await asyncio.gather(*(job.get() for job in jobs))
    if alone[0].receipt["runtime"]["reproducible"] == "true":
        assert [image.data for image in together] == [image.data for image in alone]
    assert all(image.image.size == (128, 128) for image in together)
