from __future__ import annotations

from preceptor_server.observability.labels import BoundedNames, TenantLabels


def test_the_first_names_are_kept_and_the_others_are_other() -> None:
    names = BoundedNames(2)
    assert [names.of(name) for name in ("a", "b", "c", "a", "d")] == ["a", "b", "other", "a", "other"]


def test_tenants_without_a_key_share_a_label_and_take_no_room() -> None:
    labels = TenantLabels(1)
    assert [labels.of(f"peer:10.0.0.{n}") for n in range(3)] == ["anonymous"] * 3
    assert [labels.of(name) for name in ("", "acme", "other-one")] == ["unknown", "acme", "other"]
