"""The models of the workloads, for the peers that use torch."""

from __future__ import annotations

import numpy as np
import torch
from given import Given
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters


def network(given: Given) -> nn.Sequential:
    """With the initial parameters."""
    if given.kind == "lr":
        layers: list[nn.Module] = [nn.Linear(given.features.shape[1], given.classes)]
    elif given.kind == "mlp":
        layers = [nn.Linear(given.features.shape[1], 128), nn.ReLU(), nn.Linear(128, given.classes)]
    else:
        layers = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
        layers += [nn.Linear(64 * 12 * 12, 128), nn.ReLU(), nn.Linear(128, given.classes)]
    model = nn.Sequential(*layers)
    vector_to_parameters(torch.from_numpy(given.initial.copy()), model.parameters())
    return model


def row(model: nn.Module) -> np.ndarray:
    """All parameters, float32[d]."""
    found: np.ndarray = parameters_to_vector(model.parameters()).detach().numpy()
    return found


def tensors(given: Given) -> tuple[Tensor, Tensor]:
    """(features, labels) without a copy."""
    return torch.from_numpy(given.features), torch.from_numpy(given.labels)


def train(model: nn.Module, features: Tensor, labels: Tensor, step: float, batch: int, scale: float) -> None:
    """One epoch in stored order, for frameworks that leave the local loop to their users."""
    optimizer = torch.optim.SGD(model.parameters(), lr=step)
    for xs, ys in zip(features.split(batch), labels.split(batch), strict=True):
        optimizer.zero_grad()
        (cross_entropy(model(xs), ys, reduction="sum") * scale).backward()
        optimizer.step()
