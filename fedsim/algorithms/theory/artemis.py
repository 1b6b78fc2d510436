"""One gradient a round through unbiased compressors, with or without memories: SGD, QSGD, DIANA, Bi-QSGD, Artemis.

    paper      here        meaning
    gamma      server      step of the server
    kappa      kappa       (omega_up + 1) / p: second moment of what one client adds to the estimate, (B_i / p) C(.)
    A          down        omega_dwn + 1
    s          share       1 / N where clients count alike, else the largest weight
    k          within      kappa, or kappa - 1 where g_i is the full gradient and has no variance
    q          kept        how much of the distance of h_i from grad F_i(w*) enters: kappa - 1 (PP2), omega_up / p (PP1)
    a, r       learning, larger     alpha (omega_up + 1);  max(1, 2 a), and 1 for full gradients
    theta      theta       gamma mu / (alpha p): how fast the model is beside the memories

Without memory, for every k
    gamma <= 1 / (A (L + 2 k s L_b))
    E||w_k - w*||^2 <= (1 - gamma mu)^k ||w_0 - w*||^2 + 2 gamma A s (kappa sigma*^2 + (kappa - 1) B^2) / mu
With memories, alpha <= 1 / (omega_up + 1), V_k = ||w_k - w*||^2 + c mean ||h_i - grad F_i(w*)||^2
    gamma <= min(alpha p / (2 mu), 1 / (A (L + s L_b (2 k + 4 q r))))
    E V_k <= (1 - gamma mu)^k V_0 + 2 gamma A s ((kappa + 2 a q / (1 - theta)) sigma*^2 + e B^2) / mu
    e = 0 (PP2), 1/p - 1 (PP1: what absent clients know of their own gradient is missing from the estimate)

Derived here; with a = 1/2 and theta -> 0 the floors are 2 gamma E / (mu N) with the E of Artemis, Theorems 1 and 3:
(omega_dwn + 1) (2 omega_up + 1) sigma*^2, or (omega_dwn + 1) ((omega_up + 1) sigma*^2 + omega_up B^2) without memories.
    1. E||C_dwn(ghat)||^2 <= A E||ghat||^2.  Clients are independent: E||ghat||^2 <= ||grad F||^2 + s sum v_i Var_i, and
       ||grad F||^2 <= L <grad F, w - w*>.
    2. With z = grad F_i - h_i (h_i = 0 without memories), a client's Var_i <= kappa Var(g_i) + (kappa - 1) ||z||^2. PP2
       with memory rate alpha is therefore full participation with a compressor that sends nothing with probability
       1 - p: omega' = (omega_up + 1) / p - 1 and alpha' = alpha p. PP1 adds h_i itself at random:
       Var_i <= kappa Var(g_i) + (omega_up / p) ||z||^2 + (1/p - 1) ||grad F_i||^2.
    3. With y = g_i(w) - g_i(w*): Var(g_i) <= 2 E||y - E y||^2 + 2 sigma*_i^2, and ||z||^2 <= 2 ||E y||^2 + 2 ||m_i||^2
       with m_i = h_i - grad F_i(w*), so that y enters with 2 k E||y||^2 and E||y||^2 <= L_b <., w - w*>.
    4. E||m_i'||^2 = (1 - alpha p) ||m_i||^2 + alpha p (||E y||^2 + a Var(g_i) + (a - 1) ||z||^2), at most
       (1 - alpha p) ||m_i||^2 + alpha p (r E||y||^2 + 2 a sigma*^2).
    5. c = 2 gamma^2 A s q / (alpha p (1 - theta)) makes V contract at 1 - gamma mu; theta <= 1/2 gives the step.
Under partial participation of k of n clients 1/p in kappa, q and e is ``sampling`` (``facts``).

Source: Philippenko and Dieuleveut, arXiv 2006.14591, Theorem 1 and its version for partial participation; DIANA
(Mishchenko et al., 1901.09269) and QSGD (Alistarh et al., 2017) are its cases with omega_dwn = 0. The constants are
those of the derivation above, which holds for clients of any weight.
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
)

SOURCE = "Philippenko & Dieuleveut, arXiv 2006.14591"


def reasons(setting: Setting, method: Method) -> list[str]:
    """Why the theorem does not cover an experiment."""
    found = setting.reasons(*COMMON, "one_gradient", "expected_sum") + unbiased(method)
    if method.downlink.memory != "none":
        found.append("the downlink remembers updates (downlink.memory = 'none' or 'model')")
    return found + averaged(method)


def second_moment(problem: Problem) -> float:
    """kappa."""
    return (problem.up + 1) * problem.sampling


def kept(problem: Problem, method: Method) -> float:
    """q: 0 without memories."""
    if not method.uplink.memory:
        return 0.0
    return problem.up * problem.sampling if method.server.memory == "pp1" else second_moment(problem) - 1


def heterogeneity(problem: Problem, method: Method) -> float:
    """Factor of B^2 in the noise of the estimate at the optimum."""
    if not method.uplink.memory:
        return second_moment(problem) - 1
    return problem.sampling - 1 if method.server.memory == "pp1" else 0.0


def learning(problem: Problem, method: Method) -> float:
    """a = alpha (omega_up + 1)."""
    return method.alpha * (problem.up + 1)


def gradient_noise(problem: Problem, method: Method) -> float:
    """s L_b (2 k + 4 q r): how much of <grad F, w - w*> the clients' noise adds to the second moment."""
    within = second_moment(problem) - problem.full_gradient
    larger = 1.0 if problem.full_gradient else max(1.0, 2 * learning(problem, method))
    return problem.share * problem.batch_smoothness * (2 * within + 4 * kept(problem, method) * larger)


def admissible(problem: Problem, method: Method) -> Steps:
    """The largest step of the server."""
    server = 1 / ((problem.down + 1) * (problem.smoothness + gradient_noise(problem, method)))
    partial = f", {method.server.memory.upper()}" if problem.probability < 1 and method.uplink.memory else ""
    theorem = f"Theorem 1 (Artemis{partial})"
    if not method.uplink.memory:
        return Steps(theorem, SOURCE, server, server, 0.0)
    largest = 1 / (problem.up + 1)
    by_memory = min(method.alpha, largest) * problem.probability / (2 * problem.convexity)
    return Steps(theorem, SOURCE, min(server, by_memory), server, largest)


def promise(problem: Problem, method: Method, server: float, local: float, noise: Noise) -> Promise:
    """Rate and neighbourhood of the squared distance at the step in use; meaningful when it is admissible."""
    mu = problem.convexity
    remembered = 0.0
    if method.uplink.memory:
        theta = min(0.5, server * mu / (method.alpha * problem.probability))
        remembered = 2 * learning(problem, method) * kept(problem, method) / (1 - theta)
    at_optimum = (second_moment(problem) + remembered) * noise.batch + heterogeneity(problem, method) * noise.client
    return Promise(server * mu, 2 * server * (problem.down + 1) * problem.share * at_optimum / mu)


ARTEMIS = Theorem(reasons, admissible, promise)
