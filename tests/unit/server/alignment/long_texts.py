"""Texts and tokenizers that put bounds and cuts of long texts to the test."""

from __future__ import annotations

import json
import re
from functools import cache

from hypothesis import strategies as st
from preceptor_server.alignment.text_pieces import PATTERNS
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

from tests.unit.server.alignment import tokenizers_for_tests as made

FRAGMENTS = [
    "the", "other", " ", "  ", "\n", "\t", "\r\n", "a", "Z", "'s", "12345", "-", "!!", "/", "\u00e9", "e\u0301",
    "\u0301", "\u4f60\u597d", "\uac00", "\u1100\u1161\u11a8", "\u03b1\u0345\u0301", "\u212a", "\ufb03", "\uff21",
    "\U0001d400", "\u3000", "\u00a0", "\u2581", "\U0001f600", "\x00", "\x04", "\u044f", "\u3042", "\u0130",
    "<|end|>", "<tag>", "<s>", "<unk>", "<0x0A>", " " * 40, "=" * 40,
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=6), max_size=40).map("".join)
"""What is cut oddly, shrinks in normal form, lies outside vocabularies, or names tokens."""


@cache
def split_by(pattern: str, *, normal_form: str | None = None) -> str:
    """Byte-level tokens of what a pattern matches, as in Llama 3's and Qwen's."""
    tokenizer = Tokenizer.from_str(made.byte_level())
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    if normal_form is not None:
        tokenizer.normalizer = getattr(normalizers, normal_form)()
    return tokenizer.to_str()


@cache
def with_greedy_token() -> str:
    """An added token that takes all white space beside it along."""
    tokenizer = Tokenizer.from_str(made.byte_level())
    tokenizer.add_tokens([AddedToken("<tag>", lstrip=True, rstrip=True)])
    return tokenizer.to_str()


@cache
def lacking_bytes() -> str:
    """Byte-level without some letters of its alphabet, as SmolLM2's: it drops what it lacks."""
    parts = json.loads(made.byte_level())
    lacking = {made.ALPHABET_OF_BYTES[0xE0], "\u0104", "b"}  # 0x04 as it is written there
    parts["model"]["merges"] = [m for m in parts["model"]["merges"] if not lacking & set("".join(m))]
    kept = [token for token in parts["model"]["vocab"] if not lacking & set(token)]
    parts["model"]["vocab"] = {token: parts["model"]["vocab"][token] for token in kept}
    return json.dumps(parts)


@cache
def without_tokens_across() -> str:
    """As Gemma's: no pattern, and no token in which a space or newline follows a letter."""
    parts = json.loads(made.gemma_like())
    across = re.compile("[A-Za-z\u00e9\u00ef][\u2581\n]")
    parts["model"]["vocab"] = {t: i for t, i in parts["model"]["vocab"].items() if not across.search(t)}
    parts["model"]["merges"] = [m for m in parts["model"]["merges"] if not across.search("".join(m))]
    return json.dumps(parts)


def tokenizers() -> dict[str, str]:
    patterns = {f"pattern {number}": split_by(pattern) for number, pattern in enumerate(sorted(PATTERNS))}
    forms = {form: split_by(sorted(PATTERNS)[0], normal_form=form) for form in ("NFC", "NFD", "NFKC", "NFKD")}
    return {
        **patterns,
        **forms,
        "byte-level": made.byte_level(),
        "prefix space": made.with_prefix_space(),
        "unknown pattern": made.with_nfc(),
        "specials": made.with_extra_specials(),
        "greedy token": with_greedy_token(),
        "lacking bytes": lacking_bytes(),
        "gemma": without_tokens_across(),
        "tokens across": made.gemma_like(),
        "llama 2": made.llama2_like(),
        "unigram": made.unigram(),
        "metaspace": made.metaspace_bpe(),
        "metaspace, unk each": made.metaspace_bpe(fuses=False),
        "metaspace, drops": made.metaspace_bpe(unknown=None),
    }
