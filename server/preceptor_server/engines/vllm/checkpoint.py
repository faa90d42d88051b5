"""What the files of a model say beside its weights: where they lie, and which tokens end a response."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def folder_of(model: str) -> Path:
    """The folder of a model that is loaded: itself, or where the hub's cache keeps it."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, local_files_only=True))


def end_token_ids(folder: Path, config: Any) -> tuple[int, ...]:  # Any: transformers' PreTrainedConfig
    """Of the generation config, else of the model's own."""
    file = folder / "generation_config.json"
    ids = json.loads(file.read_text()).get("eos_token_id") if file.is_file() else None
    if ids is None:
        ids = getattr(config, "eos_token_id", None)
    if ids is None:
        return ()
    return tuple(sorted(ids)) if isinstance(ids, list) else (ids,)
