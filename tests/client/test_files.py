"""Names of files: by the clock, exclusive, whole or absent."""

from __future__ import annotations

import re
import stat
from concurrent.futures import ProcessPoolExecutor

import pytest

from triptych import GeneratedImage
from triptych.files import save_exclusively, save_in


def save_some(folder):
    return [str(save_in(folder, "png", b"data")) for _ in range(20)]


def test_processes_saving_in_the_same_second_never_share_a_name(tmp_path):
    with ProcessPoolExecutor(4) as pool:
        paths = [path for some in pool.map(save_some, [tmp_path] * 4) for path in some]
    assert len(set(paths)) == 80 == len(list(tmp_path.iterdir()))


def test_the_name_tells_the_second(tmp_path):
    path = save_in(tmp_path / "new", "webp", b"data")
    assert re.fullmatch(r"image_\d{8}_\d{6}\.webp", path.name)
    assert path.read_bytes() == b"data"
    assert stat.S_IMODE(path.stat().st_mode) & 0o400


def test_nothing_is_overwritten_and_nothing_half_written_stays(tmp_path):
    (tmp_path / "mine.png").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        save_exclusively(tmp_path / "mine.png", b"other")
    assert (tmp_path / "mine.png").read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]


def test_an_image_saves_to_a_file_or_a_folder(tmp_path):
    image = GeneratedImage(b"data", "jpeg", 1, {}, {}, "id")
    assert image.save(tmp_path / "a.jpg") == tmp_path / "a.jpg"
    assert image.save(tmp_path).parent == tmp_path
    (tmp_path / "v1.5").mkdir()
    assert image.save(tmp_path / "v1.5").parent == tmp_path / "v1.5"


def test_a_file_where_the_folder_should_be_is_told(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        save_in(tmp_path / "file", "png", b"data")
