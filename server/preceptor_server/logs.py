"""Sets up logging once: one line per event, key=value, on stderr."""

from __future__ import annotations

import logging
import sys

from transformers.utils import logging as transformers_logging


def set_up_logging(level: str) -> None:
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(asctime)s level=%(levelname)s logger=%(name)s %(message)s", force=True
    )
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
