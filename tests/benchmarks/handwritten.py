"""The best rounds that we could write by hand in torch, for one process and thread: what the executors are held to.

``manual`` keeps everything that does not depend on the model from one round to the next (index tables, buffers, sorted
cohorts), has no client rows and no bookkeeping, and adds the weighted end models up as they come. ``loop`` is the plain
loop over clients, with autograd, an in-place step and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from tests.benchmarks.workloads import STEP, Workload

Round = Callable[[Tensor, int], Tensor]
"""(model float[d], number of the round) -> the model after it."""


def manual(work: Workload, chunk: int) -> Round:
    """Chunks of stacked clients; the layers are those of the task's row: weights and then biases, one after another."""
    stack = work.task.stack
    assert stack is not None
    layers, federation, b = stack.layers, work.federation, work.batch
    plans = [_tables(work, cohort, chunk) for cohort in work.cohorts]
    widest = min(chunk, max(len(cohort) for cohort in work.cohorts))
    weights = [torch.empty(widest, layer.outputs, layer.inputs) for layer in layers]
    biases = [torch.empty(widest, 1, layer.outputs) for layer in layers]
    features = federation.features

    def round_(model: Tensor, t: int) -> Tensor:
        new = torch.zeros_like(model)
        start = [layer.take(model[None]) for layer in layers]
        for shares, steps in plans[t % len(plans)]:
            c = len(shares)
            for (w, v), mine, bias in zip(start, weights, biases, strict=True):
                mine[:c] = w
                assert v is not None
                bias[:c] = v
            for a, rows, hits, scale in steps:
                x = features.index_select(0, rows).view(a, b, -1)
                inputs = []
                for i in range(len(layers)):
                    if i:
                        x = x.relu_()
                    inputs.append(x)
                    x = torch.baddbmm(biases[i][:a], x, weights[i][:a].transpose(1, 2))
                delta = torch.softmax(x, 2).sub_(hits).mul_(scale)
                for i in reversed(range(len(layers))):
                    before = torch.bmm(delta, weights[i][:a]).mul_(inputs[i] > 0) if i else delta
                    weights[i][:a].baddbmm_(delta.transpose(1, 2), inputs[i], alpha=-STEP)
                    biases[i][:a].sub_(delta.sum(1, keepdim=True), alpha=STEP)
                    delta = before
            for layer, mine, bias in zip(layers, weights, biases, strict=True):
                assert layer.bias is not None
                size = layer.outputs * layer.inputs
                new[layer.weight : layer.weight + size] += shares @ mine[:c].view(c, -1)
                new[layer.bias : layer.bias + layer.outputs] += shares @ bias[:c, 0]
        return new

    return round_


def _tables(
    work: Workload, cohort: Tensor, chunk: int
) -> list[tuple[Tensor, list[tuple[int, Tensor, Tensor, Tensor]]]]:
    """(shares of the clients, (clients, rows, one-hot, weights) of each step) of each chunk."""
    federation, b = work.federation, work.batch
    sizes = federation.sizes[cohort]
    order = torch.argsort(sizes, descending=True, stable=True)
    clients, sizes = cohort[order], sizes[order]
    shares = (sizes / sizes.sum()).to(torch.float32)
    found = []
    for start in range(0, len(clients), chunk):
        some = slice(start, start + chunk)
        n, first = sizes[some, None], federation.offsets[clients[some], None]
        passes = -(-sizes[some] // b)
        steps = []
        for h in range(int(passes[0])):
            a = int((passes > h).sum())
            places = h * b + torch.arange(b).expand(a, -1)
            real = places < n[:a]
            rows = first[:a] + places * real
            hits = torch.nn.functional.one_hot(federation.targets[rows], federation.classes).float()
            scale = (real * passes[:a, None] / n[:a])[..., None].float()
            steps.append((a, rows.reshape(-1), hits, scale))
        found.append((shares[some], steps))
    return found


def loop(work: Workload) -> Round:
    """One client after another."""
    federation, b, task = work.federation, work.batch, work.task
    layout, skeleton = getattr(task, "layout", None), getattr(task, "skeleton", None)

    def scores(parts: list[Tensor], x: Tensor) -> Tensor:
        if layout is None:
            return torch.nn.functional.linear(x, parts[0], parts[1])
        found: Tensor = functional_call(skeleton, dict(zip(layout.names, parts, strict=True)), (x,))
        return found

    def round_(model: Tensor, t: int) -> Tensor:
        cohort = work.cohorts[t % len(work.cohorts)]
        total, new = int(federation.sizes[cohort].sum()), torch.zeros_like(model)
        for client in cohort.tolist():
            shard, row = federation.shard(client), model.clone()
            if layout is None:
                layer = task.layers[0]
                parts = [row[: layer.bias].view(layer.outputs, layer.inputs), row[layer.bias :]]
            else:
                parts = list(layout.views(row).values())
            parts = [part.detach().requires_grad_() for part in parts]
            n = len(shard)
            for start in range(0, n, b):
                x, y = shard.features[start : start + b], shard.targets[start : start + b]
                loss = cross_entropy(scores(parts, x), y) * (len(y) * -(-n // b) / n)
                with torch.no_grad():
                    for part, found in zip(parts, torch.autograd.grad(loss, parts), strict=True):
                        part.sub_(found, alpha=STEP)
            new += row * (n / total)
        return new

    return round_
