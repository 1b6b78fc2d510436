"""A classifier of any torch module: mean cross-entropy of its scores, plus l2/2 ||w||^2 of every parameter.

A model is one row (``fedsim.flat.ModuleRow``): the module's own parameters are never read, ``functional_call`` puts
views of the row in their place. Gradients are taken one client after another by autograd.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from fedsim.errors import ConfigError
from fedsim.flat import ModuleRow
from fedsim.models import check_module, cnn, mlp
from fedsim.plugins import NAMES_CODE
from fedsim.randomness import Purpose, Stream
from fedsim.tasks.chain import Chain, chained
from fedsim.tasks.layer import Layer, layer_inputs, module_layers, second_moment
from fedsim.tasks.linear import L2
from fedsim.tasks.mapped import Mapped, maps
from fedsim.tasks.stack import Classes, Stack, stack_of
from fedsim.tasks.task import Batch, Norm, penalised, penalty, portions
from fedsim.tasks.walker import Walker, forward, takes_pixels

if TYPE_CHECKING:
    from fedsim.data.examples import Examples

PORTION = 1024
"""Samples that go through the module at once when a loss is evaluated."""

Make = Callable[[], nn.Module]


NOT_CONVEX = "a step such as '4/L' or 'theory' needs a convex task, and a network has no L; give a number such as 0.1"


@dataclass(frozen=True, slots=True)
class Classifier:
    """Made by ``classifier``.

    make: a fresh module on the CPU. skeleton: one whose parameters hold no numbers. stack: of a module that is one.
    pixels: see ``takes_pixels``. maps: see ``fedsim.tasks.mapped``. compute: of the forward
    pass for gradients, None: dtype.
    """

    make: Make = field(repr=False)
    skeleton: nn.Module = field(repr=False)
    layout: ModuleRow
    l2: float
    dtype: torch.dtype
    device: torch.device
    stack: Stack | None = None
    classes: int = 0
    pixels: bool = False
    maps: bool = False
    compute: torch.dtype | None = None

    @property
    def walker(self) -> Callable[[bool], Walker]:
        """Makes a fresh module, whose parameters are overwritten."""
        return self._walker

    def _walker(self, summed: bool) -> Walker:
        module = seeded(self.make, seed=0).to(device=self.device, dtype=self.dtype).eval()
        head = Classes(self.classes)
        if self.compute is None and chained(module):
            return Chain(module, self.layout, head, self.l2, self.pixels, summed)
        return Walker(module, self.layout, head, self.l2, self.compute, self.pixels, summed)

    @property
    def mapped(self) -> Callable[[int, bool, Tensor], Mapped] | None:
        """Makes room for the parameters of many models."""
        return self._mapped if self.maps and self.compute is None else None

    def _mapped(self, room: int, summed: bool, like: Tensor) -> Mapped:
        return Mapped(self.skeleton, self.layout, Classes(self.classes), self.l2, room, summed, like)

    @property
    def dim(self) -> int:
        """Number of parameters."""
        return self.layout.dim

    @property
    def sizes(self) -> tuple[int, ...]:
        """Those of the parameters."""
        return tuple(stop - start for start, stop in pairwise(self.layout.offsets))

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Its Linear and Conv2d layers: see ``module_layers``."""
        return tuple(module_layers(self.skeleton, self.layout).values())

    def moments(self, model: Tensor, batch: Batch, layers: Sequence[Layer]) -> tuple[Tensor, ...]:
        """E z z' of what goes into each layer in a forward pass, float[A, A]; zero for a layer that is not called."""
        samples = batch.features.shape[1]
        seen: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}

        def noting(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
            def note(part: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
                seen[name].append(layer_inputs(part, given[0] if given else named["input"]))

            return note

        parts = dict(self.skeleton.named_modules())
        hooks = [parts[name].register_forward_pre_hook(noting(name), with_kwargs=True) for name in seen]
        try:
            with torch.no_grad():
                functional_call(self.skeleton, self.layout.views(model[0]), (batch.features[0],))
        finally:
            for hook in hooks:
                hook.remove()
        found = []
        for layer in layers:
            # A layer that is called twice has the places of both calls.
            calls = [_by_sample(layer, inputs, samples) for inputs in seen[layer.name]]
            together = torch.cat(calls, dim=1) if calls else batch.features.new_zeros((samples, 1, layer.inputs))
            found.append(second_moment(together, batch.weights[0], layer.bias is not None))
        return tuple(found)

    def initial(self, seed: int) -> Tensor:
        """The module's own initialisation, float[d]; torch's generators are left as they were."""
        module = seeded(self.make, seed)
        return self.layout.flatten(dict(module.named_parameters())).to(dtype=self.dtype, device=self.device)

    def gradients(self, models: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """float[n, d] -> (gradient rows float[n, d], losses float[n])."""
        found, losses = torch.empty(models.shape, dtype=models.dtype, device=models.device), []
        parts = zip(models, batch.features, batch.targets, batch.weights, found, strict=True)
        for model, features, targets, weights, row in parts:
            # Leaves, so that autograd writes each parameter's gradient once and not into a zero row for every view.
            leaves = {name: view.detach().requires_grad_() for name, view in self.layout.views(model).items()}
            with torch.enable_grad():
                scores = forward(partial(functional_call, self.skeleton, leaves), features, self.compute)
                loss = (weights * cross_entropy(scores, targets, reduction="none")).sum()
                slopes = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
            torch._foreach_copy_(list(self.layout.views(row).values()), slopes)
            losses.append(loss.detach())
        return penalised(models, found, torch.stack(losses), self.l2)

    def loss(self, model: Tensor, examples: Examples) -> float:
        """F of one model, float[d], over all examples."""
        return self.metrics(model, examples)["loss"]

    def metrics(self, model: Tensor, examples: Examples) -> dict[str, float]:
        """ "loss" and "accuracy" of the largest score."""
        total = torch.zeros(2, dtype=torch.float64, device=model.device)
        parameters = self.layout.views(model)
        with torch.no_grad():
            for features, targets in portions(examples, PORTION):
                scores = functional_call(self.skeleton, parameters, (features,))
                total[0] += cross_entropy(scores, targets, reduction="none").sum(dtype=torch.float64)
                total[1] += (scores.argmax(dim=1) == targets).sum()
        loss, accuracy = (total / examples.features.shape[0]).tolist()
        return {"loss": loss + penalty(model, self.l2), "accuracy": accuracy}

    def smoothness(self, examples: Examples, norm: Norm) -> float:
        """Raises ConfigError: a network's gradient has no Lipschitz constant."""
        raise ConfigError(NOT_CONVEX)

    def sample_smoothness(self, examples: Examples) -> float:
        """Raises ConfigError, like ``smoothness``."""
        raise ConfigError(NOT_CONVEX)

    def convexity(self, examples: Examples) -> float:
        """Raises ConfigError, like ``smoothness``."""
        raise ConfigError(NOT_CONVEX)


def _by_sample(layer: Layer, inputs: Tensor, samples: int) -> Tensor:
    """float[rows, places, M] -> float[samples, places, M]. Raises ConfigError when rows are no multiple of samples."""
    if inputs.shape[0] % samples:
        raise ConfigError(
            f"layer {layer.name!r} is called with {inputs.shape[0]} rows for {samples} samples, so whitening "
            "cannot tell whose they are; use direction.kind = 'gradient' and whitening.mode = 'off'"
        )
    return inputs.reshape(samples, -1, layer.inputs)


def classifier(
    make: Make, shape: tuple[int, ...], classes: int, l2: float, dtype: torch.dtype, device: torch.device
) -> Classifier:
    """The task of the module that ``make`` returns. Raises ConfigError for a module that cannot be a row."""
    module = seeded(make, seed=0)
    check_module(module, shape, classes)
    layout = ModuleRow.of(module)
    stack = stack_of(module, module_layers(module, layout), classes, l2)
    pixels = takes_pixels(module, shape, device)
    mapped = stack is None and maps(module, layout, Classes(classes), shape)
    return Classifier(make, _skeleton(module, dtype, device), layout, l2, dtype, device, stack, classes, pixels, mapped)


def seeded(make: Make, seed: int) -> nn.Module:
    """A module whose random initialisation depends on the seed alone; torch's generators are left as they were."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would also seed every GPU's generator, which is not forked here.
        torch.default_generator.manual_seed(Stream(seed, Purpose.INITIAL_MODEL).integer())
        return make()


def _skeleton(module: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The module with its constant buffers on the device and parameters without memory; shared ones stay shared."""
    empty = {p: nn.Parameter(torch.empty_like(p, dtype=dtype, device="meta")) for p in module.parameters()}
    for layer in module.modules():
        for name, parameter in list(layer.named_parameters(recurse=False, remove_duplicate=False)):
            setattr(layer, name, empty[parameter])
        for name, buffer in list(layer.named_buffers(recurse=False)):
            setattr(layer, name, buffer.to(device=device, dtype=dtype if buffer.is_floating_point() else None))
    return module.eval()


class MLP(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="mlp"):
    """A multilayer perceptron with ReLU.

    Args:
        hidden: widths of the hidden layers, first to last; none is softmax regression with a random start.
        l2: adds l2/2 ||w||^2 of every parameter.
    """

    hidden: tuple[Annotated[int, msgspec.Meta(ge=1)], ...] = (128,)
    l2: L2 = 0.0

    def build(
        self, shape: tuple[int, ...], classes: int | None, dtype: torch.dtype, device: torch.device
    ) -> Classifier:
        """The task for samples of this shape. Raises ConfigError unless the data has classes."""
        count = _classes("mlp", classes)
        return classifier(partial(mlp, shape, count, self.hidden), shape, count, self.l2, dtype, device)


class CNN(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="cnn"):
    """Two convolutions with GroupNorm, for images [channels, height, width].

    Args:
        width: channels of the first convolution; the second has twice as many.
        l2: adds l2/2 ||w||^2 of every parameter.
    """

    width: Annotated[int, msgspec.Meta(ge=1)] = 32
    l2: L2 = 0.0

    def build(
        self, shape: tuple[int, ...], classes: int | None, dtype: torch.dtype, device: torch.device
    ) -> Classifier:
        """The task for samples of this shape. Raises ConfigError unless they are images with classes."""
        count = _classes("cnn", classes)
        return classifier(partial(cnn, shape, count, self.width), shape, count, self.l2, dtype, device)


class Module(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="module"):
    """Any torch module without batch statistics or dropout.

    Args:
        factory: "package.module:function"; the function takes (shape of a sample, number of classes) and returns the
            module. It is called anew for each initial model.
        l2: adds l2/2 ||w||^2 of every parameter.
    """

    factory: Annotated[
        str, msgspec.Meta(description="'package.module:function' that returns the torch module", extra=NAMES_CODE)
    ]
    l2: L2 = 0.0

    def build(
        self, shape: tuple[int, ...], classes: int | None, dtype: torch.dtype, device: torch.device
    ) -> Classifier:
        """The task for samples of this shape. Raises ConfigError for a factory or module that cannot be used."""
        count = _classes("module", classes)
        return classifier(partial(from_factory, self.factory, shape, count), shape, count, self.l2, dtype, device)


def from_factory(path: str, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Call the function that "package.module:function" names. Raises ConfigError saying which part is wrong."""
    name, separator, attribute = path.partition(":")
    if not (name and separator and attribute):
        raise ConfigError(
            f"task.factory = {path!r}: expected 'package.module:function', for example 'my_models:resnet'"
        )
    try:
        function = getattr(importlib.import_module(name), attribute, None)
    except Exception as error:  # a user's module may fail in any way
        raise ConfigError(
            f"task.factory = {path!r}: cannot import {name!r} ({error}); install it or set PYTHONPATH"
        ) from error
    if not callable(function):
        raise ConfigError(f"task.factory = {path!r}: module {name!r} has no function {attribute!r}; check the name")
    try:
        module = function(shape, classes)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(f"task.factory = {path!r} failed for shape {list(shape)} ({reason}); mend it") from error
    if not isinstance(module, nn.Module):
        kind = type(module).__name__
        raise ConfigError(f"task.factory = {path!r} returned {kind}, expected a torch.nn.Module; return one")
    return module


def _classes(kind: str, classes: int | None) -> int:
    if classes is None:
        raise ConfigError(
            f"task.kind = {kind!r} needs classes, but the data has numbers to predict; use 'least-squares'"
        )
    return classes
