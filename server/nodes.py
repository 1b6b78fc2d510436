"""Which node hosts which client, as far as the nodes have said; no messages here.

A node hosts every client whose number is its partition modulo the number of partitions. Of several nodes of a partition
the one that came last serves it: a machine that was started again is a new node to Flower, and the old one is shown as
connected for a minute.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from client.records import Hello


@dataclass
class Nodes:
    """Those that have been seen.

    version: of fedsim, which all must run; clients: of the run; enough: nodes with which it may begin, 0: all. known:
    those that can serve, in the order in which they came. troubles: of others, why they cannot. partitions: into how
    many the clients are divided; 0 until there are nodes to begin with. hosts: partition -> its node.
    """

    version: str
    clients: int = 1
    enough: int = 0
    known: dict[int, Hello] = field(default_factory=dict)
    troubles: dict[int, str] = field(default_factory=dict)
    partitions: int = 0
    hosts: dict[int, int] = field(default_factory=dict)

    def greet(self, node: int, hello: Hello) -> bool:
        """A node has introduced itself; whether it can serve."""
        self.known.pop(node, None)
        if why := self._unfit(hello):
            self.shun(node, why)
            return False
        self.troubles.pop(node, None)
        self.known[node] = hello
        if not self.partitions:
            self.partitions = max((n for n in self._sizes() if self._suffice(n)), default=0)
        self._settle()
        return True

    def shun(self, node: int, why: str) -> None:
        """A node cannot serve for the time being."""
        self.known.pop(node, None)
        self.troubles[node] = why
        self._settle()

    def leave(self, node: int) -> None:
        """A node is no longer connected."""
        self.known.pop(node, None)
        self.troubles.pop(node, None)
        self._settle()

    def host(self, client: int) -> int | None:
        """The node of a client; None while there is none."""
        return self.hosts.get(client % self.partitions) if self.partitions else None

    def missing(self, partitions: int) -> list[int]:
        """Which of so many partitions no node serves, although they have clients."""
        there = {hello.partition for hello in self.known.values() if hello.partitions == partitions}
        return [partition for partition in range(min(partitions, self.clients)) if partition not in there]

    def absence(self, client: int) -> str:
        """Why a client has no node."""
        return self._gap([client % self.partitions], self.partitions)

    def complaint(self) -> str:
        """What is missing before a run can begin, in one line with the way out."""
        if self.known:
            least = min(self._sizes(), key=lambda n: len(self.missing(n)))
            start = f"start `flower-supernode` there with --node-config 'partition-id=... num-partitions={least}'"
            return f"{self._gap(self.missing(least), least)}; {start}"
        if self.troubles:
            return f"no node can serve: {self._reasons()}"
        return "no node is connected; start `flower-supernode --node-config 'partition-id=0 num-partitions=1'`"

    def _gap(self, vacant: list[int], partitions: int) -> str:
        reasons = f" ({self._reasons()})" if self.troubles else ""
        return f"no node serves partition {', '.join(map(str, vacant))} of {partitions}{reasons}"

    def _reasons(self) -> str:
        return "; ".join(f"node {node}: {why}" for node, why in self.troubles.items())

    def _settle(self) -> None:
        ours = {node: hello for node, hello in self.known.items() if hello.partitions == self.partitions}
        self.hosts = {hello.partition: node for node, hello in ours.items()}

    def _suffice(self, partitions: int) -> bool:
        missing = len(self.missing(partitions))
        return not missing or 0 < self.enough <= min(partitions, self.clients) - missing

    def _sizes(self) -> set[int]:
        return {hello.partitions for hello in self.known.values()}

    def _unfit(self, hello: Hello) -> str:
        """Why a node cannot serve; empty if it can."""
        if hello.version != self.version:
            return f"it runs fedsim {hello.version}, the server fedsim {self.version}; install the same on both"
        if not 0 <= hello.partition < hello.partitions:
            return (
                f"partition-id {hello.partition} of num-partitions {hello.partitions}; "
                "start it with --node-config 'partition-id=0 num-partitions=1', or others"
            )
        return hello.trouble
