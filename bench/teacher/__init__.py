"""Ways to ask a teacher for top-K logprobs, side by side: python -m bench.teacher (docs/teacher_bench.md)."""
