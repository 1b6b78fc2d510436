"""What a theorem is told about an experiment, and what it answers.

    paper        here               meaning
    N, v_i       clients, share     number of clients; largest weight of one (1/N where all count alike)
    p            probability        of a client to take part
                 sampling           1/p where clients decide independently. Of k of n: 1 + (1/p - 1) n / (n - 1), for
                                    a sum over k of n rows has a variance of at most p (1 - p) n / (n - 1) sum ||a_i||^2
    omega        up, down           variance constants of the two compressors; infinite where one is biased
    delta        up_delta, ...      contraction constants; 0 where there is none
    L            smoothness         of F: the weighted mean of the clients' L_i
    L~           client_smoothness  root of the weighted mean of L_i^2
    max L_i      largest_smoothness
    L_b          batch_smoothness   E||g_i(u) - g_i(v)||^2 <= L_b <grad F_i(u) - grad F_i(v), u - v> for one batch
    L_max        sample_smoothness  largest smoothness constant of one sample's loss times the largest weight of a
                                    mini-batch of a pass (1 where all are equally large): it bounds every mini-batch's
    mu           convexity          strong convexity constant of F
    min mu_i     client_convexity   the smallest of the clients'
    n            batches            mini-batches of an epoch (the largest client's)
                 full_gradient      whether every client's direction is its full gradient, without noise
    B^2, zeta^2  Noise.client       weighted mean over clients of ||grad F_i(w*)||^2
    sigma*^2     Noise.batch        weighted mean over clients of E||g_i(w*) - grad F_i(w*)||^2

L_b of b distinct samples out of n is t L_max + (1 - t) L_i with t = (n - b) / (b (n - 1)): the mean of b distinct rows
out of n has the second moment t (mean of squares) + (1 - t) (square of the mean), and each is co-coercive. With all
samples t = 0 and L_b is the largest L_i.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import isfinite

from fedsim.algorithms.method import Method


@dataclass(frozen=True, slots=True)
class Problem:
    """Constants of an experiment; see the top of this file."""

    clients: int
    share: float
    probability: float
    sampling: float
    up: float
    down: float
    up_delta: float
    down_delta: float
    smoothness: float
    client_smoothness: float
    largest_smoothness: float
    batch_smoothness: float
    sample_smoothness: float
    convexity: float
    client_convexity: float
    batches: int
    full_gradient: bool


@dataclass(frozen=True, slots=True)
class Noise:
    """What gradients are at the optimum; see the top of this file."""

    client: float
    batch: float


@dataclass(frozen=True, slots=True)
class Steps:
    """The largest admissible steps, and the theorem that admits them. alpha: largest memory rate, 0 without memory."""

    theorem: str
    source: str
    server: float
    local: float
    alpha: float

    def admit_rate(self, alpha: float) -> bool:
        """Whether memories may learn so fast; rounding apart."""
        return not self.alpha or alpha <= self.alpha * (1 + 1e-9)


@dataclass(frozen=True, slots=True)
class Promise:
    """``measure`` after T rounds <= (1 - rate)^T (a constant of the start) + floor."""

    rate: float
    floor: float
    measure: str = "squared distance"


@dataclass(frozen=True, slots=True)
class Setting:
    """What of an experiment decides which theorem covers it; each field false names its reason in ``REASONS``."""

    convex: bool
    full_participation: bool
    always_there: bool
    equal_weights: bool
    equal_batches: bool
    constant_steps: bool
    plain_gradient: bool
    plain_features: bool
    epoch_of_reshuffling: bool
    single_step: bool
    one_gradient: bool
    full_gradient: bool
    sends_direction: bool
    expected_sum: bool

    def reasons(self, *needs: str) -> list[str]:
        """Why a theorem that needs these fields does not cover the experiment."""
        have = asdict(self)
        return [REASONS[name] for name in needs if not have[name]]


REASONS = {
    "convex": "the task is not strongly convex (give a convex task an l2 > 0)",
    "full_participation": "not every client takes part in every round",
    "always_there": "clients may be away or late (network.availability = 1, no network.deadline_s, no trace)",
    "equal_weights": "clients weigh differently (server.weights = 'uniform', or clients of equal size)",
    "equal_batches": "clients have different numbers of mini-batches (equal sizes, or one full gradient a round)",
    "constant_steps": "step sizes vary (rate.rule and server.schedule must be 'constant')",
    "plain_gradient": "the local direction is not the gradient",
    "plain_features": "features are whitened: the theorems then need the constants of the whitened problem",
    "epoch_of_reshuffling": "a round is neither one full gradient nor one epoch of reshuffling",
    "single_step": "a client takes several steps in a round (local.steps = 1, local.epochs = 0)",
    "one_gradient": "a round is neither one full gradient nor one gradient of a fresh batch (local.order = 'fresh')",
    "full_gradient": "a round is not one full gradient (local.batch = 0, one step)",
    "sends_direction": "clients send the difference of models (local.send = 'direction')",
    "expected_sum": "the sum over who is present is not divided by what is expected (server.normalise = 'expected', "
    "server.paper_compat = false)",
}
COMMON = ("convex", "always_there", "constant_steps", "plain_gradient", "plain_features", "sends_direction")
"""What every theorem needs."""


@dataclass(frozen=True, slots=True)
class Theorem:
    """reasons: why it does not cover an experiment, empty when it does; the others hold for those that it covers.

    admissible: the largest steps. promise: (problem, method, server step, local step, noise) -> rate and floor.
    """

    reasons: Callable[[Setting, Method], list[str]]
    admissible: Callable[[Problem, Method], Steps]
    promise: Callable[[Problem, Method, float, float, Noise], Promise]


def unbiased(method: Method, ways: Sequence[str] = ("up", "down")) -> list[str]:
    """Reasons against channels that are biased or have error feedback."""
    reasons = []
    for way, channel in (("up", method.uplink), ("down", method.downlink)):
        if way in ways and not isfinite(channel.compressor.omega(method.d)):
            reasons.append(f"the {way}link's compressor is biased")
        if channel.feedback:
            reasons.append(f"the {way}link has error feedback")
    return reasons


def averaged(method: Method) -> list[str]:
    """The reason against a robust aggregate."""
    robust = "directions are not averaged (server.aggregate = 'mean' without server.clip)"
    return [robust] if method.server.robust else []


def uncorrected(method: Method) -> list[str]:
    """The reason against corrected or synchronised messages."""
    corrected = method.uplink.correction != 1.0 or method.uplink.synchronise
    text = "messages are corrected, or now and then in full (uplink.correction = 1, synchronise = 0)"
    return [text] if corrected else []
