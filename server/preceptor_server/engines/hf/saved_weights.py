"""Weights in a folder that shall take the place of a loaded model's own: read, and held against that model.

Only the folder's tensors are taken over, so all else, the architecture and every number of its config, must be the
loaded model's. Runs no code from the folder, reads no pickle and asks no hub.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from preceptor_server.errors import WeightUpdateError

Tensors = dict[str, torch.Tensor]

PROVENANCE = {"_name_or_path", "quantization_config", "transformers_version", "dtype"}
"""Entries of a config that say where weights came from, not what they compute."""
_NOT_COMPUTED = {
    *("architectures", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id"),
    *("output_hidden_states", "output_attentions", "return_dict"),
}
"""Entries that make no difference to the logits of a forward here; a trainer may have changed them."""
_MAX_SHOWN = 8
_CONFIG_FILE = "config.json"


def read_weights(model: PreTrainedModel, folder: Path) -> Tensors:
    """The folder's tensors under the names of `model.state_dict()`, in its dtypes, on the CPU.

    Raises WeightUpdateError where the folder is not a model of the same architecture, config and shapes.
    """
    if not (folder / _CONFIG_FILE).is_file():
        raise _refusal(folder, f"holds no {_CONFIG_FILE}: save the model there as save_pretrained does")
    try:
        _check_type(model, folder)
        # Any: with output_loading_info it is a pair, which transformers' types do not say.
        loaded: Any = type(model).from_pretrained(
            folder,
            dtype=model.dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        saved, found = loaded
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        # Where the folder lies is no business of the caller's.
        reason = str(error).replace(str(folder), folder.name)
        raise _refusal(folder, f"cannot be loaded: {reason}") from error
    if found["missing_keys"]:
        raise _refusal(folder, f"lacks weights: {_listed(found['missing_keys'])}")
    _check_config(model, saved, folder)
    _check_ties(model, saved, folder)
    tensors: Tensors = saved.state_dict()
    _check_shapes(model.state_dict(), tensors, folder)
    return tensors


def computed_config(model: PreTrainedModel) -> dict[str, Any]:  # Any: the leaves are whatever JSON holds
    """The config without what says where the weights came from."""
    return {key: value for key, value in model.config.to_dict().items() if key not in PROVENANCE}


def tied_names(model: PreTrainedModel) -> set[str]:
    """Names of the parameters that are another parameter under a second name."""
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return every - {name for name, _ in model.named_parameters()}


def _check_type(model: PreTrainedModel, folder: Path) -> None:
    """Before anything is built from the folder: transformers would read another type's config as this one's."""
    config = json.loads((folder / _CONFIG_FILE).read_text())
    saved = config.get("model_type") if isinstance(config, dict) else None
    if saved != model.config.model_type:
        raise ValueError(f"its model_type is {saved!r}, the teacher's is {model.config.model_type!r}")


def _check_config(model: PreTrainedModel, saved: PreTrainedModel, folder: Path) -> None:
    own, other = computed_config(model), computed_config(saved)
    differing = sorted(key for key in own.keys() | other.keys() if own.get(key) != other.get(key))
    if differing := [key for key in differing if key not in _NOT_COMPUTED]:
        values = _listed([f"{key} ({own.get(key)!r}, not {other.get(key)!r})" for key in differing])
        raise _refusal(folder, f"has another config than the teacher, which only a restart can take over: {values}")


def _check_ties(model: PreTrainedModel, saved: PreTrainedModel, folder: Path) -> None:
    """transformers unties what a checkpoint holds twice, with unlike values, whatever its config says."""
    if differing := tied_names(model) ^ tied_names(saved):
        raise _refusal(folder, f"ties other weights than the teacher, which takes a restart: {_listed(differing)}")


def _check_shapes(own: Tensors, saved: Tensors, folder: Path) -> None:
    differing = sorted(
        name for name in own.keys() | saved.keys() if name not in own or name not in saved or not _fit(own, saved, name)
    )
    if differing:
        raise _refusal(folder, f"has weights of other names or shapes than the teacher: {_listed(differing)}")


def _fit(own: Tensors, saved: Tensors, name: str) -> bool:
    return own[name].shape == saved[name].shape


def _refusal(folder: Path, message: str) -> WeightUpdateError:
    return WeightUpdateError("path", f"{folder.name} {message}")


def _listed(names: Any) -> str:  # Any: transformers says lists and sets
    shown = [str(name) for name in sorted(names)[:_MAX_SHOWN]]
    return ", ".join(shown) + (f", and {len(names) - len(shown)} more" if len(names) > len(shown) else "")
