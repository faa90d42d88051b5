"""Runs N preceptor-servers on a Ray cluster and prints their addresses, for `teacher.address` of a trainer.

    python deploy/ray/replicas.py --replicas 2 --cpus-per-replica 1 -- --engine.model path/to/teacher

Each server is the child of a Ray actor on its node, and is started again when it ends by itself. SIGTERM or Ctrl-C
drains all of them. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # before Ray is imported: it reports to its makers otherwise

import ray
from ray import cloudpickle
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where deploy lies

from deploy.ray import server_process
from deploy.ray.server_process import ServerProcess, State

# Actors on other nodes have no deploy/ray: the module travels with them.
cloudpickle.register_pickle_by_value(server_process)

logger = logging.getLogger("preceptor.replicas")

TEND_SECONDS = 1.0
ANSWER_SECONDS = 30.0
"""How long an actor may take to say how its server fares."""
DRAIN_SECONDS = server_process.KILL_AFTER_SECONDS + 30
OBJECT_STORE_BYTES = 100 << 20
"""Of a cluster that is started here: nothing but states travels through it."""


class CannotStartError(Exception):
    """No replicas can be had this way; the message says what to change."""


class ReplicaActor:
    """Lives on a replica's node and owns its server."""

    def __init__(self, arguments: Sequence[str], is_public: bool) -> None:
        self._arguments, self._is_public = arguments, is_public
        self._server: ServerProcess | None = None

    def tend(self, port: int) -> State:
        """`port`: the server's, should this actor have been restarted; 0 = it had none."""
        if self._server is None:
            host = ray.util.get_node_ip_address() if self._is_public else "127.0.0.1"
            self._server = ServerProcess(self._arguments, host=host, is_public=self._is_public, port=port)
        return self._server.tend()

    def drain(self) -> State | None:
        """Waits until the server has finished what is in flight."""
        return None if self._server is None else self._server.drain()


class Launcher:
    """Places the actors, tends them, and tells where their servers answer."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._actors: list[ray.actor.ActorHandle] = []
        self._states: list[State | None] = [None] * options.replicas
        self._addresses = [""] * options.replicas
        """The last known ones."""

    def place(self) -> None:
        """Reserves room for all replicas, and makes their actors. Raises CannotStartError."""
        options = self._options
        num_nodes = sum(node["Alive"] for node in ray.nodes())
        if num_nodes > 1 and not options.public:
            raise CannotStartError(
                f"the cluster has {num_nodes} nodes and servers on 127.0.0.1 answer on their own alone: pass --public "
                "if the network between the nodes is trusted, for the servers have neither keys nor TLS"
            )
        group = _reserve(options)
        actor_class = ray.remote(ReplicaActor)
        for index in range(options.replicas):
            handle = actor_class.options(
                num_cpus=options.cpus_per_replica,
                num_gpus=options.gpus_per_replica,
                max_restarts=-1,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
            ).remote(options.server_arguments, options.public)
            self._actors.append(handle)

    def tend(self) -> None:
        """Looks after every replica once. Raises CannotStartError where a server that never answered has ended."""
        pending = [
            actor.tend.remote(int(address.rpartition(":")[2] or 0))
            for actor, address in zip(self._actors, self._addresses, strict=True)
        ]
        for index, result in enumerate(pending):
            try:
                self._note(index, ray.get(result, timeout=ANSWER_SECONDS))
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
                if self._states[index] is not None:
                    logger.error("replica's actor is gone, Ray restarts it: index=%d error=%s", index, error)
                self._states[index] = None

    def drain(self) -> None:
        """Ends every server, those in flight finished first."""
        pending = [actor.drain.remote() for actor in self._actors]
        for index, result in enumerate(pending):
            try:
                state = ray.get(result, timeout=DRAIN_SECONDS)
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
                logger.error("replica was not drained: index=%d error=%s", index, error)
                continue
            logger.info("replica drained: index=%d exit_status=%s", index, state and state.exit_status)

    def _note(self, index: int, state: State) -> None:
        before, self._states[index] = self._states[index], state
        if state.pid == 0 and (before is None or before.pid != 0):
            if not self._addresses[index]:
                raise CannotStartError(
                    f"replica {index} ended with status {state.exit_status} before it answered:\n{state.log_tail}"
                )
            logger.error(
                "replica ended, it is started again: index=%d exit_status=%s log=%s",
                *(index, state.exit_status, state.log),
            )
        if state.address and (before is None or before.address != state.address or before.pid != state.pid):
            logger.info(
                "replica answers: index=%d address=%s pid=%d starts=%d log=%s",
                *(index, state.address, state.pid, state.num_starts, state.log),
            )
            if state.address != self._addresses[index]:
                self._addresses[index] = state.address
                self._announce()

    def _announce(self) -> None:
        if not all(self._addresses):
            return
        line = ",".join(self._addresses)
        print(line, flush=True)
        if self._options.addresses_file is not None:
            # Written beside and renamed, so that a reader never sees half of it.
            unfinished = self._options.addresses_file.with_name(self._options.addresses_file.name + ".part")
            unfinished.write_text(line)
            unfinished.replace(self._options.addresses_file)


def _reserve(options: argparse.Namespace) -> PlacementGroup:
    bundle = {"CPU": options.cpus_per_replica, "GPU": options.gpus_per_replica}
    bundle = {name: amount for name, amount in bundle.items() if amount}
    group = placement_group([bundle] * options.replicas, strategy="SPREAD")
    if not group.wait(options.placement_seconds):
        raise CannotStartError(
            f"{options.replicas} replicas of {bundle} do not fit into what the cluster has, "
            f"{ray.cluster_resources()}: ask for fewer, or add nodes; something else may also hold it"
        )
    return group


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """What stands after "--" is the server's."""
    ours, theirs = list(arguments), []
    if "--" in ours:
        split = ours.index("--")
        ours, theirs = ours[:split], ours[split + 1 :]
    parser = argparse.ArgumentParser(
        prog="replicas.py", usage="%(prog)s [options] -- preceptor-server's arguments", allow_abbrev=False
    )
    parser.add_argument("--replicas", type=int, default=1, help="servers to run")
    parser.add_argument("--cpus-per-replica", type=float, default=1, help="CPUs that Ray reserves for each")
    parser.add_argument(
        "--gpus-per-replica", type=float, default=0, help="GPUs that Ray reserves for each, and shows it"
    )
    parser.add_argument("--address", default="local", help="auto, HOST:PORT or ray://HOST:PORT joins; local starts one")
    parser.add_argument("--public", action="store_true", help="bind to the nodes' addresses, without keys or TLS")
    parser.add_argument("--addresses-file", type=Path, help="write the addresses here too, whenever they change")
    parser.add_argument("--placement-seconds", type=float, default=60, help="how long to wait for room in the cluster")
    options = parser.parse_args(ours)
    if options.replicas < 1:
        parser.error("--replicas must be 1 or more")
    if not (options.cpus_per_replica > 0 and options.gpus_per_replica >= 0):
        parser.error("--cpus-per-replica must be above 0, and --gpus-per-replica 0 or above")
    if chosen_here := {"--listen.host", "--listen.port", "--listen.address-file"} & {a.split("=")[0] for a in theirs}:
        parser.error(f"{', '.join(sorted(chosen_here))}: where a server listens is chosen here: leave it out")
    options.server_arguments = theirs
    return options


def connect(address: str) -> None:
    """Joins a cluster, or starts one that ends with this process."""
    if address == "local":
        ray.init(address="local", include_dashboard=False, log_to_driver=False, object_store_memory=OBJECT_STORE_BYTES)
    else:
        ray.init(address=address, log_to_driver=False)


def main(arguments: Sequence[str]) -> int:
    """0 = told to stop and drained; 1 = no replicas can be had; 2 = wrong arguments."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s level=%(levelname)s %(message)s", stream=sys.stderr)
    logger.info("options %s", json.dumps(vars(options), default=str))
    connect(options.address)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # after ray.init, which has a handler of its own
        signal.signal(number, lambda *_: stop.set())
    launcher = Launcher(options)
    try:
        launcher.place()
        while not stop.is_set():
            launcher.tend()
            stop.wait(TEND_SECONDS)
    except CannotStartError as error:
        sys.stderr.write(f"replicas.py: {error}\n")
        return 1
    finally:
        launcher.drain()
        ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
