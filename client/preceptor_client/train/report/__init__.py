"""The reports of runs: HTML files with their plots inside, which need no network. Know nothing of training, nor torch.

rundata.py  what a run left on disk             page.py        rows -> HTML, through templates/
plots.py    what a plot over steps is           curves.py      which there are, and how to read them
figures.py  a plot as plotly.js reads it        breakdowns.py  by position, turn, task and teacher
tokens.py   by status, and token by token       comparison.py  runs side by side
voices.py   whose answer a rollout shows        links.py       rollouts -> their teachers' pages

heldout_figures.py  held-out measurements by task, and the metrics that the user named
"""

from __future__ import annotations

from preceptor_client.train.report.links import OtherPage
from preceptor_client.train.report.page import write_comparison, write_report
from preceptor_client.train.report.rundata import REPORT_FILE, RunData, read_run

__all__ = ["REPORT_FILE", "OtherPage", "RunData", "read_run", "write_comparison", "write_report"]
