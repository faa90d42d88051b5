"""Peak memory of a call: what the process grew by, and what torch held at once (Linux); or what torch held on a GPU."""

from __future__ import annotations

import ctypes
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
"""What proc(5) has one write to clear_refs for VmHWM to start anew."""


def resident_growth(run: Callable[[], object]) -> int:
    """Bytes by which the resident memory of this process exceeded, at its largest, what it was before the call."""
    if not _CLEAR.exists():
        raise SystemExit("peak memory is read from /proc/self, which only Linux has: run this bench on Linux")
    # What earlier calls freed and the allocator kept would otherwise be used without a trace.
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text(_RESET_PEAK)
    before = _status_bytes("VmRSS")
    run()
    return _status_bytes("VmHWM") - before


def torch_growth(run: Callable[[], object]) -> int:
    """Bytes of tensors alive at once, at the most, beyond those from before the call. Slows the call down."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted(
        (event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"
    )  # fmt: skip
    held = largest = 0
    for _, num_bytes in changes:
        held += num_bytes
        largest = max(largest, held)
    return largest


def cuda_growth(run: Callable[[], object]) -> int:
    """Bytes of tensors alive at once on the GPU, at the most, beyond those from before the call."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _status_bytes(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
