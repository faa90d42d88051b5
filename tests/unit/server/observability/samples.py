"""Reads a scrape with Prometheus's own parser."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


class Samples:
    def __init__(self, text: bytes) -> None:
        self.families = list(text_string_to_metric_families(text.decode()))
        self._samples = [sample for family in self.families for sample in family.samples]

    def __getitem__(self, key: tuple[str, dict[str, str]]) -> float:
        """The only sample of that name and with these labels, others aside."""
        found = self.matching(*key)
        assert len(found) == 1, f"{len(found)} samples are {key}"
        return found[0]

    def matching(self, name: str, labels: dict[str, str]) -> list[float]:
        return [
            sample.value
            for sample in self._samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]  # fmt: skip

    def labels(self, name: str, label: str) -> set[str]:
        return {sample.labels[label] for sample in self._samples if sample.name == name}
