"""Opens the client of a teacher server as its settings say: key, certificates, cache. Asks nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from preceptor.settings import InvalidSettingsError

from preceptor_client.score_cache import ScoreCache
from preceptor_client.teacher import BlockingTeacherClient, RetryEvent
from preceptor_client.train.teacher.config import TeacherConfig


@contextmanager
def opened_client(
    config: TeacherConfig, *, key: str = "teacher", on_retry: Callable[[RetryEvent], None] | None = None
) -> Iterator[BlockingTeacherClient]:
    """A client, and its cache, for the length of the block. `key` is where the settings stand; raises
    InvalidSettingsError, which begins with it, where a file that they name cannot be used."""
    with ExitStack() as stack:
        try:
            client = BlockingTeacherClient(
                config.address,
                timeout_seconds=config.patience_seconds,
                on_retry=on_retry,
                api_key_file=config.api_key_file,
                ca=config.ca,
                cert=(config.cert, config.cert_key) if config.cert and config.cert_key else None,
                insecure_key=config.insecure_key,
                objective=config.objective,
                hedge_seconds=config.hedge_seconds,
                cache=stack.enter_context(_cache(config)) if config.cache else None,
            )
        except ValueError as error:
            raise InvalidSettingsError(f"{key}: {error}") from error
        yield stack.enter_context(client)


def _cache(config: TeacherConfig) -> ScoreCache:
    assert config.cache is not None
    return ScoreCache(config.cache, max_bytes=config.cache_bytes, mode=config.cache_mode)
