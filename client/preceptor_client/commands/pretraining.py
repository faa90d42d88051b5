"""What one batch of a student's answers says about training it. `pretraining_batch` measures; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from preceptor_client.commands.checks import Check, Outcome
from preceptor_client.commands.doctor_settings import DoctorSettings
from preceptor_client.errors import PreceptorError
from preceptor_client.train.instruments.bounds import Level
from preceptor_client.train.instruments.measures import Measures
from preceptor_client.train.instruments.verdicts import Verdict
from preceptor_client.train.record.metrics import MetricRow
from preceptor_client.train.run.config import RunConfig

BATCH_CHECK = "failure modes"
_MAX_RESPONSES_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretraining:
    """One batch of rollouts, scored by the teacher and measured."""

    num_responses: int
    scored_share: float
    num_by_status: dict[str, int]
    measures: Measures
    by_position: tuple[MetricRow, ...]
    by_task: tuple[MetricRow, ...]
    """Empty where no prompt names a task."""
    verdicts: tuple[Verdict, ...]


def examine_batch(settings: DoctorSettings) -> tuple[Check, Pretraining | None]:
    """Rolls out, scores and measures one batch; None where that cannot be done."""
    try:
        from preceptor_client.commands.pretraining_batch import measure_batch  # torch, which only `train` brings
    except ImportError as error:
        return _failed(error, change="run `pip install 'preceptor[train]'`"), None
    try:
        found = measure_batch(run_config(settings), num_prompts=settings.num_prompts)
    except PreceptorError as error:
        return _failed(error, change="correct what the message names: a run would stop here too"), None
    return check_verdicts(found), found


def check_verdicts(found: Pretraining) -> Check:
    """No verdict is a failure of the check: one can train all the same."""
    told = (
        f"{found.num_responses} response(s), {found.measures['num_positions']} position(s) with a score "
        f"({found.scored_share:.0%} of those asked for)"
    )
    if all(verdict.level is Level.OK for verdict in found.verdicts):
        return Check(name=BATCH_CHECK, outcome=Outcome.OK, found=told)
    num_found = sum(verdict.level is not Level.OK for verdict in found.verdicts)
    change = f"see the {num_found} verdict(s) below"
    return Check(name=BATCH_CHECK, outcome=Outcome.WARN, found=told, change=change)


def run_config(settings: DoctorSettings) -> RunConfig:
    """The settings of a run that would ask for the same; what the doctor never does is left at something that loads.

    The doctor's other checks speak of the tokenizers, so that another one is accepted here."""
    return _GivenOnly.model_validate(
        {
            "student": {
                "model": settings.student,
                "gguf_file": settings.student_gguf_file or None,
                "end_token_ids": settings.student_end_token_ids,
                "chat_template": settings.student_chat_template,
            },
            "teacher": {
                "address": settings.address,
                "name": settings.teacher,
                "top_k": settings.top_k,
                "accept_other_tokenizer": True,
                "end_token_ids": settings.teacher_end_token_ids,
                "special_pairs": settings.special_pairs,
                "logprob_dtype": "f32",
                "patience_seconds": settings.timeout_seconds,
                "api_key_file": settings.api_key_file,
                "insecure_key": settings.insecure_key,
                "ca": settings.ca,
                "cert": settings.cert,
                "cert_key": settings.cert_key,
            },
            "data": {"train": settings.prompts, "extra_fields": settings.extra_fields},
            "rollout": {
                "prompts_per_step": settings.num_prompts,
                "max_new_tokens": settings.max_new_tokens,
                "temperature": settings.temperature,
                "top_p": settings.top_p,
                "batch_size": _MAX_RESPONSES_AT_ONCE,
            },
            "optimizer": {"learning_rate": 1.0},
            "run": {"directory": Path(), "num_steps": 1},
        }
    )


class _GivenOnly(RunConfig):
    """A PRECEPTOR_... variable is the doctor's own here, and names other settings than a run's."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


def _failed(error: Exception, *, change: str) -> Check:
    return Check(name=BATCH_CHECK, outcome=Outcome.FAIL, found=str(error), change=change)
