"""The cache of finished images: what was put is got, damaged files are misses, and it stays within its limit."""

from __future__ import annotations

import os

from triptych_serving.cache import ImageCache


def test_what_was_put_is_got(tmp_path):
    cache = ImageCache(tmp_path, 10_000)
    cache.put("a", b"picture")
    assert cache.get("a") == b"picture"
    assert cache.get("b") is None


def test_a_damaged_file_is_a_miss(tmp_path):
    cache = ImageCache(tmp_path, 10_000)
    cache.put("a", b"picture")
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-1])
    assert cache.get("a") is None
    (tmp_path / "a").write_bytes(b"")
    assert cache.get("a") is None


def test_the_least_recently_used_go_first_and_the_limit_holds(tmp_path):
    cache = ImageCache(tmp_path, 16_000)
    for number in range(100):
        cache.put(str(number), bytes(1000))
        os.utime(tmp_path / str(number), ns=(number, number))
        assert cache.get("0") is not None  # and so it is always the latest
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 17_100
    assert cache.get("1") is None
    assert cache.get("99") is not None


def test_a_full_disk_costs_a_file_and_no_more(tmp_path):
    cache = ImageCache(tmp_path / "gone", 16_000)
    cache.put("a", b"picture")
    assert cache.get("a") is None
