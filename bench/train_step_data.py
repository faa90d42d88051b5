"""The demo's first step, made once for all that measure it: rollouts of the student, and what the teacher says of them.

The teacher is the same model with five solved questions before its prompt, read by one plain forward per response.
"""

# T = tokens of the response, K = support size, V = vocabulary

from __future__ import annotations

import importlib.util
import json
import tempfile
from pathlib import Path

import torch
from preceptor_client.train.data.examples import Example, PromptStream
from preceptor_client.train.data.loading import load_examples
from preceptor_client.train.rollout.config import RolloutConfig
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.rollout.hf import HfRollouts
from preceptor_client.train.student.student import Student, load_student

from bench.train_step_case import SavedRollout
from bench.train_step_now import student_config

PROMPTS_PER_STEP = 16
TOP_K = 32
SEED = 0


def demo_examples() -> list[Example]:
    """Of the demo's first step."""
    path = Path(__file__).parent.parent / "deploy" / "local" / "data.py"
    spec = importlib.util.spec_from_file_location("demo_data", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with tempfile.TemporaryDirectory() as folder:
        module.write_examples(Path(folder))
        examples = load_examples(f"{folder}/train.jsonl")
    return PromptStream(examples, prompts_per_step=PROMPTS_PER_STEP, seed=SEED).step(1)


def demo_rollouts(student: Student) -> HfRollouts:
    """The demo's way of drawing."""
    return HfRollouts(student, config=RolloutConfig(prompts_per_step=PROMPTS_PER_STEP, max_new_tokens=16), seed=SEED)


def save_step(path: Path) -> int:
    """Writes the step to a file; returns its number of positions."""
    student = load_student(student_config())
    batches = demo_rollouts(student).generate(demo_examples(), step=1)
    saved = [scored(student, rollout) for batch in batches for rollout in batch]
    path.write_text(json.dumps(saved))
    return sum(len(one["response_ids"]) for one in saved)


@torch.inference_mode()
def scored(student: Student, rollout: Episode) -> SavedRollout:
    """With the teacher's columns for every token of the response."""
    assert rollout.example.teacher_prompt is not None
    prompt_ids = student.encode_prompt(rollout.example.teacher_prompt)
    response_T = torch.tensor(rollout.response_ids)
    ids = torch.tensor([[*prompt_ids, *rollout.response_ids[:-1]]])
    # Typed by transformers as any module's.
    logprobs_TV = student.model(ids).logits[0, len(prompt_ids) - 1 :].float().log_softmax(dim=1)
    top = logprobs_TV.topk(TOP_K, dim=1)
    return {
        "prompt_ids": list(rollout.prompt_ids),
        "response_ids": list(rollout.response_ids),
        "finish_reason": rollout.finish_reason,
        "support_ids": top.indices.tolist(),
        "support_logprobs": top.values.tolist(),
        "sampled_logprobs": logprobs_TV.gather(1, response_T[:, None])[:, 0].tolist(),
        "log_tail_masses": torch.log1p(-top.values.double().exp().sum(dim=1).clamp(max=1.0)).tolist(),
        "entropies": (-(logprobs_TV.exp() * logprobs_TV).sum(dim=1)).tolist(),
        "student_logprobs": rollout.student.logprobs_T.tolist(),
        "student_entropies": rollout.student.entropies_T.tolist(),
    }
