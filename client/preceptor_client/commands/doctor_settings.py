"""Every setting of `preceptor doctor`: types, bounds, and the checks across fields."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import CliImplicitFlag, SettingsConfigDict

from preceptor_client.commands.connection_settings import ConnectionSettings

_TokenId = Annotated[int, Field(ge=0, lt=2**32)]


class DoctorSettings(ConnectionSettings):
    """Checks a teacher server, and whether a student and a workload suit it."""

    model_config = SettingsConfigDict(cli_shortcuts={"as-json": "json"})

    student: str = ""
    """Folder or hub id of the student, to compare tokenizers and score a sentence. HF_HUB_OFFLINE=1 is respected."""
    student_gguf_file: str = ""
    """Name of the GGUF file inside --student, where its tokenizer comes from one."""
    student_end_token_ids: tuple[_TokenId, ...] = ()
    """Ids that end the student's responses, the one that it is to learn first; empty takes what its files say."""
    student_chat_template: str = ""
    """Name of the student's chat template, where its tokenizer has several; empty takes the one named default."""
    teacher_end_token_ids: tuple[_TokenId, ...] = ()
    """Ids that end the teacher's responses; empty takes what the server says."""
    special_pairs: dict[str, str] = Field(default_factory=dict)
    """Special tokens to pair although their texts differ: STUDENT=TEACHER, or all as a JSON object."""
    top_k: int = Field(32, ge=1, le=1024)
    """Size of the support that training will ask for."""
    num_responses: int = Field(8, ge=1, le=4096)
    """Responses per prompt that training will send."""
    max_prompt_tokens: int | None = Field(None, ge=1)
    """Longest prompt of the training data."""
    max_response_tokens: int | None = Field(None, ge=1)
    """Longest response that the student may write."""
    prompts: str = ""
    """JSONL file of prompts, as data.train takes it: rolls out one batch of --student, and says which failures of
    distillation to expect."""
    extra_fields: Literal["refuse", "ignore"] = "refuse"
    """Whether that file may have other keys, such as an id; as data.extra_fields."""
    num_prompts: int = Field(16, ge=1, le=1024)
    """Prompts of that batch, one response to each; drawn as the trainer draws its first step."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest response of that batch; what goes wrong late in a response shows only if it is as long as in training."""
    temperature: float = Field(1.0, gt=0, le=100)
    """Divides the student's logits before the tokens of that batch are drawn."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Nucleus of the student's distribution that they are drawn from."""
    timeout_seconds: float = Field(15.0, gt=0, le=3600)
    """How long to wait for each answer, retries included."""
    as_json: CliImplicitFlag[bool] = False
    """Print what was found as JSON, for programs."""

    @model_validator(mode="after")
    def _prompts_have_a_student(self) -> Self:
        if self.prompts and not self.student:
            raise ValueError("prompts are for a student to answer: set --student, or leave out --prompts")
        return self
