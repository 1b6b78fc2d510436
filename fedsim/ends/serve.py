"""A deployed server: plays an experiment over whatever carries its frames, and leaves the folder of a simulation.

    incidents.csv    rejected, late, missing ...: see ``fedsim.ends.incidents``
    messages.csv     the transport's own messages and how long they were

Every round is checkpointed: a server that came back to an earlier round than its clients remember would have to refresh
each of them. One that was killed within a round plays that round again; clients roll back, and answer with the same
bytes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from torch import Tensor

from fedsim.algorithms.artemis import Server
from fedsim.ends import incidents
from fedsim.ends.host import alone
from fedsim.ends.incidents import Incident
from fedsim.ends.post import ENVELOPES, Envelope, Parcel, Post
from fedsim.ends.server import ServerEnd
from fedsim.errors import CheckpointError, DeployError
from fedsim.experiment import Experiment
from fedsim.ledger import Ledger, Lines
from fedsim.simulation.folder import LOGS, RunFolder
from fedsim.simulation.run import Observer, Result, advance

DEPLOYED = {
    **LOGS,
    "incidents.csv": ",".join(incidents.COLUMNS) + "\n",
    "messages.csv": ",".join(ENVELOPES) + "\n",
}
PATIENCE = 10
"""Deadlines that a round without a single reply lasts."""

PAUSE = 5.0
"""Seconds before clients are called again that are all in trouble."""


def serve(
    experiment: Experiment, folder: Path, post: Post, observer: Observer | None = None, engine: str = "flower"
) -> Result:
    """Run an experiment with deployed clients, or go on with it where ``folder`` holds it already.

    engine: for the manifest. Raises CheckpointError (the folder holds another run, the disk is full ...), DeployError
    (no clients, nobody replies), DivergedError, ConfigError, DataError; the run can be resumed after the first two.
    """
    with closing(alone(experiment)) as setup:
        end = ServerEnd(setup, ledger=Ledger())  # refuses what cannot be deployed, before there is a folder
        place = RunFolder(folder, DEPLOYED, engine)
        if not (folder / "experiment.toml").exists():
            place = RunFolder.create(folder, experiment, setup.choice, DEPLOYED, engine)
        elif place.experiment().identifier() != setup.run:
            raise CheckpointError(f"{folder} holds another experiment; give another folder, or delete it")
        with place.alone():
            return advance(Service(end, post), place, observer)


class Service:
    """Plays rounds with clients behind a post; see ``fedsim.simulation.player``."""

    def __init__(self, end: ServerEnd, post: Post) -> None:
        self.setup, self.end, self.post = end.setup, end, post
        self.clock, self.pause = time.monotonic, time.sleep
        self.opened = False
        self.incidents: list[Incident] = []
        self.envelopes: list[Envelope] = []

    @property
    def server(self) -> Server:
        """The central state."""
        return self.end.state.server

    @property
    def checkpoint_every(self) -> int:
        """Every round."""
        return 1

    def play(self) -> Sequence[Lines]:
        """Call the cohort, wait, absorb what came. Raises DeployError when nobody replies."""
        t, cohort, deploy = self.end.round, self.setup.cohort(self.end.round), self.setup.experiment.deploy
        if not self.opened:
            self.post.open(self.setup.experiment, self.setup.clients)
            self.opened = True
        gathering = Gathering(self.end, self.post, frozenset(cohort.clients.tolist()), deploy.min_replies)
        self._wait(gathering, deploy.deadline_s)
        verdict = self.end.absorb(gathering.replies.items(), cohort)
        taken = frozenset(verdict.clients.tolist())
        self.incidents += gathering.incidents
        self.incidents += [Incident(t, one.client, "rejected", one.octets, one.reason) for one in verdict.rejections]
        self.incidents += [Incident(t, i, "absent", 0, "") for i in sorted(gathering.members - taken)]
        self.envelopes += self.post.envelopes()
        lines, self.end.ledger.unwritten = self.end.ledger.unwritten, []
        return lines

    def _wait(self, gathering: Gathering, deadline: float) -> None:
        """Until everybody who was called has replied or is in trouble, enough have, or time is over.

        Where everybody is in trouble they are called again, as long as one deadline: a machine may be about to return.
        """
        began = self.clock()
        gathering.call(gathering.members)
        while not gathering.done:
            left = began + (deadline if gathering.replies else PATIENCE * deadline) - self.clock()
            if left <= 0:
                break
            for parcel in self.post.collect(left):
                gathering.take(parcel)
            if not gathering.waiting and not gathering.replies and self.clock() < began + deadline:
                self.pause(min(PAUSE, deadline))
                gathering.call(gathering.members)
        if gathering.members and not gathering.replies:
            reasons = {one.reason for one in gathering.incidents if one.what == "trouble"}
            raise DeployError(
                f"round {gathering.round}: none of {len(gathering.members)} clients replied within "
                + f"{self.clock() - began:.3g} s"
                + (f" ({'; '.join(sorted(reasons))})" if reasons else "")
                + "; mend the clients, then `fedsim resume` goes on with this round"
            )

    def tensors(self) -> dict[str, Tensor]:
        """The state between two rounds."""
        return self.end.tensors()

    def restore(self, round: int, tensors: dict[str, Tensor]) -> None:
        """Inverse of ``tensors``."""
        self.end.restore(round, tensors)

    def measures(self) -> Mapping[str, int]:
        """None: what clients compute is theirs."""
        return {}

    def drain(self) -> Mapping[str, str]:
        """The lines of incidents.csv and messages.csv since the last call."""
        troubles, self.incidents = self.incidents, []
        envelopes, self.envelopes = self.envelopes, []
        return {
            "incidents.csv": incidents.lines(troubles),
            "messages.csv": "".join(one.line() for one in envelopes),
        }


class Gathering:
    """The replies of one round as they come. enough: with so many it is done; 0: with all."""

    def __init__(self, end: ServerEnd, post: Post, members: frozenset[int], enough: int) -> None:
        self.end, self.post, self.round, self.members, self.enough = end, post, end.round, members, enough
        self.replies: dict[int, Sequence[bytes]] = {}
        self.waiting: set[int] = set()
        self.healed: set[int] = set()
        self.incidents: list[Incident] = []

    @property
    def done(self) -> bool:
        """Whether nothing more is waited for."""
        return not self.waiting or 0 < self.enough <= len(self.replies)

    def call(self, clients: frozenset[int]) -> None:
        """Call them and wait for them."""
        if clients:
            self.waiting |= clients
            self.post.send(self.round, {client: self.end.call(client) for client in sorted(clients)})

    def take(self, parcel: Parcel) -> None:
        """What one machine answered. A client that lost its state is called again, once in a round."""
        asking = set()
        for client, frames in parcel.answer.replies:
            octets = sum(map(len, frames))
            if client not in parcel.clients:
                self._note(client, "foreign", octets, "a reply for a client that was not called there")
            elif parcel.round != self.round:
                self._note(client, "late", octets, f"a reply to round {parcel.round}")
            elif client in self.replies:
                self._note(client, "duplicate", octets, "a second reply")
            elif client not in self.healed and self.end.wants(client, frames):
                asking.add(client)
            else:
                self.replies[client] = frames
                self.waiting.discard(client)
        for client, reason in parcel.answer.troubles:
            if client in parcel.clients and parcel.round == self.round:
                self._note(client, "trouble", 0, reason)
                self.waiting.discard(client)
        self.healed |= asking
        self.call(frozenset(asking))

    def _note(self, client: int, what: incidents.What, octets: int, reason: str) -> None:
        self.incidents.append(Incident(self.round, client, what, octets, reason))
