"""Which modules can be a row: every number that training changes is a parameter, and a sample's scores are its own.

Layers that are known to break this are named; what inspection cannot see (a functional dropout, a hand-written batch
norm) is found by running two samples through the module.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from fedsim.errors import ConfigError


def check_module(module: nn.Module, shape: tuple[int, ...], classes: int) -> None:
    """Raise ConfigError, naming the layer and the way out, unless the module maps [b, *shape] to [b, classes] as above.

    The module is on the CPU; its state and torch's generators are left as they were.
    """
    for name, layer in module.named_modules():
        where = f"layer {name or 'itself'!r} ({type(layer).__name__})"
        if isinstance(layer, _BatchNorm) or (isinstance(layer, _InstanceNorm) and layer.track_running_stats):
            raise ConfigError(
                f"{where} keeps running statistics or mixes the samples of a batch; use nn.GroupNorm instead"
            )
        if isinstance(layer, nn.RReLU) or _dropout(layer) > 0:
            raise ConfigError(
                f"{where} draws random numbers in training, which this version cannot replay; take it out"
            )
    _check_parameters(module)
    _probe(module, shape, classes)


def _dropout(layer: nn.Module) -> float:
    """The probability of a dropout layer, or of the dropout inside a recurrent or attention layer; else 0."""
    if isinstance(layer, _DropoutNd):
        return layer.p
    value = getattr(layer, "dropout", 0.0)
    return value if isinstance(value, float) else 0.0


def _check_parameters(module: nn.Module) -> None:
    named = dict(module.named_parameters())
    if not named:
        raise ConfigError(f"{type(module).__name__} has no parameters, so there is nothing to learn; give it a layer")
    for name, parameter in named.items():
        if is_lazy(parameter):
            raise ConfigError(
                f"parameter {name!r} is lazy, so the model has no size yet; give the layer its input size"
            )
        if not parameter.requires_grad:
            raise ConfigError(f"parameter {name!r} is frozen, but a module is trained whole; make it a buffer")
        if not parameter.is_floating_point():
            raise ConfigError(
                f"parameter {name!r} is {parameter.dtype}, but a row holds real numbers; make it a buffer"
            )


def _probe(module: nn.Module, shape: tuple[int, ...], classes: int) -> None:
    """Run two samples in training mode, again with other random numbers, and again beside another second sample.

    Seeded, so that the answer does not depend on what ran before; several times, so that draws cannot agree by chance.
    """
    kind = type(module).__name__
    dtype = next(module.parameters()).dtype
    ramp = torch.linspace(-1, 1, 3 * torch.Size(shape).numel(), dtype=dtype).reshape(3, *shape)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    modes = [(layer, layer.training) for layer in module.modules()]
    module.train()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            first, *again, beside = (_scores(module, samples) for samples in (*[ramp[:2]] * 9, ramp[[0, 2]]))
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{kind} does not take samples of shape {list(shape)}: {reason}") from error
    finally:
        for layer, training in modes:
            layer.training = training
    if not isinstance(first, Tensor) or first.shape != (2, classes):
        got = list(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise ConfigError(f"{kind} returned {got} for 2 samples of shape {list(shape)}, expected [2, {classes}] scores")
    for name, buffer in module.named_buffers():
        if not torch.equal(before[name], buffer):
            raise ConfigError(
                f"training changes buffer {name!r} of {kind}; use nn.GroupNorm instead of running statistics"
            )
    if not all(torch.equal(first, scores) for scores in again):
        raise ConfigError(
            f"{kind} draws random numbers in training, which this version cannot replay; take dropout out"
        )
    if not torch.allclose(first[0], beside[0], rtol=1e-4, atol=1e-5):
        raise ConfigError(
            f"{kind} lets the samples of a batch influence each other; use nn.GroupNorm for normalisation"
        )


def _scores(module: nn.Module, samples: Tensor) -> Tensor:
    with torch.no_grad():
        scores: Tensor = module(samples)
    return scores
