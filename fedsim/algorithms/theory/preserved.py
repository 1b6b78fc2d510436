"""A server that keeps its own model and sends its difference to what the clients hold: MCM, Rand-MCM, EF21-P + DIANA.

    paper      here        meaning
    what       -           the model at which clients compute: what = H + C(w - H)
    u          -           w - H, what is compressed;  U = E||u||^2
    rho        fading      1 - rho = contraction of u while the model rests: rho = 2 beta - beta^2 (omega_dwn + 1), or
                           delta where the compressor is biased and beta = 1
    b          pull        what the distance of what from w costs: omega_dwn L, or (3/2) L where C is biased
    c          weight      8 gamma b / rho, weight of U in the Lyapunov function
    m          budget      1, or 1/2 where C is biased
    K          -           s L_b (2 k + 4 q r), and kappa, a, q, e: as in ``artemis``, for the uplink

    gamma (L + K) + gamma^2 (8 b / rho) (L (1 + 2 / rho) + K) <= m,   gamma mu <= min(rho / 4, alpha p / 2)
    E W_k <= (1 - m gamma mu)^k W_0 + 2 gamma s (1 + c) ((kappa + 4 a q) sigma*^2 + e B^2) / (m mu),
    W = ||w - w*||^2 + c ||u||^2 + c_m mean ||h_i - grad F_i(w*)||^2

The floor is that of uplink compression alone as gamma -> 0, because c -> 0: compression of the downlink costs a factor
1 + O(gamma L omega_dwn / rho), where Artemis pays omega_dwn + 1.

Derived here, in the order of the source; its own constants are not quoted.
    1. C unbiased: E<grad F(what), w - w*> = E<grad F(what), what - w*> - E<grad F(what) - grad F(w), what - w>, and the
       last term is at most L omega_dwn U. C biased: 2 |<grad F(what), w - what>| <= ||grad F(what)||^2 / (2 L) + 2 L U.
       Either way G = <grad F(what), what - w*> >= mu ||what - w*||^2 remains, which is at least mu ||w - w*||^2 in the
       mean (C unbiased) or mu (||w - w*||^2 / 2 - U).
    2. The estimate at what has the second moment of ``artemis``, in terms of G instead of <grad F(w), w - w*>.
    3. u' = (u - beta C(u)) - gamma ghat:  U' <= (1 - rho / 2) U + gamma^2 ((1 + 2 / rho) L G + variance of ghat).
    4. c (1 - rho / 2) + 2 gamma b <= c (1 - rho / 4) fixes c; c_m = 4 gamma^2 (1 + c) s q / (alpha p); what is left of
       -2 gamma G must be -gamma G (unbiased; -gamma G of -(3/2) gamma G where C is biased).
Rand-MCM has H_i and what_i for every client; the same steps hold term by term with L = max L_i.

Source: Philippenko and Dieuleveut, NeurIPS 2021, arXiv 2102.12528 (MCM); Gruntkowska, Tyurin, Richtarik, ICML 2023,
arXiv 2209.15218 (EF21-P).
"""

from __future__ import annotations

import math

from fedsim.algorithms.method import Method
from fedsim.algorithms.theory import artemis
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

MCM = "Philippenko & Dieuleveut, NeurIPS 2021, arXiv 2102.12528"
EF21_P = "Gruntkowska, Tyurin & Richtárik, ICML 2023, arXiv 2209.15218"


def reasons(setting: Setting, method: Method) -> list[str]:
    """Why the theorem does not cover an experiment."""
    found = setting.reasons(*COMMON, "one_gradient", "expected_sum") + unbiased(method, ("up",))
    if method.downlink.each:
        found += setting.reasons("full_participation")
    if not math.isfinite(method.downlink.compressor.omega(method.d)) and method.beta != 1.0:
        found.append("the downlink's compressor is biased and its memory slow (downlink.rate = 1)")
    return found + uncorrected(method) + averaged(method)


def smoothness(problem: Problem, method: Method) -> float:
    """L, or max L_i where every client holds another model."""
    return problem.largest_smoothness if method.downlink.each else problem.smoothness


def fading(problem: Problem, method: Method) -> float:
    """rho."""
    if not math.isfinite(problem.down):
        return problem.down_delta
    return 2 * method.beta - method.beta**2 * (problem.down + 1)


def pull(problem: Problem, method: Method) -> float:
    """b."""
    return smoothness(problem, method) * (problem.down if math.isfinite(problem.down) else 1.5)


def budget(problem: Problem) -> float:
    """m."""
    return 1.0 if math.isfinite(problem.down) else 0.5


def admissible(problem: Problem, method: Method) -> Steps:
    """The largest step of the server: the positive root of x^2 square + x single = m, and the other limits."""
    rho, constant = fading(problem, method), smoothness(problem, method)
    noise = artemis.gradient_noise(problem, method)
    single = constant + noise
    square = 8 * pull(problem, method) / rho * (constant * (1 + 2 / rho) + noise)
    m = budget(problem)
    server = 2 * m / (single + math.sqrt(single**2 + 4 * m * square))
    slowest, largest = rho / 4, 0.0
    if method.uplink.memory:
        largest = 1 / (problem.up + 1)
        slowest = min(slowest, min(method.alpha, largest) * problem.probability / 2)
    named = "MCM" if m == 1 else "EF21-P + DIANA"
    server = min(server, slowest / problem.convexity)
    return Steps(f"convergence of {named}", MCM if m == 1 else EF21_P, server, server, largest)


def promise(problem: Problem, method: Method, server: float, local: float, noise: Noise) -> Promise:
    """Rate and neighbourhood of the squared distance of the server's model; meaningful at an admissible step."""
    mu, m = problem.convexity, budget(problem)
    weight = 8 * server * pull(problem, method) / fading(problem, method)
    kept, learning = artemis.kept(problem, method), artemis.learning(problem, method)
    at_optimum = (artemis.second_moment(problem) + 4 * learning * kept) * noise.batch
    at_optimum += artemis.heterogeneity(problem, method) * noise.client
    return Promise(m * server * mu, 2 * server * problem.share * (1 + weight) * at_optimum / (m * mu))


PRESERVED = Theorem(reasons, admissible, promise)
