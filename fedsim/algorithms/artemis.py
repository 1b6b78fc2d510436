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

The PP2 update keeps h = sum_i v_i h_i exactly. The published code divides it by p as well, which makes the effective
step gamma / p; ``paper_compat`` reproduces that.

Source: Philippenko and Dieuleveut, arXiv 2006.14591, Algorithm 1, and its PP1 and PP2 variants. Settings of the same
engine: DIANA (Mishchenko et al., 1901.09269), QSGD (Alistarh et al., 2017), Dore (Liu et al., 1910.07561) and
DoubleSqueeze (Tang et al., 1905.05957) in the form of the Artemis comparison.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsim.algorithms.method import Method, feedback_coefficient
from fedsim.algorithms.robust import combine
from fedsim.compression import Payload, Received, Sparse, compress_difference, weighted_sums
from fedsim.flat import tree_sum
from fedsim.randomness import Stream, only


@dataclass(frozen=True, slots=True)
class Server:
    """What the server knows. Rows that a method does not use are None.

    round: number of steps taken. model: float[d]. memory: float[d] (PP2). memories: float[N, d] (PP1).
    error: float[d], downlink error feedback. average: float[d], mean of the iterates w_1 .. w_round.
    """

    round: int
    model: Tensor
    memory: Tensor | None = None
    memories: Tensor | None = None
    error: Tensor | None = None
    average: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Clients:
    """What a cohort's clients keep between rounds: memory float[n, d] and uplink error float[n, d], or None."""

    memory: Tensor | None = None
    error: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Cohort:
    """Who takes part. clients: int64[n], ascending; weights: float[n], v_i; probability: of a client to take part."""

    clients: Tensor
    weights: Tensor
    probability: float


def begin(method: Method, model: Tensor, clients: int) -> Server:
    """The server before the first round: zero memories and errors. model: float[d]; clients: N."""
    pp1 = method.uplink.memory and method.server.memory == "pp1"
    return Server(
        round=0,
        model=model,
        memory=torch.zeros_like(model) if method.uplink.memory and not pp1 else None,
        memories=model.new_zeros((clients, model.shape[0])) if pp1 else None,
        error=torch.zeros_like(model) if method.downlink.feedback else None,
        average=torch.zeros_like(model) if method.server.average else None,
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
    if clients.memory is not None and clients.error is None:
        payload, memory = compress_difference(method.up, directions, clients.memory, method.alpha, noise, ids)
        return payload, Clients(memory=memory)
    difference = directions if clients.memory is None else directions - clients.memory
    if clients.error is not None:
        difference = difference + feedback_coefficient(method.uplink.feedback, step) * clients.error
    payload = method.up.compress(difference, noise, ids)
    if clients.memory is None and clients.error is None:
        return payload, clients
    sent = method.up.decompress(payload, directions.dtype)
    return payload, Clients(
        memory=None if clients.memory is None else clients.memory + method.alpha * sent,
        error=None if clients.error is None else difference - sent,
    )


def absorb(
    method: Method, server: Server, uploads: Received | None, cohort: Cohort, step: float, noise: Stream
) -> tuple[Server, Payload]:
    """One server step from the cohort's uploads (rows in the order of cohort.clients; None when nobody took part).

    Returns the new server and the update that every client will apply. With ``normalise = "present"`` and an empty
    cohort the estimate is the memory alone, or zero without one.
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
    payload = method.down.compress(estimate[None, :], noise, only().to(estimate.device))
    update = method.down.decompress(payload, estimate.dtype)[0]
    model, count = apply(server.model, update, step), server.round + 1
    error = None if server.error is None else estimate - update
    average = None if server.average is None else server.average + (model - server.average) / count
    return Server(count, model, memory, memories, error, average), payload


def apply(model: Tensor, update: Tensor, step: float) -> Tensor:
    """w_{k+1} = w_k - gamma Omega: the one place where a model moves, at the server and at a client that catches up."""
    return model - step * update


def _rows(method: Method, server: Server, uploads: Received) -> Tensor:
    """D_i, float[n, d]."""
    uploads = uploads.dense() if isinstance(uploads, Sparse) else uploads
    return method.up.decompress(uploads, server.model.dtype).to(server.model.device)


def _shares(method: Method, cohort: Cohort) -> Tensor:
    """Factor of each upload in the estimate, float[n]."""
    if method.server.normalise == "present":
        total = tree_sum(cohort.weights, dim=0)
        return cohort.weights / total
    return cohort.weights / cohort.probability
