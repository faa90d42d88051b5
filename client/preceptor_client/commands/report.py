"""`preceptor report RUN [RUN ...]`: writes the report of one run again, or lays several side by side. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from preceptor.settings import load_settings
from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict
from rich.console import Console

from preceptor_client.commands.output import FAILED, complain
from preceptor_client.url import checked_url

PROGRAM = "preceptor report"
COMPARISON_FILE = "comparison.html"


class ReportSettings(BaseSettings):
    """Writes the report of a run, whether done, going on or stopped; of several runs, one that compares them."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="PRECEPTOR_REPORT_",
        cli_kebab_case=True,
        use_attribute_docstrings=True,
    )

    runs: CliPositionalArg[tuple[Path, ...]] = Field(min_length=1)
    """Folders of runs, as in run.directory."""
    output: Path | None = None
    """The HTML file to write. Default: report.html in the run's folder; for several runs comparison.html, here."""
    page: str = ""
    """URL of a teacher's page, http://HOST:PORT, to link the rollouts of one run to, in place of the run's own
    teacher.page, or of every teachers.NAME.page: that of a server started since."""
    tokenizer: str = ""
    """With --page: the name that server has for the student's tokenizer, in its http.tokenizers. Not needed where the
    teacher's own is the same."""

    @model_validator(mode="after")
    def _page_is_for_one_run(self) -> Self:
        if self.page and len(self.runs) > 1:
            raise ValueError("--page links the rollouts of one run, and several runs are shown without: leave it out")
        if self.tokenizer and not self.page:
            raise ValueError("--tokenizer says what the server of --page calls it: give both")
        return self

    @field_validator("page")
    @classmethod
    def _page_is_a_url(cls, page: str) -> str:
        return checked_url(page) if page else page


def run(arguments: list[str]) -> int:
    """Runs the command; returns the exit status."""
    settings = load_settings(ReportSettings, arguments, program=PROGRAM)
    try:
        from preceptor_client.train.report import REPORT_FILE, OtherPage, read_run, write_comparison, write_report
    except ModuleNotFoundError as error:
        complain(f"{PROGRAM}: the package {error.name} is missing: run `pip install 'preceptor[train]'`")
        return FAILED
    runs = [read_run(directory) for directory in settings.runs]
    if len(runs) == 1:
        output = settings.output or settings.runs[0] / REPORT_FILE
        other = OtherPage(url=settings.page, tokenizer=settings.tokenizer) if settings.page else None
        write_report(output, run=runs[0].summary, other_page=other)
    else:
        output = settings.output or Path(COMPARISON_FILE)
        write_comparison(output, runs=runs)
    Console().print(f"report: {output}", markup=False, highlight=False, soft_wrap=True)
    return 0
