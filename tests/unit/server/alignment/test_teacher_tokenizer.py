from __future__ import annotations

from pathlib import Path

import pytest
from preceptor.fingerprint import tokenizer_id, vocabulary_id
from preceptor_server.alignment.teacher_tokenizer import NamedToken, TeacherTokenizer, load_tokenizer
from preceptor_server.errors import InvalidRequestError, StartupError
from tokenizers import processors

from tests.tiny import tiny_tokenizer
from tests.unit.server.hosting import bos_tokenizer

NEWLINE, SPACE = "\u010a", "\u0120"
"""How a byte-level vocabulary writes them."""


def ids_of(*tokens: str) -> list[int]:
    vocabulary = tiny_tokenizer().get_vocab()
    return [vocabulary[token] for token in tokens]


def test_text_is_encoded_byte_by_byte() -> None:
    ids = TeacherTokenizer(tiny_tokenizer()).encode("a b\n", add_special_tokens=True, field="text")
    assert ids.tolist() == ids_of("a", SPACE, "b", NEWLINE)


def test_special_tokens_in_a_text_are_single_ids() -> None:
    ids = TeacherTokenizer(tiny_tokenizer()).encode("a<|im_end|>", add_special_tokens=True, field="text")
    assert ids.tolist() == [*ids_of("a"), 2]


@pytest.mark.parametrize(("add_special_tokens", "first"), [(True, [1]), (False, [])])
def test_leading_token_is_added_where_it_is_asked_for(add_special_tokens: bool, first: list[int]) -> None:
    ids = bos_tokenizer().encode("ab", add_special_tokens=add_special_tokens, field="text")
    assert ids.tolist() == [*first, *ids_of("a", "b")]


@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_leading_token_that_the_text_begins_with_is_not_doubled(add_special_tokens: bool) -> None:
    """As where a chat template wrote it, and the tokenizer writes it too."""
    ids = bos_tokenizer().encode("<|im_start|>ab", add_special_tokens=add_special_tokens, field="text")
    assert ids.tolist() == [1, *ids_of("a", "b")]


def test_what_a_tokenizer_puts_behind_a_text_is_left_out() -> None:
    """A response follows a prompt, so that an end between them would be wrong."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    ids = TeacherTokenizer(tokenizer).encode("ab", add_special_tokens=True, field="text")
    assert ids.tolist() == [1, *ids_of("a", "b")]


def test_half_of_a_surrogate_pair_is_told_by_field() -> None:
    with pytest.raises(InvalidRequestError, match=r"text: holds half of a surrogate pair"):
        TeacherTokenizer(tiny_tokenizer()).encode("a\ud83d", add_special_tokens=True, field="text")


def test_text_without_any_token_is_told_by_field() -> None:
    with pytest.raises(InvalidRequestError, match=r"prompt\.text\.text: encodes to no token"):
        TeacherTokenizer(tiny_tokenizer()).encode("", add_special_tokens=True, field="prompt.text.text")


@pytest.mark.parametrize("make", [lambda: TeacherTokenizer(tiny_tokenizer()), bos_tokenizer], ids=["plain", "with bos"])
def test_chat_ends_with_the_opening_of_an_assistants_turn_and_nothing_is_added_twice(
    make: type[TeacherTokenizer],
) -> None:
    ids = make().render([{"role": "user", "content": "hi"}], field="chat").tolist()  # type: ignore[call-arg] # either maker takes none
    user = [1, *ids_of(*"user", NEWLINE, *"hi"), 2, *ids_of(NEWLINE)]
    assert ids == [*user, 1, *ids_of(*"assistant", NEWLINE)]


def test_teacher_without_a_chat_template_refuses_a_chat() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    teacher = TeacherTokenizer(tokenizer)
    assert not teacher.has_chat_template
    with pytest.raises(InvalidRequestError, match=r"prompt\.chat: this teacher has no chat template"):
        teacher.render([{"role": "user", "content": "hi"}], field="prompt.chat")


def test_template_that_refuses_the_messages_is_the_callers_mistake() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidRequestError, match=r"prompt\.chat: .*refuses these messages: roles must alternate"):
        TeacherTokenizer(tokenizer).render([{"role": "user", "content": "hi"}], field="prompt.chat")


def test_fingerprints_are_those_of_its_json_and_template() -> None:
    tokenizer = tiny_tokenizer()
    teacher = TeacherTokenizer(tokenizer)
    assert teacher.tokenizer_id == tokenizer_id(teacher.json, tokenizer.chat_template)
    assert teacher.vocabulary_id == vocabulary_id(teacher.json)


def test_fingerprint_does_not_notice_that_it_was_used() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer("a much longer text", truncation=True, max_length=4)
    assert TeacherTokenizer(tokenizer).tokenizer_id == TeacherTokenizer(tiny_tokenizer()).tokenizer_id


def test_special_tokens_are_listed_by_ascending_id() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["plain"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]}, replace_extra_special_tokens=False)
    teacher = TeacherTokenizer(tokenizer)
    assert teacher.special_tokens == (
        NamedToken(id=0, text="<|endoftext|>"),
        NamedToken(id=1, text="<|im_start|>"),
        NamedToken(id=2, text="<|im_end|>"),
        NamedToken(id=260, text="<|tool|>"),
    )
    assert teacher.vocabulary_size == 261


def test_saved_tokenizer_loads_as_the_same(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path), gguf_file=None, trust_remote_code=False)
    assert loaded.tokenizer_id == TeacherTokenizer(tiny_tokenizer()).tokenizer_id
    assert loaded.vocabulary_size == 259


@pytest.mark.parametrize("field", ["engine.model", "engine.tokenizer", "http.tokenizers.student"])
def test_missing_folder_is_told_by_the_setting_that_named_it(tmp_path: Path, field: str) -> None:
    with pytest.raises(StartupError) as told:
        load_tokenizer("/nowhere/model", field=field, gguf_file=None, trust_remote_code=False)
    assert str(told.value) == f"{field}: no folder '/nowhere/model'"


@pytest.mark.parametrize(
    ("field", "advice"), [("engine.model", ": set engine.tokenizer to where it is"), ("engine.tokenizer", "")]
)
def test_folder_without_a_tokenizer_is_told(tmp_path: Path, field: str, advice: str) -> None:
    with pytest.raises(StartupError) as told:
        load_tokenizer(str(tmp_path), field=field, gguf_file=None, trust_remote_code=False)
    assert str(told.value) == f"{field}: folder '{tmp_path}' holds no tokenizer, such as tokenizer.json{advice}"


def test_tokenizer_that_is_no_json_is_told(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{oops")
    with pytest.raises(StartupError, match=rf"^engine\.tokenizer: '{tmp_path}' cannot be loaded: Expecting property"):
        load_tokenizer(str(tmp_path), gguf_file=None, trust_remote_code=False)


@pytest.mark.parametrize("text", ["word " * 50_000, "9" * 250_000])
def test_a_long_text_has_the_ids_that_transformers_gives_it(text: str) -> None:
    """One that is encoded in pieces, and one without a place to cut."""
    ids = TeacherTokenizer(tiny_tokenizer()).encode(text, add_special_tokens=True, field="text")
    assert ids.tolist() == tiny_tokenizer()(text)["input_ids"]


@pytest.mark.parametrize("text", ["word " * 30_000, "9" * 150_000])
def test_a_text_that_just_fits_is_encoded_and_one_token_more_is_refused(text: str) -> None:
    tokenizer = bos_tokenizer()
    whole = tokenizer.encode(text, add_special_tokens=True, field="text", room_tokens=150_001)
    assert len(whole) == 150_001
    with pytest.raises(
        InvalidRequestError, match=r"text: has more of the teacher's tokens than the 150000 that"
    ) as caught:
        tokenizer.encode(text, add_special_tokens=True, field="text", room_tokens=150_000)
    assert caught.value.reason == "BEYOND_CONTEXT"


def test_a_text_far_too_long_is_never_given_to_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TeacherTokenizer(tiny_tokenizer())
    monkeypatch.setattr(tokenizer, "_backend", None)
    with pytest.raises(InvalidRequestError, match="than the 100 that there is room for"):
        tokenizer.encode("a word " * 1_000_000, add_special_tokens=True, field="text", room_tokens=100)


def test_encoding_is_given_up_between_two_pieces() -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        TeacherTokenizer(tiny_tokenizer()).encode("word " * 100_000, add_special_tokens=True, field="text", check=check)
    assert calls == 2
