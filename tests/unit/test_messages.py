"""What travels between a pool and its workers arrives as it was, and nothing but data does."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest
import torch
from safetensors.torch import save

from fedsim.errors import ConfigError, FedsimError
from fedsim.randomness import Purpose, Stream
from fedsim.simulation.messages import Work, answer_bytes, answer_of, work_bytes, work_of
from fedsim.solvers.memory import Memory
from fedsim.solvers.plan import Done

NOTES = {
    "velocity": torch.tensor([[1.5, -0.0, float("inf")]]),
    "length": torch.tensor(2.0, dtype=torch.float64),
    "half": torch.ones(2, 3, dtype=torch.bfloat16).T,
    "none": torch.zeros(0, 4),
    "count": torch.arange(3),
}


def equal(one: Memory, other: Memory) -> bool:
    assert one.steps == other.steps
    for mine, theirs in ((one.rate, other.rate), (one.direction, other.direction)):
        assert list(mine) == list(theirs)
        for name, note in mine.items():
            assert (note.dtype, note.shape) == (theirs[name].dtype, theirs[name].shape)
            assert save({"": note.contiguous()}) == save({"": theirs[name].contiguous()})
    return True


def test_work() -> None:
    stream = Stream(2**63 - 5, Purpose.BATCH, 2**31, 7)
    known = {3: Memory(9, {"L": NOTES["length"]}, MappingProxyType(NOTES)), 8: Memory()}
    work = Work(True, [3, 8], stream, known, [[1], [0]])
    found = work_of(work_bytes(work))
    assert (found.shared, found.numbers, found.stream, found.groups) == (True, [3, 8], stream, [[1], [0]])
    assert found.stream.purpose is Purpose.BATCH
    assert found.known.keys() == known.keys()
    assert all(equal(found.known[client], known[client]) for client in known)


def test_what_was_done() -> None:
    done = [
        Done(np.array([4, 5]), np.array([8, 10]), [Memory(1), Memory(2, {}, NOTES)]),
        Done(np.array([1]), np.array([2]), [Memory(3)]),
    ]
    found = answer_of(answer_bytes(done))
    assert isinstance(found, list)
    for one, other in zip(done, found, strict=True):
        assert other.samples.dtype == other.gradients.dtype == np.int64
        assert (one.samples.tolist(), one.gradients.tolist()) == (other.samples.tolist(), other.gradients.tolist())
        assert all(equal(*pair) for pair in zip(one.memories, other.memories, strict=True))


class UnspeakableError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ConfigError("no such key"), ConfigError, "no such key"),
        (FedsimError(""), FedsimError, ""),
        (ZeroDivisionError("division by zero"), ZeroDivisionError, "division by zero"),
        (SystemExit("enough"), SystemExit, "enough"),
        (UnspeakableError("a class of one's own"), RuntimeError, "UnspeakableError: a class of one's own"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), RuntimeError, "UnicodeDecodeError: 'utf-8' codec can't"),
    ],
)
def test_what_went_wrong(error: BaseException, kind: type[BaseException], text: str) -> None:
    found = answer_of(answer_bytes(error))
    assert type(found) is kind
    assert str(found).startswith(text)


def test_what_is_not_data_stays_at_home() -> None:
    memory = Memory(1, {}, {"f": print})  # type: ignore[dict-item]
    with pytest.raises(NotImplementedError, match="builtin_function_or_method does not travel"):
        answer_bytes([Done(np.array([1]), np.array([1]), [memory])])
