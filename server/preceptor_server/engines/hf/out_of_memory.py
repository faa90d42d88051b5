"""Tells an error of torch or numpy about memory from every other, and gives back what caches hold."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from preceptor_server.errors import EngineOutOfMemoryError

_CPU_ALLOCATOR = "DefaultCPUAllocator"
"""What torch's RuntimeError names where the machine has no memory left; it has no class of its own."""


@contextmanager
def out_of_memory_told() -> Iterator[None]:
    """Raises EngineOutOfMemoryError for it, once nothing of the failed forward is held any more."""
    said: str | None = None
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        said = str(error) or type(error).__name__
        # The frames of the forward hold its tensors.
        traceback.clear_frames(error.__traceback__)
    if said is not None:
        free_caches()
        raise EngineOutOfMemoryError(f"the forward ran out of memory: {said}")


def free_caches() -> None:
    """Gives memory that nothing uses back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or _CPU_ALLOCATOR in str(error)
