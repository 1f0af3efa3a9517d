"""Checks of the machine: disk, memory, processors, ports, limits, clock."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from triptych_lab.doctor import probes
from triptych_lab.doctor.finding import Level, Said, finding

MB, GB = 10**6, 10**9
BUILD_BYTES = 15 * GB  # full-size SDXL: 7 GB of weights and a build of the same size
RUN_BYTES, ROOMY_RUN_BYTES = 50 * MB, GB
SHM_BYTES, ROOMY_SHM_BYTES = 16 * MB, 256 * MB  # a region of 1 MB for each of eight models, before any image
MEMORY_BYTES, EXPORT_MEMORY_BYTES = GB, 20 * GB
OPEN_FILES, ROOMY_OPEN_FILES = 256, 1024
CGROUP = "/sys/fs/cgroup"
DAY_S = 86_400


@finding("disk for builds")
def disk(folder: Path, free: Callable[[Path], int] = probes.free_bytes) -> Said:
    """Measure the room in the folder for exports."""
    left = free(folder)
    found = f"{left / GB:.1f} GB left in {folder}"
    if left < BUILD_BYTES:
        return Level.NOTE, found, "weights and build of full-size SDXL take 15 GB: give `export -o` a larger disk"
    return Level.OK, found


@finding("temporary files")
def temporary(find: Callable[[], str] = tempfile.gettempdir, free: Callable[[Path], int] = probes.free_bytes) -> Said:
    """Measure the room for a running server's repository and its cache of images."""
    try:
        folder = Path(find())
    except FileNotFoundError as error:
        return Level.PROBLEM, str(error), "set TMPDIR to a folder that can be written to"
    left = free(folder)
    found = f"{left / GB:.1f} GB left in {folder}"
    if left < RUN_BYTES:
        return Level.PROBLEM, found, "make room, or set TMPDIR to a folder on another disk"
    if left < ROOMY_RUN_BYTES:
        return Level.NOTE, found, "the cache of images takes 256 MB of it: make room, or give `serve --cache-mb` less"
    return Level.OK, found


@finding("shared memory")
def shared_memory(free: Callable[[Path], int] = probes.free_bytes) -> Said:
    """Measure the shared memory, through which Triton and its models pass tensors."""
    folder = Path("/dev/shm")  # noqa: S108 - only looked at
    left = free(folder)
    found, mend = f"{left / MB:.0f} MB left in {folder}", "docker run --shm-size=1g, or a larger tmpfs there"
    if left < SHM_BYTES:
        return Level.PROBLEM, found, mend
    if left < ROOMY_SHM_BYTES:
        return Level.NOTE, found, f"enough for small pictures; for large ones: {mend}"
    return Level.OK, found


@finding("memory")
def memory(read: Callable[[str], str | None] = probes.read) -> Said:
    """Measure the memory that is available, within the container's limit."""
    left = _available(read)
    found = f"{left / GB:.1f} GB available"
    if left < MEMORY_BYTES:
        return (
            Level.PROBLEM,
            found,
            "the demo's server takes half a GB, and more while it draws: end something, or raise the container's limit",
        )
    if left < EXPORT_MEMORY_BYTES:
        return Level.NOTE, found, "the export of full-size SDXL takes 20 GB; the demo and small models are fine"
    return Level.OK, found


def _available(read: Callable[[str], str | None]) -> int:
    lines = (line.split() for line in (read("/proc/meminfo") or "").splitlines())
    kib = {words[0]: int(words[1]) for words in lines if len(words) > 1}
    available = kib["MemAvailable:"] * 1024
    limit, used = read(f"{CGROUP}/memory.max"), read(f"{CGROUP}/memory.current")
    if limit and used and limit.strip().isdigit():
        return min(available, max(0, int(limit) - int(used)))
    return available


@finding("processors")
def processors(usable: Callable[[], int] = probes.processors, read: Callable[[str], str | None] = probes.read) -> Said:
    """Compare the processors that may be used with the CPU quota: as many threads start as there are processors."""
    count = usable()
    quota, _, period = (read(f"{CGROUP}/cpu.max") or "max 100000").strip().partition(" ")
    if quota.isdigit() and (share := int(quota) / int(period)) < count:
        found = f"{count}, of which a quota allows {share:.1f}"
        return Level.NOTE, found, "threads will wait for each other: give a cpuset (docker --cpuset-cpus) in its place"
    return Level.OK, str(count)


@finding("ports")
def ports(
    host: str,
    wanted: Mapping[str, int],
    refusal: Callable[[str, int], str] = probes.refusal,
    holder: Callable[[int], str] = probes.holder,
) -> Said:
    """Try the ports that `triptych serve` would listen on; `wanted` is option → port, 0 for any free one."""
    given = {option: port for option, port in wanted.items() if port}
    refused = {option: why for option, port in given.items() if (why := refusal(host, port))}
    if not refused:
        return Level.OK, f"{', '.join(map(str, given.values())) or 'any'} free on {host}"
    words = "; ".join(f"{given[option]}: {_who(given[option], holder) or why}" for option, why in refused.items())
    others = " ".join(f"{option} 0" for option in refused)
    return (
        Level.NOTE,
        words,
        f"a server may be running already; for another give `serve {others}`, which takes free ports",
    )


def _who(port: int, holder: Callable[[int], str]) -> str:
    """Say who holds a port, if that can be seen: only root sees others' processes, and psutil may be missing."""
    try:
        found = holder(port)
    except Exception:
        return ""
    return f"taken by {found}" if found else ""


@finding("open files")
def open_files(limits: Callable[[], tuple[int, int]] = probes.open_files) -> Said:
    """Look at the limit of open files for one process; each connection takes one."""
    soft, hard = limits()
    if soft < 0:
        return Level.OK, "no limit"
    found, mend = f"{soft} at most, {hard if hard >= 0 else 'no limit'} on request", "ulimit -n 65536"
    if soft < OPEN_FILES:
        return Level.PROBLEM, found, mend
    return (Level.OK, found) if soft >= ROOMY_OPEN_FILES else (Level.NOTE, found, f"few for many clients: {mend}")


@finding("clock")
def clock(now: Callable[[], float] = time.time, installed: Callable[[], float] = probes.installed) -> Said:
    """Look for a clock that was never set, and so is behind the installation: certificates and file names go by it."""
    now_s, installed_s = now(), installed()
    found = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now_s))
    if now_s < installed_s - DAY_S:
        return Level.NOTE, f"{found}, before Triptych was installed", "set it: timedatectl set-ntp true"
    return Level.OK, found
