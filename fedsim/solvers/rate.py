"""How long a client's local steps are. The direction it sends is divided by the sum of the steps it took.

    rule       step k of a client, k = 0, 1, ... over all rounds (eta: local.step)
    constant   eta
    harmonic   min(eta, 1 / (mu (1 + factor max(0, k - hold))))          the schedule of the RR paper's figures
    salr       clip(eta S / median of all S so far, floor eta, cap eta), measured every ``period`` steps

SALR, sharpness at iteration k on the batch B_k (Algorithm 2): n1 normalised descent steps and n2 normalised ascent
steps of length gamma from the iterate,

    theta_-  <-  theta_-  -  gamma g / ||g||     n1 times
    theta_+  <-  theta_+  +  gamma g / ||g||     n2 times
    S = max(0, f(theta_+) - f(theta_-))

g is the batch gradient ("batch"), or the mean of the normalised gradients of the samples ("sample", as Algorithm 2 is
printed). On a linear f, S = (n1 + n2) gamma ||g||. Scaling f scales S and its median alike, so eta does not move. The
first measurement is its own median: eta. The probe works on copies and touches nothing else.

At level "client" each client has its own history and its own eta. At level "server" local steps are local.step long;
every ``period`` rounds the clients of the cohort upload the S of the model they received, and the server's step is
clip(S / median of all S so far, floor, cap) times server.step, where S is the median over the cohort. The second form
is this library's own: the paper has one machine.

Sources: Mishchenko, Khaled, Richtárik, NeurIPS 2020, experiments (harmonic). Yue, Nouiehed, Al Kontar, "SALR:
Sharpness-aware learning rate scheduler for improved generalization" (salr). Division by the sum of steps: Wang et al.,
"FedNova", NeurIPS 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Protocol, cast

import msgspec
import torch
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.keys import shown
from fedsim.plugins import NAMES_CODE, blamed, made
from fedsim.solvers.memory import Notes, check_notes
from fedsim.tasks.task import Batch, Task

Count = Annotated[int, msgspec.Meta(ge=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]


class Rule(Protocol):
    """A step-size rule. It lives for one round of one client: what shall survive, it puts into its notes."""

    def step(self, k: int, base: float, here: Here, notes: Notes) -> tuple[float, Notes, int]:
        """Length of step k, the notes after it, and how many sample gradients it cost to find.

        base: local.step; here: the client's task, model and batch at this step, for a rule that measures; notes: empty
        at the client's first step, then what the last step left.
        """
        ...


class Here(msgspec.Struct, frozen=True):
    """Where a client is: task, model float[1, d], batch of one row."""

    task: Task
    model: Tensor
    batch: Batch


class Constant(msgspec.Struct, frozen=True, tag_field="rule", tag="constant", forbid_unknown_fields=True):
    """Every step is local.step long."""

    def step(self, k: int, base: float, here: Here, notes: Notes) -> tuple[float, Notes, int]:
        """``base``."""
        return base, notes, 0


class Harmonic(msgspec.Struct, frozen=True, tag_field="rule", tag="harmonic", forbid_unknown_fields=True):
    """min(local.step, 1 / (mu (1 + factor max(0, k - hold)))).

    Args:
        mu: strong convexity constant.
        factor: how fast steps shrink; the RR paper uses 1/3 for shuffled orders and 1/2 for SGD.
        hold: steps before they begin to shrink; the RR paper uses a fortieth of all steps.
    """

    mu: Annotated[float, msgspec.Meta(gt=0, description="the strong convexity constant")]
    factor: Positive = 1 / 3
    hold: Annotated[int, msgspec.Meta(ge=0)] = 0

    def step(self, k: int, base: float, here: Here, notes: Notes) -> tuple[float, Notes, int]:
        """The formula of this class."""
        return min(base, 1 / (self.mu * (1 + self.factor * max(0, k - self.hold)))), notes, 0


class Salr(msgspec.Struct, frozen=True, tag_field="rule", tag="salr", forbid_unknown_fields=True):
    """Sharpness-aware learning rate.

    Args:
        level: whose step follows the sharpness: of each "client" by itself, or of the "server", once for all.
        descent: n1, probe steps down.
        ascent: n2, probe steps up.
        probe: gamma, length of a probe step.
        period: c, local steps (at the server's level: rounds) from one measurement to the next.
        cap, floor: the step stays within [floor, cap] times local.step (server.step).
        normalise: probe steps follow the normalised gradient of the "batch", or the mean over each "sample".
    """

    level: Literal["client", "server"] = "client"
    descent: Count = 5
    ascent: Count = 5
    probe: Positive = 0.01
    period: Count = 2
    cap: Annotated[float, msgspec.Meta(ge=1)] = 5.0
    floor: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    normalise: Literal["batch", "sample"] = "batch"

    def step(self, k: int, base: float, here: Here, notes: Notes) -> tuple[float, Notes, int]:
        """Measure every ``period`` steps, keep the last step size in between."""
        if self.level == "server":
            return base, notes, 0
        if "history" in notes and k % self.period:
            return base * float(notes["factor"]), notes, 0
        found, cost = self.measure(here)
        notes = self.scale(found, notes)
        return base * float(notes["factor"]), notes, cost

    def measure(self, here: Here) -> tuple[Tensor, int]:
        """S on a batch, float64 on the CPU, and how many sample gradients it cost (a loss counts as one)."""
        found = sharpness(here, self.probe, self.descent, self.ascent, self.normalise).to("cpu", torch.float64)
        return found, (self.descent + self.ascent + 2) * int(here.batch.weights.count_nonzero())

    def scale(self, found: Tensor, notes: Notes) -> Notes:
        """Notes after one more S: "history", float64[all S so far], and "factor", S / median within the bounds."""
        history = torch.cat([notes["history"], found[None]]) if "history" in notes else found[None]
        median = history.quantile(0.5)
        ratio = found / median if bool(median > 0) else torch.ones((), dtype=torch.float64)
        return {"history": history, "factor": ratio.clamp(self.floor, self.cap)}


def sharpness(here: Here, gamma: float, descent: int, ascent: int, normalise: Literal["batch", "sample"]) -> Tensor:
    """max(0, f(theta_+) - f(theta_-)) on the batch, a scalar tensor; see the top of this file."""
    # In a pass the weights of a batch need not sum to 1, and a short last batch must not look flatter than the others.
    batch = replace(here.batch, weights=here.batch.weights / here.batch.weights.sum())

    def walk(signed: float, steps: int) -> Tensor:
        model = here.model.clone()
        for _ in range(steps):
            model = model + signed * _unit(here.task, model, batch, normalise)
        return here.task.gradients(model, batch)[1][0]

    return (walk(gamma, ascent) - walk(-gamma, descent)).clamp_min(0)


def _unit(task: Task, model: Tensor, batch: Batch, normalise: Literal["batch", "sample"]) -> Tensor:
    """g / ||g||, float[1, d]: of the batch, or the weighted mean over its samples. A zero gradient stays zero."""
    if normalise == "batch":
        return _normalised(task.gradients(model, batch)[0])
    count = batch.weights.shape[1]
    single = Batch(batch.features[0][:, None], batch.targets[0][:, None], torch.ones_like(batch.weights[0])[:, None])
    units = _normalised(task.gradients(model.expand(count, -1), single)[0])
    return batch.weights @ units


def _normalised(rows: Tensor) -> Tensor:
    norms = rows.norm(dim=1, keepdim=True)
    return rows / torch.where(norms > 0, norms, torch.ones_like(norms))


class OwnRule(msgspec.Struct, frozen=True, tag_field="rule", tag="own", forbid_unknown_fields=True):
    """Your own rule.

    Args:
        factory: "package.module:name" of a function that takes ``options`` as keywords and returns a Rule. It is called
            for each client in each round.
        options: its keywords.
    """

    factory: Annotated[
        str, msgspec.Meta(description="'package.module:name' of a function that makes the rule", extra=NAMES_CODE)
    ]
    options: dict[str, Any] = {}


RateRule = Constant | Harmonic | Salr | OwnRule


def rule_of(options: RateRule) -> Rule:
    """The rule of an experiment. Raises ConfigError where a user's own cannot be made."""
    if not isinstance(options, OwnRule):
        return options
    rule = cast(Rule, made("rate.factory", options.factory, options.options, "fedsim.rules", ["step"]))
    return _Checked(rule, options.factory)


@dataclass(frozen=True, slots=True)
class _Checked:
    """A user's rule with its answers checked. place: where it comes from."""

    rule: Rule
    place: str

    def step(self, k: int, base: float, here: Here, notes: Notes) -> tuple[float, Notes, int]:
        """What the rule says. Raises ConfigError when that is no step."""
        with blamed("rate.factory", self.place):
            answer: object = self.rule.step(k, base, here, notes)
        match answer:
            case (int() | float() as eta, found, int(cost)) if 0 <= eta < math.inf and cost >= 0:
                check_notes("rate.factory", self.place, found)
                return float(eta), cast(Notes, found), cost
        raise ConfigError(
            f"rate.factory = {self.place!r} returned {shown(answer)} at step {k}; "
            "expected (a finite step >= 0, notes, a number of gradients)"
        )
