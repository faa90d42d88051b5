from __future__ import annotations

import re

from preceptor_server.observability.config import ObserveConfig

from tests.unit.server.observability.metric_table import BEGIN, DOCUMENT, END, with_table


def test_the_documents_table_is_that_of_the_registry() -> None:
    document = DOCUMENT.read_text()
    assert document.count(BEGIN) == document.count(END) == 1
    assert document == with_table(document), "python -m tests.unit.server.observability.metric_table writes it"


def test_every_setting_is_in_the_document_and_no_other() -> None:
    named = set(re.findall(r"^\| `observe\.(\w+)` \|", DOCUMENT.read_text(), flags=re.MULTILINE))
    assert named == set(ObserveConfig.model_fields)


def test_metrics_that_the_text_names_exist() -> None:
    known = set(re.findall(r"^\| `(\w+)` \| (?:counter|gauge|histogram) ", DOCUMENT.read_text(), flags=re.MULTILINE))
    text = DOCUMENT.read_text().partition("## What has other names")[0]
    for name in re.findall(r"`(preceptor_\w+)`", text):
        assert re.sub(r"_(bucket|sum|count)$", "", name) in known or name in known, name
