"""`triptych doctor` where TensorRT-RTX is installed."""

from triptych_lab.doctor import gpu


def test_the_installed_tensorrt_is_loaded_as_serving_loads_it():
    assert gpu.tensorrt().found.startswith("tensorrt-rtx 1.7")
