"""Linear models: least squares, logistic and softmax regression, with the gradients of n clients in closed form.

    paper     here      meaning
    x_j       features  a sample, float[d]; a column of ones in the data is the bias of the two scalar losses
    <w, x_j>  scores
    y_j       targets   a number, or -1 / +1 for the classes 0 / 1
    L_i       smoothness  largest eigenvalue (spectral) or Frobenius norm of a bound on the Hessian

    loss           F(w) - l2/2 ||w||^2               Hessian                          L - l2
    least squares  (1/n) sum (<w, x_j> - y_j)^2       2 X'X / n                        2 ||X'X|| / n
    logistic       (1/n) sum ln(1 + e^(-y_j<w, x_j>))  X' diag(s(1-s)) X / n, s(1-s) <= 1/4   ||X'X|| / (4 n)
    softmax        (1/n) sum -ln p_(y_j)              (1/n) sum (diag p - p p') (x) z z'     ||Z'Z|| / (2 n)

Least squares has no factor 1/2 and L may be the Frobenius norm, as in the published Artemis code; the spectral norm is
the tight one. Softmax has its own bias: z = (x, 1) and Z has the rows z. Its constant is derived here: diag p - p p' is
the covariance of a one-hot vector Y, so u'(diag p - p p')u = Var(u_Y) <= (max u - min u)^2 / 4 <= ||u||^2 / 2 (by
Popoviciu and (a - b)^2 <= 2 (a^2 + b^2)): it is at most 1/2 of the identity and the Hessian at most I (x) Z'Z / (2 n).
With "frobenius", L is ||Z'Z||_F / (2 n), the norm of one of the equal diagonal blocks; it is still an upper bound.

Source: Philippenko and Dieuleveut, arXiv 2006.14591, section 5 (losses); Boehning, "Multinomial logistic regression
algorithm", 1992 (the bound 1/2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

from fedsim.errors import ConfigError
from fedsim.tasks.layer import Layer, second_moment
from fedsim.tasks.stack import Classes, Number, Stack
from fedsim.tasks.task import Batch, Norm, penalised, penalty, portions

if TYPE_CHECKING:
    from fedsim.data.examples import Examples

PORTION = 16384
"""Samples whose scores are held at once when a loss is evaluated."""

L2 = Annotated[float, msgspec.Meta(ge=0)]


class Squares:
    """(score - target)^2."""

    curvature: ClassVar[float] = 2.0

    @staticmethod
    def losses(scores: Tensor, targets: Tensor) -> Tensor:
        """Elementwise loss."""
        return (scores - targets).square()

    @staticmethod
    def slopes(scores: Tensor, targets: Tensor) -> Tensor:
        """First derivative in the score."""
        return 2 * (scores - targets)

    @staticmethod
    def curvatures(scores: Tensor, targets: Tensor) -> Tensor:
        """Second derivative in the score."""
        return torch.full_like(scores, 2.0)


class Logits:
    """ln(1 + exp(-target * score)), target -1 or +1, without overflow or cancellation at any score."""

    curvature: ClassVar[float] = 0.25

    @staticmethod
    def losses(scores: Tensor, targets: Tensor) -> Tensor:
        """Elementwise loss."""
        return -logsigmoid(targets * scores)

    @staticmethod
    def slopes(scores: Tensor, targets: Tensor) -> Tensor:
        """First derivative in the score."""
        return -targets * torch.sigmoid(-targets * scores)

    @staticmethod
    def curvatures(scores: Tensor, targets: Tensor) -> Tensor:
        """Second derivative in the score."""
        return torch.sigmoid(scores) * torch.sigmoid(-scores)


@dataclass(frozen=True, slots=True)
class Linear:
    """One score <w, x> for each sample. signed: targets are the classes 0 and 1, meaning -1 and +1."""

    dim: int
    loss_of_score: type[Squares] | type[Logits]
    signed: bool
    l2: float
    dtype: torch.dtype
    device: torch.device

    @property
    def sizes(self) -> tuple[int, ...]:
        """One tensor."""
        return (self.dim,)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """One output without a bias: a column of ones in the data is a feature like any other."""
        return (Layer("scores", 1, self.dim, 0),)

    @property
    def walker(self) -> None:
        """None: its gradients are rows."""

    @property
    def mapped(self) -> None:
        """None: it is a stack."""

    @property
    def stack(self) -> Stack:
        """The one layer and its loss."""
        return Stack(self.layers, Number(self.loss_of_score(), self.signed), self.l2)

    def moments(self, model: Tensor, batch: Batch, layers: Sequence[Layer]) -> tuple[Tensor, ...]:
        """E x x' of the batch, float[d, d], whatever the model."""
        return _moments(batch, layers)

    def initial(self, seed: int) -> Tensor:
        """Zero, float[d]; the seed is not used."""
        return torch.zeros(self.dim, dtype=self.dtype, device=self.device)

    def gradients(self, models: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """float[n, d] -> (gradient rows float[n, d], losses float[n]): two batched matrix-vector products."""
        features, targets = batch.features.flatten(2), self.target_numbers(batch.targets)
        scores = torch.bmm(models[:, None, :], features.transpose(1, 2))[:, 0, :]
        slopes = batch.weights * self.loss_of_score.slopes(scores, targets)
        losses = (batch.weights * self.loss_of_score.losses(scores, targets)).sum(dim=1)
        return penalised(models, torch.bmm(slopes[:, None, :], features)[:, 0, :], losses, self.l2)

    def loss(self, model: Tensor, examples: Examples) -> float:
        """F of one model, float[d], over all examples."""
        return self.metrics(model, examples)["loss"]

    def metrics(self, model: Tensor, examples: Examples) -> dict[str, float]:
        """ "loss", and "accuracy" of the sign of the score where the targets are classes (a score of 0 is class 0)."""
        total = torch.zeros(2, dtype=torch.float64, device=model.device)
        for features, targets in portions(examples, PORTION):
            scores, numbers = features.flatten(1) @ model, self.target_numbers(targets)
            total[0] += self.loss_of_score.losses(scores, numbers).sum(dtype=torch.float64)
            total[1] += ((scores > 0) == (numbers > 0)).sum()
        return _means(total, examples, penalty(model, self.l2), classes=self.signed)

    def smoothness(self, examples: Examples, norm: Norm) -> float:
        """L of grad F: the table at the top of this file."""
        gram = gram_norm(examples.features.flatten(1), norm)
        return self.loss_of_score.curvature * gram / examples.features.shape[0] + self.l2

    def sample_smoothness(self, examples: Examples) -> float:
        """Largest L of one sample: curvature ||x||^2 + l2."""
        return self.loss_of_score.curvature * _largest_square(examples.features) + self.l2

    def convexity(self, examples: Examples) -> float:
        """mu of F: l2, and for least squares 2 lambda_min(X'X) / n more."""
        if self.loss_of_score is Logits:
            return self.l2
        features = examples.features.flatten(1).to(torch.float64)
        smallest = float(torch.linalg.eigvalsh(features.T @ features)[0].clamp_min(0))
        return 2 * smallest / examples.features.shape[0] + self.l2

    def hessian(self, model: Tensor, examples: Examples, weights: Tensor | None = None) -> Tensor:
        """Second derivative of F at one model, float[d, d]. weights: of the samples, float[n]; None: 1 / n each."""
        features = examples.features.flatten(1)
        weights = _shares(features) if weights is None else weights
        curvatures = self.loss_of_score.curvatures(features @ model, examples.targets) * weights
        return features.T @ (curvatures[:, None] * features) + self.l2 * _identity(model)

    def target_numbers(self, targets: Tensor) -> Tensor:
        """Classes 0 / 1 as -1 / +1; numbers as they are."""
        return (2 * targets - 1).to(self.dtype) if self.signed else targets


@dataclass(frozen=True, slots=True)
class SoftmaxRegression:
    """``classes`` scores for each sample; a row is the weights [classes, inputs] and then the biases [classes]."""

    inputs: int
    classes: int
    l2: float
    dtype: torch.dtype
    device: torch.device

    @property
    def dim(self) -> int:
        """(inputs + 1) * classes."""
        return (self.inputs + 1) * self.classes

    @property
    def sizes(self) -> tuple[int, ...]:
        """Weights and biases."""
        return self.inputs * self.classes, self.classes

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The one layer, with its bias."""
        return (Layer("scores", self.classes, self.inputs, 0, self.inputs * self.classes),)

    @property
    def walker(self) -> None:
        """None: its gradients are rows."""

    @property
    def mapped(self) -> None:
        """None: it is a stack."""

    @property
    def stack(self) -> Stack:
        """The one layer and the softmax."""
        return Stack(self.layers, Classes(self.classes), self.l2)

    def moments(self, model: Tensor, batch: Batch, layers: Sequence[Layer]) -> tuple[Tensor, ...]:
        """E z z' of the batch with z = (x, 1), float[inputs + 1, inputs + 1], whatever the model."""
        return _moments(batch, layers)

    def initial(self, seed: int) -> Tensor:
        """Zero, float[d]; the seed is not used."""
        return torch.zeros(self.dim, dtype=self.dtype, device=self.device)

    def gradients(self, models: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """float[n, d] -> (gradient rows float[n, d], losses float[n]): two batched matrix products."""
        features = batch.features.flatten(2)
        logs = self._log_probabilities(models, features)
        losses = -(batch.weights * logs.gather(2, batch.targets[:, :, None])[:, :, 0]).sum(dim=1)
        hits = batch.targets[:, :, None] == torch.arange(self.classes, device=features.device)
        slopes = batch.weights[:, :, None] * (logs.exp() - hits.to(self.dtype))
        weights = torch.bmm(slopes.transpose(1, 2), features)
        return penalised(models, torch.cat([weights.flatten(1), slopes.sum(dim=1)], dim=1), losses, self.l2)

    def loss(self, model: Tensor, examples: Examples) -> float:
        """F of one model, float[d], over all examples."""
        return self.metrics(model, examples)["loss"]

    def metrics(self, model: Tensor, examples: Examples) -> dict[str, float]:
        """ "loss" and "accuracy" of the largest score (the first of equal ones)."""
        total = torch.zeros(2, dtype=torch.float64, device=model.device)
        for features, targets in portions(examples, PORTION):
            logs = self._log_probabilities(model[None], features.flatten(1)[None])[0]
            total[0] -= logs.gather(1, targets[:, None]).sum(dtype=torch.float64)
            total[1] += (logs.argmax(dim=1) == targets).sum()
        return _means(total, examples, penalty(model, self.l2), classes=True)

    def smoothness(self, examples: Examples, norm: Norm) -> float:
        """L of grad F: the table at the top of this file."""
        return gram_norm(_with_ones(examples.features.flatten(1)), norm) / (2 * examples.features.shape[0]) + self.l2

    def sample_smoothness(self, examples: Examples) -> float:
        """Largest L of one sample: (||x||^2 + 1) / 2 + l2."""
        return (_largest_square(examples.features) + 1) / 2 + self.l2

    def convexity(self, examples: Examples) -> float:
        """mu of F: l2."""
        return self.l2

    def hessian(self, model: Tensor, examples: Examples, weights: Tensor | None = None) -> Tensor:
        """Second derivative of F at one model, float[d, d]. weights: of the samples, float[n]; None: 1 / n each."""
        features = examples.features.flatten(1)
        weights = _shares(features) if weights is None else weights
        shares = self._log_probabilities(model[None], features[None])[0].exp()
        rows, inputs, classes = _with_ones(features), self.inputs, self.classes
        blocks = model.new_zeros((classes, inputs + 1, classes, inputs + 1))
        for a in range(classes):
            for b in range(a, classes):
                products = shares[:, a] * (float(a == b) - shares[:, b]) * weights
                blocks[a, :, b] = rows.T @ (products[:, None] * rows)
                blocks[b, :, a] = blocks[a, :, b]
        # The blocks hold each class's weights and bias together; a row holds all weights and then all biases.
        places = torch.arange(self.dim, device=model.device).reshape(classes, inputs + 1)
        order = torch.cat([places[:, :inputs].reshape(-1), places[:, inputs]])
        return blocks.reshape(self.dim, self.dim)[order][:, order] + self.l2 * _identity(model)

    def _log_probabilities(self, models: Tensor, features: Tensor) -> Tensor:
        """models float[n, d], features float[n, b, inputs] -> float[n, b, classes]."""
        split = self.inputs * self.classes
        weights = models[:, :split].reshape(-1, self.classes, self.inputs)
        return log_softmax(torch.baddbmm(models[:, None, split:], features, weights.transpose(1, 2)), dim=2)


class LeastSquares(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="least-squares"):
    """Mean of (<w, x> - y)^2, without a factor 1/2. y is a number, or -1 / +1 for data with two classes.

    Args: l2: adds l2/2 ||w||^2.
    """

    l2: L2 = 0.0

    def build(self, shape: tuple[int, ...], classes: int | None, dtype: torch.dtype, device: torch.device) -> Linear:
        """The task for samples of this shape. Raises ConfigError for data with more than two classes."""
        if classes not in (None, 2):
            raise ConfigError(
                f"task.kind = 'least-squares' needs numbers to predict or 2 classes, but the data has {_said(classes)}"
            )
        return Linear(math.prod(shape), Squares, classes == 2, self.l2, dtype, device)


class Logistic(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="logistic"):
    """Mean of ln(1 + exp(-y <w, x>)) with y = -1 / +1 for the classes 0 / 1. The bias is a column of ones in the data.

    Args: l2: adds l2/2 ||w||^2.
    """

    l2: L2 = 0.0

    def build(self, shape: tuple[int, ...], classes: int | None, dtype: torch.dtype, device: torch.device) -> Linear:
        """The task for samples of this shape. Raises ConfigError unless the data has two classes."""
        if classes != 2:
            raise ConfigError(f"task.kind = 'logistic' needs data with 2 classes, but the data has {_said(classes)}")
        return Linear(math.prod(shape), Logits, True, self.l2, dtype, device)


class Softmax(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="softmax"):
    """Multinomial logistic regression with a bias, from the zero model: mean of -ln p(class | x).

    Args: l2: adds l2/2 ||w||^2 (weights and biases).
    """

    l2: L2 = 0.0

    def build(
        self, shape: tuple[int, ...], classes: int | None, dtype: torch.dtype, device: torch.device
    ) -> SoftmaxRegression:
        """The task for samples of this shape. Raises ConfigError unless the data has at least two classes."""
        if classes is None or classes < 2:
            raise ConfigError(
                f"task.kind = 'softmax' needs data with at least 2 classes, but the data has {_said(classes)}"
            )
        return SoftmaxRegression(math.prod(shape), classes, self.l2, dtype, device)


def _moments(batch: Batch, layers: Sequence[Layer]) -> tuple[Tensor, ...]:
    features = batch.features[0].flatten(1)[:, None]
    return tuple(second_moment(features, batch.weights[0], layer.bias is not None) for layer in layers)


def gram_norm(features: Tensor, norm: Norm) -> float:
    """||X'X|| of float[n, d] in float64. X'X and XX' have the same norms: the smaller of the two is formed."""
    if features.shape[0] < features.shape[1]:
        wide = features.to(torch.float64)
        gram = wide @ wide.T
    else:
        gram = features.new_zeros((features.shape[1], features.shape[1]), dtype=torch.float64)
        for start in range(0, features.shape[0], PORTION):
            wide = features[start : start + PORTION].to(torch.float64)
            gram += wide.T @ wide
    return float(torch.linalg.matrix_norm(gram)) if norm == "frobenius" else float(torch.linalg.eigvalsh(gram)[-1])


def _largest_square(features: Tensor) -> float:
    """Largest ||x||^2 over float[n, *shape]."""
    return float(features.flatten(1).square().sum(dim=1, dtype=torch.float64).amax())


def _means(total: Tensor, examples: Examples, penalty: float, classes: bool) -> dict[str, float]:
    """Sums of losses and of hits, float64[2] -> the metrics."""
    loss, accuracy = (total / examples.features.shape[0]).tolist()
    return {"loss": loss + penalty} | ({"accuracy": accuracy} if classes else {})


def _with_ones(features: Tensor) -> Tensor:
    return torch.cat([features, features.new_ones((features.shape[0], 1))], dim=1)


def _shares(features: Tensor) -> Tensor:
    return torch.full_like(features[:, 0], 1 / features.shape[0])


def _identity(model: Tensor) -> Tensor:
    return torch.eye(model.shape[0], dtype=model.dtype, device=model.device)


def _said(classes: int | None) -> str:
    """What the data has, and the task that fits it."""
    if classes is None:
        return "numbers to predict; use task.kind = 'least-squares'"
    if classes > 2:
        return f"{classes} classes; use task.kind = 'softmax'"
    return f"{classes} class; use data with more classes"
