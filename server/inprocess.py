"""Flower's ServerApp and ClientApp in one process, without its engines: ``python -m server.inprocess X.TOML FOLDER``.

A grid of nodes that answer at once, one after another. Nothing in it depends on time or on threads, so it says whether
the apps themselves are right, and what a round costs without any transport.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

Order = Callable[[list[Message]], Iterable[Message]]
SERVER = 1


class InProcessGrid(Grid):
    """Nodes of which number i hosts every client that is i modulo their number.

    order: of the answers that are pulled together; it may also change, drop or add some. config: of each node, besides
    its partition. contexts: of the nodes by their ids.
    """

    def __init__(
        self,
        app: ClientApp,
        run_config: UserConfig,
        nodes: int,
        order: Order = list,
        config: Sequence[UserConfig] = (),
    ) -> None:
        self.app, self.order = app, order
        self.contexts: dict[int, Context] = {}
        self.answers: dict[str, Message] = {}
        self.sent = 0
        self.set_run(Run.create_empty(1))
        for i in range(nodes):
            own = config[i] if config else {}
            self.join(1000 + i, {"partition-id": i, "num-partitions": nodes, **own}, run_config)

    def join(self, node: int, config: UserConfig, run_config: UserConfig, state: RecordDict | None = None) -> None:
        """A node connects. state: what its apps remember; None: nothing."""
        self.contexts[node] = Context(1, node, config, RecordDict() if state is None else state, dict(run_config))

    def leave(self, node: int) -> Context:
        """A node is gone."""
        return self.contexts.pop(node)

    def set_run(self, run: Run) -> None:
        """Messages can be made only by a process that knows its place in a run."""
        self._run = run
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run.run_id, SERVER, 1

    @property
    def run(self) -> Run:
        """The only one."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """As Flower's own grids."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Of the nodes that are connected."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let the nodes answer."""
        names = []
        for message in messages:
            self.sent += 1
            names.append(f"{self.sent}")
            message.metadata.__dict__["_message_id"] = names[-1]
            self.answers[names[-1]] = self._answer(message)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Each answer once."""
        found = [self.answers.pop(name) for name in message_ids if name in self.answers]
        return list(self.order(found))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Both."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        context = self.contexts.get(message.metadata.dst_node_id)
        if context is None:
            return Message(Error(5, "Node Unavailable"), reply_to=message)
        try:
            return self.app(message, context)
        except Exception as error:
            return Message(Error(2, f"{type(error).__name__}: {error}"), reply_to=message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an experiment in this process, on both of Flower's apps; the exit status."""
    from client.app import app as client_app
    from fedsim.errors import FedsimError
    from server.app import app as server_app

    parser = argparse.ArgumentParser(prog="python -m server.inprocess", description=main.__doc__)
    parser.add_argument("experiment", type=Path, help="TOML file")
    parser.add_argument("folder", type=Path, help="where to leave the run folder")
    parser.add_argument("--nodes", type=int, default=1, help="that share the clients")
    parser.add_argument(
        "--worker",
        action="append",
        default=[],
        metavar="unix:PATH",
        help="of a node, one after another; then no --nodes",
    )
    given = parser.parse_args(arguments)
    logging.getLogger("flwr").setLevel(logging.WARNING)
    try:
        config: UserConfig = {
            "experiment": given.experiment.read_text("utf-8"),
            "folder": str(given.folder),
            "engine": "flower-in-process",
        }
        workers: list[UserConfig] = [{"worker": address} for address in given.worker]
        own: list[UserConfig] = workers or [{"allow-code": True}] * given.nodes
        grid = InProcessGrid(client_app, config, len(own), config=own)
        server_app(grid, Context(1, SERVER, {}, RecordDict(), config))
    except FedsimError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
