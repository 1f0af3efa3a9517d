"""The cuda target's code on ONNX Runtime's CPU provider, which takes the same bindings; no GPU has run it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from triptych_demo import demo_build
from triptych_serving import cuda
from triptych_serving.assemble import stage_config
from triptych_serving.cuda import OTHER_SIZES, CudaDenoiser, CudaStage, _Batch
from triptych_serving.denoiser import Conditioning
from triptych_serving.engines import Machine
from triptych_serving.invariance import example, verify
from triptych_serving.manifest import Manifest, ManifestError
from triptych_serving.ort import CPU, OrtDenoiser
from triptych_serving.tensorrt import machine, memory

MOST_ROWS = 6
MANIFEST = Manifest.load(demo_build("sdxl"))
CASCADE = Manifest.load(demo_build("stable_cascade"))
TURING, VOLTA = (Machine("cuda", "1.31.1", capability, "a GPU", 8 << 30) for capability in ("sm75", "sm70"))


def loaded(manifest=MANIFEST, name="unet", **rows):
    facts = manifest.stages[name]
    path, sizes = manifest.build / facts["path"], manifest.model.default_sizes
    rows = {"most_rows": MOST_ROWS, **rows}
    return CudaDenoiser(path, facts["inputs"], sizes, provider=CPU, **rows)


@pytest.fixture(scope="module")
def denoiser():
    return loaded()


@pytest.fixture(scope="module")
def reference():
    return OrtDenoiser(MANIFEST.build / MANIFEST.stages["unet"]["path"])


def batch(rows, sizes=None, name="unet", manifest=MANIFEST):
    return example(manifest.stages[name]["inputs"], sizes or manifest.model.default_sizes, rows)


@pytest.fixture
def uploads(monkeypatch):
    names, put = [], _Batch.put

    def noted(self, name, array):
        names.append(name)
        put(self, name, array)

    monkeypatch.setattr(_Batch, "put", noted)
    return names


@pytest.mark.parametrize("rows", [1, 3, MOST_ROWS])
@pytest.mark.parametrize("size", [None, (96, 64)])
def test_it_predicts_what_the_processors_denoiser_predicts(denoiser, reference, rows, size):
    given = batch(rows, size and MANIFEST.model.sizes(*size))
    np.testing.assert_array_equal(denoiser.predict(*given), reference.predict(*given))


@pytest.mark.parametrize("name", ["prior", "decoder"])
def test_stable_cascades_stages_run_as_well(name):
    given = batch(3, name=name, manifest=CASCADE)
    reference = OrtDenoiser(CASCADE.build / CASCADE.stages[name]["path"]).predict(*given)
    np.testing.assert_allclose(loaded(CASCADE, name).predict(*given), reference, atol=1e-5 * np.abs(reference).max())


def test_conditioning_is_uploaded_when_the_members_of_a_batch_change_and_only_then(denoiser, uploads):
    sample, timestep, conditioning = batch(2)
    step, whole = ["sample", "timestep"], {"encoder_hidden_states", "text_embeds", "time_ids"}
    for members, more in ((conditioning, whole), (conditioning, set()), (conditioning[::-1], whole)):
        uploads.clear()
        denoiser.predict(sample, timestep, members)
        assert uploads[:2] == step
        assert set(uploads[2:]) == more


def test_what_is_released_is_uploaded_again(denoiser, uploads):
    given = batch(2)
    first = denoiser.predict(*given)
    denoiser.release(given[2][0])
    uploads.clear()
    np.testing.assert_array_equal(denoiser.predict(*given), first)
    assert "encoder_hidden_states" in uploads


def test_a_failed_upload_leaves_the_next_batch_right(denoiser, reference):
    sample, timestep, conditioning = batch(2)
    broken = Conditioning({**conditioning[0].arrays, "time_ids": np.zeros((1, 5), np.float32)})
    with pytest.raises(Exception, match="size"):
        denoiser.predict(sample, timestep, [conditioning[1], broken])
    again = sample, timestep, conditioning
    np.testing.assert_array_equal(denoiser.predict(*again), reference.predict(*again))


@pytest.mark.parametrize("rows", [2, 4])
def test_reproducible_rows_run_with_as_many_others_as_ever(monkeypatch, rows):
    shapes = set()
    run = _Batch.run
    monkeypatch.setattr(_Batch, "run", lambda self, session: shapes.add(self._output.shape()[0]) or run(self, session))
    assert verify(loaded(fixed_rows=rows), MANIFEST.stages["unet"]["inputs"], MANIFEST.model.default_sizes, 5) == {
        "batch_invariant": True,
        "batches": [1, 2, 3, 4, 5],
    }
    assert shapes == {rows}


def test_memory_is_kept_for_the_models_own_size_and_for_few_others():
    one = loaded()
    one.predict(*batch(1))
    others = [(height, width) for height in (64, 96) for width in range(64, 224, 32)]
    for size in others:
        one.predict(*batch(1, MANIFEST.model.sizes(*size)))
    samples = [key[1][list(one._own).index("sample")] for key in one._batches]
    kept = [(128, 128), *others[len(others) - OTHER_SIZES :]]
    assert samples == [(4, height // 8, width // 8) for height, width in kept]


def test_runs_of_the_models_own_size_have_a_graph_for_each_number_of_rows(monkeypatch):
    made = []
    init = _Batch.__init__
    monkeypatch.setattr(_Batch, "__init__", lambda self, *given: made.append(given[3]) or init(self, *given))
    one = loaded()
    one.graphs = True  # the processor ignores them
    for rows, size in ((1, None), (3, None), (3, None), (3, MANIFEST.model.sizes(64, 96))):
        one.predict(*batch(rows, size))
    assert made == ["1", "3", "-1"]


def test_a_provider_that_does_not_load_is_no_processor_in_silence():
    path = MANIFEST.build / MANIFEST.stages["vae_decoder"]["path"]
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(RuntimeError, match="cannot load it"):
        CudaStage(path, provider=cuda.CUDA)


LOSE = """
from types import SimpleNamespace
from tests.serving.test_cuda import *
sample, timestep, conditioning = batch(2)
one = loaded()
cuda.imported = lambda *_: SimpleNamespace(cudaDeviceSynchronize=lambda: (SimpleNamespace(name=sys.argv[1]),))
broken = Conditioning({**conditioning[0].arrays, "time_ids": np.zeros((1, 5), np.float32)})
try:
    one.predict(sample, timestep, [conditioning[1], broken])
except Exception:
    print("still here")
"""


@pytest.mark.parametrize(
    ("error", "code", "said"), [("cudaErrorIllegalAddress", 70, ""), ("cudaSuccess", 0, "still here\n")]
)
def test_a_lost_gpu_ends_the_process_and_other_errors_do_not(error, code, said):
    done = subprocess.run([sys.executable, "-c", LOSE, error], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (code, said), done.stderr


def for_cuda(precision, tmp_path):
    stages = {name: {**facts, "precision": precision} for name, facts in MANIFEST.stages.items()}
    return Manifest(tmp_path, "sdxl", "cuda", MANIFEST.model, stages, MANIFEST.artifacts)


@pytest.mark.parametrize(
    ("gpu", "precision", "words"),
    [
        (VOLTA, "fp16", r"computes in fp16, which needs sm75 or newer; a GPU is sm70; triptych export … --target cpu"),
        (TURING, "bf16", r"computes in bf16, which needs sm80 .*--target cuda --precision text_encoder=fp32"),
    ],
)
def test_a_gpu_that_is_too_old_is_refused(monkeypatch, tmp_path, gpu, precision, words):
    monkeypatch.setattr(machine, "probe", lambda _target: gpu)
    with pytest.raises(ManifestError, match=words):
        machine.check_engines([for_cuda(precision, tmp_path)])


def test_weights_that_do_not_fit_are_refused_by_the_sum(monkeypatch, tmp_path):
    build = for_cuda("fp16", tmp_path)
    held = memory.need([build], "sm75")
    assert held.stages["unet"] == MANIFEST.artifacts["unet/model.onnx"]["bytes"]
    assert held.processes == 5 * memory.CONTEXT_BYTES  # of the loop and of four stages
    monkeypatch.setattr(machine, "probe", lambda _target: TURING)
    machine.check_engines([build])
    monkeypatch.setattr(machine, "probe", lambda _target: TURING.__class__("cuda", "1", "sm75", "a GPU", 1 << 30))
    with pytest.raises(ManifestError, match=r"GPU memory: .* asked for; a GPU has 1\.1 GB"):
        machine.check_engines([build])


@pytest.mark.parametrize("reproducible", [False, True])
def test_prompts_share_batches_unless_bytes_are_promised(reproducible):
    config = stage_config("text_encoder", MANIFEST.stages["text_encoder"], "cuda", reproducible=reproducible)
    assert config.HasField("dynamic_batching") != reproducible
    assert config.backend == "python"
