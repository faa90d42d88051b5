"""This process's memory, processor time and file descriptors, by the names that Prometheus's own clients give them."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

from preceptor_server.observability.families import Family, ReadGauge

_PROC = Path("/proc/self")


class ProcessMetrics:
    """Read for each scrape; without values where there is no /proc."""

    def __init__(self, *, proc: Path = _PROC) -> None:
        self._proc = proc
        self._started = time.time()
        self._page_bytes = resource.getpagesize()
        self._cpu = ReadGauge("process_cpu_seconds_total", "Processor time, user and system.", kind="counter")
        self._resident = ReadGauge("process_resident_memory_bytes", "Resident memory.")
        self._virtual = ReadGauge("process_virtual_memory_bytes", "Virtual memory.")
        self._open_fds = ReadGauge("process_open_fds", "Open file descriptors.")
        self._max_fds = ReadGauge("process_max_fds", "Most file descriptors that may be open.")
        self._start = ReadGauge("process_start_time_seconds", "When the server was made, in Unix time.")
        self._start.read({(): self._started})

    @property
    def families(self) -> tuple[Family, ...]:
        return (self._cpu, self._resident, self._virtual, self._open_fds, self._max_fds, self._start)

    def read(self) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        self._cpu.read({(): used.ru_utime + used.ru_stime})
        self._max_fds.read({(): resource.getrlimit(resource.RLIMIT_NOFILE)[0]})
        try:
            pages = (self._proc / "statm").read_text().split()
            num_open = len(os.listdir(self._proc / "fd"))
        except OSError:  # no /proc: not Linux
            return
        self._virtual.read({(): int(pages[0]) * self._page_bytes})
        self._resident.read({(): int(pages[1]) * self._page_bytes})
        self._open_fds.read({(): num_open})
