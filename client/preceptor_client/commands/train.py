"""`preceptor train @ run.toml`: trains a student, and prints what came out."""

from __future__ import annotations

from preceptor.settings import dump_settings, load_settings
from rich.console import Console

from preceptor_client.train.config import RunConfig


def run(arguments: list[str]) -> int:
    """Exit status 0 when the run reached its last step."""
    config = load_settings(RunConfig, arguments, program="preceptor train")
    # After the settings: a wrong one is reported without the seconds that these imports take.
    from transformers.utils import logging as transformers_logging

    from preceptor_client.train.display import display_for
    from preceptor_client.train.report import REPORT_FILE
    from preceptor_client.train.run import train
    from preceptor_client.train.run_directory import to_toml
    from preceptor_client.train.summary import RunSummary

    def show(summary: RunSummary) -> None:
        if summary.heldout_total is not None:
            line(
                f"held-out answers: {summary.heldout_before} of {summary.heldout_total} right before, "
                f"{summary.heldout_after} after"
            )
        if summary.heldout_loss_before is not None and summary.heldout_loss_after is not None:
            line(f"held-out loss: {summary.heldout_loss_before:.4f} -> {summary.heldout_loss_after:.4f}")
        if summary.loss_first is not None and summary.loss_last is not None:
            line(f"loss: {summary.loss_first:.4f} -> {summary.loss_last:.4f} in {summary.num_steps} steps")
        line(f"model:  {summary.model_folder}")
        line(f"report: {summary.directory / REPORT_FILE}")

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    console = Console()
    transformers_logging.disable_progress_bar()
    line(to_toml(dump_settings(config)))
    show(train(config, display=display_for(console)))
    return 0
