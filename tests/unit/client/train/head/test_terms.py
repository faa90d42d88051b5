from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from preceptor_client.train.errors import InvalidStudentError
from preceptor_client.train.student.head import Head
from preceptor_client.train.student.head.terms import terms_of

from tests.tiny import tiny_llama
from tests.unit.client.train.head.heads import HIDDEN_SIZE, VOCABULARY_SIZE, hidden_states, linear, with_adapter

# peft reads an attribute that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def _head_of(config: LoraConfig) -> Any:  # Any: peft's wrappers hide the types of what they hold
    model: Any = get_peft_model(tiny_llama(tied=False), config)
    return model.base_model.model.get_output_embeddings()


def test_an_adapter_that_is_off_or_merged_adds_nothing() -> None:
    module = with_adapter(linear())
    hidden_ND = hidden_states()
    assert len(terms_of(module).terms) == 2
    module.enable_adapters(False)
    assert len(terms_of(module).terms) == 1
    module.enable_adapters(True)
    merged = module(hidden_ND)
    module.merge()
    assert len(terms_of(module).terms) == 1
    torch.testing.assert_close(Head(module=module).logits(hidden_ND), merged.detach())


def test_a_head_that_peft_trains_whole_is_the_copy_in_use() -> None:
    module = _head_of(LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    assert module.modules_to_save["default"].weight is not module.original_module.weight
    assert terms_of(module).terms[0].weight_VD is module.modules_to_save["default"].weight
    module.enable_adapters(False)
    assert terms_of(module).terms[0].weight_VD is module.original_module.weight


def test_what_is_no_linear_head_is_refused() -> None:
    with pytest.raises(InvalidStudentError, match="is a Bilinear, training needs a Linear"):
        terms_of(torch.nn.Bilinear(HIDDEN_SIZE, HIDDEN_SIZE, VOCABULARY_SIZE))


def test_variants_of_lora_are_refused() -> None:
    with pytest.raises(InvalidStudentError, match="use plain LoRA"):
        terms_of(_head_of(LoraConfig(target_modules=["lm_head"], use_dora=True)))


@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed")
def test_factors_with_a_bias_are_refused() -> None:
    with pytest.raises(InvalidStudentError, match="set lora_bias=False"):
        terms_of(_head_of(LoraConfig(target_modules=["lm_head"], lora_bias=True)))
