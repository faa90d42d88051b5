"""What `preceptor score` prints, and how it fails."""

from __future__ import annotations

import asyncio
import json
import math
import sys

import grpc
import numpy as np
import pytest
from preceptor.v1 import teacher_pb2
from preceptor.wire import PositionStatus
from preceptor_client.commands import score, score_grpc
from preceptor_client.commands.status_words import WHY_NO_SCORE
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel, Metaspace
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from tests.unit.client.scripted_teacher import Abort, Lie, ScriptedTeacher, dense_logprobs, serving

RESPONSE = " Oslo.\n"
RESPONSE_IDS = [21, 32, 80]


def tokenizer() -> Tokenizer:
    built = Tokenizer(WordLevel({" Oslo": 21, ".": 32, "\n": 80, "?": 0}, unk_token="?"))
    built.pre_tokenizer = Split(Regex(r" ?\w+|\.|\n"), "isolated")
    return built


async def run(teacher: ScriptedTeacher, *arguments: str) -> int:
    async with serving(teacher) as address:
        return await asyncio.to_thread(score.run, ["--address", address, *arguments])


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> ScriptedTeacher:
    monkeypatch.setenv("COLUMNS", "250")
    return ScriptedTeacher(tokenizer_json=tokenizer().to_str().encode())


async def test_each_token_has_a_row_with_the_teachers_numbers(
    teacher: ScriptedTeacher, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run(teacher, "--prompt", "The capital of Norway is", "--response", RESPONSE, "--show", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "teacher tutor (tiny, fake, float32 on cpu), revision r1" in lines[0]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    dense_TV = dense_logprobs(np.array(RESPONSE_IDS), temperature=1.0)
    for position, text in enumerate(["' Oslo'", "'.'", r"'\n'"]):
        logprobs_V = dense_TV[position]
        sampled = logprobs_V[RESPONSE_IDS[position]]
        sorted_V = np.sort(logprobs_V)[::-1]
        rank = int((logprobs_V > sampled).sum()) + 1
        mass = float(np.exp(sorted_V[:8]).sum())
        entropy = float(-(np.exp(logprobs_V) * logprobs_V).sum())
        assert rows[position][:7] == [
            str(position),
            text,
            f"{sampled:.3f}",
            f"{math.exp(sampled):.4f}",
            str(rank),
            f"{mass:.4f}",
            f"{entropy:.3f}",
        ]
        assert rows[position][7].endswith(f"{math.exp(sorted_V[0]):.3f}")
    assert len(rows) == 3


async def test_entropy_that_the_teacher_does_not_compute_is_a_dash(
    teacher: ScriptedTeacher, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher.script = [Lie(change=lambda answer: setattr(answer.responses[0], "entropies", b""))]
    assert await run(teacher, "--prompt", "a", "--response", RESPONSE) == 0
    assert [row[6] for row in rows_of(capsys.readouterr().out)] == ["-"] * 3


async def test_chat_is_sent_as_a_users_message(teacher: ScriptedTeacher) -> None:
    assert await run(teacher, "--chat", "Capital of Norway?", "--response", RESPONSE) == 0
    message = teacher.requests[0].prompt.chat.messages[0]
    assert (message.role, message.content) == ("user", "Capital of Norway?")


async def test_tools_and_template_arguments_go_with_a_chat(teacher: ScriptedTeacher) -> None:
    teacher.takes_chat_arguments = True
    options = ["--tools", '[{"b": 1, "a": "ø"}]', "--chat-template-kwargs", '{"enable_thinking": false}']
    assert await run(teacher, "--chat", "hi", "--response", RESPONSE, *options) == 0
    sent = teacher.requests[0].prompt.chat
    assert [json.loads(tool) for tool in sent.tools] == [{"b": 1, "a": "ø"}]
    assert json.loads(sent.template_arguments) == {"enable_thinking": False}


async def test_an_older_server_is_told_from_one_that_takes_tools(
    teacher: ScriptedTeacher, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run(teacher, "--chat", "hi", "--response", RESPONSE, "--tools", "[{}]") == 1
    assert "would ignore tools" in capsys.readouterr().err
    assert teacher.requests == []


def rows_of(printed: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if line.startswith("│")]


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (PositionStatus.NON_FINITE, "no score: the teacher's logits were NaN or infinite there"),
        (PositionStatus.SPECIAL, "no score: a special token without a counterpart at the teacher"),
        (PositionStatus.MISALIGNED, "no score: the teacher would cut these bytes differently"),
        (PositionStatus.UNMAPPED, "no score: the teacher's vocabulary has no counterpart of this token"),
        (PositionStatus.BEYOND_CONTEXT, "no score: beyond the teacher's context"),
    ],
)
async def test_position_without_a_score_says_why(
    status: PositionStatus, says: str, teacher: ScriptedTeacher, capsys: pytest.CaptureFixture[str]
) -> None:
    def drop_last(answer: teacher_pb2.ScoreResponse) -> None:
        scores = answer.responses[0]
        scores.status = bytes([1, 1, status])
        for name in ("support_ids", "support_logprobs", "sampled_logprobs", "log_tail_mass", "entropies"):
            data = getattr(scores, name)
            setattr(scores, name, data[: len(data) // 3 * 2])

    teacher.script = [Lie(change=drop_last)]
    assert await run(teacher, "--prompt", "a", "--response", RESPONSE) == 0
    assert rows_of(capsys.readouterr().out)[2] == ["2", r"'\n'", "-", "-", "-", "-", "-", says]


def test_every_status_but_ok_has_words() -> None:
    assert set(WHY_NO_SCORE) == set(PositionStatus) - {PositionStatus.OK}


async def test_what_fills_a_row_up_is_not_shown(teacher: ScriptedTeacher, capsys: pytest.CaptureFixture[str]) -> None:
    def keep_one(answer: teacher_pb2.ScoreResponse) -> None:
        scores = answer.responses[0]
        logprobs_NK = np.full((3, 2), -np.inf, "<f4")
        logprobs_NK[:, 0] = np.log(0.75)
        scores.support_logprobs = logprobs_NK.tobytes()
        scores.support_ids = np.repeat(np.array([[21], [32], [21]], "<u2"), 2, axis=1).tobytes()
        # The last token has no mass: the second entry of its row is no rank of it.
        scores.sampled_logprobs = np.array([np.log(0.75), np.log(0.75), -np.inf], "<f4").tobytes()
        scores.log_tail_mass = np.full(3, np.log(0.25), "<f4").tobytes()

    teacher.script = [Lie(change=keep_one)]
    assert await run(teacher, "--prompt", "a", "--response", RESPONSE, "--top-k", "2") == 0
    rows = rows_of(capsys.readouterr().out)
    assert [row[4] for row in rows] == ["1", "1", "-"]
    assert [row[7] for row in rows] == ["' Oslo' 0.750", "'.' 0.750", "' Oslo' 0.750"]


@pytest.mark.parametrize("policy", ["as_is", "mask", "canonical"])
async def test_policy_is_asked_for_and_shown(
    policy: str, teacher: ScriptedTeacher, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run(teacher, "--prompt", "a", "--response", RESPONSE, "--segmentation", policy) == 0
    assert teacher_pb2.SegmentationPolicy.Name(teacher.requests[0].segmentation).lower().endswith(f"policy_{policy}")
    assert f"segmentation {policy}, prompt" in capsys.readouterr().out


async def test_spaces_around_the_texts_are_kept(teacher: ScriptedTeacher) -> None:
    assert await run(teacher, "--prompt", " is ", "--response", " Oslo") == 0
    assert teacher.requests[0].prompt.text.text == " is "
    assert teacher.requests[0].responses[0].ids.data == bytes([21, 0])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prompt", "a", "--response", "b", "--chat", "c"], "give either --prompt or --chat"),
        (["--response", "b"], "give either --prompt or --chat"),
        (["--prompt", "a"], "response"),
        (["--prompt", "a", "--response", "b", "--tools", "[{}]"], "--tools belongs to --chat"),
        (["--chat", "a", "--response", "b", "--tools", "{}"], "holds a dict, must be a JSON list of objects"),
        (["--chat", "a", "--response", "b", "--tools", "[1]"], "holds a int, must be a JSON object"),
        (["--chat", "a", "--response", "b", "--tools", "get_weather"], "not JSON"),
        (["--chat", "a", "--response", "b", "--chat-template-kwargs", "enable_thinking=false"], "not JSON"),
        (["--prompt", "a", "--response", "b", "--temperature", "0"], "temperature"),
        (["--prompt", "a", "--response", "b", "--segmentation", "paper"], "segmentation"),
    ],
)
def test_wrong_settings_exit_with_2(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert score.run(["--address", "a:1", *arguments]) == 2
    assert says in capsys.readouterr().err


async def test_refusal_of_the_server_is_one_line_on_stderr(
    teacher: ScriptedTeacher, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher.script = [Abort(code=grpc.StatusCode.OUT_OF_RANGE, message="too long", reason="TOO_LONG")]
    assert await run(teacher, "--prompt", "a", "--response", RESPONSE) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("preceptor score: teacher 127.0.0.1:")
    assert err.endswith("OUT_OF_RANGE: too long\n")


async def test_unknown_teacher_fails_with_the_names(
    teacher: ScriptedTeacher, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run(teacher, "--prompt", "a", "--response", "b", "--teacher", "nobody") == 1
    assert "choose --teacher from tutor" in capsys.readouterr().err


async def test_missing_tokenizer_library_says_what_to_install(
    teacher: ScriptedTeacher, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert await run(teacher, "--prompt", "a", "--response", "b") == 1
    assert "pip install 'preceptor[train]'" in capsys.readouterr().err


def test_address_without_a_port_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert score.run(["--address", "teacher", "--prompt", "a", "--response", "b"]) == 1
    assert "host:port" in capsys.readouterr().err


def test_token_beyond_the_tokenizer_shows_its_id() -> None:
    assert score_grpc.token_text(96, tokenizer=tokenizer()) == "<96>"


def test_leading_space_of_a_sentencepiece_token_shows() -> None:
    built = Tokenizer(WordLevel({"▁Oslo": 0, "lo": 1}))
    built.decoder = Metaspace()
    assert score_grpc.token_text(0, tokenizer=built) == "' Oslo'"
    assert score_grpc.token_text(1, tokenizer=built) == "'lo'"


def test_piece_of_a_character_shows_by_its_name() -> None:
    built = Tokenizer(WordLevel({"Ã": 0, "ĠOslo": 1}))
    built.decoder = ByteLevel()
    assert score_grpc.token_text(0, tokenizer=built) == "<Ã>"
    assert score_grpc.token_text(1, tokenizer=built) == "' Oslo'"
