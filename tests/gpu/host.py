"""Measure the host's share of a step: python -m tests.gpu.host [MILLISECONDS]

Guided images of 1024², `dpmpp_2m_sde`, on a device that computes nothing and takes so long for a step (50): how long it idles
between two steps, and how long the host works for one.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from statistics import median

import numpy as np

from triptych_serving import step
from triptych_serving.denoiser import Conditioning
from triptych_serving.engines import Profile
from triptych_serving.tables import load_tables
from triptych_serving.tensorrt.denoiser import TensorRTDenoiser
from triptych_serving.tensorrt.device import Memory, Tensor

from ..serving.loop import walk
from ..tensorrt.test_steps import MANIFEST, PAIRS, Served, maker

IMAGES, STEPS, WARM, SIDE = (1, 4, 8), 30, 4, 128
SHAPES = {
    "sample": ("batch", 4, "height", "width"),
    "timestep": ("batch",),
    "encoder_hidden_states": ("batch", 77, 2048),
    "text_embeds": ("batch", 1280),
    "time_ids": ("batch", 6),
}
INPUTS = {name: {"dtype": "float32", "shape": list(shape)} for name, shape in SHAPES.items()}
OUTPUTS = ("out_sample", "next_latents", "next_noise_preds")


class IdleDevice:
    """Memory without bytes, and a stream whose work takes `seconds` each."""

    def __init__(self, seconds):
        self.spans, self.waited = [], 0.0
        self._seconds, self._end, self._stream = seconds, 1, queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self):
        while True:
            self._stream.get()()

    def launch(self):
        """What a captured step does."""
        self._stream.put(self._take_step)

    def _take_step(self):
        begun = time.perf_counter()
        time.sleep(self._seconds)
        self.spans.append((begun, time.perf_counter()))

    def mark(self):
        reached = threading.Event()
        self._stream.put(reached.set)
        return Mark(self, reached)

    def capture(self, _work):
        return self

    def allocate(self, size, _what):
        self._end += size
        return Memory(self._end - size, size)

    def free(self, _memory):
        pass

    def page_locked(self, size):
        return np.zeros(size, np.uint8)

    def upload(self, _array, _memory):
        pass

    def copy(self, _source, _target):
        pass

    def download(self, _memory, array):
        array.fill(0)

    def synchronize(self):
        pass


class Mark:
    """A place in the stream."""

    def __init__(self, device, reached):
        self._device, self._reached = device, reached

    def wait(self):
        begun = time.perf_counter()
        self._reached.wait()
        self._device.waited += time.perf_counter() - begun


class IdleEngine:
    """A UNet with the sampler's step, of SDXL's shapes."""

    def __init__(self):
        self.inputs = step.inputs(INPUTS)
        tensors = {name: Tensor(np.dtype(one["dtype"]), True) for name, one in self.inputs.items()}
        self.tensors = tensors | {name: Tensor(np.dtype("float32"), False) for name in OUTPUTS}

    def profile(self):
        sizes = [{"batch": rows, "height": SIDE, "width": SIDE} for rows in (1, 2, 16)]
        shapes = {
            name: tuple(tuple(size.get(one, one) for one in spec["shape"]) for size in sizes)
            for name, spec in self.inputs.items()
        }
        return Profile("own", shapes)

    def context(self, _profile, _key):
        return IdleContext()

    def keep_kernels(self):
        pass


class IdleContext:
    """Shapes, and nothing behind them."""

    def __init__(self):
        self._shapes = {}

    def set_shape(self, name, shape):
        self._shapes[name] = shape

    def shape(self, name):
        batch, *image = self._shapes["latents"]
        return {"next_latents": (batch, *image), "next_noise_preds": self._shapes["noise_preds"]}.get(
            name, (batch, *image[1:])
        )

    def set_memory(self, _name, _memory):
        pass

    def enqueue(self):
        pass

    def capturable(self):
        return True


def conditioning():
    """Two rows of nothing."""
    shapes = {name: shape[1:] for name, shape in SHAPES.items() if name not in ("sample", "timestep")}
    return Conditioning({name: np.zeros((2, *shape), np.float32) for name, shape in shapes.items()})


def measure(images, seconds):
    """Milliseconds a step of so many images: the host works, and the device idles."""
    device, engine = IdleDevice(seconds), IdleEngine()
    sizes = {"height": SIDE, "width": SIDE}
    denoiser = TensorRTDenoiser(device, engine, [engine.profile()], INPUTS, sizes, most_rows=16)
    served = Served(denoiser, denoiser)
    way = walk(load_tables(MANIFEST.build / PAIRS["dpmpp_2m_sde", "default"].path).steps(STEPS))
    for seed in range(images):
        models = dict.fromkeys(way.denoisers, conditioning())
        served.submit(maker(way, seed=seed, side=SIDE, models=models))
    worked = []
    for _ in range(STEPS - WARM):
        begun, waited = time.perf_counter(), device.waited
        served.turn()
        worked.append(time.perf_counter() - begun - (device.waited - waited))
    idle = [
        later[0] - earlier[1] for earlier, later in zip(device.spans[WARM:], device.spans[WARM + 1 :], strict=False)
    ]
    served.finish()
    return 1e3 * median(worked[WARM:]), 1e3 * median(idle)


def main():
    seconds = float(sys.argv[1] if len(sys.argv) > 1 else 50) / 1e3
    for images in IMAGES:
        worked, idle = measure(images, seconds)
        sys.stdout.write(
            f"{images} images: {worked:5.2f} ms of host work a step, the device idles for {idle:6.3f} ms\n"
        )


if __name__ == "__main__":
    main()
