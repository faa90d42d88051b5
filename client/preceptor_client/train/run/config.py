"""Every setting of a training run: types, bounds, and the checks across fields. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from preceptor.settings import Section
from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from preceptor_client.train.objective.config import ObjectiveConfig
from preceptor_client.train.rollout.config import RolloutConfig
from preceptor_client.train.teacher.config import TeacherConfig

_Decay = Annotated[float, Field(ge=0, lt=1)]


class StudentConfig(Section):
    """The model to train."""

    model: str = Field(min_length=1)
    """Folder, or Hugging Face id, of the model to train."""
    gguf_file: str | None = None
    """Name of a GGUF file inside that folder, where the weights are stored as one."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the weights. bfloat16 is for `preceptor eval` alone: training keeps weights, gradients and
    optimizer in it, where small steps round away."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the student runs; auto takes a GPU where there is one."""
    end_token_ids: tuple[int, ...] = ()
    """Ids that end the student's responses, the one to learn first; empty takes what model and tokenizer say."""
    chat_template: str = ""
    """Name of the chat template to use, where the student's tokenizer has several; empty takes the "default" one."""


class DataConfig(Section):
    """What the student practises on, and what it is measured on."""

    train: str = Field(min_length=1)
    """A JSONL file (its name ends with .jsonl), or the name of a dataset of Hugging Face `datasets`."""
    heldout: str | None = None
    """The same for examples that are never trained on, with answers unless evaluation.loss is all that is measured;
    without it nothing is measured."""
    subset: str | None = None
    """Configuration of a named dataset."""
    train_split: str = "train"
    """Split of a named dataset to train on."""
    heldout_split: str = "test"
    """Split of a named dataset to measure on."""
    prompt_field: str = "prompt"
    """Column of a named dataset with the prompt: a text, or a list of messages."""
    answer_field: str = "answer"
    """Column of a named dataset with the expected answer; need not exist for training."""
    extra_fields: Literal["refuse", "ignore"] = "refuse"
    """Whether a JSONL file may have other keys, such as an id. By default it may not: one may be a misspelt name."""
    on_bad_example: Literal["stop", "skip"] = "stop"
    """What an example does that cannot be read, or that a chat template or the teacher refuses: it stops the run, which
    is saved first, or it is left out, counted, and listed in the run's bad_examples.jsonl."""
    max_bad_examples: int = Field(100, ge=0)
    """Most examples to leave out, before the first step and since; one more stops the run."""

    @model_validator(mode="after")
    def _columns_are_for_named_datasets(self) -> Self:
        is_named = {name: bool(source) and not source.endswith(".jsonl") for name, source in self._sources.items()}
        readers = {"train_split": ("train",), "heldout_split": ("heldout",)}
        for name in ("subset", "train_split", "heldout_split", "prompt_field", "answer_field"):
            is_read = any(is_named[source] for source in readers.get(name, is_named))
            if getattr(self, name) != type(self).model_fields[name].default and not is_read:
                raise ValueError(f"data.{name} is for a named dataset, and none is read: a JSONL file has its own keys")
        return self

    @property
    def _sources(self) -> dict[str, str]:
        return {"train": self.train, "heldout": self.heldout or ""}


class OptimizerConfig(Section):
    """AdamW, and how a step is cut into pieces that fit memory."""

    learning_rate: float = Field(gt=0)
    """Learning rate, constant after the warm-up."""
    betas: tuple[_Decay, _Decay] = (0.9, 0.95)
    """Decay of AdamW's two moving averages."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""
    gradient_clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient of a step."""
    micro_batch_size: int = Field(16, ge=1)
    """Responses per forward and backward; changes memory and speed, not the loss."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises linearly from 0."""


class EvaluationConfig(Section):
    """How held-out answers are written and judged (they are greedy), and whether the held-out loss is measured."""

    every_steps: int = Field(0, ge=0)
    """Steps between measurements; 0 measures only before the first step and after the last."""
    max_new_tokens: int = Field(32, ge=1)
    """Longest answer, in tokens."""
    match: Literal["starts_with", "contains", "exact"] = "starts_with"
    """How an answer must relate to the expected one; case counts, white space around either does not."""
    batch_size: int = Field(32, ge=1)
    """Answers that are written at once."""
    teacher_prompts: bool = False
    """Measure the untrained student with the teacher's prompts too: the mark to reach where both share weights."""
    loss: bool = False
    """Also measure the loss on held-out examples, which then need no answers: each is rolled out once with the
    rollout's settings, by the same draws every time, and scored by the teacher."""


class RunSection(Section):
    """Where a run lives, how long it is, and when it is saved."""

    directory: Path
    """Folder for checkpoints, metrics, log and report."""
    num_steps: int = Field(ge=1)
    """Optimizer steps in all, those before a resume included."""
    seed: int = Field(0, ge=0)
    """Order of the examples and draws of the rollouts are functions of it."""
    sample_rollouts: int = Field(4, ge=0)
    """Rollouts of a step that are kept token by token for the report, at about eight steps of the run."""
    checkpoint_every_steps: int = Field(50, ge=1)
    """Steps between checkpoints; the last step is always saved."""
    keep_checkpoints: int = Field(1, ge=1)
    """Newest checkpoints to keep."""
    resume: bool = True
    """Continue the run that the directory holds; false refuses a directory that holds one."""
    max_non_finite_share: float = Field(0.1, ge=0, le=1)
    """Stop when a larger share of a step's positions came back from the teacher as NaN or infinity."""


class RunConfig(BaseSettings):
    """On-policy distillation of a student from a teacher server. Settings come from the command line, else from
    PRECEPTOR_... variables, else from TOML files that stand first: @ a.toml @ b.toml ..."""

    model_config = SettingsConfigDict(
        env_prefix="PRECEPTOR_",
        env_nested_delimiter="__",
        cli_kebab_case=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    student: StudentConfig
    """The model to train."""
    teacher: TeacherConfig
    """The server to ask, and what to ask it for."""
    data: DataConfig
    """What the student practises on, and what it is measured on."""
    rollout: RolloutConfig
    """How the student writes."""
    objective: ObjectiveConfig = ObjectiveConfig()
    """The loss."""
    optimizer: OptimizerConfig
    """AdamW, and how a step is cut into pieces that fit memory."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How held-out answers are written and judged."""
    run: RunSection
    """Where a run lives, how long it is, and when it is saved."""

    @property
    def num_student_tokens(self) -> int:
        """How many of its own likeliest tokens the student names at each position, for the teacher to score."""
        return self.teacher.top_k if self.objective.needs_student_tokens else 0

    @model_validator(mode="after")
    def _fields_fit_each_other(self) -> Self:
        asked = [name for name in ("every_steps", "teacher_prompts", "loss") if getattr(self.evaluation, name)]
        if self.data.heldout is None and asked:
            raise ValueError(
                f"evaluation.{asked[0]} is set, and there is nothing to measure on: set data.heldout, or remove it"
            )
        if self.rollout.responses_per_prompt > self.rollout.batch_size:
            raise ValueError(
                f"rollout.responses_per_prompt={self.rollout.responses_per_prompt} is above rollout.batch_size="
                f"{self.rollout.batch_size}: raise one or lower the other, since a prompt's responses are one batch"
            )
        if self.optimizer.warmup_steps > self.run.num_steps:
            raise ValueError(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps} is above run.num_steps={self.run.num_steps}: "
                "lower the one or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _weights_can_move(self) -> Self:
        if self.student.dtype == "bfloat16":
            raise ValueError(
                "student.dtype=bfloat16 would keep weights, gradients and optimizer in bfloat16, where steps as small "
                "as those of training round away: in 10 steps at a learning rate of 2e-6 about 1.5 % of the weights "
                "move at all, in float32 all of them: set student.dtype=float32"
            )
        return self


class EvalConfig(RunConfig):
    """Measure a student on the held-out examples of a run's settings."""

    model: str | None = None
    """Folder, or Hugging Face id, to measure; without it the run's newest checkpoint, or else student.model."""
    prompts: Literal["student", "teacher"] = "student"
    """Whose prompts to answer."""
    show: int = Field(10, ge=0)
    """Answers to print."""

    @model_validator(mode="after")
    def _weights_can_move(self) -> Self:
        """Nothing is trained: instead of the run's check."""
        return self
