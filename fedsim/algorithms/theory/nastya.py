"""Epochs of random reshuffling at the clients, with and without memories: Q-NASTYA and DIANA-NASTYA.

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

from fedsim.algorithms.method import Method
from fedsim.algorithms.theory.facts import (
    COMMON,
    Noise,
    Problem,
    Promise,
    Setting,
    Steps,
    Theorem,
    averaged,
    unbiased,
    uncorrected,
)

SOURCE = "Sadiev et al., NeurIPS 2024, arXiv 2206.07021"


def reasons(setting: Setting, method: Method) -> list[str]:
    """Why neither theorem covers an experiment."""
    found = setting.reasons(*COMMON, "full_participation", "equal_weights", "equal_batches", "epoch_of_reshuffling")
    found += unbiased(method)
    if not method.uplink.memory and method.downlink.compressor.omega(method.d) > 0:
        found.append("the downlink is compressed but there are no memories (uplink.memory = true)")
    if method.downlink.memory != "none":
        found.append("the downlink has a memory (downlink.memory = 'none')")
    return found + uncorrected(method) + averaged(method)


def admissible(problem: Problem, method: Method) -> Steps:
    """The largest steps; those of the server depend on the memory rate in use."""
    l_max, n, noise = problem.sample_smoothness, problem.batches, problem.up / problem.clients
    if not method.uplink.memory:
        server, local = 1 / (16 * l_max * (1 + noise)), 1 / (5 * n * l_max)
        return Steps("Theorem 2.3 (Q-NASTYA)", SOURCE, server, local, 0.0)
    largest = 1 / (1 + problem.up)
    by_memory = min(method.alpha, largest) / (2 * problem.client_convexity)
    server = min(by_memory, 1 / (16 * l_max * (1 + 9 * noise) * (1 + problem.down)))
    theorem = "Theorem 2.4 (DIANA-NASTYA)" + (", extended to a compressed downlink" if problem.down else "")
    return Steps(theorem, SOURCE, server, 1 / (16 * n * l_max), largest)


def promise(problem: Problem, method: Method, server: float, local: float, noise: Noise) -> Promise:
    """Rate and neighbourhood at the steps in use; meaningful when they are admissible."""
    n, mu, l_max = problem.batches, problem.client_convexity, problem.sample_smoothness
    drift = 4.5 * local**2 * n * l_max / mu * ((n + 1) * noise.client + noise.batch) if n > 1 else 0.0
    compression = 0.0 if method.uplink.memory else 8 * server * problem.up * noise.client / (mu * problem.clients)
    return Promise(server * mu / 2, drift + compression)


NASTYA = Theorem(reasons, admissible, promise)
