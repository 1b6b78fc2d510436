"""Local steps of small one-layer models, one client after another: ``fedsim.solvers.local`` up to rounding.

    symbol   here      meaning
    w_0      models    what a client starts from
    D        out       sum of (eta_h / eta_0) d_h so far, d_h = X' delta + l2 w_h
    w_h      w         w_0 - eta_0 D
    delta    errors    weight dF/ds of each sample and score, s = X w + bias

All that a client's steps touch stays in the first-level cache, and no step calls a library. A row's bits do not depend
on the cohort, the group, or where the steps are cut into pages.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim.kernels.compile import compiled, reassociated

Rows = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]

CLASSES, SQUARES, LOGITS = 0, 1, 2
"""What comes after the scores: softmax cross-entropy of several, or a loss of one (see ``fedsim.tasks.linear``)."""


@reassociated
def _dot(x: Rows, y: Rows) -> np.floating[Any]:
    total = x.dtype.type(0)
    for i in range(len(x)):
        total += x[i] * y[i]
    return total


@compiled
def _softmax(scores: Rows, answer: int) -> Any:
    """Scores become p - one-hot. Returns -ln p of the answer."""
    best = scores[0]
    for s in range(1, len(scores)):
        best = scores[s] if scores[s] > best else best
    right, total = scores[answer] - best, scores.dtype.type(0)
    for s in range(len(scores)):
        scores[s] = math.exp(scores[s] - best)
        total += scores[s]
    for s in range(len(scores)):
        scores[s] /= total
    scores[answer] -= scores.dtype.type(1)
    return math.log(total) - right


@compiled
def _number(scores: Rows, answer: np.floating[Any], head: int) -> Any:
    """The score becomes the slope. Returns the loss."""
    one, score = scores.dtype.type(1), scores[0]
    if head == SQUARES:
        scores[0] = (score - answer) + (score - answer)
        return (score - answer) * (score - answer)
    margin = answer * score
    small = math.exp(-abs(margin))
    scores[0] = -answer * (one if margin < 0 else small) / (one + small)
    return math.log1p(small) - (margin if margin < 0 else scores.dtype.type(0))


@compiled
def walk(
    features: Rows,
    targets: NDArray[Any],
    models: Rows,
    places: Ints,
    way: Ints,
    listed: Ints,
    shares: Rows,
    units: Rows,
    factors: Rows,
    layer: tuple[int, int, int, int],
    loss: tuple[int, bool, bool],
    l2: np.floating[Any],
    first: int,
    last: int,
    out: Rows,
    losses: Rows,
) -> None:
    """Steps ``first`` to ``last`` of c clients; those of earlier steps are in ``out``.

    features: float[N, M]; targets: [N]. models: float[n, d], or [1, d] for everybody; places: int64[c], rows of the
    cohort. way: int64[5, c]: first sample, samples, b, steps done before, steps of this round. listed: int64[steps, c,
    B], samples of each step, or [0, 0, 0]: b after b, in the order of the file. shares: float[steps, c], eta_h / eta_0,
    or [0, 0] for 1; units: float[c], eta_0; factors: float[c], of D in the end. layer: scores, features, first
    coordinate of the weights, and of the biases or -1. loss: CLASSES, SQUARES or LOGITS; whether targets 0 and 1 mean
    -1 and +1; whether each batch is drawn afresh. Written: out float[n, d], losses float[n], both at ``places``.
    """
    (outputs, inputs, origin, bias), (head, signed, fresh) = layer, loss
    kind, d = out.dtype.type, out.shape[1]
    w, errors = np.empty(d, out.dtype), np.empty((max(1, way[2].max()), outputs), out.dtype)
    for i in range(len(places)):
        start, n, b, done, steps = way[:, i]
        total, unit = out[places[i]], units[i]
        model = models[places[i] if len(models) > 1 else 0]
        turns = -(-n // b)
        for h in range(first, min(last, steps)):
            turn = 0 if fresh else (done + h) % turns
            count = min(b, n - turn * b)
            weight = kind(1) / kind(count) if fresh else kind(turns / n)
            share = shares[h - first, i] if len(shares) else kind(1)
            if h == 0:
                for j in range(d):
                    w[j], total[j] = model[j], kind(0)
            else:
                for j in range(d):
                    w[j] = model[j] - unit * total[j]
            lost = kind(0)
            for k in range(count):
                row = start + (listed[h - first, i, k] if len(listed) else turn * b + k)
                x, scores = features[row], errors[k]
                for s in range(outputs):
                    scores[s] = _dot(x, w[origin + s * inputs : origin + (s + 1) * inputs])
                    if bias >= 0:
                        scores[s] += w[bias + s]
                if head == CLASSES:
                    lost += _softmax(scores, int(targets[row]))
                else:
                    answer = kind(targets[row])
                    lost += _number(scores, answer + answer - kind(1) if signed else answer, head)
                for s in range(outputs):
                    scores[s] *= weight * share
            if h == 0:
                losses[places[i]] = lost / kind(count) + l2 / kind(2) * _dot(w, w)
            if l2 != 0:
                for j in range(d):
                    total[j] += share * l2 * w[j]
            for k in range(count):
                x = features[start + (listed[h - first, i, k] if len(listed) else turn * b + k)]
                for s in range(outputs):
                    part, error = total[origin + s * inputs : origin + (s + 1) * inputs], errors[k, s]
                    for m in range(inputs):
                        part[m] += error * x[m]
                    if bias >= 0:
                        total[bias + s] += error
            if h + 1 == steps and factors[i] != 1:
                for j in range(d):
                    total[j] *= factors[i]
