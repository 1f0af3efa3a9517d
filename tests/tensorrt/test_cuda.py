"""Every name that the real device uses of CUDA and TensorRT exists, and takes as many arguments. Nothing here needs a GPU."""

from __future__ import annotations

import ast
import inspect
import mmap
import re
from pathlib import Path

import numpy as np
import pytest
from cuda.bindings import runtime as cudart

from triptych_server.failures import lost_gpu
from triptych_serving.tensorrt import cuda, kernels, library, machine
from triptych_serving.tensorrt.library import LibraryMissing

TRT = library.load("tensorrt-rtx")
# What the variables of cuda.py and machine.py hold.
HOLDS = {
    "self._cudart": cudart,
    "cudart": cudart,
    "self.trt": TRT,
    "trt": TRT,
    "device.runtime": TRT.Runtime,
    "self._engine": TRT.ICudaEngine,
    "self._context": TRT.IExecutionContext,
    "context": TRT.IExecutionContext,
    "config": TRT.IRuntimeConfig,
    "self._kernels": TRT.IRuntimeCache,
}
OWN = {"CudaContext": {"self._engine": None}}  # there it is our own engine


def uses():
    """(where, owner's name, path of attributes, number of arguments or None where it is not called) of all foreign names."""
    for module in (cuda, machine):
        for scope in ast.parse(Path(module.__file__).read_text()).body:
            calls = {id(node.func): len(node.args) for node in ast.walk(scope) if isinstance(node, ast.Call)}
            for node in ast.walk(scope):
                words = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
                if re.fullmatch(r"[\w.]+", words):
                    for owner in sorted(HOLDS, key=len, reverse=True):
                        known = OWN.get(getattr(scope, "name", ""), {}).get(owner, HOLDS[owner])
                        if known is not None and words.startswith(f"{owner}."):
                            yield (
                                f"{Path(module.__file__).name}:{node.lineno}",
                                known,
                                words.removeprefix(f"{owner}."),
                                calls.get(id(node)),
                            )
                            break


USES = list(uses())


def counts(function) -> set[int]:
    """How many arguments a function of CUDA's, or a method of TensorRT's without its `self`, takes."""
    if function.__module__ == "cuda.bindings.runtime":
        return {len(inspect.signature(function).parameters)}
    made: set[int] = set()
    for signature in re.findall(rf"{function.__name__}\(self: [\w.]+(.*?)\) -> ", function.__doc__):
        most = len(re.findall(r", \w+: ", signature))
        made |= set(range(most - signature.count(" = "), most + 1))
    assert made, function.__doc__
    return made


def test_all_parts_of_both_libraries_are_looked_at():
    assert {owner.__name__ for _, owner, _, _ in USES} == {
        *("cuda.bindings.runtime", TRT.__name__),
        *("Runtime", "ICudaEngine", "IExecutionContext", "IRuntimeConfig", "IRuntimeCache"),
    }
    assert len({words for _, _, words, _ in USES}) > 40


@pytest.mark.parametrize(("where", "owner", "words", "given"), USES, ids=[f"{use[2]}-{use[0]}" for use in USES])
def test_it_exists_and_takes_what_it_is_given(where, owner, words, given):
    found = owner
    for word in words.split("."):
        assert hasattr(found, word), f"{where}: {words}"
        found = getattr(found, word)
    if given is not None and callable(found) and not isinstance(found, type) and words != "nptype":
        assert given in counts(found), f"{where}: {words} is given {given}, takes {counts(found)}"


def test_sticky_errors_are_cudas():
    assert not set(cuda.STICKY) - set(cudart.cudaError_t.__members__)
    assert "cudaErrorMemoryAllocation" not in cuda.STICKY


def test_what_tensorrt_says_of_sticky_errors_in_tritons_log_is_known():
    for name in cuda.STICKY:
        words = cudart.cudaGetErrorString(getattr(cudart.cudaError_t, name))[1].decode()
        line = f'E1130 16:00:00.123456 7 logging.cc:40] "1: [x.cpp::run::1] Error Code 1: Cuda Runtime ({words})"\n'.encode()
        assert lost_gpu(line) == words
    for line in (b'E1130 16:00:00.1 7 x.cc:40] "Cuda Runtime (unknown error)"', b"Cuda Runtime (unknown error)"):
        assert not lost_gpu(line)
    assert not lost_gpu(b'E1130 16:00:00.1 7 logging.cc:40] "Error Code 1: Cuda Runtime (out of memory)"')


def test_kernels_are_kept_for_each_engine_where_engines_are(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plans = [tmp_path / name / "sm89.plan" for name in ("unet", "vae_decoder")]
    assert kernels.read(plans[0]) == b""
    for content in (b"kernels", b"more kernels"):
        kernels.keep(plans[0], content)
        assert kernels.read(plans[0]) == content
    assert kernels.read(plans[1]) == b""
    assert len([*(tmp_path / "triptych" / "engines").iterdir()]) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "triptych" / "engines" / "no folder"))
    (tmp_path / "triptych" / "engines" / "no folder").write_text("a file")
    kernels.keep(plans[0], b"kernels")
    assert kernels.read(plans[0]) == b""
    assert "compiled kernels are not kept" in caplog.text


def test_kernel_strategies_are_tensorrts():
    for strategy in ("eager", "lazy", "none"):
        assert hasattr(TRT.DynamicShapesKernelSpecializationStrategy, strategy.upper())


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8"])
def test_engines_have_types_of_numpys(dtype):
    names = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64", "uint8": "UINT8"}
    assert np.dtype(TRT.nptype(getattr(TRT.DataType, names[dtype]))) == dtype


def test_plans_are_read_from_mapped_files(tmp_path):
    (tmp_path / "x.plan").write_bytes(b"no plan at all" * 100)
    log = library.logger(TRT)
    with (tmp_path / "x.plan").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        assert TRT.Runtime(log).deserialize_cuda_engine(content) is None
    assert log.take() != log.take() == "TensorRT gives no reason"


def test_without_a_gpu_its_absence_is_named():
    if not cudart.cudaGetDeviceCount()[0]:
        return
    with pytest.raises(LibraryMissing, match=r"^no NVIDIA (driver|GPU \(\w+\)); install NVIDIA's driver"):
        machine.here("tensorrt-rtx")
    with pytest.raises(LibraryMissing, match=r"^no NVIDIA (driver|GPU \(\w+\)); install NVIDIA's driver"):
        machine.probe("tensorrt-rtx")


def test_an_old_driver_is_named_with_its_version():
    assert machine._driver(12080, 13050) == "the NVIDIA driver is of CUDA 12.8, and 13.x is needed"
