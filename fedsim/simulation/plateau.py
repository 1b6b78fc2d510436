"""Where a run with a constant step levels off: the stationary law of the linearised chain at the optimum.

    paper      here        meaning
    x          -           w - w*
    H          values, vectors   Hessian of F at w*, and its eigenvalues lambda and eigenvectors
    Omega      -           what the server steps along: w' = w - gamma Omega
    r          residuals   Omega - H x, what is random in it, float[T, d] in the eigenvectors' coordinates
    Sigma      -           E r r', given the law of x and of the memories
    S          variances   E x x' at stationarity; its diagonal, float[d]

With unbiased compressors E[Omega | x, memories] = H x near w*, whatever the memories, who takes part, and where the
downlink's noise falls: what is random in Omega is uncorrelated in time. So

    S = (I - gamma H) S (I - gamma H) + gamma^2 Sigma,   S_aa = gamma Sigma_aa / (lambda_a (2 - gamma lambda_a)),
    E||w - w*||^2 = tr S,   E F(w) - F* = tr(H S) / 2,   tr S >= gamma tr Sigma / (2 max lambda),

exactly for a quadratic F. To first order in gamma, Sigma is that at the optimum: minibatch noise, what compression
makes of it, absent clients, the downlink's noise of all of it. Memories fluctuate too: m = h_i - grad F_i(w*) obeys
m' = m + alpha C(xi - m) where the client takes part, so E||m||^2 = alpha (1 + omega) / (2 - alpha (1 + omega)) sigma^2
if C has the variance omega ||xi - m||^2 (a third of sigma^2 at the default rate). No such formula is needed: the method
itself is played with the model held at w*, and r is read off.

At larger steps the noise of gradients at w* + x counts too. Then the model is led along x' = (I - gamma H) x - gamma r
with r drawn from the last residuals, from a start of the variance S, and new residuals are read off along that path.
Their excess is first + gain * (the path's), first the one above, so S repeats itself at first / (1 - gain). With a gain
of 1 or more noise grows from round to round, and the step has no stationary law. All random numbers are others than the
run's own.

Source: derived here; the stationary covariance of constant-step SGD is classical (Dieuleveut, Durmus, Bach, "Bridging
the gap between constant step size SGD and Markov chains", Annals of Statistics 2020).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import msgspec
import torch
from torch import Tensor

from fedsim.algorithms import artemis
from fedsim.algorithms.artemis import Clients, Cohort
from fedsim.algorithms.downlink import hear
from fedsim.errors import DivergedError
from fedsim.randomness import Purpose, only
from fedsim.simulation.constants import rest, sample_weights
from fedsim.simulation.engine import play
from fedsim.simulation.setup import Setup
from fedsim.simulation.state import State, initial_state
from fedsim.tasks.linear import Linear, SoftmaxRegression, Squares
from fedsim.tasks.task import full_batch

LARGEST = 1024
"""Largest d whose Hessian is taken apart."""

ROUNDS, REPEATS, AGREEMENT = 256, 6, 0.1
"""Residuals read off at a time; how often at most; share to which S repeats itself."""

POINTS = 64
"""Rounds of a course, at most, closer together at the beginning."""

SEPARATED = 1e-9
"""A logistic loss can fall below this only by growing weights: classes are separated, and the minimum is nowhere."""

OTHER = 1 << 32
"""Turns a seed into another one."""

NUDGE, NUDGES = 1e-3, 3
"""Excess at which noise is put, beside that of the start; and how often."""

FLAT = 1e-9
"""Eigenvalues below this share of the largest count as zero."""


@dataclass(frozen=True, slots=True)
class Plateau:
    """distance: E||w - w*||^2, infinite where F is flat; loss: E F(w) - F*; first: the same to first order in gamma.

    least: gamma tr Sigma / (2 max lambda). gain: see the top of this file. rate: by which F - F* falls in a round along
    the slowest direction. course: (k, expected F - F* after k rounds).
    """

    distance: float
    loss: float
    first: float
    least: float
    gain: float
    rate: float
    course: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Valley:
    """F near its minimum. best: w*; lowest: F* of the mean over all samples; offset: F(w*) - F*, and curvatures, of
    that mean, which is not F where clients of unequal size count alike.
    """

    best: Tensor
    lowest: float
    offset: float
    values: Tensor
    vectors: Tensor
    curvatures: Tensor

    @property
    def steep(self) -> Tensor:
        """Which directions are not flat, bool[d]."""
        return self.values > FLAT * self.values[-1]


def plateau(setup: Setup, still: bool = False) -> Plateau | str:
    """Of a method whose compressors are unbiased and whose rounds are one gradient; or why there is none.

    still: there is no noise at the optimum, as a theorem says: no floor, unless noise grows from round to round.
    """
    task, step = setup.task, setup.step
    if not isinstance(task, Linear | SoftmaxRegression):
        return "the stationary law is computed for convex tasks (least-squares, logistic, softmax)"
    if task.dim > LARGEST:
        return f"the stationary law is computed up to {LARGEST} coordinates, not for {task.dim}"
    valley = survey(setup)
    squares = isinstance(task, Linear) and task.loss_of_score is Squares
    if valley.lowest < SEPARATED and not squares:
        return "the classes are separated, so that the loss has no minimum (task.l2 > 0)"
    top = float(valley.values[-1])
    if step * top >= 2:
        return f"the step is {step * top / 2:.3g} times 2 / max lambda at the optimum, and no run stays there"
    probe = Probe(setup, valley)
    if still:
        gain = _nudged(probe)
        none = torch.zeros((1, task.dim), dtype=torch.float64)
        return _plateau(setup, valley, none, 0.0, gain) if gain < 1 else _RUNS_AWAY
    residuals = probe.residuals(None, None)
    first = _loss(valley, variances_of(setup, valley, residuals))
    excess, gain = first, 0.0
    for _ in range(REPEATS if first else 0):
        try:
            path = probe.residuals(residuals, variances_of(setup, valley, residuals))
        except DivergedError:
            return _RUNS_AWAY
        found = _loss(valley, variances_of(setup, valley, path))
        gain = max(0.0, (found - first) / excess)
        if gain >= 1:
            return _RUNS_AWAY
        last, excess = excess, first / (1 - gain)
        residuals = path * math.sqrt(excess / found)
        if abs(excess - last) <= AGREEMENT * excess:
            break
    return _plateau(setup, valley, residuals, first, gain)


_RUNS_AWAY = (
    "in the mean square, noise grows from round to round around the optimum: there is no stationary law at this step"
)


def _nudged(probe: Probe) -> float:
    """The gain where there is no noise at the optimum: of some that is put there, after it has fed itself a while."""
    setup, valley = probe.setup, probe.valley
    residuals = torch.randn((ROUNDS, setup.task.dim), generator=probe.random, dtype=torch.float64)
    (_, start), *_ = course(setup, valley, torch.zeros(setup.task.dim, dtype=torch.float64))
    gain = 0.0
    for _ in range(NUDGES):
        residuals *= math.sqrt(NUDGE * start / _loss(valley, variances_of(setup, valley, residuals)))
        try:
            residuals = probe.residuals(residuals, variances_of(setup, valley, residuals))
        except DivergedError:
            return math.inf
        gain = _loss(valley, variances_of(setup, valley, residuals)) / (NUDGE * start)
        if gain < NUDGE or gain >= 1:
            break
    return gain


def _plateau(setup: Setup, valley: Valley, residuals: Tensor, first: float, gain: float) -> Plateau:
    """Of these residuals, float[T, d]."""
    variances, step = variances_of(setup, valley, residuals), setup.step
    slowest = float((1 - step * valley.values[valley.steep]).abs().max())
    return Plateau(
        distance=float(variances.sum()),
        loss=valley.offset + _loss(valley, variances),
        first=valley.offset + first,
        least=step * float(residuals.square().sum(1).mean()) / (2 * float(valley.values[-1])),
        gain=gain,
        rate=1 - slowest**2,
        course=tuple(course(setup, valley, variances)),
    )


def course(setup: Setup, valley: Valley, variances: Tensor) -> Iterator[tuple[int, float]]:
    """(k, expected F - F* after k rounds) in the quadratic that touches F at w*. variances: S_aa, float[d].

    From x_0, direction a has E x_a^2 = (1 - gamma lambda_a)^2k x_0a^2 + (1 - (1 - gamma lambda_a)^2k) S_aa after k
    rounds; what memories and downlinks do until they have settled is left out.
    """
    start = setup.task.initial(setup.experiment.seed).to("cpu", torch.float64) - valley.best
    squares = (valley.vectors.T @ start).square()[valley.steep]
    keeps, settled = (1 - setup.step * valley.values[valley.steep]).square(), variances[valley.steep]
    curvatures, last = valley.curvatures[valley.steep] / 2, setup.experiment.rounds
    for k in sorted({round(last ** (i / POINTS)) for i in range(POINTS + 1)} | {0}):
        yield k, float(curvatures @ (keeps**k * squares + (1 - keeps**k) * settled)) + valley.offset


def survey(setup: Setup) -> Valley:
    """The minimum of the method's objective and the Hessian there, in float64 on the CPU."""
    task, federation, server = setup.task, setup.federation, setup.experiment.server
    assert isinstance(task, Linear | SoftmaxRegression)
    best, _, lowest, offset = rest(server, federation, task)
    task, best = replace(task, dtype=torch.float64, device=torch.device("cpu")), best.to("cpu")
    examples, weights = federation.all(), sample_weights(server, federation).to("cpu")
    features, targets = examples.features.to("cpu", torch.float64), examples.targets.to("cpu")
    examples = replace(examples, features=features.flatten(1), targets=targets)
    values, vectors = torch.linalg.eigh(task.hessian(best, examples, weights))
    curvatures = (vectors * (task.hessian(best, examples) @ vectors)).sum(0)
    return Valley(best, lowest, offset, values, vectors, curvatures)


def variances_of(setup: Setup, valley: Valley, residuals: Tensor) -> Tensor:
    """S_aa, float[d], of residuals float[T, d]; infinite in flat directions."""
    values, step = valley.values, setup.step
    settled = step * residuals.square().mean(0) / (values * (2 - step * values))
    return torch.where(valley.steep, settled, torch.full_like(settled, math.inf))


def _loss(valley: Valley, variances: Tensor) -> float:
    """tr(H S) / 2, with the Hessian of the mean over all samples; flat directions cost nothing."""
    return float((valley.curvatures * variances)[valley.steep].sum()) / 2


class Probe:
    """The method, played around the optimum with the model led by hand."""

    def __init__(self, setup: Setup, valley: Valley) -> None:
        other = setup.experiment.seed ^ OTHER
        self.setup = replace(setup, experiment=msgspec.structs.replace(setup.experiment, seed=other))
        self.valley = valley
        self.random = torch.Generator().manual_seed(other)
        self.state = self._settled()
        self.sent: Tensor | None = None
        rates = [setup.method.alpha * setup.cohort(0).probability, setup.method.beta]
        self.wait = min(2048, math.ceil(3 / min([rate for rate in rates if rate] or [math.inf])))

    def _settled(self) -> State:
        """All memories where they rest while the model does: h_i = grad F_i(w*), H = w*."""
        setup, state = self.setup, initial_state(self.setup)
        best = self.valley.best.to(state.server.model)
        state.server = replace(state.server, model=best)
        if state.server.sent is not None:
            state.server = replace(state.server, sent=best, held=best)
        if state.store.memory is not None:
            shards = [setup.federation.shard(i) for i in range(setup.clients)]
            batches = [full_batch(shard.features, shard.targets, best.dtype) for shard in shards]
            rows = torch.cat([setup.task.gradients(best[None], batch)[0] for batch in batches])
            everybody = Cohort(torch.arange(setup.clients, device=best.device), setup.weights, 1.0)
            state.server = artemis.remember(state.server, everybody, rows)
            state.store.put(everybody.clients, Clients(memory=rows))
        return state

    def residuals(self, drawn: Tensor | None, variances: Tensor | None) -> Tensor:
        """float[T, d], read off along a path of noise ``drawn`` from a start of these variances; None: at w*."""
        values, step = self.valley.values, self.setup.step
        x = torch.zeros_like(values)
        if variances is not None:
            # A direction cannot have come further from w* than the experiment's rounds have taken it.
            reach = 1 - (1 - step * values.clamp_min(0)) ** (2 * self.setup.experiment.rounds)
            reached = torch.where(self.valley.steep, variances * reach, torch.zeros_like(values))
            x = reached.sqrt() * torch.randn(len(x), generator=self.random, dtype=x.dtype)
        found = []
        for t in range(self.wait + ROUNDS):
            residual = self.round(x)
            if t >= self.wait:
                found.append(residual)
            if drawn is not None:
                x = (1 - step * values) * x - step * drawn[int(torch.randint(len(drawn), (), generator=self.random))]
        return torch.stack(found)

    def round(self, x: Tensor) -> Tensor:
        """What is random in one round's step from w* + x, float[d]."""
        server = self.state.server
        before = (self.valley.best + self.valley.vectors @ x).to(server.model)
        if server.sent is not None and self.sent is not None:
            # The last message was made of the model that the method stepped to: here is that of the one led to.
            down, noise = self.setup.method.down, self.setup.stream(Purpose.DOWNLINK, server.round)
            payload = down.compress((before - self.sent)[None], noise, only().to(before.device))
            decoded = down.decompress(payload, before.dtype)[0]
            held, sent = hear(self.setup.method, server.view, self.sent, decoded, self.setup.step)
            server = replace(server, held=held, sent=sent)
        self.sent = server.sent
        self.state.server = replace(server, model=before)
        play(self.setup, self.state)
        moved = (before - self.state.server.model).to("cpu", torch.float64) / self.setup.step
        return self.valley.vectors.T @ moved - self.valley.values * x
