"""From an experiment to everything that a round needs: the clients' data, the task, the method, the step sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor

from fedsim.algorithms import robust, whitening
from fedsim.algorithms.artemis import Cohort
from fedsim.algorithms.checks import check, check_channels
from fedsim.algorithms.method import Method, fitted_channel
from fedsim.algorithms.steps import scheduled, step_size
from fedsim.algorithms.theory import Steps
from fedsim.data import Federation, Own, deal
from fedsim.errors import ConfigError
from fedsim.experiment import Experiment
from fedsim.randomness import Purpose, Stream, only
from fedsim.simulation.constants import client_weights, theory_steps
from fedsim.simulation.executors import Choice, choose
from fedsim.simulation.network import Clock, clock_of
from fedsim.simulation.workers import Workers
from fedsim.solvers.local import Plan, Solution, check_plan, solve_into
from fedsim.solvers.memory import Memory
from fedsim.solvers.metric import Metric
from fedsim.solvers.order import order_named
from fedsim.solvers.plan import Ask, Rows
from fedsim.solvers.rate import Salr
from fedsim.tasks import Classifier, Task
from fedsim.tasks.layer import Layer

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Setup:
    """A prepared experiment.

    weights: float[N], v_i; step: gamma_0; plan: of the local solver; run: its 8-byte name; choice: of the executor;
    workers: its processes; whitened: layers that are; kept: buffers of ``solve``; clock: of the network, if there is.
    """

    experiment: Experiment
    federation: Federation
    task: Task
    method: Method
    weights: Tensor
    step: float
    plan: Plan
    run: bytes
    choice: Choice
    workers: Workers | None = None
    whitened: tuple[Layer, ...] = ()
    kept: list[Rows] = field(default_factory=list)
    clock: Clock | None = None

    @property
    def clients(self) -> int:
        """Number of registered clients, N."""
        return self.federation.clients

    def stream(self, purpose: Purpose, round: int) -> Stream:
        """The random numbers of one purpose in one round."""
        return Stream(self.experiment.seed, purpose, round)

    def synchronised(self, round: int) -> bool:
        """Whether all clients send what they compute in full in this round, and nothing else."""
        chance = self.method.uplink.full(self.task.dim)
        return (
            bool(chance) and float(self.stream(Purpose.SYNCHRONISE, round).uniform(only(), 1, torch.float64)) < chance
        )

    def evaluated(self, round: int) -> bool:
        """Whether the model is evaluated after so many rounds."""
        return round % self.experiment.run.evaluate_every == 0 or round == self.experiment.rounds

    def cohort(self, round: int) -> Cohort:
        """Who takes part in a round."""
        if self.synchronised(round):
            return Cohort(torch.arange(self.clients, device=self.weights.device), self.weights, 1.0)
        participation = self.experiment.participation
        clients = participation.sample(self.clients, self.experiment.seed, round)
        probability: float | Tensor = participation.probability(self.clients)
        if self.clock is not None:
            clients, share = self.clock.available(round, clients)
            probability = probability * (share if isinstance(share, float) else share.to(self.weights))
        clients = clients.to(self.weights.device)
        return Cohort(clients, self.weights.index_select(0, clients), probability)

    def solve(
        self, plan: Plan, models: Tensor, clients: Tensor, stream: Stream, memories: Mapping[int, Memory]
    ) -> Solution:
        """As ``fedsim.solvers.solve``, by the executor; the directions hold until the next call."""
        if self.workers is not None and plan is self.plan:
            return self.workers.solve(models, clients.cpu(), stream, memories)
        # Rows of the last round, where there are enough: fresh memory costs as much as a step.
        kept = self.kept.pop() if self.kept else None
        rows = kept if kept is not None and kept.losses.shape[0] >= len(clients) else Rows.like(models)
        self.kept.append(rows)
        ask = Ask(models, clients.cpu(), stream, memories)
        return solve_into(self.task, self.federation, plan, ask, rows.of(len(clients)))

    @property
    def threads(self) -> int:
        """That compression may use: as many as there are workers, which wait meanwhile."""
        return self.choice.workers or self.experiment.run.threads

    def close(self) -> None:
        """End the processes of the executor."""
        if self.workers is not None:
            self.workers.close()

    def step_of(self, round: int) -> float:
        """The server's step size in a round; clients that catch up use it too."""
        return scheduled(self.step, self.experiment.server.schedule, round)


def prepare(experiment: Experiment) -> Setup:
    """Load and split the data, build the task, resolve the step sizes; refuse what cannot mean anything.

    Raises ConfigError or DataError. Sets torch's thread count, which is part of the experiment.
    """
    torch.set_num_threads(experiment.run.threads)
    device, dtype = device_of(experiment.run.device), DTYPES[experiment.run.precision]
    federation = deal(experiment.data, experiment.partition, experiment.seed).to(device, dtype)
    shape = tuple(federation.features.shape[1:])
    task = _reduced(experiment, experiment.task.build(shape, federation.classes, dtype, device))
    participation, server = experiment.participation, experiment.server
    uplink, downlink = fitted_channel(experiment.uplink, task.sizes), fitted_channel(experiment.downlink, task.sizes)
    whitened = whitening.layers_of(experiment.whitening, experiment.direction, task.layers)
    choice = choose(experiment, task, federation, device)
    whitening.check(experiment.whitening, experiment.direction, experiment.local, choice.chunk, experiment.server.step)
    participation.sample(federation.clients, experiment.seed, 0)
    sizes = torch.tensor(experiment.data.samples) if isinstance(experiment.data, Own) else federation.sizes
    clock = clock_of(experiment, sizes.numpy())
    present = participation.probability(federation.clients) * (1.0 if clock is None else clock.least)
    check(uplink, downlink, server, present)
    if experiment.downlink.each and not isinstance(experiment.whitening, whitening.Off):
        raise ConfigError(
            "downlink.each = true sends nobody what others were sent, and so no pooled moments; "
            "use downlink.each = false or whitening.mode = 'off'"
        )
    robust.check(server, uplink, experiment.whitening, task.dim)
    if isinstance(experiment.rate, Salr) and experiment.rate.level == "server" and experiment.uplink.feedback == "step":
        raise ConfigError(
            "uplink.feedback = 'step' needs the server's step before the upload, but rate.level = 'server' finds it "
            "afterwards; use a number, or rate.level = 'client'"
        )

    @cache
    def smoothness() -> float:
        """L is the mean of the clients' L_i, as in the published Artemis code."""
        _known(federation)
        constants = [task.smoothness(federation.shard(i), server.smoothness) for i in range(federation.clients)]
        return sum(constants) / len(constants)

    @cache
    def theory() -> Steps:
        _known(federation)
        return theory_steps(experiment, federation, task)

    step = step_size("server.step", server.step, smoothness, lambda: theory().server)
    local = experiment.local
    check_plan(local, experiment.rate, experiment.direction, choice.chunk)
    needs_local_step = local.steps > 1 or local.epochs or local.send == "difference"
    local_step = step_size("local.step", local.step, smoothness, lambda: theory().local) if needs_local_step else step
    method = Method(uplink, downlink, server, task.dim)
    check_channels(method, step, present)
    weights = client_weights(server, sizes.to(device))
    plan = Plan(local, local_step, choice.chunk, order_named(local.order), experiment.rate, experiment.direction)
    return Setup(
        experiment=experiment,
        federation=federation,
        task=task,
        method=method,
        weights=weights.to(dtype),
        step=step,
        plan=plan,
        run=experiment.identifier(),
        choice=choice,
        workers=Workers(task, federation, plan, choice.workers) if choice.workers else None,
        whitened=whitened,
        clock=clock,
    )


def _known(federation: Federation) -> None:
    """Raise ConfigError where constants of all data are asked for and some of it is elsewhere."""
    if not federation.whole:
        raise ConfigError("constants of all clients' data are not known here; give a number such as 0.1")


def metric_of(setup: Setup, row: Tensor) -> Metric:
    """The maps of packed moments, float[k]."""
    return whitening.metric_of(setup.experiment.whitening, setup.experiment.direction, row, setup.whitened)


def _reduced(experiment: Experiment, task: Task) -> Task:
    """The task that computes in run.compute. Raises ConfigError where that cannot mean anything."""
    run, kind = experiment.run, experiment.task.__struct_config__.tag
    if run.compute == "float32":
        return task
    if run.precision == "float64":
        raise ConfigError(
            f"run.compute = {run.compute!r} and run.precision = 'float64' contradict each other; drop one of them"
        )
    if task.stack is not None or not isinstance(task, Classifier):
        raise ConfigError(
            f"run.compute = {run.compute!r} is for networks whose gradient autograd finds, but that of task.kind = "
            f"{kind!r} is a formula here, which computes in run.precision; drop run.compute"
        )
    return replace(task, compute=torch.bfloat16)


def device_of(name: str, key: str = "run.device") -> torch.device:
    """The device that ``key`` names. Raises ConfigError for one that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device: torch.device | None = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{key} = {name!r}: expected 'cpu', 'cuda', 'cuda:1' ... or 'auto'")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(f"{key} = {name!r}, but torch sees {torch.cuda.device_count()} GPUs; use 'cpu' or 'auto'")
    return device
