"""Frames go and come in Flower messages: one to each node of a round's clients, and one back.

Everything is the ServerApp's own loop over ``push_messages`` and ``pull_messages``: it waits for nobody in particular.

    a node that is not known        is asked once who it is (``Nodes``); until then it has no calls
    a node that failed, or left     is asked again; if it comes back while the round is open, it gets its calls again
    a node that is still busy       with an earlier round gets its call when it has answered
    an answer of an earlier round   is handed on once, with that round's number
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute

from client import records
from fedsim.ends.answer import Answer
from fedsim.ends.post import Envelope, Parcel
from fedsim.errors import DeployError, WireError, one_line
from fedsim.experiment import Experiment
from server.nodes import Nodes

POLL = 0.1
"""Seconds between two looks for answers."""

LOOK = 1.0
"""Seconds between two looks for nodes."""

AGAIN = 5.0
"""Seconds after which a node that failed is asked again who it is."""

GRACE = 30.0
"""Seconds that a client without a node waits, at most, for one that has come but not yet said who it is."""

PATIENCE = 10.0
"""Deadlines that a message stays valid: as long as a round may wait for the first answer."""

log = logging.getLogger("flwr")


@dataclass(frozen=True, slots=True)
class Letter:
    """A message that has no answer yet. round: None for a query. until: when it is no longer valid."""

    node: int
    round: int | None
    clients: frozenset[int]
    until: float


@dataclass(frozen=True, slots=True)
class Call:
    """What a client was called with, and to which node it went; None: to none yet."""

    frames: tuple[bytes, ...]
    node: int | None = None


class FlowerPost:
    """A ``fedsim.ends.post.Post`` over Flower's grid."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.seconds = PATIENCE
        self.nodes = Nodes(version("fedsim"))
        self.letters: dict[str, Letter] = {}
        self.asking: dict[int, float] = {}  # node -> when it may be asked who it is
        self.round, self.calls = 0, dict[int, Call]()
        self.troubles: dict[int, tuple[str, float]] = {}  # client -> why it has no node, and until when it may get one
        self.looked = -LOOK
        self.parcels: list[Parcel] = []
        self.noted: list[Envelope] = []

    def open(self, experiment: Experiment, clients: int) -> None:
        """Wait until there is a node for every client. Raises DeployError that says what is missing.

        Nodes have the experiment already, from the configuration of Flower's run.
        """
        seconds = experiment.deploy.start_s
        end = time.monotonic() + seconds
        self.seconds = PATIENCE * experiment.deploy.deadline_s
        self.nodes.clients, self.nodes.enough = clients, experiment.deploy.start_nodes
        while not self.nodes.partitions:
            self._look()
            self._pull()
            if not self.nodes.partitions:
                if time.monotonic() >= end:
                    raise DeployError(f"after {seconds:g} s {self.nodes.complaint()}")
                time.sleep(POLL)
        self.parcels.clear()

    def send(self, round: int, calls: Mapping[int, Sequence[bytes]]) -> None:
        """Call clients; again in the same round with what they ask for."""
        if round != self.round:
            self.round, self.calls, self.troubles = round, {}, {}
        self._pull()  # who has answered meanwhile is not busy
        self._look()
        self.calls |= {client: Call(tuple(frames)) for client, frames in calls.items()}
        self._dispatch()
        for client in calls:
            if self.nodes.host(client) is None:
                self.troubles.setdefault(client, (self.nodes.absence(client), time.monotonic() + GRACE))

    def collect(self, seconds: float) -> list[Parcel]:
        """What arrived; waits at most so long for the first."""
        end = time.monotonic() + seconds
        while True:
            self._pull()
            self._look(LOOK)
            self._dispatch()
            self._give_up()
            if self.parcels:
                parcels, self.parcels = self.parcels, []
                return parcels
            if (left := end - time.monotonic()) <= 0:
                return []
            time.sleep(min(POLL, left))

    def envelopes(self) -> list[Envelope]:
        """Flower's messages since the last time."""
        noted, self.noted = self.noted, []
        return noted

    def _look(self, every: float = 0.0) -> None:
        """Ask the nodes that are not known who they are; forget those that left."""
        now = time.monotonic()
        if now - self.looked < every:
            return
        self.looked = now
        there = set(self.grid.get_node_ids())
        for node in [*self.nodes.known, *self.nodes.troubles]:
            if node not in there:
                self.nodes.leave(node)
        waiting = {letter.node for letter in self.letters.values() if letter.round is None}
        for node in sorted(there - waiting - set(self.nodes.known)):
            if self.asking.get(node, now) <= now:
                self._push(node, None, {}, records.of_call(()), "query")

    def _dispatch(self) -> None:
        """Send the calls that are with no node, or with one that is not their clients' node any more."""
        busy = {letter.node for letter in self.letters.values() if letter.round is not None}
        open: dict[int, dict[int, Call]] = {}
        for client, call in sorted(self.calls.items()):
            node = self.nodes.host(client)
            if node is not None and node != call.node and node not in busy:
                open.setdefault(node, {})[client] = call
        for node, calls in open.items():
            frames = [frame for call in calls.values() for frame in call.frames]
            self.calls |= {client: Call(call.frames, node) for client, call in calls.items()}
            self._push(node, self.round, calls, records.of_call(frames), "train")

    def _give_up(self) -> None:
        """Tell of the clients without a node, unless one that may be theirs is just being asked who it is."""
        now, asked = time.monotonic(), any(letter.round is None for letter in self.letters.values())
        self.troubles = {c: why for c, why in self.troubles.items() if c in self.calls and self.calls[c].node is None}
        over = {client: why for client, (why, until) in sorted(self.troubles.items()) if not asked or until < now}
        if over:
            self.troubles = {client: why for client, why in self.troubles.items() if client not in over}
            self.parcels.append(Parcel(self.round, frozenset(over), Answer((), tuple(over.items()))))

    def _push(self, node: int, round: int | None, calls: Mapping[int, Call], content: RecordDict, kind: str) -> None:
        message = Message(content, node, kind, ttl=self.seconds, group_id="" if round is None else str(round))
        name = next(iter(self.grid.push_messages([message])), None)
        if name is None:
            self._failed(node, round, frozenset(calls), "Flower refuses its messages; see the SuperLink's log")
            return
        self.letters[name] = Letter(node, round, frozenset(calls), time.monotonic() + self.seconds)
        self._note(False, self.round, node, [call.frames for call in calls.values()], message)

    def _pull(self) -> None:
        now = time.monotonic()
        for name in [name for name, letter in self.letters.items() if letter.until < now]:
            del self.letters[name]
        if not self.letters:
            return
        for message in self.grid.pull_messages(list(self.letters)):
            letter = self.letters.pop(message.metadata.reply_to_message_id, None)
            if letter is not None:
                self._read(letter, message)

    def _read(self, letter: Letter, message: Message) -> None:
        """What a node has answered."""
        try:
            if message.has_error():
                raise WireError(f"Flower's error {message.error.code}: {_line(message.error.reason)}")
            if letter.round is None:
                self._note(True, self.round, letter.node, [], message)
                self._greet(letter.node, records.hello_of(message.content))
                return
            replies, troubles = records.answer_of(message.content)
        except WireError as error:
            self._failed(letter.node, letter.round, letter.clients, str(error))
            return
        self._note(True, letter.round, letter.node, [frames for _, frames in replies], message)
        silent = letter.clients - {client for client, _ in (*replies, *troubles)}
        troubles += [(client, f"node {letter.node} says nothing of it") for client in sorted(silent)]
        if letter.round == self.round:
            for client in letter.clients & {client for client, _ in replies}:
                self.calls.pop(client, None)
        self.parcels.append(Parcel(letter.round, letter.clients, Answer(tuple(replies), tuple(troubles))))

    def _greet(self, node: int, hello: records.Hello) -> None:
        if not self.nodes.greet(node, hello):
            self._shun(node, self.nodes.troubles[node])

    def _failed(self, node: int, round: int | None, clients: frozenset[int], why: str) -> None:
        """No answer will come; the node, or one in its place, is asked who it is before it is called again."""
        self._shun(node, why)
        if round == self.round:
            for client in clients & self.calls.keys():
                if self.calls[client].node == node:
                    self.calls[client] = Call(self.calls[client].frames)
                    self.troubles[client] = f"node {node}: {why}", time.monotonic() + GRACE
        self._look()

    def _shun(self, node: int, why: str) -> None:
        log.warning("node %s: %s", node, why)
        self.nodes.shun(node, why)
        self.asking[node] = time.monotonic() + AGAIN

    def _note(self, up: bool, round: int, node: int, frames: Sequence[Sequence[bytes]], message: Message) -> None:
        count, octets = sum(map(len, frames)), sum(len(frame) for each in frames for frame in each)
        self.noted.append(Envelope(round, up, node, len(frames), count, octets, octets_of(message)))


def octets_of(message: Message) -> int:
    """Bytes of a message and of its records, as Flower makes objects of them."""
    with no_object_id_recompute():  # private, for speed; ids of objects are in the objects that hold them
        return sum(len(part.deflate()) for part in get_all_nested_objects(message).values())


def _line(reason: str | None) -> str:
    """The last line of a reason, which may be a traceback."""
    lines = [line for line in (reason or "").splitlines() if line.strip()]
    return one_line(lines[-1]) if lines else "no reason given"
