"""Artemis: compression in both directions, with memory, under partial participation. One engine, many recipes.

    paper      here                                meaning
    w_k        server.model                        central model, float[d]; the clients hold the same one
    g_i        directions                          what client i computed from w_k: a gradient, or its local direction
    h_i        clients.memory                      what client i usually sends, float[n, d]
    h          server.memory                       mean of all h_i (PP2); server.memories: every h_i (PP1)
    D_i        upload                              C_up(g_i - h_i + c e_i)
    Omega      update                              C_dwn(ghat + c e), applied by server and clients alike
    alpha      method.alpha                        memory rate, 1 / (2 (omega_up + 1)) by default
    gamma      step                                server step size of the round
    p, v_i     cohort.probability, cohort.weights  inclusion probability; weight of client i (1/N or n_i/n)

One round, for the sampled clients S:

    client   D_i = C_up(g_i(w_k) - h_i + c e_i);   h_i += alpha D_i;   e_i = (g_i - h_i + c e_i) - D_i
    PP1      ghat = sum_S (v_i / p) (D_i + h_i);                    the server's copies h_i += alpha D_i
    PP2      ghat = h + sum_S (v_i / p) D_i;                        h += alpha sum_S v_i D_i
    server   Omega = C_dwn(ghat + c e);   e = (ghat + c e) - Omega;   w_{k+1} = w_k - gamma Omega

With ``server.aggregate`` or ``server.clip`` the sums over S that make ghat, without memories and under PP1, are what
``fedsim.algorithms.robust`` makes of the same rows; under PP2 there are no rows of which it could be made.

With ``method.space`` (whitening) the compressors see other coordinates and the estimate is preconditioned before the
downlink; memories stay gradients and updates stay changes of the model, so that a change of coordinates needs no
message and no map of what is remembered.

With ``uplink.correction`` a < 1 clients also keep k_i, what they computed last, and send
D_i = C_up(g_i - k_i - a (h_i - k_i)): DASHA, and MARINA for a = 0. What the server sends, and what the clients hold
afterwards, is in ``downlink``.

The PP2 update keeps h = sum_i v_i h_i exactly. The published code divides it by p as well, which makes the effective
step gamma / p; ``paper_compat`` reproduces that.

Source: Philippenko and Dieuleveut, arXiv 2006.14591, Algorithm 1, and its PP1 and PP2 variants. Settings of the same
engine: DIANA (Mishchenko et al., 1901.09269), QSGD (Alistarh et al., 2017), Dore (Liu et al., 1910.07561) and
DoubleSqueeze (Tang et al., 1905.05957) in the form of the Artemis comparison; EF21 (Richtarik et al., 2106.05203);
DASHA (Tyurin and Richtarik, ICLR 2023, 2202.01268); MARINA (Gorbunov et al., ICML 2021, 2102.07845).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsim.algorithms.downlink import apply, hear
from fedsim.algorithms.method import Method, feedback_coefficient
from fedsim.algorithms.robust import combine
from fedsim.compression import Payload, Received, Sparse, compress_difference, weighted_sums
from fedsim.flat import tree_sum
from fedsim.randomness import Stream, only


@dataclass(frozen=True, slots=True)
class Server:
    """What the server knows. Rows that a method does not use are None.

    round: number of steps taken. model: float[d]. memory: float[d] (PP2). memories: float[N, d] (PP1).
    error: float[d], downlink error feedback. average: float[d], mean of the iterates w_1 .. w_round. sent: float[d], H,
    the downlink memory; held: float[d], the model at which clients compute, where it is not the server's.
    """

    round: int
    model: Tensor
    memory: Tensor | None = None
    memories: Tensor | None = None
    error: Tensor | None = None
    average: Tensor | None = None
    sent: Tensor | None = None
    held: Tensor | None = None

    @property
    def view(self) -> Tensor:
        """The model that clients hold, float[d]."""
        return self.model if self.held is None else self.held


@dataclass(frozen=True, slots=True)
class Clients:
    """What a cohort's clients keep between rounds, float[n, d] each, or None: memory, uplink error, and last, what they
    computed last.
    """

    memory: Tensor | None = None
    error: Tensor | None = None
    last: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Cohort:
    """Who takes part. clients: int64[n], ascending; weights: float[n], v_i.

    probability: of a client to take part: the same for all, or float[n].
    """

    clients: Tensor
    weights: Tensor
    probability: float | Tensor

    def only(self, chosen: Tensor) -> Cohort:
        """Some of them. chosen: bool[n]."""
        probability = self.probability[chosen] if isinstance(self.probability, Tensor) else self.probability
        return Cohort(self.clients[chosen], self.weights[chosen], probability)


def begin(method: Method, model: Tensor, clients: int) -> Server:
    """The server before the first round: zero memories and errors. model: float[d]; clients: N."""
    pp1 = method.uplink.memory and method.server.memory == "pp1"
    shared = method.downlink.memory != "none" and not method.downlink.each
    return Server(
        round=0,
        model=model,
        memory=torch.zeros_like(model) if method.uplink.memory and not pp1 else None,
        memories=model.new_zeros((clients, model.shape[0])) if pp1 else None,
        error=torch.zeros_like(model) if method.downlink.feedback else None,
        average=torch.zeros_like(model) if method.server.average else None,
        sent=(model if method.downlink.memory == "model" else torch.zeros_like(model)) if shared else None,
        held=model if shared and method.downlink.memory == "model" else None,
    )


def remember(server: Server, cohort: Cohort, memories: Tensor) -> Server:
    """Start from given memories (the cohort's first gradients, float[n, d]) instead of zero."""
    if server.memories is not None:
        return replace(server, memories=server.memories.index_copy(0, cohort.clients, memories))
    return replace(server, memory=tree_sum(cohort.weights[:, None] * memories, dim=0))


def upload(
    method: Method, clients: Clients, directions: Tensor, ids: Tensor, step: float, noise: Stream
) -> tuple[Payload, Clients]:
    """What the cohort sends, and its state once the server has it.

    directions: float[n, d]; ids: int64[n]. The new state is pending until the server has acknowledged the upload: a
    client whose message is lost keeps the old one.
    """
    if clients.memory is not None and clients.error is None and clients.last is None:
        payload, memory = compress_difference(method.up, directions, clients.memory, method.alpha, noise, ids)
        return payload, Clients(memory=memory)
    difference = directions
    if clients.memory is not None:
        difference = directions - clients.memory
    if clients.memory is not None and clients.last is not None:
        difference = difference + (1 - method.correction) * (clients.memory - clients.last)
    if clients.error is not None:
        difference = difference + feedback_coefficient(method.uplink.feedback, step) * clients.error
    payload = method.up.compress(difference, noise, ids)
    if clients.memory is None and clients.error is None:
        return payload, clients
    sent = method.up.decompress(payload, directions.dtype)
    return payload, Clients(
        memory=None if clients.memory is None else clients.memory + method.alpha * sent,
        error=None if clients.error is None else difference - sent,
        last=None if clients.last is None else directions,
    )


def absorb(
    method: Method, server: Server, uploads: Received | None, cohort: Cohort, step: float, noise: Stream
) -> tuple[Server, Payload | None]:
    """One server step from the cohort's uploads (rows in the order of cohort.clients; None when nobody took part).

    Returns the new server and the message that every client will hear; None where each has its own. Without uploads
    the estimate is the memory alone, or zero without one.
    """
    shares, memory, memories = _shares(method, cohort), server.memory, server.memories
    if uploads is None:
        estimate = torch.zeros_like(server.model) if memory is None else memory
    elif memories is not None:
        received = _rows(method, server, uploads)
        estimate = combine(method.server, received + memories[cohort.clients], shares)
        memories = memories.index_add(0, cohort.clients, method.alpha * received)
    elif memory is not None:
        learnt = shares if method.server.paper_compat else cohort.weights
        mean, change = weighted_sums(method.up, uploads, torch.stack((shares, learnt)))
        estimate, memory = memory + mean, memory + method.alpha * change
    elif method.server.robust:
        estimate = combine(method.server, _rows(method, server, uploads), shares)
    else:
        (estimate,) = weighted_sums(method.up, uploads, shares[None])
    estimate = method.step(estimate)
    if server.error is not None:
        estimate = estimate + feedback_coefficient(method.downlink.feedback, step) * server.error
    preserved = method.downlink.memory == "model"
    target = apply(server.model, estimate, step) if preserved else estimate
    if method.downlink.each:
        return _moved(server, target, memory=memory, memories=memories), None
    message = target if server.sent is None else target - server.sent
    payload = method.down.compress(message[None, :], noise, only().to(estimate.device))
    sent = method.down.decompress(payload, estimate.dtype)[0]
    held, after = hear(method, server.view, server.sent, sent, step)
    server = _moved(
        replace(server, sent=after, held=held if preserved else None),
        target if preserved else held,
        memory=memory,
        memories=memories,
    )
    return (server if server.error is None else replace(server, error=message - sent)), payload


def _moved(server: Server, model: Tensor, memory: Tensor | None, memories: Tensor | None) -> Server:
    """The server after a step to ``model``."""
    count = server.round + 1
    average = None if server.average is None else server.average + (model - server.average) / count
    return replace(server, round=count, model=model, memory=memory, memories=memories, average=average)


def _rows(method: Method, server: Server, uploads: Received) -> Tensor:
    """D_i, float[n, d]."""
    uploads = uploads.dense() if isinstance(uploads, Sparse) else uploads
    return method.up.decompress(uploads, server.model.dtype).to(server.model.device)


def _shares(method: Method, cohort: Cohort) -> Tensor:
    """Factor of each upload in the estimate, float[n]."""
    if method.server.normalise == "present":
        total = tree_sum(cohort.weights, dim=0)
        return cohort.weights / total
    if method.server.normalise == "registered":
        return cohort.weights
    return cohort.weights / cohort.probability
