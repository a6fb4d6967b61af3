"""What this machine has: free memory, what a process takes of it, GPU back-ends; and how sizes are said."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger("parley.engine")


def available_memory() -> int | None:
    """Bytes that a new process may take: what the machine has free, or what the cgroup leaves, whichever is less."""
    known = [number for number in (_machine_memory(), _cgroup_memory(Path("/sys/fs/cgroup"))) if number is not None]
    return min(known) if known else None


def _machine_memory() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError) as error:
        log.debug("no figure in /proc/meminfo: %s", error)
    return None


def _cgroup_memory(root: Path, membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """The smallest room that any cgroup (v2, else v1) above this process leaves; None without a limit."""
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return None
    rooms = []
    for _, controllers, place in (line for line in lines if len(line) == 3):
        if controllers not in ("", "memory"):
            continue
        base = root if not controllers else root / "memory"
        files = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        folder = base / place.lstrip("/")
        for level in (folder, *folder.parents):
            if level == base or base in level.parents:
                rooms.append(_room(level, *files))
    known = [room for room in rooms if room is not None]
    return min(known) if known else None


class Use(NamedTuple):
    """Memory of one process in bytes."""

    total: int          # its share: what it maps together with others is divided by their number
    own: int            # of that, what no file stands behind, so that only its end gives it back


def use_of(pid: int) -> Use | None:
    """What process `pid` takes now; None when that cannot be read, mostly because it is gone."""
    try:
        lines = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
        sizes = {fields[0]: int(fields[1]) * 1024 for fields in lines if len(fields) == 3 and fields[2] == "kB"}
        return Use(total=sizes["Pss:"], own=sizes["Anonymous:"])
    except (OSError, ValueError, KeyError) as error:
        log.debug("no figures for process %d: %s", pid, error)
        return None


def oom_kills() -> int:
    """How many processes the kernel has ended for want of memory since the machine's start; 0 where it does not say."""
    try:
        fields = [line.split() for line in Path("/proc/vmstat").read_text().splitlines()]
        return next((int(value) for name, value in fields if name == "oom_kill"), 0)
    except (OSError, ValueError):
        return 0


def _room(folder: Path, limit_file: str, used_file: str) -> int | None:
    """Limit less use, where the file cache, which can be dropped, does not count as used."""
    try:
        limit = (folder / limit_file).read_text().strip()
        if limit == "max" or int(limit) >= 1 << 60:
            return None
        used = int((folder / used_file).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        cache = max(sum(int(stat.get(f"{total}{kind}_file", 0)) for kind in ("inactive", "active"))
                    for total in ("", "total_"))
        return max(0, int(limit) - used + cache)
    except (OSError, ValueError, IndexError):
        return None


def gpu_backends() -> list[str]:
    """Back-ends beside the CPU that the installed llama-cpp-python was built with, told by its libraries' names."""
    found = importlib.util.find_spec("llama_cpp")
    folder = Path(found.origin).parent / "lib" if found and found.origin else None
    if folder is None or not folder.is_dir():
        return []
    names = {path.name.split(".")[0].split("ggml-")[1].split("-")[0] for path in folder.glob("*ggml-*")}
    return sorted(names - {"base", "cpu", "blas", "rpc"})


def in_words(size: float) -> str:
    """Bytes as a person reads them, in powers of ten: 512 B, 4.9 MB, 4.1 GB."""
    unit, *larger = "B", "kB", "MB", "GB"
    while size >= 999.5 and larger:
        size, unit = size / 1000, larger.pop(0)
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
