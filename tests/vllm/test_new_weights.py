"""New weights and adapters in a running vLLM: the answers are theirs, and no cached prefix is of the old ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from preceptor.wire import LogprobArray, LogprobDtype
from preceptor_client import TeacherClient, TeacherIds
from preceptor_client.errors import InvalidRequestError
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.integration.servers import MAY_UPDATE_WEIGHTS
from tests.vllm.models import save_model
from tests.vllm.serving import vllm_server

pytestmark = pytest.mark.vllm

PROMPT = np.arange(100, 180)
RESPONSE = np.arange(20, 45)
RANK, ALPHA = 4, 8


def logprobs(model: PreTrainedModel) -> LogprobArray:
    """Of the response's own tokens, by a plain forward."""
    ids = torch.from_numpy(np.concatenate([PROMPT, RESPONSE]))[None]
    with torch.inference_mode():
        rows = model(input_ids=ids).logits[0, len(PROMPT) - 1 : -1].log_softmax(dim=-1)
    result: LogprobArray = rows[torch.arange(len(RESPONSE)), torch.from_numpy(RESPONSE)].numpy()
    return result


def loaded(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model


def save_adapter(folder: Path, base: PreTrainedModel, *, seed: int) -> PreTrainedModel:
    """A LoRA adapter of the query projections as peft writes one; returns the model with it merged in."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, module in base.named_modules():
        if name.endswith("q_proj"):
            a = torch.randn(RANK, module.in_features, generator=generator) * 0.2
            b = torch.randn(module.out_features, RANK, generator=generator) * 0.2
            tensors[f"base_model.model.{name}.lora_A.weight"] = a
            tensors[f"base_model.model.{name}.lora_B.weight"] = b
            with torch.no_grad():
                module.weight += ALPHA / RANK * b @ a
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"task_type": "CAUSAL_LM"}))
    return base


async def score(client: TeacherClient, adapter: str = "") -> tuple[LogprobArray, str]:
    answer = await client.score(
        TeacherIds(PROMPT), [RESPONSE], top_k=4, adapter=adapter, logprob_dtype=LogprobDtype.F32
    )
    return answer.responses[0].sampled_logprobs_N, answer.revision


async def test_a_checkpoint_is_swapped_and_nothing_of_the_old_one_is_left_in_the_cache(tmp_path: Path) -> None:
    old, new = save_model(tmp_path / "old"), save_model(tmp_path / "weights" / "step-2", seed=1)
    (tmp_path / "weights" / "torn").mkdir()
    (tmp_path / "weights" / "torn" / "config.json").write_bytes((old / "config.json").read_bytes())
    (tmp_path / "weights" / "torn" / "model.safetensors").write_bytes(b"not weights")
    folder = ("--engine.weights-folder", str(tmp_path / "weights"), *MAY_UPDATE_WEIGHTS)
    with vllm_server(tmp_path / "server", old, *folder, arguments={"block_size": 32}) as server:
        async with TeacherClient(server.address, timeout_seconds=300) as client:
            before, first = await score(client)
            np.testing.assert_allclose(before, logprobs(loaded(old)), atol=1e-4)
            update = await client.update_weights("step-2")
            after, second = await score(client)
            np.testing.assert_allclose(after, logprobs(loaded(new)), atol=1e-4)
            assert np.abs(after - before).max() > 0.1
            assert (update.previous_revision, update.revision) == (first, second)
            assert first != second
            with pytest.raises(InvalidRequestError, match="path"):
                await client.update_weights("torn")
            kept, third = await score(client)
            np.testing.assert_allclose(kept, after, atol=1e-5)
            assert third == second


# In bf16 the test failed on an H200 too, and why was not found: docs/scaling.md.
@pytest.mark.skipif(torch.cuda.is_available(), reason="vLLM's kernels for adapters take no fp32 on a GPU")
async def test_adapters_come_are_replaced_and_go_beside_the_teacher(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    first = save_adapter(tmp_path / "weights" / "tutor-1", loaded(base), seed=1)
    second = save_adapter(tmp_path / "weights" / "tutor-2", loaded(base), seed=2)
    folder = ("--engine.weights-folder", str(tmp_path / "weights"), *MAY_UPDATE_WEIGHTS)
    arguments = {"block_size": 32, "enable_lora": True, "max_lora_rank": 8, "max_loras": 2}
    with vllm_server(tmp_path / "server", base, *folder, arguments=arguments) as server:
        async with TeacherClient(server.address, timeout_seconds=300) as client:
            plain, revision = await score(client)
            await client.update_weights("tutor-1", adapter="tutor")
            with_first, first_revision = await score(client, "tutor")
            np.testing.assert_allclose(with_first, logprobs(first), atol=1e-4)
            await client.update_weights("tutor-2", adapter="tutor")
            with_second, second_revision = await score(client, "tutor")
            np.testing.assert_allclose(with_second, logprobs(second), atol=1e-4)
            again, same = await score(client)
            np.testing.assert_allclose(again, plain, atol=1e-5)
            assert same == revision
            assert len({revision, first_revision, second_revision}) == 3
            await client.update_weights(adapter="tutor", unload=True)
            with pytest.raises(InvalidRequestError, match="tutor"):
                await score(client, "tutor")
    assert np.abs(with_first - plain).max() > 0.05
