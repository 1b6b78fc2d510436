"""The whitened gradient: a gradient step on a layer whose inputs are whitened, without touching a sample.

    d_k = [G g] (A + damping)^-1 for each linear layer;  see ``fedsim.solvers.metric`` for the symbols

    route      R^-1 from                                        cost of a refresh    of a step
    cholesky   R = L L'                                         M^3 / 3 + ...        S M^2
    evd        R = U Lambda U'                                  about 10 M^3         S M^2
    recursive  T'T / c, where T is bettered in every step:          one M^3 product      2 S M^2 + O(M^2)
                   u, l = a leading eigenpair of C = T R T', by power iterations,   c = trace(C) / M,
                   T <- T - (1 - s) u u'T   with   s = min(1, sqrt(c / l))

A recursion only ever shrinks the largest variance of C, to the mean one, so T'T / c tends to R^-1 from 1 / c. Its start
vectors are cos(i phi (1 .. M)) with the
golden angle phi in recursion i, so nothing is random.

This is the per-client mode. Where clients differ, each with its own A_m, the mean of their whitened gradients vanishes
at sum G_m A_m^-1 = 0, which is not the minimum. Use whitening.mode = "shared" or "mixing" there.

Source: Markovich-Golan, Battash, Bleiweiss, arXiv 2010.01546: the transformation, S / (2 B) times the cost of
whitening the B samples of a batch, and an O(M^2) recursion; the one here is a reconstruction from that statement.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
import torch
from torch import Tensor

from fedsim.errors import ConfigError
from fedsim.solvers.memory import Notes
from fedsim.solvers.metric import LayerMap, apply_by_layer, precondition, split, whitener
from fedsim.solvers.rate import Count, Here, Positive
from fedsim.solvers.step import Step, samples
from fedsim.tasks.layer import Layer, chosen

GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))


class Whitened(msgspec.Struct, frozen=True, tag_field="kind", tag="whitened", forbid_unknown_fields=True):
    """The gradient of the batch, whitened by what this client has seen.

    Args:
        damping: what is added to every variance, relative to the mean square of the features.
        ema: what is kept of the moments at a refresh.
        refresh: steps of the client from one refresh to the next.
        route: "cholesky", "evd" or "recursive".
        max_features: layers with more inputs keep their plain gradient.
        recursions: of a step, in the recursive route.
        powers: power iterations of a recursion.
    """

    damping: Positive = 0.1
    ema: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.9
    refresh: Count = 10
    route: Literal["cholesky", "evd", "recursive"] = "cholesky"
    max_features: Count = 1024
    recursions: Count = 1
    powers: Count = 2

    def begin(self, notes: Notes) -> Notes:
        """Moments stay with the client."""
        return notes

    def step(self, here: Here, notes: Notes) -> Step:
        """d_k; the moments of this batch count at a refresh, before the step."""
        row, loss = here.task.gradients(here.model, here.batch)
        layers = chosen(here.task.layers, self.max_features)
        notes = {name: note.to(row.device) for name, note in notes.items()}
        turn = int(notes["turn"]) if "turn" in notes else 0
        if turn % self.refresh == 0:
            notes = self._refreshed(here, layers, notes)
        if self.route == "recursive":
            for i, layer in enumerate(layers):
                notes = self._bettered(i, layer, notes, turn)
        notes = {**notes, "turn": torch.tensor(turn + 1)}
        maps = [self._map(i, notes) for i in range(len(layers))]
        return Step(apply_by_layer(row[0], layers, maps)[None], loss, notes, samples(here))

    def _refreshed(self, here: Here, layers: tuple[Layer, ...], notes: Notes) -> dict[str, Tensor]:
        new = dict(notes)
        found = here.task.moments(here.model, here.batch, layers)
        for i, (layer, moment) in enumerate(zip(layers, found, strict=True)):
            if f"moment.{i}" in notes:
                moment = self.ema * notes[f"moment.{i}"] + (1 - self.ema) * moment
            new[f"moment.{i}"] = moment
            if self.route != "recursive":
                made = whitener(moment, layer, self.damping, self.route)
                mean, new[f"inverse.{i}"] = made.mean, made.inverse
            else:
                mean, covariance = split(moment, layer, self.damping)
                transform = new.setdefault(f"transform.{i}", torch.eye(layer.inputs).to(moment))
                new[f"covariance.{i}"] = covariance.to(moment)
                new[f"trace.{i}"] = ((transform @ new[f"covariance.{i}"]) * transform).sum()
            if mean is not None:
                new[f"mean.{i}"] = mean.to(moment)
        return new

    def _bettered(self, i: int, layer: Layer, notes: Notes, turn: int) -> Notes:
        transform, trace = notes[f"transform.{i}"], notes[f"trace.{i}"]
        for k in range(turn * self.recursions, (turn + 1) * self.recursions):
            transform, trace = recursion(transform, notes[f"covariance.{i}"], trace, k, self.powers)
        return {**notes, f"transform.{i}": transform, f"trace.{i}": trace}

    def _map(self, i: int, notes: Notes) -> LayerMap:
        mean, inverse, transform, trace = (
            notes.get(f"{name}.{i}") for name in ("mean", "inverse", "transform", "trace")
        )

        def change(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
            if inverse is not None:
                return precondition(weight, bias, mean, inverse)
            assert transform is not None
            assert trace is not None
            centred = weight if mean is None or bias is None else weight - torch.outer(bias, mean)
            weight = centred @ transform.T @ transform * (transform.shape[0] / trace)
            return weight, bias if mean is None or bias is None else bias - weight @ mean

        return change


def recursion(transform: Tensor, covariance: Tensor, trace: Tensor, k: int, powers: int) -> tuple[Tensor, Tensor]:
    """(T, trace(T R T')) after recursion number ``k``, in O(M^2). transform (T), covariance (R): float[M, M]."""
    m = transform.shape[0]
    numbers = torch.arange(1, m + 1, dtype=torch.float64, device=transform.device)
    u = torch.cos((k + 1) * GOLDEN_ANGLE * numbers).to(transform)

    def product(vector: Tensor) -> Tensor:
        return transform @ (covariance @ (vector @ transform))

    for _ in range(powers):
        u = product(u)
        norm = u.norm()
        u = u / torch.where(norm > 0, norm, torch.ones_like(norm))
    largest = torch.dot(u, product(u))
    ratio = torch.where(largest > 0, trace / m / largest, torch.ones_like(largest)).clamp(0, 1)
    shrunk = transform - (1 - ratio.sqrt()) * torch.outer(u, u @ transform)
    return shrunk, trace - (1 - ratio) * largest


def whitenable(layers: tuple[Layer, ...], max_features: int, key: str) -> tuple[Layer, ...]:
    """The layers that are whitened. Raises ConfigError when there is none, with the reason. key: of max_features."""
    found = chosen(layers, max_features)
    if not layers:
        raise ConfigError(
            "whitening needs linear layers, but the task has none that it can see (nn.Linear, or nn.Conv2d with "
            "groups = 1, whose parameters are its own); use direction.kind = 'gradient' and whitening.mode = 'off'"
        )
    if not found:
        smallest = min(layers, key=lambda layer: layer.inputs)
        raise ConfigError(
            f"{key} = {max_features}, but every layer has more inputs (the smallest, {smallest.name!r}, has "
            f"{smallest.inputs}); use {key} = {smallest.inputs} or more"
        )
    return found
