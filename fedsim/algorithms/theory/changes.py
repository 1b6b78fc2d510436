"""Estimates that follow the gradient by its compressed changes: EF21, MARINA, DASHA. Full gradients of all clients.

    paper       here        meaning
    g           -           the server's estimate; g_i what client i has sent so far
    delta       up_delta    E||C(x) - x||^2 <= (1 - delta) ||x||^2
    theta       -           1 - sqrt(1 - delta)                                                    (EF21)
    q           full        probability of a round in full                                         (MARINA)
    a           correction  1 / (2 omega + 1)                                                      (DASHA)
    s           share       1 / N where clients count alike
    L, L~       smoothness, client_smoothness

    method    gamma <= 1 / (L + L~ sqrt(R)) with            and gamma mu <=
    EF21      R = 2 (1 - delta) / theta^2                    theta / 2
    MARINA    R = 2 (1 - q) omega s / q                      q / 2
    DASHA     R = 4 omega (6 omega + 1) s                    a / 2

    E Psi_k <= (1 - gamma mu)^k Psi_0,   Psi = F(w) - F* + (a multiple of the squared error of g): no floor.

All three from one inequality, which needs no convexity but ||grad F||^2 >= 2 mu (F - F*), which mu-strong convexity
implies:  F(w') <= F(w) - (gamma/2) ||grad F||^2 - (1/(2 gamma) - L/2) ||w' - w||^2 + (gamma/2) ||g - grad F||^2, and a
recursion of the error of g, with D = ||w' - w||^2:
    EF21    X = sum v_i ||g_i - grad F_i||^2:  X' <= (1 - theta) X + ((1 - delta) / theta) L~^2 D, from
            (1 - delta) ((1 + t) X + (1 + 1/t) L~^2 D) with 1 + t = 1 / sqrt(1 - delta);  Psi = F - F* + (gamma/theta) X
    MARINA  X = ||g - grad F||^2:  E X' <= (1 - q) (X + omega s L~^2 D);  Psi = F - F* + (gamma/q) X
    DASHA   e_i = g_i - grad F_i, e = sum v_i e_i, Q = sum v_i ||e_i||^2:
            E||e'||^2 <= (1 - a)^2 ||e||^2 + 2 omega s (L~^2 D + a^2 Q),  E Q' <= (1 - a) Q + 2 omega L~^2 D;
            Psi = F - F* + (gamma/a) ||e||^2 + 4 omega s gamma Q
and gamma^2 R L~^2 + gamma L <= 1 follows from gamma <= 1 / (L + L~ sqrt(R)).

Source: Richtárik, Sokolov, Fatkhullin, NeurIPS 2021, arXiv 2106.05203 (EF21, Theorem 2); Gorbunov et al., ICML 2021,
arXiv 2102.07845 (MARINA, Theorem 2.2); Tyurin, Richtárik, ICLR 2023, arXiv 2202.01268 (DASHA; the constants here are
those of the derivation above).
"""

from __future__ import annotations

import math
from collections.abc import Callable

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
)

Found = tuple[str, str, float, float]
"""Name, source, R, and the largest gamma mu."""


def ef21(problem: Problem, method: Method) -> Found:
    """EF21."""
    theta = 1 - math.sqrt(1 - problem.up_delta)
    source = "Richtárik, Sokolov & Fatkhullin, NeurIPS 2021, arXiv 2106.05203"
    return "Theorem 2 (EF21)", source, 2 * (1 - problem.up_delta) / theta**2, theta / 2


def marina(problem: Problem, method: Method) -> Found:
    """MARINA."""
    q = method.uplink.full(method.d)
    source = "Gorbunov et al., ICML 2021, arXiv 2102.07845"
    return "Theorem 2.2 (MARINA)", source, 2 * (1 - q) * problem.up * problem.share / q, q / 2


def dasha(problem: Problem, method: Method) -> Found:
    """DASHA."""
    r = 4 * problem.up * (6 * problem.up + 1) * problem.share
    source = "Tyurin & Richtárik, ICLR 2023, arXiv 2202.01268"
    return "convergence of DASHA", source, r, 1 / (2 * (2 * problem.up + 1))


def reasons(setting: Setting, method: Method) -> list[str]:
    """What all three need."""
    found = setting.reasons(*COMMON, "full_participation", "full_gradient") + averaged(method)
    if method.downlink.memory != "none" or method.downlink.compressor.omega(method.d) > 0:
        found.append("the downlink is compressed (downlink.compressor = 'identity')")
    if method.alpha != 1.0:
        found.append("memories do not take over all that was sent (uplink.rate = 1)")
    return found


def reasons_ef21(setting: Setting, method: Method) -> list[str]:
    """Why the theorem of EF21 does not cover an experiment."""
    found = reasons(setting, method)
    if not method.uplink.compressor.delta(method.d):
        found.append("the uplink's compressor is no contraction; use top-k, or server.normalise = 'expected'")
    return found


def reasons_marina(setting: Setting, method: Method) -> list[str]:
    """Why the theorem of MARINA does not cover an experiment."""
    found = reasons(setting, method) + unbiased(method)
    if method.correction or not method.uplink.full(method.d):
        found.append("messages are neither those of MARINA (correction = 0, synchronise = 'auto') nor of DASHA")
    return found


def reasons_dasha(setting: Setting, method: Method) -> list[str]:
    """Why the theorem of DASHA does not cover an experiment."""
    found = reasons(setting, method) + unbiased(method)
    if method.uplink.correction != "auto":
        found.append("messages are not corrected as in DASHA (uplink.correction = 'auto')")
    return found


def _admissible(constants: Callable[[Problem, Method], Found]) -> Callable[[Problem, Method], Steps]:
    def admissible(problem: Problem, method: Method) -> Steps:
        name, source, r, slowest = constants(problem, method)
        server = 1 / (problem.smoothness + problem.client_smoothness * math.sqrt(r))
        server = min(server, slowest / problem.convexity)
        return Steps(name, source, server, server, 1.0)

    return admissible


def promise(problem: Problem, method: Method, server: float, local: float, noise: Noise) -> Promise:
    """Rate of the excess loss; no floor. Meaningful at an admissible step."""
    return Promise(server * problem.convexity, 0.0, "excess loss")


EF21 = Theorem(reasons_ef21, _admissible(ef21), promise)
MARINA = Theorem(reasons_marina, _admissible(marina), promise)
DASHA = Theorem(reasons_dasha, _admissible(dasha), promise)
