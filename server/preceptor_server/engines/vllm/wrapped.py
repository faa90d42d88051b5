"""Any of vLLM's causal models, with a pooler that scores: `getattr(this module, name_of(module, class))`.

vLLM imports model classes lazily, by the name of a module and of a class in it, in whichever process needs one, and
keeps what it learned of a class in a file under that name. So the name says all: where the class comes from, and the
version of vLLM whose class it is.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any, ClassVar

from preceptor_server.engines.vllm.pooler import ScoringPooler
from preceptor_server.engines.vllm.rows import ROWS_PER_CHUNK

_DEFAULT_ROWS_PER_CHUNK = 256
_BETWEEN = "--"


def name_of(module_name: str, class_name: str, *, version: str) -> str:
    """The attribute of this module that is the wrapped class."""
    return f"{module_name}{_BETWEEN}{class_name}@{version}"


def __getattr__(name: str) -> type[Any]:
    module_name, separator, class_name = name.partition("@")[0].rpartition(_BETWEEN)
    if not separator:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return scoring_class(getattr(importlib.import_module(module_name), class_name))


def is_scoring(cls: type[Any]) -> bool:
    """Whether `scoring_class` has been at work."""
    return getattr(cls, "scores_for_preceptor", False)


@functools.cache
def scoring_class(cls: type[Any]) -> type[Any]:
    """`cls` with the pooler; unchanged where it has no head to apply, or a pooler of its own."""
    if not callable(getattr(cls, "compute_logits", None)) or getattr(cls, "is_pooling_model", False):
        return cls

    class Scoring(cls):  # type: ignore[misc]  # a base class chosen at run time
        is_pooling_model = True
        scores_for_preceptor = True
        # vLLM adapts a head for the one row per request that it samples from, and here others are scored: adapters of
        # the head, or of the embeddings, are refused instead.
        embedding_modules: ClassVar[dict[str, str]] = {}

        # vllm_config is vLLM's VllmConfig, which this project does not import for its types.
        def __init__(self, *, vllm_config: Any, prefix: str = "", **kwargs: Any) -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix, **kwargs)
            settings = vllm_config.additional_config
            rows = settings.get(ROWS_PER_CHUNK, _DEFAULT_ROWS_PER_CHUNK) if isinstance(settings, dict) else None
            self.pooler = ScoringPooler(self.compute_logits, rows_per_chunk=rows or _DEFAULT_ROWS_PER_CHUNK)

    Scoring.__name__ = Scoring.__qualname__ = cls.__name__
    Scoring.__module__ = cls.__module__
    return Scoring
