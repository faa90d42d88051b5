from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from preceptor_server.engines.hf.forwards import parts_of
from preceptor_server.engines.hf.rope import LengthDependentRope
from preceptor_server.engines.hf.scored_rows import scored_rows
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tests.unit.server.engines.architectures import ROPE_THRESHOLD, random_model
from tests.unit.server.groups import group_of, random_batch, response_of

BEYOND = ROPE_THRESHOLD + 1


def test_a_rope_that_knows_no_length_is_not_length_dependent() -> None:
    for name in ("llama", "gpt2", "gemma3-sliding"):
        rope = LengthDependentRope(random_model(name))
        assert not rope
        assert rope.regime(3) == rope.regime(200)


def test_longrope_has_two_regimes() -> None:
    rope = LengthDependentRope(random_model("phi3-longrope"))
    assert rope
    assert rope.thresholds == (ROPE_THRESHOLD,)
    assert rope.regime(1) == rope.regime(ROPE_THRESHOLD)
    assert rope.regime(BEYOND) == rope.regime(BEYOND + 100)
    assert rope.regime(ROPE_THRESHOLD) != rope.regime(BEYOND)


def test_dynamic_has_a_regime_for_every_length_beyond_its_threshold() -> None:
    rope = LengthDependentRope(random_model("llama-dynamic"))
    assert rope.thresholds == (ROPE_THRESHOLD,)
    assert rope.regime(1) == rope.regime(ROPE_THRESHOLD)
    assert len({rope.regime(length) for length in range(ROPE_THRESHOLD, 100)}) == 100 - ROPE_THRESHOLD


@torch.no_grad()
def logits_of(model: PreTrainedModel, num_tokens: int) -> torch.Tensor:
    ids = torch.from_numpy(np.random.default_rng(num_tokens).integers(0, 300, num_tokens))
    logits: torch.Tensor = model(input_ids=ids[None], use_cache=False).logits
    return logits


@pytest.mark.parametrize("num_tokens", [10, ROPE_THRESHOLD, BEYOND, 80])
def test_a_reset_model_computes_what_a_fresh_one_does(num_tokens: int) -> None:
    fresh = random_model("llama-dynamic")
    used = copy.deepcopy(fresh)
    logits_of(used, 150)
    if num_tokens > ROPE_THRESHOLD:
        remembered = (logits_of(copy.deepcopy(used), num_tokens) - logits_of(copy.deepcopy(fresh), num_tokens)).abs()
        assert float(remembered.max()) > 0.01, "transformers no longer remembers: the reset can go"
    LengthDependentRope(used).reset()
    assert torch.equal(logits_of(used, num_tokens), logits_of(fresh, num_tokens))


@pytest.mark.parametrize("kind", ["default", "linear", "yarn", "llama3", "longrope", "dynamic"])
def test_only_two_kinds_of_rope_depend_on_the_length_of_a_forward(kind: str) -> None:
    """Of all that transformers knows, by what they compute: a short sequence's states beside a far position."""
    factors = [1.0 + 0.1 * index for index in range(8)]
    extra: dict[str, dict[str, object]] = {
        "default": {},
        "linear": {"factor": 4.0},
        "dynamic": {"factor": 4.0},
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 32},
        "llama3": {
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        "longrope": {"short_factor": factors, "long_factor": factors[::-1], "original_max_position_embeddings": 32},
    }
    parameters = {"rope_type": kind, "rope_theta": 10_000.0, **extra[kind]}
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, rope_parameters=parameters,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    rotary, states = model.model.rotary_emb, torch.zeros(1, 1, 32)
    alone = rotary(states, torch.arange(4)[None])[0]
    beside = rotary(states, torch.tensor([[0, 1, 2, 3, 99]]))[0][:, :4]
    assert bool(LengthDependentRope(model)) == (not torch.equal(alone, beside)) == (kind in ("longrope", "dynamic"))


@pytest.mark.parametrize("architecture", ["phi3-longrope", "llama-dynamic"])
@pytest.mark.parametrize("seed", range(20))
def test_parts_of_a_batch_have_one_regime_each_and_every_row_once(architecture: str, seed: int) -> None:
    rope = LengthDependentRope(random_model(architecture))
    batch = random_batch(np.random.default_rng(seed), vocabulary_size=300)
    parts = parts_of(batch, rope=rope)
    regimes = [
        {rope.regime(len(group.prompt_ids_P) + len(one.ids_T)) for group in part.groups for one in group.responses}
        for part in parts
    ]
    assert all(len(one) == 1 for one in regimes)
    assert len(set.union(*regimes)) == len(parts)
    sampled_N = scored_rows(batch).sampled_ids_N
    assert sorted(np.concatenate([part.rows_N for part in parts]).tolist()) == list(range(len(sampled_N)))
    for part in parts:
        assert scored_rows(part.groups).sampled_ids_N.tolist() == sampled_N[part.rows_N].tolist()


def test_a_prompt_whose_responses_lie_on_both_sides_is_in_two_parts() -> None:
    rope = LengthDependentRope(random_model("phi3-longrope"))
    prompt = list(range(ROPE_THRESHOLD - 2))
    batch = [group_of(prompt, [1, 2], response_of([3, 4, 5], [1, 0, 1]), [6]), group_of([9], [8])]
    below, beyond = parts_of(batch, rope=rope)
    assert [[one.ids_T.tolist() for one in group.responses] for group in below.groups] == [[[1, 2], [6]], [[8]]]
    assert [[one.ids_T.tolist() for one in group.responses] for group in beyond.groups] == [[[3, 4, 5]]]
    assert below.rows_N.tolist() == [0, 1, 4, 5]
    assert beyond.rows_N.tolist() == [2, 3]
