"""Settings of a run: whom to ask, what for, and how its tokens stand for the student's. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from preceptor.settings import Section
from pydantic import Field, JsonValue, field_validator, model_validator

from preceptor_client.channel import checked_addresses
from preceptor_client.train.parts import PartConfig
from preceptor_client.url import checked_url


class TeacherConfig(Section):
    """The server to ask, and what to ask it for."""

    address: str
    """host:port of the teacher server, or several with commas between: replicas of one teacher. Not needed with a
    kind of your own."""
    name: str = ""
    """Name of the teacher on that server; may be empty where it hosts one."""
    page: str = ""
    """URL of the server's page (its http.port), such as http://teacher:8080: the report then links each rollout that it
    shows to it, to be looked into position by position. Only the report uses it."""
    kind: str = "grpc"
    """How it is asked: grpc, or package.module:Name of a class of your own with the methods of `Scorer`."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Options of a kind of your own."""
    prompt: PartConfig | None = None
    """A part that makes this teacher's prompt when an episode is scored, from the example and what was written."""
    chat_template_kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    """Variables for the teacher's chat template, such as {enable_thinking = true}; those of a line of data beat
    them."""
    adapter: str = ""
    """Name of one of its adapters, to be taught by the teacher with it; empty takes the teacher as it is."""
    top_k: int = Field(32, le=1024)
    """Teacher tokens per position that the student is matched on, at least 2."""
    temperature: float = Field(1.0, gt=0, le=100)
    """Divides the logits of teacher and student in the loss; rollouts have their own."""
    reproducible: bool = False
    """Ask for scores that do not depend on what else the teacher computes: a resumed run on CPU is then bit-equal."""
    logprob_dtype: Literal["f16", "f32"] = "f16"
    """Number format in which the teacher's logprobs travel."""
    patience_seconds: float = Field(1800, gt=0)
    """How long the run waits for a teacher that does not answer before it saves a checkpoint and stops."""
    api_key_file: Path | None = None
    """File that holds the API key alone, in one line; read again when it changes. Else the key is that of the variable
    PRECEPTOR_API_KEY, or of the file that PRECEPTOR_API_KEY_FILE names. The key itself is no setting."""
    insecure_key: bool = False
    """Send the key in plain text to another machine, where the network encrypts by itself."""
    ca: Path | None = None
    """PEM file of the certificates by which the server is known: it is asked by TLS then."""
    cert: Path | None = None
    """PEM file of the certificate by which the server knows this client, with cert_key."""
    cert_key: Path | None = None
    """PEM file of that certificate's private key."""
    objective: str = ""
    """Name of a scheduling objective of the server's, such as interactive: what comes first among the groups of one
    tenant. Not the loss: that is [objective]."""
    hedge_seconds: float | None = Field(None, gt=0)
    """With several addresses: ask a second server too when the first has not answered for so long, and take the first
    answer."""
    cache: Path | None = None
    """File in which scores are kept. What was asked before, of the same weights of the teacher, is answered from it."""
    cache_mode: Literal["use", "refresh", "offline"] = "use"
    """use: answer from the cache, ask for the rest and keep it. refresh: ask for everything and keep it. offline:
    answer from the cache alone, without a server, and stop at the first group that it lacks."""
    cache_bytes: int = Field(10 << 30, ge=1 << 20)
    """How large the scores in the cache may grow; the least recently used leave first."""
    accept_other_tokenizer: bool = False
    """Train although the teacher's tokenizer has other ids or other tokens than the student's."""
    end_token_ids: tuple[int, ...] = ()
    """Ids that end the teacher's responses, in its own tokenizer; empty takes what the server says."""
    special_pairs: dict[str, str] = Field(default_factory=dict)
    """Special tokens to pair although their texts differ: the student's text to the teacher's."""
    segmentation: Literal["auto", "as_is", "mask", "canonical", "paper"] = "auto"
    """Where the student cuts text into other tokens than the teacher would: score it as_is, mask the position, score
    the teacher's own (canonical) tokens, or do as arXiv 2603.25562's code (paper). auto: mask where ids correspond one
    to one, else canonical."""
    paper_tokens: tuple[str, ...] = ("<", "think", "<|im_end|>")
    """Texts for segmentation=paper: the first occurrence in a response of each of their tokens is not trained on."""

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return self.address or self.kind

    @model_validator(mode="before")
    @classmethod
    def _keys_are_no_settings(cls, values: object) -> object:
        """A saved config, a report, a process list would show it. The messages do not repeat it."""
        if not isinstance(values, dict):
            return values
        if "api_key" in values:
            raise ValueError(
                "teacher.api_key: the key itself is no setting, for settings are saved and printed: put it into the "
                "variable PRECEPTOR_API_KEY, or into a file and its path into teacher.api_key_file"
            )
        if str(values.get("api_key_file", "")).startswith("prk_"):
            raise ValueError(
                "teacher.api_key_file: holds what looks like a key: put it into a file of its own, and name that file "
                "here"
            )
        return values

    @model_validator(mode="after")
    def _what_goes_together_is_given_together(self) -> Self:
        if (self.cert is None) != (self.cert_key is None):
            raise ValueError("teacher.cert and teacher.cert_key go together: set both, or neither")
        if self.cache_mode != "use" and self.cache is None:
            raise ValueError(f"teacher.cache_mode={self.cache_mode} is for a cache: set teacher.cache to its file")
        return self

    @field_validator("address")
    @classmethod
    def _address_can_be_dialled(cls, address: str) -> str:
        return ",".join(checked_addresses(address)) if address else address

    @field_validator("page")
    @classmethod
    def _page_is_a_url(cls, page: str) -> str:
        return checked_url(page) if page else page

    @field_validator("top_k")
    @classmethod
    def _top_k_has_a_choice(cls, top_k: int) -> int:
        if top_k < 2:
            raise ValueError(
                "must be 2 or more: with one token both distributions are renormalised to 1, so the loss is always 0 "
                "and nothing would be learnt"
            )
        return top_k

    @field_validator("paper_tokens")
    @classmethod
    def _paper_tokens_are_texts(cls, paper_tokens: tuple[str, ...]) -> tuple[str, ...]:
        if not paper_tokens or not all(paper_tokens):
            raise ValueError("must hold at least one text, and none that is empty; segmentation=mask needs none")
        return paper_tokens

    @model_validator(mode="after")
    def _paper_tokens_are_for_the_papers_rule(self) -> Self:
        if self.segmentation != "paper" and self.paper_tokens != type(self).model_fields["paper_tokens"].default:
            raise ValueError(
                f"teacher.paper_tokens is for segmentation=paper, not for {self.segmentation}: set that, or leave it "
                "out"
            )
        return self

    @field_validator("end_token_ids")
    @classmethod
    def _end_token_ids_are_ids(cls, end_token_ids: tuple[int, ...]) -> tuple[int, ...]:
        if any(token < 0 for token in end_token_ids):
            raise ValueError("must hold ids, which are 0 or above")
        return end_token_ids
