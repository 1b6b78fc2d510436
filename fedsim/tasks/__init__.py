"""What is learned. A task works on rows: models float[n, d] in, gradients float[n, d] out."""

from __future__ import annotations

from fedsim.tasks.classifier import CNN, MLP, Classifier, Module
from fedsim.tasks.linear import LeastSquares, Linear, Logistic, Softmax, SoftmaxRegression
from fedsim.tasks.optimum import optimum
from fedsim.tasks.task import Batch, Norm, Task

TaskOptions = LeastSquares | Logistic | Softmax | MLP | CNN | Module

__all__ = [
    "CNN",
    "MLP",
    "Batch",
    "Classifier",
    "LeastSquares",
    "Linear",
    "Logistic",
    "Module",
    "Norm",
    "Softmax",
    "SoftmaxRegression",
    "Task",
    "TaskOptions",
    "optimum",
]
