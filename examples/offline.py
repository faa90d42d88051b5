"""Offline distillation (GKD, arXiv 2306.13649, with no share of on-policy data): a run trains on another run's text.

The first run, of any student with this tokenizer, has `run.save_episodes = true`; its episodes.jsonl is read here. Text
from elsewhere does too: {"prompt": "...", "response": "..."} on each line. It is off-policy, and the logprobs that the
episodes come with are those of the student that wrote them. `take = "step"` repeats the first run step by step.

Settings:
    [rollout]
    engine = "jsonl"
    engine_options = { path = "runs/first/episodes.jsonl", take = "draw" }
"""
