from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, fields

from preceptor_server.observability.config import ObserveConfig
from preceptor_server.observability.observatory import Observatory
from preceptor_server.observability.observer import Asker, Observers, Outcome, Refusal
from preceptor_server.observability.tracing import NO_TRACING

from tests.unit.server.observability.events import SomeWaiting, caller, outcome, state
from tests.unit.server.observability.samples import Samples


def get(address: str, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def observatory(config: ObserveConfig | None = None) -> Observatory:
    return Observatory(config or ObserveConfig(port=0), version="1.2.3")


async def test_a_call_that_is_observed_is_seen_from_outside() -> None:
    made = observatory()
    observers: Observers[Outcome] = made.observers()
    made.metrics.host("teacher", lambda: state({"acme": SomeWaiting(groups=4)}))
    made.start()
    assert made.address is not None
    try:
        observers.began(caller())
        observers.ended(outcome())
        status, text = await asyncio.to_thread(get, made.address, "/metrics")
        samples = Samples(text)
        assert status == 200
        assert samples["preceptor_requests_total", {"tenant": "acme", "outcome": "ok"}] == 1
        assert samples["preceptor_queue_groups", {"tenant": "acme"}] == 4
        assert made.traffic.num_positions == 7
    finally:
        await made.stop()
        await made.stop()


async def test_a_busy_event_loop_is_scraped_and_its_queues_are_those_of_the_scrape_before() -> None:
    made, waiting = observatory(), {"acme": SomeWaiting(groups=4)}
    observers: Observers[Outcome] = made.observers()
    made.metrics.host("teacher", lambda: state(dict(waiting)))
    made.start()
    assert made.address is not None
    try:
        await asyncio.to_thread(get, made.address, "/metrics")
        waiting["acme"] = SomeWaiting(groups=5)
        observers.began(caller())
        texts: list[bytes] = []
        asking = threading.Thread(target=lambda: texts.append(get(made.address or "", "/metrics")[1]))
        asking.start()
        asking.join()  # the event loop stands still until the answer is there
        samples = Samples(texts[0])
        assert samples["preceptor_queue_groups", {"tenant": "acme"}] == 4
        assert samples["preceptor_requests_in_progress", {"tenant": "acme"}] == 1, "counters are read all the same"
    finally:
        await made.stop()


async def test_probes_follow_the_teachers_and_the_drain() -> None:
    made = observatory()
    made.start()
    assert made.address is not None
    seen: list[tuple[int, object]] = []

    async def look() -> None:
        status, body = await asyncio.to_thread(get, made.address or "", "/readyz")
        seen.append((status, json.loads(body)))

    try:
        await look()
        made.health.set_serving("a", True)
        made.health.set_serving("b", False)
        await look()
        made.health.drain()
        await look()
        assert (await asyncio.to_thread(get, made.address, "/healthz"))[0] == 200
    finally:
        await made.stop()
    assert seen == [
        (503, {"status": "not serving", "teachers": {}}),
        (200, {"status": "serving", "teachers": {"a": True, "b": False}}),
        (503, {"status": "draining", "teachers": {"a": False, "b": False}}),
    ]


async def test_an_event_loop_that_stands_still_too_long_is_told_to_the_probe() -> None:
    made = observatory(ObserveConfig(port=0, stuck_seconds=0.2))
    made.start()
    assert made.address is not None
    try:
        answers: list[tuple[int, bytes]] = []

        def ask_until_it_is_stuck() -> None:
            for _ in range(200):
                answers.append(get(made.address or "", "/healthz"))
                if answers[-1][0] == 503:
                    return
                threading.Event().wait(0.05)

        asking = threading.Thread(target=ask_until_it_is_stuck)
        asking.start()
        asking.join()
        assert answers[-1][0] == 503
        assert json.loads(answers[-1][1])["status"] == "stuck"
    finally:
        await made.stop()


async def test_without_a_port_there_is_no_listener_and_calls_are_counted_all_the_same() -> None:
    made = observatory(ObserveConfig())
    observers: Observers[Outcome] = made.observers()
    made.start()
    observers.began(caller())
    assert made.address is None
    assert Samples(made.metrics.render())["preceptor_requests_in_progress", {"tenant": "acme"}] == 1
    assert made.tracing is NO_TRACING
    await made.stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class FullOutcome(Outcome):
    answer: str


class Recording:
    """An observer that wants more than the outcome, as the recorder of the HTTP side does."""

    def __init__(self) -> None:
        self.answers: list[str] = []

    def began(self, caller: Asker) -> None: ...

    def ended(self, outcome: FullOutcome) -> None:
        self.answers.append(outcome.answer)

    def refused(self, refusal: Refusal) -> None: ...


def test_an_observer_may_be_told_more_than_the_others() -> None:
    made, recording = observatory(ObserveConfig()), Recording()
    observers = made.observers(recording)
    plain = outcome()
    known = {name.name: getattr(plain, name.name) for name in fields(plain)}
    observers.began(caller())
    observers.ended(FullOutcome(**known, answer="42"))
    assert recording.answers == ["42"]
    assert made.traffic.num_positions == 7


def test_it_imports_no_web_framework_no_model_library_and_no_opentelemetry() -> None:
    names = ("fastapi", "starlette", "uvicorn", "prometheus_client", "opentelemetry", "torch", "transformers", "grpc")
    program = (
        "import sys, preceptor_server.observability.observatory, preceptor_server.observability.logs; "
        f"print(*(name for name in {names!r} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
