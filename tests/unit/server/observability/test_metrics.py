from __future__ import annotations

import pytest
from preceptor_server.observability.health import Health
from preceptor_server.observability.metrics import Metrics
from preceptor_server.observability.observer import Observers, Outcome, Refusal, Transport

from tests.unit.server.observability.events import SomeWaiting, batch_done, caller, outcome, state
from tests.unit.server.observability.samples import Samples


def metrics(*, max_tenants: int = 1000, teachers: tuple[str, ...] = ("teacher",)) -> Metrics:
    made = Metrics(health=Health(), version="1.2.3", max_tenants=max_tenants)
    for teacher in teachers:
        made.host(teacher, state)
    return made


def test_a_group_is_counted_by_transport_tenant_teacher_and_outcome() -> None:
    counted = metrics()
    asked: list[tuple[str, Transport]] = [("ok", "grpc"), ("ok", "grpc"), ("QUEUE_FULL", "grpc"), ("ok", "http")]
    for reason, transport in asked:
        counted.began(caller(transport=transport))
        counted.ended(outcome(reason=reason, transport=transport))
    samples = Samples(counted.render())
    labels = {"tenant": "acme", "teacher": "teacher"}
    assert samples["preceptor_requests_total", {**labels, "transport": "grpc", "outcome": "ok"}] == 2
    assert samples["preceptor_requests_total", {**labels, "transport": "grpc", "outcome": "QUEUE_FULL"}] == 1
    assert samples["preceptor_requests_total", {**labels, "transport": "http", "outcome": "ok"}] == 1
    assert samples["preceptor_requests_in_progress", {"tenant": "acme", "transport": "grpc"}] == 0


def test_what_waits_for_its_answer_is_in_progress() -> None:
    counted = metrics()
    counted.began(caller())
    counted.began(caller())
    counted.ended(outcome())
    assert Samples(counted.render())["preceptor_requests_in_progress", {"tenant": "acme"}] == 1


def test_a_failed_group_adds_no_positions_and_no_answer() -> None:
    counted = metrics()
    for reason in ("ok", "ENGINE_FAILED"):
        counted.began(caller())
        counted.ended(outcome(reason=reason, num_positions=7))
    samples = Samples(counted.render())
    assert samples["preceptor_positions_total", {}] == 7
    assert samples["preceptor_prompt_tokens_total", {}] == 3
    assert samples["preceptor_response_tokens_total", {}] == 5
    assert samples["preceptor_answer_bytes_total", {}] == 2000
    assert samples["preceptor_request_bytes_total", {}] == 2000, "both requests arrived"


def test_durations_stand_in_buckets_by_outcome_and_under_the_conventions_name() -> None:
    counted = metrics()
    for seconds, reason in ((0.03, "ok"), (0.05, "ok"), (3.0, "DEADLINE_PASSED")):
        counted.began(caller())
        counted.ended(outcome(total_seconds=seconds, reason=reason))
    samples = Samples(counted.render())
    for name, ok, late in (
        ("preceptor_request_duration_seconds", {"outcome": "ok"}, {"outcome": "DEADLINE_PASSED"}),
        ("gen_ai_server_request_duration_seconds", {"error_type": ""}, {"error_type": "DEADLINE_PASSED"}),
    ):
        assert samples[f"{name}_bucket", {**ok, "le": "0.02"}] == 0
        assert samples[f"{name}_bucket", {**ok, "le": "0.04"}] == 1
        assert samples[f"{name}_bucket", {**ok, "le": "0.08"}] == 2
        assert samples[f"{name}_sum", ok] == pytest.approx(0.08)
        assert samples[f"{name}_sum", late] == 3.0


def test_buckets_are_those_of_the_conventions() -> None:
    counted = metrics()
    counted.began(caller())
    counted.ended(outcome())
    ends = Samples(counted.render()).labels("gen_ai_server_request_duration_seconds_bucket", "le")
    from_the_conventions = "0.01 0.02 0.04 0.08 0.16 0.32 0.64 1.28 2.56 5.12 10.24 20.48 40.96 81.92 +Inf"
    assert ends == set(from_the_conventions.split())


def test_a_group_that_never_waited_has_no_time_in_the_queue() -> None:
    counted = metrics()
    for queue_seconds in (None, 0.5):
        counted.began(caller())
        counted.ended(outcome(queue_seconds=queue_seconds))
    samples = Samples(counted.render())
    assert samples["preceptor_queue_duration_seconds_count", {"teacher": "teacher"}] == 1
    assert samples["preceptor_queue_duration_seconds_sum", {"teacher": "teacher"}] == 0.5


def test_a_batch_is_counted_with_its_fullness_and_for_whom_it_computed() -> None:
    counted = metrics()
    counted.of_teacher("teacher").batch_done(batch_done(computed_by_tenant={"acme": 60, "peer:10.0.0.1": 20}))
    counted.of_teacher("teacher").batch_done(batch_done(reason="ENGINE_FAILED", max_tokens=0))
    samples = Samples(counted.render())
    assert samples["preceptor_batches_total", {"outcome": "ok"}] == 1
    assert samples["preceptor_batches_total", {"outcome": "ENGINE_FAILED"}] == 1
    assert samples["preceptor_batch_duration_seconds_sum", {"teacher": "teacher"}] == 1.0
    assert samples["preceptor_batch_occupancy_ratio_sum", {}] == 0.8
    assert samples["preceptor_batch_occupancy_ratio_count", {}] == 1, "an engine that batches by itself has no room"
    assert samples["preceptor_batch_groups_sum", {}] == 6
    assert samples["preceptor_tokens_computed_total", {"tenant": "acme"}] == 60 + 80
    assert samples["preceptor_tokens_computed_total", {"tenant": "anonymous"}] == 20
    assert samples["preceptor_tokens_reused_total", {"teacher": "teacher"}] == 40


def test_refusals_are_counted_by_reason_and_method() -> None:
    counted = metrics()
    for reason in ("NO_KEY", "NO_KEY", "TOO_LARGE"):
        counted.refused(Refusal(tenant="", transport="grpc", method="Score", reason=reason))
    samples = Samples(counted.render())
    labels = {"transport": "grpc", "tenant": "unknown", "method": "Score"}
    assert samples["preceptor_refusals_total", {**labels, "reason": "NO_KEY"}] == 2
    assert samples["preceptor_refusals_total", {**labels, "reason": "TOO_LARGE"}] == 1


def test_queues_are_read_for_each_scrape_by_tenant() -> None:
    waiting = {"acme": SomeWaiting(groups=2, tokens=300, num_bytes=4000), "peer:10.0.0.1": SomeWaiting()}
    waiting["peer:10.0.0.2"] = SomeWaiting()
    counted = metrics(teachers=())
    counted.host("small", lambda: state(dict(waiting), num_groups_in_flight=3))
    samples = Samples(counted.render())
    acme, anonymous = {"teacher": "small", "tenant": "acme"}, {"teacher": "small", "tenant": "anonymous"}
    assert [samples[f"preceptor_queue_{unit}", acme] for unit in ("groups", "tokens", "bytes")] == [2, 300, 4000]
    assert [samples[f"preceptor_queue_{unit}", anonymous] for unit in ("groups", "tokens", "bytes")] == [2, 20, 200]
    assert samples["preceptor_groups_in_flight", {"teacher": "small"}] == 3
    assert samples["preceptor_tokens_in_flight", {"teacher": "small"}] == 150
    assert samples["preceptor_num_requests_waiting", {}] == 4
    assert samples["preceptor_num_requests_running", {}] == 3
    waiting.clear()
    assert Samples(counted.render()).matching("preceptor_queue_groups", {}) == []


def test_a_teacher_that_is_gone_is_shown_no_more_and_its_counters_stay() -> None:
    counted = metrics(teachers=("a", "b"))
    counted.began(caller())
    counted.ended(outcome(teacher="a"))
    counted.forget("a")
    samples = Samples(counted.render())
    assert samples.labels("preceptor_teacher_info", "teacher") == {"b"}
    assert samples["preceptor_requests_total", {"teacher": "a"}] == 1


def test_a_teacher_whose_state_cannot_be_read_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    def closed() -> None:
        raise RuntimeError("closed")

    counted = metrics(teachers=("b",))
    counted.host("a", closed)  # type: ignore[arg-type]  # it never returns
    assert Samples(counted.render()).labels("preceptor_teacher_info", "teacher") == {"b"}
    assert "teacher=a" in caplog.text


def test_serving_follows_health() -> None:
    health = Health()
    counted = Metrics(health=health, version="1")
    health.set_serving("a", True)
    health.set_serving("b", False)
    samples = Samples(counted.render())
    assert (samples["preceptor_is_serving", {"teacher": "a"}], samples["preceptor_is_serving", {"teacher": "b"}]) == (
        1,
        0,
    )
    health.drain()
    assert Samples(counted.render()).matching("preceptor_is_serving", {}) == [0, 0]


def test_names_that_callers_choose_make_no_series_without_bound() -> None:
    counted = metrics(max_tenants=10)
    for number in range(500):
        counted.began(caller(f"tenant-{number}", name=f"name-{number}"))
        counted.ended(outcome(f"tenant-{number}", teacher=f"teacher-{number}", reason=f"REASON_{number}"))
        counted.refused(
            Refusal(tenant=f"peer:{number}", transport="grpc", method=f"/{number}", reason="UNKNOWN_METHOD")
        )
    samples = Samples(counted.render())
    assert samples.labels("preceptor_requests_total", "tenant") == {*(f"tenant-{n}" for n in range(10)), "other"}
    assert samples.labels("preceptor_requests_total", "teacher") == {"unknown"}
    assert len(samples.labels("preceptor_requests_total", "outcome")) == 64, (
        "63 of 500, for one is a refusal's, and other"
    )
    assert samples.labels("preceptor_refusals_total", "tenant") == {"anonymous"}
    assert len(samples.labels("preceptor_refusals_total", "method")) == 33
    assert sum(samples.matching("preceptor_requests_total", {})) == 500
    assert b"name-" not in counted.render()


def test_build_and_process_are_told() -> None:
    samples = Samples(metrics().render())
    assert samples["preceptor_build_info", {"version": "1.2.3"}] == 1
    assert samples["process_resident_memory_bytes", {}] > 10_000_000
    assert samples["process_cpu_seconds_total", {}] > 0
    assert 0 < samples["process_open_fds", {}] < samples["process_max_fds", {}]


def test_failures_of_observers_are_shown() -> None:
    class Broken:
        def began(self, caller: object) -> None:
            raise RuntimeError("broken")

        ended = refused = began

    counted = metrics()
    observers: Observers[Outcome] = Observers((Broken(), counted))
    counted.observe_failures(observers.failures)
    observers.began(caller())
    observers.ended(outcome())
    samples = Samples(counted.render())
    assert samples["preceptor_observer_failures_total", {"observer": "Broken"}] == 2
    assert samples["preceptor_requests_total", {}] == 1


def test_every_family_has_a_help_text_a_prefix_and_the_unit_last() -> None:
    for family in metrics().families:
        assert family.help.endswith("."), family.name
        assert family.name.startswith(("preceptor_", "process_", "gen_ai_")), family.name
        assert (family.kind == "counter") == family.name.endswith("_total"), family.name
        if family.kind == "histogram" and "groups" not in family.name:
            assert family.name.endswith(("_seconds", "_ratio")), family.name
