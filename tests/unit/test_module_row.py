from __future__ import annotations

import torch
from torch import nn

from fedsim.flat import ModuleRow


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight


def test_layout_follows_named_parameters() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(5, 4, bias=False))
    layout = ModuleRow.of(module)
    assert layout.names == ("0.weight", "0.bias", "2.weight")
    assert layout.shapes == ((2, 1, 3, 3), (2,), (4, 5))
    assert layout.offsets == (0, 18, 20, 40)
    assert layout.dim == 40 == sum(p.numel() for p in module.parameters())


def test_a_row_goes_there_and_back() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(5, 4))
    layout = ModuleRow.of(module)
    row = layout.flatten(dict(module.named_parameters()))
    assert not row.requires_grad
    torch.testing.assert_close(row, nn.utils.parameters_to_vector(module.parameters()).detach(), rtol=0, atol=0)
    views = layout.views(row)
    for name, parameter in module.named_parameters():
        assert torch.equal(views[name], parameter)
        assert views[name].untyped_storage().data_ptr() == row.untyped_storage().data_ptr()
    views["0.bias"].fill_(7.0)
    assert (row[18:20] == 7).all()
    assert torch.equal(layout.flatten(views), row)


def test_a_row_inside_a_cohort_is_viewed_in_place() -> None:
    layout = ModuleRow.of(nn.Linear(2, 3))
    rows = torch.arange(27.0).reshape(3, 9)
    views = layout.views(rows[1])
    assert views["weight"].tolist() == [[9, 10], [11, 12], [13, 14]]
    assert views["bias"].tolist() == [15, 16, 17]


def test_a_shared_parameter_counts_once() -> None:
    layout = ModuleRow.of(Tied())
    assert layout.names == ("first.weight", "first.bias", "second.bias")
    assert layout.dim == 15


def test_a_module_without_parameters_is_an_empty_row() -> None:
    assert ModuleRow.of(nn.ReLU()) == ModuleRow((), (), (0,))
    assert ModuleRow.of(nn.ReLU()).dim == 0
