"""Memory of the device that computes: what this process holds, what it may still get, and its peak.

On the CPU, Linux counts the peak itself. Other systems have no such counter that can be reset, so a thread reads the
size of the process every few milliseconds.
"""

import re
import threading
from pathlib import Path

import psutil
import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_GROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_SAMPLE_SECONDS = 0.005


def in_memory(device: torch.device) -> int:
    """Bytes that this process holds now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def available_bytes(device: torch.device) -> int:
    """Bytes that it may still get."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    rooms = [psutil.virtual_memory().available]
    if (limit := _address_limit()) is not None:
        rooms.append(limit - psutil.Process().memory_info().vms)
    if _GROUP_LIMIT.exists() and (most := _GROUP_LIMIT.read_text().strip()) != "max":  # of a container
        rooms.append(int(most) - int(_GROUP_LIMIT.with_name("memory.current").read_text()))
    return max(0, min(rooms))


def _address_limit() -> int | None:
    """The limit of `ulimit -v`; None without one, and on Windows, which has none."""
    try:
        import resource
    except ImportError:
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit


class PeakMemory:
    """`with PeakMemory(device) as peak: ...` leaves in `peak.bytes` the most bytes at once within the block."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0
        self._reset = _RESET if _RESET.exists() else None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self._reset is not None:
            self._reset.write_text("5")
        else:
            self.bytes = in_memory(self.device)
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device)
        elif self._thread is None:
            self.bytes = _high_water()
        else:
            self._ended.set()
            self._thread.join()
            self.bytes = max(self.bytes, in_memory(self.device))

    def _sample(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            self.bytes = max(self.bytes, in_memory(self.device))


def _high_water() -> int:
    found = re.search(r"VmHWM:\s+(\d+)", _STATUS.read_text())
    assert found is not None
    return int(found[1]) * 1024
