"""What the theorems allow and promise: admissible steps, linear rate and neighbourhood, from the problem's constants.

    paper        here               meaning
    L_max        sample_smoothness  largest smoothness constant of one sample's loss times the largest weight of a
                                    mini-batch (1 where all are equally large): it bounds every mini-batch's
    mu           convexity          strong convexity constant of the objective
    M, n         clients, batches   number of clients; mini-batches of an epoch (the largest client's)
    omega        up, down           variance constants of the two compressors
    gamma, eta   local, server      step of a client within its epoch; step of the server
    zeta^2       client_noise       mean over clients of ||grad f_m(x*)||^2
    sigma^2      batch_noise        mean over clients and mini-batches of ||grad f_m^i(x*) - grad f_m(x*)||^2
    r_t          squared distance ||x_t - x*||^2, with memories the Lyapunov function that contains it

Each client walks through a random reshuffling of its n mini-batches (n = 1: one full gradient, gamma is then without
effect and the neighbourhood it causes is zero), and the direction of the epoch is compressed.

    without memory  (Q-NASTYA, Theorem 2.3; uplink only)
        eta <= 1 / (16 L_max (1 + up / M)),   gamma <= 1 / (5 n L_max)
        r_T <= (1 - eta mu / 2)^T r_0 + 8 eta up zeta^2 / (mu M)
               + (9/2) gamma^2 n (L_max / mu) ((n + 1) zeta^2 + sigma^2)
    with memory  (DIANA-NASTYA, Theorem 2.4)
        eta <= min(alpha / (2 mu), 1 / (16 L_max (1 + 9 up / M) (1 + down))),   gamma <= 1 / (16 n L_max),
        alpha <= 1 / (1 + up)
        r_T <= (1 - eta mu / 2)^T r_0 + (9/2) gamma^2 n (L_max / mu) ((n + 1) zeta^2 + sigma^2)

The factor 1 + down is not in the source. It is derived: the server's estimate at the optimum has mean h* = grad f(x*) =
0, so E||C_dwn(ghat)||^2 <= (1 + down) E||ghat||^2 and the proof of Theorem 2.4 goes through with eta replaced by
eta (1 + down) wherever the second moment of ghat enters. Without memory the estimate does not vanish at the optimum and
the downlink's noise stays; no theorem is quoted for that case.

Source: Sadiev, Malinovsky, Gorbunov, Sokolov, Khaled, Burlachenko, Richtarik, "Don't Compress Gradients in Random
Reshuffling: Compress Gradient Differences", NeurIPS 2024, arXiv 2206.07021.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from fedsim.algorithms.method import Method


@dataclass(frozen=True, slots=True)
class Problem:
    """Constants of a problem; see the top of this file. up, down: omega of the two compressors."""

    sample_smoothness: float
    convexity: float
    clients: int
    batches: int
    up: float
    down: float


@dataclass(frozen=True, slots=True)
class Steps:
    """The largest admissible steps, and the theorem that admits them. alpha: largest memory rate, 0 without memory."""

    theorem: str
    server: float
    local: float
    alpha: float

    def admit_rate(self, alpha: float) -> bool:
        """Whether memories may learn so fast; rounding apart."""
        return not self.alpha or alpha <= self.alpha * (1 + 1e-9)


@dataclass(frozen=True, slots=True)
class Promise:
    """r_T <= (1 - rate)^T r_0 + floor."""

    rate: float
    floor: float


@dataclass(frozen=True, slots=True)
class Setting:
    """What of an experiment decides which theorem covers it; each field false names its reason in ``uncovered``."""

    convex: bool
    full_participation: bool
    equal_weights: bool
    equal_batches: bool
    constant_steps: bool
    plain_gradient: bool
    plain_features: bool
    epoch_of_reshuffling: bool
    sends_direction: bool


REASONS = {
    "convex": "the task is not strongly convex (give a convex task an l2 > 0)",
    "full_participation": "not every client takes part in every round",
    "equal_weights": "clients weigh differently (server.weights = 'uniform', or clients of equal size)",
    "equal_batches": "clients have different numbers of mini-batches (equal sizes, or one full gradient a round)",
    "constant_steps": "step sizes vary (rate.rule and server.schedule must be 'constant')",
    "plain_gradient": "the local direction is not the gradient",
    "plain_features": "features are whitened: the theorems then need the constants of the whitened problem",
    "epoch_of_reshuffling": "a round is neither one full gradient nor one epoch of reshuffling",
    "sends_direction": "clients send the difference of models (local.send = 'direction')",
}


def uncovered(setting: Setting, method: Method) -> list[str]:
    """Why no theorem of this file covers an experiment; empty when one does."""
    reasons = [reason for name, reason in REASONS.items() if not getattr(setting, name)]
    uplink, downlink, server = method.uplink, method.downlink, method.server
    for way, channel in (("up", uplink), ("down", downlink)):
        if not isfinite(channel.compressor.omega(method.d)):
            reasons.append(f"the {way}link's compressor is biased")
        if channel.feedback:
            reasons.append(f"the {way}link has error feedback")
    if not uplink.memory and downlink.compressor.omega(method.d) > 0:
        reasons.append("the downlink is compressed but there are no memories (uplink.memory = true)")
    if downlink.memory != "none":
        reasons.append("the downlink has a memory (downlink.memory = 'none')")
    if uplink.correction != 1.0 or uplink.synchronise:
        reasons.append("messages are corrected, or now and then in full (uplink.correction = 1, synchronise = 0)")
    if server.robust:
        reasons.append("directions are not averaged (server.aggregate = 'mean' without server.clip)")
    return reasons


def admissible(problem: Problem, memory: bool, alpha: float) -> Steps:
    """The largest steps that a theorem admits. alpha: the memory rate in use (not used without memory)."""
    l_max, n, noise = problem.sample_smoothness, problem.batches, problem.up / problem.clients
    if not memory:
        return Steps("Theorem 2.3 (Q-NASTYA)", 1 / (16 * l_max * (1 + noise)), 1 / (5 * n * l_max), 0.0)
    largest = 1 / (1 + problem.up)
    server = min(min(alpha, largest) / (2 * problem.convexity), 1 / (16 * l_max * (1 + 9 * noise) * (1 + problem.down)))
    theorem = "Theorem 2.4 (DIANA-NASTYA)" + (", extended to a compressed downlink" if problem.down else "")
    return Steps(theorem, server, 1 / (16 * n * l_max), largest)


def promise(
    problem: Problem, memory: bool, server: float, local: float, client_noise: float, batch_noise: float
) -> Promise:
    """Rate and neighbourhood at the steps in use; meaningful when they are admissible."""
    n, mu, l_max = problem.batches, problem.convexity, problem.sample_smoothness
    drift = 4.5 * local**2 * n * l_max / mu * ((n + 1) * client_noise + batch_noise) if n > 1 else 0.0
    compression = 0.0 if memory else 8 * server * problem.up * client_noise / (mu * problem.clients)
    return Promise(server * mu / 2, drift + compression)
