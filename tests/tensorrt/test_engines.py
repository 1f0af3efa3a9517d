"""Engines, built here ahead of time for GPUs that this machine has not got."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2
from typer.testing import CliRunner

from triptych.cli.app import app
from triptych_demo import demo_builds
from triptych_export.calibration import largest_inputs
from triptych_export.errors import ExportError
from triptych_export.options import ExportOptions
from triptych_export.precision import lower
from triptych_export.stages import StageSpec
from triptych_export.tensorrt import builder, library, profiles
from triptych_export.tensorrt.engines import Engines, EngineTarget, engines_of
from triptych_export.tensorrt.store import PLAN, EngineKey, EngineStore
from triptych_export.to_onnx import example_inputs, open_session
from triptych_serving.assemble import ENCODERS, TRITON_STAGES, assemble
from triptych_serving.engines import Machine, Profile, engine_path
from triptych_serving.manifest import Manifest, ManifestError

from ..engines import RTX, planned

VERSION = "1.7.1.116"
BUILDS = {build.name: build for build in demo_builds()}
STAGES = [(name, stage) for name, build in BUILDS.items() for stage in Manifest.load(build).stages]


def quiet(_phase, _share):
    """No progress."""


def engines_in(folder: Path, *capabilities: str) -> Engines:
    return Engines(EngineStore(folder / "store"), EngineTarget(RTX, capabilities, {}), folder / "build")


@pytest.mark.parametrize(("family", "stage"), STAGES)
def test_every_stage_builds_ahead_of_time(family, stage, tmp_path):
    manifest = Manifest.load(BUILDS[family])
    engines = Engines(EngineStore(tmp_path / "store"), EngineTarget(RTX, ("sm89", "sm120"), {}), manifest.build)
    wanted = engines.wanted(stage, manifest.stages[stage], manifest.model)
    engines.output = tmp_path / "build"
    files, facts = engines.make(wanted, quiet)
    assert files == [f"{stage}/sm89.plan", f"{stage}/sm120.plan"]
    assert all((tmp_path / "build" / file).stat().st_size > 10_000 for file in files)
    assert all(engine["seconds"] > 0 and engine["peak_bytes"] > 1e8 for engine in facts["engines"].values())


# Of these every stage that there is: a refiner with a text encoder of its own and image prompts, a decoder with one of its own.
TINY = {"tiny": (4, 9), "tiny_cascade": (1, 5)}


@pytest.mark.parametrize("fixture", TINY)
def test_every_stage_of_random_tiny_models_builds_ahead_of_time(fixture, request, tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "DENOISER_BATCHES", ((1, 2, 2),))
    monkeypatch.setattr(profiles, "ANY_SIZE_BATCHES", ((1, 2, 2),))
    seed, stages = TINY[fixture]
    made = Manifest.load(planned(request.getfixturevalue(fixture)(seed)[1], tmp_path / "build", ["sm89", "sm120"]))
    assert len(made.stages) == stages
    for stage in made.stages:
        for capability in ("sm89", "sm120"):
            assert engine_path(made, stage, Machine(RTX, VERSION, capability)).stat().st_size > 10_000


@pytest.mark.parametrize(("family", "stage"), [name for name in STAGES if name[1] in ("unet", "text_encoder_2")])
def test_half_precision_stays_near(family, stage, tmp_path):
    manifest = Manifest.load(BUILDS[family])
    facts = manifest.stages[stage]
    lower(manifest.stage_path(stage), tmp_path / "model.onnx", "fp16", StageSpec.of("", facts))
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    example = example_inputs(StageSpec.of("", facts), [{**manifest.model.default_sizes, "batch": 2}])[0]
    exact, half = (
        open_session(path).run(None, example) for path in (manifest.stage_path(stage), tmp_path / "model.onnx")
    )
    for wanted, got in zip(exact, half, strict=True):
        assert got.dtype == wanted.dtype
        assert np.abs(got - wanted).max() / np.abs(wanted).max() < 0.02


def test_a_unet_in_8_bits_stays_near(tmp_path):
    build, prompts = shutil.copytree(BUILDS["sdxl"], tmp_path / "sdxl"), ("a 3d render of a red apple", "a grey cat")
    manifest = Manifest.load(build)
    engines = Engines(EngineStore(tmp_path / "store"), EngineTarget(RTX, ("sm89",), {"unet": "fp8"}, prompts), build)
    wanted = engines.wanted("unet", manifest.stages["unet"], manifest.model)
    largest = largest_inputs(manifest, "unet", prompts, quiet)
    assert len(largest) > 90
    assert all(0 < value < 1e4 for value in largest.values())
    files, facts = engines.make(replace(wanted, profiles=wanted.profiles[:1]), quiet, lambda: largest)
    assert facts["precision"] == "fp8"
    assert (build / files[0]).stat().st_size > 10_000

    lower(manifest.stage_path("unet"), tmp_path / "model.onnx", "fp8", wanted.spec, largest)
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    types = {tensor.data_type for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert TensorProto.FLOAT8E4M3FN in types
    example = example_inputs(wanted.spec, [{**manifest.model.default_sizes, "batch": 2}])[0]
    paths = (manifest.stage_path("unet"), tmp_path / "model.onnx")
    exact, eighth = (open_session(path).run(["out_sample"], example)[0] for path in paths)
    assert 1e-3 < np.linalg.norm(eighth - exact) / np.linalg.norm(exact) < 0.05


def test_8_bits_are_for_unets_that_were_calibrated(tmp_path):
    manifest = Manifest.load(BUILDS["sdxl"])
    with pytest.raises(ExportError, match=r"precision of vae_decoder: 'fp8' given; legal: fp32, fp16, bf16$"):
        engines_of(
            ExportOptions(target=RTX, compute_capabilities=["sm89"], precisions={"vae_decoder": "fp8"}), tmp_path
        )
    with pytest.raises(ExportError, match=r"node_\w+: no calibration"):
        lower(manifest.stage_path("unet"), tmp_path / "model.onnx", "fp8", StageSpec.of("", manifest.stages["unet"]))


def job(folder: Path, graph: Path, *capabilities: str) -> builder.EngineSpec:
    profile = Profile("any", {"x": ((1, 4), (2, 4), (4, 4))})
    return builder.EngineSpec("my_stage", RTX, (*capabilities, "sm89")[0], graph, folder / PLAN, (profile,))


def small_graph(path: Path, weight_type: int) -> Path:
    """x·w, x being float32."""
    weight = helper.make_tensor("w", weight_type, [4, 4], np.eye(4).ravel().tolist())
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_a_graph_with_mixed_types_fails_with_the_stages_name(tmp_path):
    with pytest.raises(ExportError, match=r"^my_stage: .*(type|Type|TYPE)"):
        builder.build(job(tmp_path, small_graph(tmp_path / "mixed.onnx", TensorProto.FLOAT16)), quiet)
    assert not (tmp_path / PLAN).exists()


def test_an_unknown_gpu_is_refused_with_the_known_ones(tmp_path):
    graph = small_graph(tmp_path / "model.onnx", TensorProto.FLOAT)
    with pytest.raises(ExportError, match=r"^my_stage: compute capability 'sm55' given; legal: .*sm89"):
        builder.build(job(tmp_path, graph, "sm55"), quiet)


KEY = EngineKey("unet", "0", "fp16", "[]", RTX, "1", "sm89", "2")


def slow_make(folder: Path):
    """A builder that takes its time and counts itself."""
    (folder.parent / f"made-{os.getpid()}").touch()
    (folder / PLAN).write_bytes(b"half")
    time.sleep(0.5)
    (folder / PLAN).write_bytes(b"a whole engine")
    return {"seconds": 0.5}


def endless_make(folder: Path):
    (folder / PLAN).write_bytes(b"half")
    (folder.parent / "begun").touch()
    time.sleep(60)


def ask(root: Path, make) -> None:
    EngineStore(root).get(KEY, make)


def start(root: Path, make) -> multiprocessing.Process:
    process = multiprocessing.get_context("spawn").Process(target=ask, args=(root, make))
    process.start()
    return process


def test_two_builders_at_once_build_once(tmp_path):
    processes = [start(tmp_path, slow_make) for _ in range(2)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(list(tmp_path.glob("made-*"))) == 1
    assert (tmp_path / KEY.name / PLAN).read_bytes() == b"a whole engine"


def test_a_builder_that_is_killed_leaves_nothing_half_written(tmp_path):
    process = start(tmp_path, endless_make)
    while not (tmp_path / "begun").exists():
        assert process.is_alive()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / KEY.name).exists()
    engine = EngineStore(tmp_path).get(KEY, slow_make)
    assert engine.path.read_bytes() == b"a whole engine"
    assert not list(tmp_path.glob(".building-*"))


def test_a_harmed_engine_is_built_again_and_a_failed_build_leaves_nothing(tmp_path):
    store = EngineStore(tmp_path)
    store.get(KEY, slow_make).path.write_bytes(b"a wh0le engine")
    assert store.get(KEY, slow_make).path.read_bytes() == b"a whole engine"
    other = replace(KEY, onnx="another")
    with pytest.raises(ZeroDivisionError):
        store.get(other, lambda _folder: 1 / 0)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [KEY.name]


def test_prune_removes_what_was_used_longest_ago(tmp_path):
    store = EngineStore(tmp_path)
    keys = [replace(KEY, stage=name) for name in ("old", "kept", "new")]
    for age, key in zip((3, 2, 1), keys, strict=True):
        path = store.get(key, slow_make).path
        os.utime(path, (time.time() - age, time.time() - age))
    assert store.prune(keep_bytes=20, in_use=[keys[1].name]) == [tmp_path / keys[0].name]
    assert store.prune(keep_bytes=0) == [tmp_path / keys[2].name, tmp_path / keys[1].name]


def test_the_command_prunes_and_names_what_went(tmp_path):
    store = EngineStore(tmp_path / "store")
    old, new = (store.get(replace(KEY, stage=name), slow_make).path for name in ("old", "new"))
    os.utime(old, (1, 1))
    done = CliRunner().invoke(app(), ["prune", "--keep-gb", "2e-8", "--engine-store", str(store.root)])
    assert (done.exit_code, done.output) == (0, f"{old.parent}\n")
    assert new.exists()
    done = CliRunner().invoke(app(), ["prune", "--keep-gb", "0", "--engine-store", str(tmp_path / "none")])
    assert done.exit_code == 1
    assert "no such folder" in done.output


@pytest.fixture(scope="module")
def proper(tmp_path_factory) -> Path:
    """The demo SDXL as a build for TensorRT proper would be, its engines' contents invented: none can be built here."""
    build = tmp_path_factory.mktemp("proper") / "build"
    return planned(BUILDS["sdxl"], build, ["sm90", "sm89"], invented, target="tensorrt")


def invented(folder: Path, key: EngineKey, _facts):
    (folder / PLAN).write_bytes(f"an engine of {key.stage} for {key.capability}".encode())
    return {"seconds": 1.0, "peak_bytes": 1, "weights_bytes": 1, "activation_bytes": [1]}


def test_the_repository_for_tensorrt_is_one_that_triton_reads(proper, tmp_path):
    manifest = Manifest.load(proper)
    assemble([proper], tmp_path / "repository")
    for folder in (tmp_path / "repository").iterdir():
        config = text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        if folder.name not in TRITON_STAGES:
            continue
        facts = manifest.stages[folder.name]
        assert config.platform == "tensorrt_plan"
        assert {tensor.name: list(tensor.dims) for tensor in (*config.input, *config.output)} == {
            name: [dim if isinstance(dim, int) else -1 for dim in spec["shape"][1:]]
            for name, spec in {**facts["inputs"], **facts["outputs"]}.items()
        }
        assert set(config.cc_model_filenames) == {"8.9", "9.0"}
        for file in config.cc_model_filenames.values():
            capability = file.removesuffix(".plan")
            path = (folder / "1" / file).resolve()
            assert path == proper / facts["engines"][capability]["path"]
        assert list(config.instance_group[0].profile) == [str(k) for k in range(len(facts["profiles"]))]
        assert config.max_batch_size == max(
            profile["shapes"][name][2][0] for profile in facts["profiles"] for name in facts["inputs"]
        )


HERE = Machine("tensorrt", VERSION, "sm89")


def edited(build: Path, change) -> Manifest:
    document = json.loads((build / "manifest.json").read_text())
    change(document)
    (build / "manifest.json").write_text(json.dumps(document))
    return Manifest.load(build)


def of_unet(**changes):
    return lambda document: document["stages"]["unet"]["engines"]["sm89"].update(changes)


def wide_only(document):
    for profile in document["stages"]["unet"]["profiles"]:
        profile["shapes"]["noise"] = [[1, 4, 99, 99]] * 3


def without_steps(document):
    for profile in document["stages"]["unet"]["profiles"]:
        profile["shapes"]["sample"] = profile["shapes"].pop("noise")


WRONG = {
    "missing": (lambda file: file.unlink(), None, HERE, r"unet/sm89.plan: missing"),
    "truncated": (lambda file: file.write_bytes(file.read_bytes()[:-1]), None, HERE, r"unet/sm89.plan: \d+ bytes, \d+"),
    "harmed": (lambda file: file.write_bytes(b"x" * file.stat().st_size), None, HERE, r"unet/sm89.plan: SHA-256"),
    "another GPU's": (
        None,
        None,
        replace(HERE, capability="sm120"),
        r"unet: no engine for sm120, engines for sm90, sm89",
    ),
    "another TensorRT's": (None, of_unet(version="10.1"), HERE, r"unet/sm89.plan: built by TensorRT 10.1, here is 1.7"),
    "stale": (None, of_unet(onnx="of yesterday"), HERE, r"unet/sm89.plan: stale, made from another export of unet"),
    "another target's": (None, None, replace(HERE, target=RTX), r"exported for tensorrt, not tensorrt-rtx"),
    "elsewhere": (None, of_unet(path="../../etc/passwd"), HERE, r"etc/passwd: not listed"),
    "of an export without steps": (None, without_steps, HERE, r"unet: no profile of its engine holds"),
    "of other sizes": (None, wide_only, HERE, r"unet: no profile of its engine holds the model's own size"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_engine_is_refused_by_name_with_what_mends_it(proper, tmp_path, kind):
    harm, change, machine, message = WRONG[kind]
    build = tmp_path / "build"
    shutil.copytree(proper, build)
    manifest = edited(build, change) if change else Manifest.load(build)
    if harm:
        harm(build / "unet/sm89.plan")
    begun = time.monotonic()
    with pytest.raises(ManifestError, match=rf"{message}.*; triptych export … --target {machine.target} "):
        engine_path(manifest, "unet", machine)
    assert time.monotonic() - begun < 5


def test_the_right_engine_is_found(proper):
    assert engine_path(Manifest.load(proper), "unet", HERE) == proper / "unet/sm89.plan"


@pytest.mark.parametrize("reproducible", [False, True])
def test_only_what_need_not_be_reproducible_shares_batches_of_tritons(proper, tmp_path, reproducible):
    assemble([proper], tmp_path / "repository", reproducible=reproducible)
    for name in TRITON_STAGES.keys() & Manifest.load(proper).stages.keys():
        text = (tmp_path / "repository" / name / "config.pbtxt").read_text()
        shares = text_format.Parse(text, model_config_pb2.ModelConfig()).HasField("dynamic_batching")
        assert shares == (name in ENCODERS and not reproducible)
    denoise = (tmp_path / "repository/denoise/config.pbtxt").read_text()
    given = text_format.Parse(denoise, model_config_pb2.ModelConfig()).parameters
    assert ("reproducible" in given) == reproducible
    assert given["reproducible_rows"].string_value == "2"


def test_tensorrt_proper_says_that_it_needs_the_gpu(tmp_path):
    if library.capabilities_here():
        return
    with pytest.raises(ExportError, match=r"tensorrt: cannot be imported .*pip install tensorrt|has no NVIDIA GPU"):
        engines_of(ExportOptions(target="tensorrt"), tmp_path)
