from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from preceptor_client.train.data.examples import Example, PromptStream
from preceptor_client.train.data.loading import load_examples
from preceptor_client.train.errors import InvalidDataError
from preceptor_client.types import ChatMessage

GOOD = '{"prompt": "hello"}'


def _write(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(lines))
    return str(path)


def test_texts_and_conversations_are_read(tmp_path: Path) -> None:
    source = _write(
        tmp_path,
        '{"prompt": "a", "teacher_prompt": "b", "answer": "c", "task": "d"}',
        "",
        '{"prompt": [{"role": "user", "content": "hi"}]}',
    )
    assert load_examples(source) == [
        Example(index=0, prompt="a", teacher_prompt="b", answer="c", task="d"),
        Example(index=1, prompt=(ChatMessage(role="user", content="hi"),)),
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{prompt", "not JSON"),
        ('["hello"]', "must be an object"),
        ('{"answer": "x"}', "has no 'prompt'"),
        ('{"prompt": ""}', "'prompt' must be"),
        ('{"prompt": 3}', "'prompt' must be"),
        ('{"prompt": []}', "'prompt' must be"),
        ('{"prompt": [{"role": "user"}]}', "message 0"),
        ('{"prompt": [{"role": "user", "content": "a", "nick": "b"}]}', "message 0"),
        ('{"prompt": "a", "teacher_prompt": 1}', "'teacher_prompt' must be"),
        ('{"prompt": "a", "answer": true}', "'answer' must be"),
        ('{"prompt": "a", "task": 4}', "'task' must be a text, not 4"),
        ('{"prompt": "a", "label": "b"}', "unknown key 'label'"),
    ],
)
def test_bad_line_is_refused_with_file_and_line(tmp_path: Path, line: str, expected: str) -> None:
    with pytest.raises(InvalidDataError, match=rf"data\.jsonl:2: .*{expected}"):
        load_examples(_write(tmp_path, GOOD, line))


def test_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataError, match="holds no example"):
        load_examples(_write(tmp_path, ""))


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidDataError, match="no such file"):
        load_examples(str(tmp_path / "absent.jsonl"))


def _stream(seed: int, *, prompts_per_step: int = 4, num_examples: int = 10) -> PromptStream:
    examples = [Example(index=index, prompt=str(index)) for index in range(num_examples)]
    return PromptStream(examples, prompts_per_step=prompts_per_step, seed=seed)


def test_every_epoch_deals_every_example_once() -> None:
    stream = _stream(3)
    dealt = [example.index for step in range(1, 11) for example in stream.step(step)]
    for epoch in range(4):
        assert sorted(dealt[epoch * 10 : epoch * 10 + 10]) == list(range(10))
    assert dealt[:10] != dealt[10:20]


def test_a_step_does_not_depend_on_the_steps_before() -> None:
    walked = _stream(3)
    steps = {step: walked.step(step) for step in range(1, 9)}
    for step in (8, 2, 5):
        assert _stream(3).step(step) == steps[step]


def test_seed_changes_the_order() -> None:
    assert [_stream(0).step(step) for step in (1, 2)] != [_stream(1).step(step) for step in (1, 2)]


def test_a_step_may_be_larger_than_the_data() -> None:
    counts = Counter(example.index for example in _stream(0, prompts_per_step=25).step(1))
    assert set(counts.values()) == {2, 3}
