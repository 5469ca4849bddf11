"""Memory of this process and of this machine, found without torch."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

STATUS = Path("/proc/self/status")
GROUPS = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


def resident(which: str) -> int:
    """Bytes of memory this process has now (`VmRSS`) or had at its peak (`VmHWM`); 0 if unknown."""
    if not STATUS.exists():
        return 0
    (kilobytes,) = re.findall(rf"{which}:\s*(\d+) kB", STATUS.read_text(encoding="utf-8"))
    return 1024 * int(kilobytes)


def cpu_memory() -> int:
    """Bytes of physical memory, or of this process's cgroup limit where that is lower."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_cgroup_limits()])


def _cgroup_limits() -> Iterator[int]:
    """Limits of this process's cgroup and of those around it, in versions 1 and 2 of cgroups."""
    for line in GROUPS.read_text(encoding="utf-8").splitlines() if GROUPS.exists() else ():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            group, name = CGROUPS / "memory" / path[1:], "memory.limit_in_bytes"
        elif not controllers:
            group, name = CGROUPS / path[1:], "memory.max"
        else:
            continue
        for folder in (group, *group.parents):
            limit = folder / name
            if limit.is_file() and (text := limit.read_text(encoding="utf-8").strip()) != "max":
                yield int(text)
