"""Sets up logging once, on stderr: one line per event, as key=value or as JSON. Keys never reach a line, nor prompts
unless they are asked for.

Prompts and responses are written as `private(text)`. Whatever looks like a key is taken out of the finished line,
should it get that far.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal

from preceptor_server.observability.rate_limited import RateLimitFilter
from preceptor_server.observability.tracing import current_ids

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

LogFormat = Literal["text", "json"]

REDACTED = "[redacted]"
_KEY = re.compile(r"prk_[A-Za-z0-9_-]{4,}")
_BEARER = re.compile(r"\b((?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{16,}", re.IGNORECASE)
_HEADER = re.compile(
    r"""(authorization\\?["']?\s*[:=,]\s*(?:b(?=['"]))?\\?["']?(?:(?:bearer|basic)\s+)?)[^\s"'\\,;)}\]]+""",
    re.IGNORECASE,
)
_LIBRARIES = ("asyncio", "grpc", "opentelemetry", "urllib3", "uvicorn")
"""They write a line for each message or connection that goes wrong."""
_OWN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_BREAKS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029]")
_MAX_PRIVATE = 2000

_log_prompts = False


def set_up_logging(level: str, *, log_format: LogFormat = "text", log_prompts: bool = False) -> None:
    """`log_prompts`: `private` shows the text."""
    from transformers.utils import logging as transformers_logging  # seconds, and only needed here

    global _log_prompts
    _log_prompts = log_prompts
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    handler.addFilter(RateLimitFilter(_LIBRARIES))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()


def private(text: str) -> str:
    """What a log says of a prompt or a response: its length, or, where observe.log_prompts is set, its beginning."""
    return repr(text[:_MAX_PRIVATE]) if _log_prompts else f"<{len(text)} characters>"


def redacted(text: str) -> str:
    """`text` without what looks like a key or an Authorization header's value."""
    text = _KEY.sub(REDACTED, text)
    text = _BEARER.sub(rf"\1{REDACTED}", text)
    return _HEADER.sub(rf"\1{REDACTED}", text)


def _escaped(text: str) -> str:
    return _BREAKS.sub(lambda found: repr(found[0])[1:-1], text)


class TextFormatter(logging.Formatter):
    """One line; only a traceback has more."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s level=%(levelname)s logger=%(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _escaped(record.message)  # what a caller sent must not look like a line of its own
        ids = current_ids()
        line = super().formatMessage(record)
        return line if ids is None else f"{line} trace_id={ids.trace_id} span_id={ids.span_id}"

    def formatException(self, ei: _ExcInfo) -> str:
        # Indented, so that an error's text, which may be a caller's, begins no line of its own either.
        return "\n".join(f"    {_escaped(line)}" for line in super().formatException(ei).split("\n"))

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message; exception, trace_id and span_id where there are any; and
    what the call gave as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (ids := current_ids()) is not None:
            line |= {"trace_id": ids.trace_id, "span_id": ids.span_id}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        extra = {name: value for name, value in vars(record).items() if name not in _OWN_ATTRIBUTES | line.keys()}
        return redacted(json.dumps(line | extra, default=str, ensure_ascii=False))
