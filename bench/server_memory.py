"""Memory of an hf server over 500 requests of 500 lengths: python -m bench.server_memory (Linux; 5 minutes)

A random model of 4 layers with 16 query heads over 2 key/value heads, prompts of 256 tokens, responses of 101 to 1,100,
shuffled, one request at a time. Exit status 1 where the resident set, after the first 50 requests, ever exceeds what it
was then by more than 5 %.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import psutil
import torch
from preceptor_client import BlockingTeacherClient, TeacherIds
from transformers import LlamaConfig, LlamaForCausalLM

from bench.engine import START_SECONDS, start_server
from bench.machine import describe_machine
from bench.random_model import write_tokenizer

VOCABULARY_SIZE = 4096
NUM_REQUESTS = 500
NUM_WARM = 50
PROMPT_TOKENS = 256
SHORTEST, LONGEST = 101, 1100
LIMIT = 1.05
SHOWN_EVERY = 50


def write_teacher(folder: Path) -> None:
    """The model and its tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    write_tokenizer(folder, size=VOCABULARY_SIZE)


def resident_mib(address: str, pid: int, *, num_requests: int) -> list[float]:
    """After each request."""
    rng = np.random.default_rng(0)
    lengths = rng.choice(np.arange(SHORTEST, LONGEST + 1), num_requests, replace=False)
    server, sizes = psutil.Process(pid), []
    with BlockingTeacherClient(address, timeout_seconds=600) as teacher:
        for number, length in enumerate(lengths, start=1):
            ids = rng.integers(0, VOCABULARY_SIZE, PROMPT_TOKENS + int(length))
            teacher.score(TeacherIds(ids[:PROMPT_TOKENS]), [ids[PROMPT_TOKENS:]], top_k=32)
            sizes.append(server.memory_info().rss / 2**20)
            if number % SHOWN_EVERY == 0:
                print(f"{number:4} requests  {sizes[-1]:8.1f} MiB", flush=True)
    return sizes


def main() -> int:
    """Prints the resident set every 50 requests and the verdict, then the same as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.server_memory", description="Memory of an hf server.")
    parser.add_argument(
        "--requests", type=int, default=NUM_REQUESTS, metavar="N", help=f"of unlike lengths, {NUM_WARM + 1} to 1,000"
    )
    num_requests = parser.parse_args().requests
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_teacher(folder)
        server = start_server(name, folder / "address")
        try:
            sizes = resident_mib((folder / "address").read_text(), server.pid, num_requests=num_requests)
        finally:
            server.terminate()
            server.wait(START_SECONDS)
    growth = max(sizes[NUM_WARM:]) / sizes[NUM_WARM - 1]
    print(f"{'ok  ' if growth <= LIMIT else 'FAIL'} at most {growth:.3f} times what it was after {NUM_WARM} requests")
    machine = describe_machine("torch", "transformers")
    print(json.dumps({"machine": machine, "mib": [round(size, 1) for size in sizes[::SHOWN_EVERY]], "growth": growth}))
    return 0 if growth <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
