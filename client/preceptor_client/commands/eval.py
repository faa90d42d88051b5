"""`preceptor eval @ run.toml`: measures a student on the held-out examples of a run's settings."""

from __future__ import annotations

from preceptor.settings import InvalidSettingsError, load_settings
from rich.console import Console
from rich.table import Table
from rich.text import Text

from preceptor_client.train.run.config import EvalConfig
from preceptor_client.train.student.config import StudentConfig


def run(arguments: list[str]) -> int:
    """Exit status 0 however many answers are right."""
    config = load_settings(EvalConfig, arguments, program="preceptor eval")
    if config.data.heldout is None:
        raise InvalidSettingsError("preceptor eval: data.heldout is not set: name a file of examples with answers")
    # After the settings: a wrong one is reported without the seconds that these imports take.
    from transformers.utils import logging as transformers_logging

    from preceptor_client.train.data.bad_examples import BadExamples
    from preceptor_client.train.data.loading import load_heldout_examples
    from preceptor_client.train.evaluation.evaluate import evaluate
    from preceptor_client.train.student.student import load_student

    console = Console()
    transformers_logging.disable_progress_bar()
    bad = BadExamples(policy=config.data.on_bad_example, limit=config.data.max_bad_examples)
    examples = load_heldout_examples(config.data, bad=bad)
    model = _model_to_measure(config)
    field = "model" if config.model else "student.model" if model is config.student else "checkpoint"
    console.print(f"model: {model.model}", markup=False, highlight=False, soft_wrap=True)
    result = evaluate(
        load_student(model, field=field),
        examples,
        config=config.evaluation,
        prompts=config.prompts,
        on_bad=lambda error: bad.leave_out(error, of="heldout"),
    )
    for warning in bad.warnings():
        console.print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)
    if config.show:
        table = Table("prompt", "expected", "answer", "right")
        for answer in result.answers[: config.show]:
            mark = Text("yes", style="green") if answer.is_correct else Text("no", style="red")
            table.add_row(Text(answer.prompt), Text(answer.expected), Text(answer.answer), mark)
        console.print(table)
    console.print(
        f"{result.num_correct} of {len(result.answers)} right ({result.accuracy:.1%}), "
        f"{result.mean_answer_length:.1f} tokens on average, with the {config.prompts}'s prompts",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _model_to_measure(config: EvalConfig) -> StudentConfig:
    """The given model, or the run's newest checkpoint, or what the run starts from; the line printed says which."""
    from preceptor_client.train.learner.checkpoint_folders import latest_checkpoint

    newest = latest_checkpoint(config.run.directory)
    name = config.model or (str(newest) if newest else None)
    if name is None or name == config.student.model:
        return config.student
    return config.student.model_copy(update={"model": name, "gguf_file": None})
