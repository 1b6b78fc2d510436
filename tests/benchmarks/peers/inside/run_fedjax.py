"""FedJAX with its jit backend: one compiled step for batches padded to one shape, which stay on the device."""

from __future__ import annotations

import sys
from typing import Any

import fedjax
import jax
import jax.numpy as jnp
import numpy as np
from given import Clock, Floats, Given, finish

Params = list[Any]


def shapes(given: Given) -> list[tuple[int, ...]]:
    """Of the parameters, in the order of the row."""
    inputs, classes = int(np.prod(given.features.shape[1:])), given.classes
    if given.kind == "lr":
        return [(classes, inputs), (classes,)]
    if given.kind == "mlp":
        return [(128, inputs), (128,), (classes, 128), (classes,)]
    convolutions: list[tuple[int, ...]] = [(32, 1, 3, 3), (32,), (64, 32, 3, 3), (64,)]
    return [*convolutions, (128, 64 * 12 * 12), (128,), (classes, 128), (classes,)]


def parameters(given: Given) -> Params:
    """The initial ones."""
    sizes = [int(np.prod(shape)) for shape in shapes(given)]
    parts = np.split(given.initial, np.cumsum(sizes)[:-1])
    found = [part.reshape(shape) for part, shape in zip(parts, shapes(given), strict=True)]
    return [jnp.asarray(transposed(part)) for part in found]


def transposed(part: Any) -> Any:
    """Matrices are [inputs, outputs] in jax; everything else is as in the row."""
    return np.ascontiguousarray(part.T) if part.ndim == 2 else part


def scores(kind: str, params: Params, x: Any) -> Any:
    """The model of the workload."""
    if kind == "cnn":
        for i in (0, 2):
            x = jax.lax.conv_general_dilated(x, params[i], (1, 1), "VALID") + params[i + 1][:, None, None]
            x = jax.nn.relu(x)
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
        x, params = x.reshape(x.shape[0], -1), params[4:]
    for i in range(0, len(params), 2):
        x = x @ params[i] + params[i + 1]
        if i + 2 < len(params):
            x = jax.nn.relu(x)
    return x


def batches(given: Given, client: int) -> list[dict[str, Any]]:
    """Of one epoch. A padded row has weight 0."""
    some = given.shard(client)
    weights = np.full(given.size(client), given.scale(client), np.float32)
    held = fedjax.ClientDataset({"x": given.features[some], "y": given.labels[some], "weight": weights})
    found = held.padded_batch(batch_size=given.batch, num_batch_size_buckets=1)
    return [{key: jnp.asarray(value) for key, value in batch.items()} for batch in found]


def play(given: Given) -> tuple[Clock, Floats]:
    """All rounds."""

    def loss(params: Params, batch: dict[str, Any]) -> Any:
        logs = jax.nn.log_softmax(scores(given.kind, params, batch["x"]))
        return -(batch["weight"] * jnp.take_along_axis(logs, batch["y"][:, None], axis=1)[:, 0]).sum()

    def step(params: Params, batch: dict[str, Any]) -> Params:
        slopes = jax.grad(loss)(params, batch)
        return [part - given.step * slope for part, slope in zip(params, slopes, strict=True)]

    train = fedjax.for_each_client(lambda shared, own: shared, step, lambda shared, params: params)
    data = [batches(given, client) for client in range(len(given.offsets) - 1)]
    params, random, clock = parameters(given), jax.random.PRNGKey(0), Clock()
    clock.start()
    for cohort in given.cohorts.tolist():
        clients = [(client, data[client], random) for client in cohort]
        ended = ((found, given.size(client)) for client, found in train(params, clients))
        params = jax.block_until_ready(fedjax.tree_util.tree_mean(ended))
        clock.tick()
    return clock, np.concatenate([transposed(np.asarray(part)).ravel() for part in params])


def main() -> None:
    with fedjax.for_each_client_backend("jit"):
        clock, found = play(Given.read(sys.argv[1]))
    finish(sys.argv[2], clock, found, "fedjax", f"jit, jax {jax.__version__}")


if __name__ == "__main__":
    main()
