from __future__ import annotations

from typing import Any

import pytest
from preceptor_server.engines.config import VllmConfig
from preceptor_server.engines.vllm.arguments import max_top_k, vllm_arguments
from preceptor_server.errors import StartupError

KNOWN = {"model", "dtype", "tensor_parallel_size", "gpu_memory_utilization", "max_logprobs", "hf_overrides"}


def config(**settings: Any) -> VllmConfig:
    return VllmConfig(model="some/model", **settings)


def test_arguments_of_the_user_reach_vllm_beside_the_servers_own() -> None:
    given = vllm_arguments(
        config(dtype="bfloat16", max_model_len=512, arguments={"tensor_parallel_size": 4}), path="fast", known=KNOWN
    )
    assert given["tensor_parallel_size"] == 4
    assert (given["model"], given["dtype"], given["max_model_len"]) == ("some/model", "bfloat16", 512)
    assert (given["runner"], given["enable_prefix_caching"]) == ("pooling", True)
    assert given["additional_config"] == {"preceptor_rows_per_head_chunk": 256}
    assert given["hf_overrides"] == {"head_dtype": "float32"}


def test_the_stock_path_lets_vllm_answer_any_k_and_leaves_its_cache_as_it_is() -> None:
    given = vllm_arguments(config(head_dtype="model", arguments={"max_logprobs": 20}), path="stock", known=KNOWN)
    assert (given["runner"], given["max_logprobs"]) == ("generate", -1)
    assert given["hf_overrides"] == {"head_dtype": "model"}
    assert "enable_prefix_caching" not in given


def test_overrides_of_the_user_are_kept() -> None:
    given = vllm_arguments(config(arguments={"hf_overrides": {"rope_theta": 1e6}}), path="fast", known=KNOWN)
    assert given["hf_overrides"] == {"rope_theta": 1e6, "head_dtype": "float32"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tensor_paralel_size": 2}, "no such engine argument; did you mean tensor_parallel_size?"),
        ({"qqq": 2}, "engine.arguments.qqq: this vLLM has no such engine argument$"),
        ({"dtype": "auto"}, "engine.arguments.dtype: set engine.dtype instead"),
        ({"runner": "pooling"}, "set engine.path instead"),
        ({"skip_tokenizer_init": False}, "the server decides it: leave it out"),
    ],
)
def test_an_argument_that_is_not_the_users_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        vllm_arguments(config(arguments=arguments), path="fast", known=KNOWN)


@pytest.mark.parametrize(("arguments", "limit"), [({}, None), ({"max_logprobs": -1}, None), ({"max_logprobs": 20}, 20)])
def test_the_users_max_logprobs_bounds_k(arguments: dict[str, Any], limit: int | None) -> None:
    assert max_top_k(config(arguments=arguments)) == limit
