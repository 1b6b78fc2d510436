"""The random numbers of version 1, to the bit: a run can be repeated only while every number here stays what it is.

The statistical tests are fixed by their seeds; each would alarm on a perfect generator once in 10^7 seeds, the nine of
them together less than once in 10^6.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chi2, kstest, norm

from fedsim.randomness import SERVER, Purpose, Stream, philox
from tests.oracle import reference

FALSE_ALARM = 1e-7

# Random123's known answers for philox4x32-10: counter, key, output
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]

# seed, purpose, round, client, index: the first six words
GOLDEN = [
    ((0, 1, 0, 0, 0), "2dce73e5 1348e23f fcf8e0ec a287aadb e9535be3 510c4549"),
    ((0, 1, 7, SERVER, 0), "b5d7fc5a b8857721 3704abb7 92373b0e abd87042 18c98d45"),
    ((42, 2, 5, 12, 0), "89883672 e10a2e90 1924c7ed a0ddb693 f583bd97 46088e2e"),
    ((42, 2, 5, 12, 3), "d1b1c22f 9963860d 842a1ec4 8aedc2cb 940ec1a9 813f5491"),
    ((42, 2, 5, 12, 2**24 - 1), "2b07f40b 4da9cf86 64faad91 df8d370a 64999d17 4340d411"),
    ((1, 3, 3, 7, 0), "b5e506c6 f4e80ae8 0c2ab869 8673fb9b 5ad95bc5 e4a4b17b"),
    ((2**63 - 1, 4, 2**32 - 2, SERVER, 0), "3288f7e3 bc4c117e 96ea6bf0 85632ecd 48cac205 570c97b7"),
    ((0x123456789ABCDEF0, 5, 0, SERVER, 0), "0b3b942a 33616904 9dfcd3e6 00e0f02e c9bca450 c623c7df"),
    ((1, 6, 0, SERVER, 0), "35a312e1 1a17aa00 cc6540ed f90b351d 410e4ac8 0d906265"),
    ((1, 7, 0, SERVER, 0), "0050701c 49310693 f1379e71 db1ebb4a d551a912 62794c14"),
    ((1, 8, 0, SERVER, 0), "33214c76 0c1f65fc c195a1a7 dec871a4 df26fb00 bca41aab"),
]


def hexadecimal(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, answer: str) -> None:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in hexadecimal(counter))
    k0, k1 = hexadecimal(key)
    found = philox((c0, c1, c2, c3), (k0, k1))
    assert [int(word) for word in found] == hexadecimal(answer)
    assert all(word.dtype == torch.int64 for word in found)
    assert reference.philox(np.array([hexadecimal(counter)], np.uint32), (k0, k1)).tolist() == [hexadecimal(answer)]


@pytest.mark.parametrize(("address", "expected"), GOLDEN)
def test_golden_words(address: tuple[int, int, int, int, int], expected: str) -> None:
    seed, purpose, round, client, index = address
    for stream in (
        Stream(seed, Purpose(purpose), round, index),
        Stream(seed, Purpose(purpose), round=99, index=99).at(round, index),
    ):
        assert stream.words(torch.tensor([client]), 6).tolist() == [hexadecimal(expected)]
    assert reference.words(seed, purpose, round, client, 6, index).tolist() == hexadecimal(expected)


def test_purposes_keep_their_numbers() -> None:
    assert {purpose.name: purpose.value for purpose in Purpose} == {
        "PARTICIPATION": 1,
        "BATCH": 2,
        "UPLINK": 3,
        "DOWNLINK": 4,
        "INITIAL_MODEL": 5,
        "PARTITION": 6,
        "SPLIT": 7,
        "SYNTHETIC": 8,
        "ORDER": 9,
        "PLACES": 10,
        "SYNCHRONISE": 11,
        "ROTATION": 16,
        "NETWORK": 24,
    }
    assert SERVER == 2**32 - 1


def test_golden_uniform_numbers() -> None:
    stream, client = Stream(1, Purpose.UPLINK, 3), torch.tensor([7])
    narrow, wide = stream.uniform(client, 4, torch.float32), stream.uniform(client, 4, torch.float64)
    assert (narrow.dtype, wide.dtype) == (torch.float32, torch.float64)
    assert [number.hex() for number in narrow[0].tolist()] == [
        "0x1.6bca0c0000000p-1",
        "0x1.e9d0140000000p-1",
        "0x1.8557000000000p-5",
        "0x1.0ce7f60000000p-1",
    ]
    assert [number.hex() for number in wide[0].tolist()] == [
        "0x1.6bca0d8c00000p-1",
        "0x1.e9d015d000000p-1",
        "0x1.85570d2000000p-5",
        "0x1.0ce7f73600000p-1",
    ]


def test_golden_integer() -> None:
    assert Stream(1, Purpose.SPLIT).integer() == 0x0050701C_49310693
    assert Stream(42, Purpose.BATCH, 5).integer(client=12) == 0x89883672_E10A2E90


@pytest.mark.parametrize("width", [0, 1, 3, 4, 5, 30])
def test_the_numpy_oracle_draws_the_same(width: int) -> None:
    clients = [0, 1, 2**31 - 1, 2**31, SERVER]
    for seed, round, index in [(0, 0, 0), (2**32, 1, 0), (2**63 - 1, 2**32 - 1, 77), (987654321, 1000, 2)]:
        stream = Stream(seed, Purpose.UPLINK, round, index)
        found = stream.words(torch.tensor(clients), width)
        assert found.shape == (len(clients), width)
        for i, client in enumerate(clients):
            expected = reference.words(seed, reference.UPLINK, round, client, width, index)
            assert found[i].tolist() == expected.tolist()
            for dtype in (torch.float32, torch.float64):
                uniform = stream.uniform(torch.tensor([client]), width, dtype)[0].numpy()
                assert uniform.tobytes() == reference.uniforms(expected, uniform.dtype).tobytes()


def test_a_number_depends_on_its_address_alone() -> None:
    stream = Stream(3, Purpose.BATCH, 9, 2)
    everybody = stream.words(torch.arange(50), 41)
    for clients, width in [([7], 41), ([49, 0, 7], 40), ([7, 7], 1), ([3, 4, 5], 5)]:
        assert torch.equal(stream.words(torch.tensor(clients), width), everybody[clients, :width])
    assert stream.words(torch.tensor([], dtype=torch.int64), 5).shape == (0, 5)


def test_addresses_do_not_meet() -> None:
    """All of (seed, purpose, round, client, index) decide the first block; chance of a tie by accident: 2^-99."""
    blocks = set()
    for seed in (0, 1, 2**32, 2**32 + 1):
        for purpose in Purpose:
            for round in (0, 1, 2, 256, 65536):
                for index in (0, 1, 255, 256, 2**24 - 1):
                    words = Stream(seed, purpose, round, index).words(torch.arange(25), 4)
                    blocks |= set(map(tuple, words.tolist()))
    assert len(blocks) == 4 * len(Purpose) * 5 * 5 * 25


# ----------------------------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_numbers_are_uniform(dtype: torch.dtype) -> None:
    """Kolmogorov-Smirnov on 120 000 numbers."""
    numbers = Stream(8, Purpose.UPLINK, 4).uniform(torch.arange(400), 300, dtype)
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    assert kstest(numbers.reshape(-1).numpy(), "uniform").pvalue > FALSE_ALARM


def test_every_bit_is_balanced() -> None:
    """Ones in each of the 32 bits of 120 000 words, against the normal limit of the binomial (32 tests share it)."""
    words = Stream(8, Purpose.DOWNLINK, 4).words(torch.arange(400), 300).reshape(-1)
    ones = np.array([int(((words >> bit) & 1).sum()) for bit in range(32)])
    z = (ones - len(words) / 2) / np.sqrt(len(words) / 4)
    assert np.abs(z).max() < norm.isf(FALSE_ALARM / 32 / 2)


def neighbours() -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    clients = torch.arange(300)
    base = Stream(5, Purpose.UPLINK, 10, 1)
    words = base.words(clients, 200)
    return {
        "coordinates": (words[:, :-1].numpy(), words[:, 1:].numpy()),
        "clients": (words[:-1].numpy(), words[1:].numpy()),
        "rounds": (words.numpy(), base.at(11, 1).words(clients, 200).numpy()),
        "indices": (words.numpy(), base.at(10, 2).words(clients, 200).numpy()),
        "purposes": (words.numpy(), Stream(5, Purpose.DOWNLINK, 10, 1).words(clients, 200).numpy()),
        "seeds": (words.numpy(), Stream(6, Purpose.UPLINK, 10, 1).words(clients, 200).numpy()),
    }


@pytest.mark.parametrize("what", neighbours())
def test_neighbours_are_independent(what: str) -> None:
    """Chi-square over 16 x 16 cells of (leading 4 bits, leading 4 bits) of 60 000 pairs of neighbours."""
    one, other = neighbours()[what]
    cells = np.bincount(((one >> 28) * 16 + (other >> 28)).ravel(), minlength=256)
    expected = one.size / 256
    assert ((cells - expected) ** 2 / expected).sum() < chi2.isf(FALSE_ALARM, df=255)
