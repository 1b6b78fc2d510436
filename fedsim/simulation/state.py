"""What a simulation carries from round to round, and its form as tensors for a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim.algorithms.artemis import Clients, Server, begin
from fedsim.simulation.rows import Rows
from fedsim.simulation.setup import Setup, metric_of
from fedsim.solvers.memory import Memory, Notes
from fedsim.solvers.metric import Metric
from fedsim.wire.frame import varint_bytes
from fedsim.wire.link import End

NEVER = -1


@dataclass
class ClientStore:
    """Every client's row and link, by client number. Cohort rows are taken out, and put back once acknowledged.

    memory, error, last: rows float[N, d] or None; sent: the server's H_i where each client has its own. seen: int64[N],
    the round whose model a client holds (NEVER before its first contact); epochs: int64[N]; digests: uint8[N, 8]. Both
    ends of a link are equal between rounds, so one is stored. solvers: what a client's local solver remembers, by
    client number; absent before its first round. held: int64[N], number of the newest pooled moments that a client
    holds (0: none).
    """

    memory: Rows | None
    error: Rows | None
    seen: NDArray[np.int64]
    epochs: NDArray[np.int64]
    digests: NDArray[np.uint8]
    solvers: dict[int, Memory]
    held: NDArray[np.int64]
    last: Rows | None = None
    sent: Rows | None = None

    def take(self, clients: Tensor) -> Clients:
        """The rows of a cohort."""
        return Clients(
            None if self.memory is None else self.memory.take(clients),
            None if self.error is None else self.error.take(clients),
            None if self.last is None else self.last.take(clients),
        )

    def put(self, clients: Tensor, rows: Clients) -> None:
        """Commit the rows of a cohort."""
        for mine, new in ((self.memory, rows.memory), (self.error, rows.error), (self.last, rows.last)):
            if mine is not None and new is not None:
                mine.put(clients, new)

    def rows(self) -> tuple[tuple[str, Rows | None], ...]:
        """The rows by name."""
        return ("memory", self.memory), ("error", self.error), ("last", self.last), ("sent", self.sent)

    def contacted(self) -> Tensor:
        """Clients that have taken part, ascending; the rows of all others are zero."""
        return torch.from_numpy(np.flatnonzero(self.seen != NEVER))

    def end(self, client: int) -> End:
        """The link of a client."""
        return End(int(self.epochs[client]), self.digests[client].tobytes())

    def set_end(self, client: int, end: End) -> None:
        """Store the link of a client."""
        self.epochs[client] = end.epoch
        self.digests[client] = np.frombuffer(end.digest, dtype=np.uint8)


@dataclass
class Updates:
    """What replaying costs: bytes of all updates before each round, as messages, and as a catch-up frame packs them.

    totals: int64[2, >= rounds + 1], cumulative from 0, payload and framed bytes; it doubles when it is full.
    """

    totals: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, 1), np.int64))
    rounds: int = 0

    def add(self, message: int) -> None:
        """One more round, whose encoded update has ``message`` bytes."""
        if self.rounds + 1 == self.totals.shape[1]:
            self.totals = np.concatenate((self.totals, np.zeros_like(self.totals)), axis=1)
        self.totals[:, self.rounds + 1] = self.totals[:, self.rounds] + (message, message + varint_bytes(message))
        self.rounds += 1

    def since(self, rounds: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(payload bytes, framed bytes) of all updates of the given round and later, int64[n] each."""
        payload, framed = self.totals[:, self.rounds, None] - self.totals[:, rounds]
        return payload, framed

    def tensor(self) -> Tensor:
        """The totals, int64[2, rounds + 1], for a checkpoint."""
        return torch.from_numpy(self.totals[:, : self.rounds + 1].copy())

    @staticmethod
    def of(tensor: Tensor) -> Updates:
        """Inverse of ``tensor``."""
        return Updates(tensor.numpy().copy(), tensor.shape[1] - 1)


@dataclass(frozen=True, slots=True)
class Pooled:
    """Moments of all clients. row: float[k], packed; made: the round; count: how many times; metric: their maps."""

    row: Tensor
    made: int
    count: int
    metric: Metric


@dataclass
class State:
    """server: the central state. store: the clients' rows and links. updates: what catching up costs.

    pooled: moments that whiten; None before the first. gradients: sample gradients that all clients took so far.
    rate: notes of the server's own step-size rule. spread: of the last round, where it was measured; in no checkpoint.
    """

    server: Server
    store: ClientStore
    updates: Updates
    pooled: Pooled | None = None
    gradients: int = 0
    rate: Notes = field(default_factory=dict)
    spread: Mapping[str, float] = field(default_factory=dict)


def initial_state(setup: Setup) -> State:
    """The state before the first round."""
    experiment, n, d = setup.experiment, setup.clients, setup.task.dim
    model = setup.task.initial(experiment.seed)

    def rows(used: bool) -> Rows | None:
        return Rows(n, d, model.dtype, model.device, experiment.run.rows == "disk") if used else None

    store = ClientStore(
        memory=rows(experiment.uplink.memory),
        error=rows(experiment.uplink.feedback != 0),
        seen=np.full(n, NEVER, dtype=np.int64),
        epochs=np.zeros(n, dtype=np.int64),
        digests=np.zeros((n, 8), dtype=np.uint8),
        solvers={},
        held=np.zeros(n, dtype=np.int64),
        last=rows(experiment.uplink.correction != 1.0),
        sent=rows(experiment.downlink.each),
    )
    return State(begin(setup.method, model, n), store, Updates())


def to_tensors(state: State) -> dict[str, Tensor]:
    """The state as named tensors; what a method does not use is absent, as are the rows of clients never contacted."""
    tensors: dict[str, Tensor] = {
        "seen": torch.from_numpy(state.store.seen),
        "epochs": torch.from_numpy(state.store.epochs),
        "digests": torch.from_numpy(state.store.digests),
        "held": torch.from_numpy(state.store.held),
        "gradients": torch.tensor(state.gradients),
        "updates": state.updates.tensor(),
    }
    server = {f"server.{name}": row for name, row in _server_rows(state.server).items()}
    known = state.store.contacted()
    clients = {f"clients.{name}": None if rows is None else rows.take(known) for name, rows in state.store.rows()}
    tensors |= {name: row for name, row in (server | clients).items() if row is not None}
    if (pooled := state.pooled) is not None:
        tensors |= {"pooled.row": pooled.row, "pooled.made": torch.tensor([pooled.made, pooled.count])}
    tensors |= {f"rate.{name}": note for name, note in state.rate.items()}
    return tensors | _memory_tensors(state.store.solvers)


def from_tensors(setup: Setup, round: int, tensors: dict[str, Tensor], blank: State | None = None) -> State:
    """The state of a checkpoint. blank: one with the same rows; None: those of a simulation.

    Raises ValueError when it does not fit the experiment.
    """
    blank = blank or initial_state(setup)
    store, device = blank.store, blank.server.model.device

    def fitting(name: str, shape: tuple[int, ...] | None) -> Tensor | None:
        given = tensors.get(name)
        expected = None if shape is None else (shape, blank.server.model.dtype)
        if (None if given is None else (tuple(given.shape), given.dtype)) != expected:
            raise ValueError(f"tensor {name} does not fit the experiment")
        return None if given is None else given.to(device)

    rows = {
        name: fitting(f"server.{name}", None if row is None else tuple(row.shape))
        for name, row in _server_rows(blank.server).items()
    }
    _check_numbers(setup.clients, round, tensors)
    store.seen, store.epochs = tensors["seen"].numpy(), tensors["epochs"].numpy()
    store.digests, store.held = tensors["digests"].numpy(), tensors["held"].numpy()
    store.solvers, known = _memories(tensors), store.contacted()
    for name, mine in store.rows():
        found = fitting(f"clients.{name}", None if mine is None else (len(known), setup.task.dim))
        if mine is not None and found is not None:
            mine.put(known, found)
    model = rows.pop("model")
    assert model is not None
    server = Server(round=round, model=model, **rows)
    pooled = None
    if "pooled.row" in tensors:
        made, count = tensors["pooled.made"].tolist()
        row = tensors["pooled.row"].to(device)
        pooled = Pooled(row, made, count, metric_of(setup, row))
    rate = {name.removeprefix("rate."): note for name, note in tensors.items() if name.startswith("rate.")}
    return State(server, store, Updates.of(tensors["updates"]), pooled, int(tensors["gradients"]), rate)


def _check_numbers(clients: int, round: int, tensors: dict[str, Tensor]) -> None:
    """Raise ValueError unless the whole numbers of a checkpoint have their shapes, types and bounds."""
    most = torch.iinfo(torch.int64).max
    for name, shape, dtype, low, high in (
        ("seen", (clients,), torch.int64, NEVER, round),
        ("epochs", (clients,), torch.int64, 0, 2**32 - 1),
        ("digests", (clients, 8), torch.uint8, 0, 255),
        ("held", (clients,), torch.int64, 0, most),
        ("gradients", (), torch.int64, 0, most),
        ("updates", (2, round + 1), torch.int64, 0, most),
    ):
        given = tensors[name]
        fits = tuple(given.shape) == shape and given.dtype == dtype
        if not fits or (given.numel() and not low <= int(given.min()) <= int(given.max()) <= high):
            raise ValueError(f"tensor {name} does not fit the experiment")


def _server_rows(server: Server) -> dict[str, Tensor | None]:
    return {
        "model": server.model,
        "memory": server.memory,
        "memories": server.memories,
        "error": server.error,
        "average": server.average,
        "sent": server.sent,
        "held": server.held,
    }


def _memory_tensors(solvers: dict[int, Memory]) -> dict[str, Tensor]:
    """Steps of all clients as one tensor; a rule's or direction's notes as solver.CLIENT.rate.NAME."""
    tensors = {
        f"solver.{client}.{part}.{name}": note
        for client, memory in solvers.items()
        for part, notes in (("rate", memory.rate), ("direction", memory.direction))
        for name, note in notes.items()
    }
    steps = [[client, memory.steps] for client, memory in sorted(solvers.items())]
    return tensors | {"solver.steps": torch.tensor(steps, dtype=torch.int64).reshape(-1, 2)}


def _memories(tensors: dict[str, Tensor]) -> dict[int, Memory]:
    notes: dict[tuple[int, str], dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match key.split(".", 3):
            case ["solver", client, part, name]:
                # A copy: a tensor of a file begins anywhere in memory, and a library may order its sums by that.
                notes.setdefault((int(client), part), {})[name] = tensor.clone()
    return {
        client: Memory(steps, notes.get((client, "rate"), {}), notes.get((client, "direction"), {}))
        for client, steps in tensors["solver.steps"].tolist()
    }
