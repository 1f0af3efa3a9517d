"""Files of sampler tables that nobody exported."""

from __future__ import annotations

import io
import lzma
import tracemalloc

import numpy as np
import pytest

from triptych_demo import demo_build
from triptych_serving.manifest import ManifestError
from triptych_serving.tables import MAX_BYTES, load_tables


def packed(save, **arrays):
    file = io.BytesIO()
    save(file, **arrays)
    return lzma.compress(file.getvalue())


def claiming(count):
    """An array whose header claims more numbers than it has."""
    file = io.BytesIO()
    np.savez(file, timestep=np.zeros(7, np.float32))
    return lzma.compress(file.getvalue().replace(b"(7,), }" + b" " * len(str(count)), f"({count},), }} ".encode()))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lzma.compress(bytes(256 << 20), preset=0), f"more than {MAX_BYTES} bytes"),
        (packed(np.savez_compressed, timestep=np.zeros(10_000_000, np.float32)), "packed twice"),
        (claiming(10**13), ""),
        (packed(np.savez, timestep=np.zeros(3, np.float32)), "missing"),
        (packed(np.savez, timestep=np.array([print], object)), "allow_pickle=False"),
        (lzma.compress(b"PK"), "not a zip file"),
        (b"no xz at all", "not supported"),
        (b"", ""),
    ],
)
def test_a_file_that_holds_no_tables_is_refused_in_little_memory(data, words, tmp_path):
    path = tmp_path / "euler.npz.xz"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ManifestError, match=rf"euler\.npz\.xz: no sampler tables \(.*{words}"):
        load_tables(path)
    assert tracemalloc.get_traced_memory()[1] < 4 * MAX_BYTES
    tracemalloc.stop()


def test_the_largest_tables_are_far_below_the_limit():
    sizes = [len(lzma.decompress(path.read_bytes())) for path in demo_build("sdxl").glob("samplers/*.npz.xz")]
    assert max(sizes) * 10 < MAX_BYTES
