"""The reader lets pass exactly what a slow line-by-line reader of the same rules lets pass, with the same numbers."""

import math
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedsim.data.svmlight import read_svmlight
from fedsim.errors import DataError

NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


def slow(text):
    """Rows as (label, {index: value}), or None when a rule is broken. Independent of the reader and of scikit-learn."""
    rows = []
    for line in text.split("\n"):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if not re.fullmatch(NUMBER, words[0]) or not math.isfinite(float(words[0])):
            return None
        values, last = {}, 0
        for word in words[1:]:
            match = re.fullmatch(rf"([+-]?\d+):({NUMBER})", word)
            if not match or not last < int(match[1]) < 2**31 or not math.isfinite(float(match[2])):
                return None
            last = int(match[1])
            values[last] = float(match[2])
        rows.append((float(words[0]), values))
    return rows or None


def read(text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.txt"
        path.write_text(text, encoding="ascii", newline="")
        return read_svmlight(path)


numbers = st.floats(allow_nan=False, allow_infinity=False).map(repr) | st.integers(-9, 9).map(str)
pairs = st.dictionaries(st.integers(1, 30), numbers, max_size=6).map(
    lambda values: " ".join(f"{index}:{values[index]}" for index in sorted(values))
)
lines = st.builds("{} {}{}".format, numbers, pairs, st.sampled_from(["", " # note 1:2", "\r", " "]))


@settings(max_examples=100, deadline=None)
@given(st.lists(lines | st.sampled_from(["", "# c"]), min_size=1, max_size=5).map("\n".join))
def test_good_text_is_read(text):
    expected = slow(text)
    if expected is None:
        with pytest.raises(DataError, match="no line with data"):
            read(text)
        return
    found = read(text)
    assert found.labels.tolist() == [label for label, _ in expected]
    dense = np.zeros((len(expected), found.width))
    for row, (_, values) in enumerate(expected):
        for index, value in values.items():
            dense[row, index - 1] = value
    assert np.array_equal(found.dense(found.width, len(expected)), dense)


@settings(max_examples=300, deadline=None)
@given(st.text("019 \t\n:.-+e_#naifq,x", max_size=24))
@example("1 +1:2")
@example("1 -0:2")
@example("1 01:2")
@example("1 1:1e308 2:1e309")
@example("0 1:1\x0b2:2")
@example("1 2147483647:1")
@example("1 2147483648:1")
def test_any_text_is_read_or_refused_by_the_rules(text):
    if (expected := slow(text)) is None:
        with pytest.raises(DataError) as caught:
            read(text)
        assert "\n" not in str(caught.value)
    else:
        found = read(text)
        assert found.labels.tolist() == [label for label, _ in expected]
        assert found.values.tolist() == [value for _, values in expected for value in values.values()]
        assert (found.columns + 1).tolist() == [index for _, values in expected for index in values]


@settings(max_examples=50, deadline=None)
@given(
    good=st.lists(lines, min_size=1, max_size=6), bad=st.sampled_from(["1 1:x", "1 2:1 1:1", "1 qid:1", "nan", "1_0"])
)
def test_the_named_line_is_the_broken_one(good, bad):
    at = len(good) // 2
    with pytest.raises(DataError, match=rf"a\.txt:{at + 1}: "):
        read("\n".join([*good[:at], bad, *good[at:]]))
