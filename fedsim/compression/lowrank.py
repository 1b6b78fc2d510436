"""Low rank: a row, seen as a matrix, is projected onto a few directions found by one power iteration (PowerSGD).

    S  float[columns, rank]   random start, its entries independent and symmetric
    P  = M S, made orthonormal column by column (Gram-Schmidt, twice)
    Q  = M^T P                                          C(M) = P Q^T = P P^T M

    paper   here      meaning
    M       matrix    the row, row by row and zeros at the end, [rows, columns]: as square as can be, rows >= columns
    r       rank      number of columns of P and Q
    P, Q    left, right

Biased: a projection, so ||M - C(M)|| <= ||M|| whatever the start. More is true over starts: delta = r / columns. Let B
be an orthonormal basis of the range of S. P spans the range of M S, which holds that of M B, so P P^T M B = M B, and
||M B|| = ||P (P^T M) B|| <= ||P^T M|| = ||C(M)||, where the columns of P are orthonormal (Frobenius norms). S has the
same law when its rows are permuted or change sign, and so has B B^T: its mean is a multiple of the identity, of trace r
(when S has full rank). So E||C(M)||^2 >= E||M B||^2 = r / columns ||M||^2. It is reached by an orthogonal M.

The start is drawn anew in each round, for there is no state: PowerSGD proper starts from the last round's Q, and gets
closer to the best rank as directions stay. P and Q are rounded to float32, so all this holds up to 2^-22 relative. Sums
are ``flat.tree_sum``, in float64: library matrix products and QR may give a row other bits in another cohort.

The shape is that of the row, not of the tensors of a model: a message knows the number of coordinates alone.

Source: Vogels, Karimireddy and Jaggi, "PowerSGD", NeurIPS 2019, algorithm 1, without warm start. delta is derived here.
"""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
import torch
from torch import Tensor

from fedsim.compression import places
from fedsim.compression.payload import Factors, FactorsLayout, Layout, Payload
from fedsim.errors import WireError
from fedsim.flat import tree_sum
from fedsim.randomness import Stream

_VANISHED = 1e-12
"""Share of a column below which what is left of it beside those before it is rounding: it lay in their span."""


class LowRank(msgspec.Struct, frozen=True, tag_field="compressor", tag="low-rank", forbid_unknown_fields=True):
    """PowerSGD without memory of the last round.

    Args:
        rank: r; at most the number of columns, floor(sqrt(d)), is used.
        columns: of the matrix, at most d; 0: floor(sqrt(d)).
    """

    rank: Annotated[int, msgspec.Meta(ge=1)] = 2
    columns: Annotated[int, msgspec.Meta(ge=0)] = 0

    def layout(self, d: int) -> Layout:
        """The shape of a message for rows of ``d`` coordinates."""
        return self._layout(d)

    def _layout(self, d: int) -> FactorsLayout:
        columns = min(self.columns, d) or math.isqrt(d)
        rows = -(-d // columns)
        return FactorsLayout(d, rows, columns, min(self.rank, rows, columns))

    def compress(self, rows: Tensor, noise: Stream, clients: Tensor) -> Payload:
        """float[n, d] -> Factors. Raises DivergedError when a row is not finite or too large for float32."""
        n, layout = len(rows), self._layout(rows.shape[1])
        size, rank = layout.rows * layout.columns, layout.rank
        wide = torch.nn.functional.pad(places.finite(rows).to(torch.float64), (0, size - layout.d))
        matrix = wide.reshape(n, layout.rows, layout.columns)
        words = noise.words(clients, rank * layout.columns).to(rows.device)
        starts = ((words + 0.5) * 2.0**-31 - 1.0).reshape(n, rank, layout.columns)  # in (-1, 1), never zero
        left = torch.zeros(n, rank, layout.rows, dtype=torch.float64, device=rows.device)
        right = torch.zeros(n, rank, layout.columns, dtype=torch.float64, device=rows.device)
        for i in range(rank):
            left[:, i] = _orthonormal(tree_sum(matrix * starts[:, i, None, :], dim=2), left[:, :i])
        narrow = left.to(torch.float32)
        for i in range(rank):  # with what the receiver has
            right[:, i] = tree_sum(matrix * narrow[:, i, :, None], dim=1)
        return Factors(layout, narrow, places.finite(right.to(torch.float32)))

    def decompress(self, payload: Payload, dtype: torch.dtype) -> Tensor:
        """Factors -> dtype[n, d]."""
        if not isinstance(payload, Factors) or payload.layout != self.layout(payload.layout.d):
            raise WireError(f"low-rank of rank {self.rank} got {type(payload).__name__} of another layout")
        layout, n = payload.layout, len(payload.left)
        left, right = payload.left.to(torch.float64), payload.right.to(torch.float64)
        matrix = left.new_zeros(n, layout.rows, layout.columns)
        for i in range(layout.rank):
            matrix += left[:, i, :, None] * right[:, i, None, :]
        return matrix.flatten(1)[:, : layout.d].to(dtype)

    def omega(self, d: int) -> float:
        """Infinity: biased; unless every direction is kept."""
        return 0.0 if self.delta(d) == 1 else math.inf

    def delta(self, d: int) -> float:
        """r / columns; 1 where every direction is kept."""
        layout = self._layout(d)
        return 1.0 if layout.rank == layout.rows else layout.rank / layout.columns

    def formula_bits(self, d: int) -> tuple[float, float]:
        """(bits of one message, bits shared by a round): 32 r (rows + columns), and 0."""
        layout = self._layout(d)
        return 32.0 * layout.rank * (layout.rows + layout.columns), 0.0


def _orthonormal(column: Tensor, basis: Tensor) -> Tensor:
    """Unit vectors along what is left of float64[n, a] beside orthonormal ones, [n, i, a]; zero where nothing is."""
    length = tree_sum(column * column, dim=1).sqrt()
    for _ in range(2):  # once leaves a part of the basis of the order of what was lost to cancellation
        for i in range(basis.shape[1]):
            column = column - tree_sum(column * basis[:, i], dim=1)[:, None] * basis[:, i]
    left = tree_sum(column * column, dim=1).sqrt()
    kept = left > _VANISHED * length
    return torch.where(kept[:, None], column / torch.where(kept, left, torch.ones_like(left))[:, None], 0.0)
