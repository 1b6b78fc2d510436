import gzip
from pathlib import Path

import msgspec
import pytest
import torch

from fedsim.data import LibSVM, Source
from fedsim.data.svmlight import read_svmlight
from fedsim.errors import ConfigError, DataError

GOOD = "+1 1:0.5 3:2\n-1 2:1\n"


@pytest.fixture
def write(tmp_path):
    def write(text, name="a.txt"):
        path = tmp_path / name
        content = text if isinstance(text, bytes) else text.encode("utf-8")
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return str(path)

    return write


def raw(path, **options):
    return LibSVM(path, **({"standardise": False, "bias": False} | options)).load(0)


@pytest.mark.parametrize("name", ["a.txt", "a.gz", "zipped-without-a-suffix"])
def test_rows_and_labels(write, tmp_path, name):
    path = write(GOOD, name)
    if name.startswith("zipped"):
        (tmp_path / name).write_bytes(gzip.compress(GOOD.encode()))
    dataset = raw(path)
    assert dataset.train.features.tolist() == [[0.5, 0, 2], [0, 1, 0]]
    assert dataset.train.targets.tolist() == [1, 0]
    assert dataset.train.classes == 2
    assert dataset.train.features.dtype == torch.float64
    assert dataset.test is None
    assert dataset.name == name.removesuffix(".gz")


def test_comments_empty_lines_and_line_ends_of_windows(write):
    dataset = raw(write("# made by hand\r\n\r\n+1 1:0.5 3:2 # first\r\n-1 2:1\r\n"))
    assert dataset.train.features.tolist() == [[0.5, 0, 2], [0, 1, 0]]


def test_a_line_may_have_no_feature(write):
    assert raw(write("1\n2 1:4\n")).train.features.tolist() == [[0], [4]]


def test_standardised_with_bias_by_default(write):
    dataset = LibSVM(write("1 1:1\n2 1:3\n")).load(0)
    assert dataset.train.features.tolist() == [[1, -1], [1, 1]]


def test_labels_of_many_classes_are_numbered_in_ascending_order(write):
    dataset = raw(write("7 1:1\n-2 1:1\n10 1:1\n7 1:1\n"))
    assert dataset.train.targets.tolist() == [1, 0, 2, 1]
    assert dataset.train.classes == 3


def test_regression_targets_stand_as_they_are(write):
    dataset = raw(write("0.5 1:1\n-3 1:2\n"), target="regression")
    assert dataset.train.targets.tolist() == [0.5, -3]
    assert dataset.train.targets.dtype == torch.float64
    assert dataset.train.classes is None


def test_the_test_file_has_the_width_and_the_classes_of_the_training_file(write):
    dataset = raw(write(GOOD), test_path=write("-1 2:5\n", "t.gz"))
    assert dataset.test.features.tolist() == [[0, 5, 0]]
    assert dataset.test.targets.tolist() == [0]
    assert dataset.test.classes == 2


def test_a_regression_takes_any_test_label(write):
    dataset = raw(write("0.5 1:1\n"), test_path=write("0.25 1:1\n", "t"), target="regression")
    assert dataset.test.targets.tolist() == [0.25]


def test_features_widen_the_rows(write):
    assert raw(write(GOOD), features=5).train.features.shape == (2, 5)


def test_limit_keeps_the_first_rows_and_the_width_of_the_file(write):
    dataset = raw(write("1 1:1\n2 1:2\n3 9:3\n"), limit=2)
    assert dataset.train.features.shape == (2, 9)
    assert dataset.train.classes == 2
    assert len(raw(write("1 1:1\n2 1:2\n"), limit=99).train) == 2


def test_a_test_fraction_is_held_out(write):
    dataset = raw(write("".join(f"{i % 2} 1:{i}\n" for i in range(10))), test_fraction=0.2)
    assert (len(dataset.train), len(dataset.test)) == (8, 2)


@pytest.mark.parametrize(
    ("line", "found", "expected"),
    [
        ("x 1:1", "label 'x'", "finite number"),
        ("nan 1:1", "label 'nan'", "finite number"),
        ("1,2 1:1", "label '1,2'", "finite number"),
        ("1_0 1:1", "label '1_0'", "finite number"),
        ("1:1 2:1", "label '1:1'", "finite number"),
        ("1 2", "'2'", "index:value"),
        ("1 a:2", "'a:2'", "index:value"),
        ("1 1.5:2", "'1.5:2'", "index:value"),
        ("1 1_0:2", "'1_0:2'", "index:value"),
        ("1 qid:3 1:2", "'qid:3'", "index:value"),
        ("1 9999999999999999999999:2", "'9999999999999999999999:2'", "index:value"),
        ("1 1:", "value '' of index 1", "finite number"),
        ("1 1: 2", "value '' of index 1", "finite number"),
        ("1 1:x", "value 'x' of index 1", "finite number"),
        ("1 1:0x1p3", "value '0x1p3' of index 1", "finite number"),
        ("1 1:2_0", "value '2_0' of index 1", "finite number"),
        ("1 1:nan", "value 'nan' of index 1", "finite number"),
        ("1 1:-inf", "value '-inf' of index 1", "finite number"),
        ("1 1:1e999", "value '1e999' of index 1", "finite number"),
        ("1 1:2\0", r"value '2\x00' of index 1", "finite number"),
        ("1 1:2\u00e9", r"value '2\xc3\xa9' of index 1", "finite number"),
        ("1 0:2", "index 0", "expected 1 to 2147483647"),
        ("1 -1:2", "index -1", "expected 1 to 2147483647"),
        ("1 4294967297:2", "index 4294967297", "expected 1 to 2147483647"),
        ("1 3:2 3:1", "index 3 after index 3", "ascending"),
        ("1 3:2 1:1", "index 1 after index 3", "ascending"),
        ("1 1:" + "9" * 100 + "x", "value '" + "9" * 40 + "'", "finite number"),
    ],
)
@pytest.mark.parametrize("which", ["path", "test_path"])
def test_a_broken_line_is_named(write, refused, line, found, expected, which):
    broken = write(f"# a comment\n{GOOD}\n{line}\n1 1:1\n", "broken")
    files = {"path": broken} if which == "path" else {"path": write(GOOD), "test_path": broken}
    with refused(DataError, f"{broken}:5: ", found, expected):
        LibSVM(**files).load(0)


def test_a_label_that_is_no_class_names_its_line_and_the_way_out(write, refused):
    path = write("# c\n1 1:1\n\n0.5 1:1\n")
    with refused(DataError, f"{path}:4: label 0.5", "whole class number", 'target = "regression"'):
        raw(path)


def test_a_test_label_that_was_never_seen_names_its_line(write, refused):
    test = write("-1 1:1\n3 1:1\n", "t")
    with refused(DataError, f"{test}:2: label 3", "does not occur in the training rows"):
        raw(write(GOOD), test_path=test)


def test_a_test_index_beyond_the_training_features_names_the_way_out(write, refused):
    test = write("-1 1:1\n+1 4:1 9:1\n", "t")
    with refused(DataError, f"{test}:2: index 9", "expected 1 to 3", "features = 9"):
        raw(write(GOOD), test_path=test)
    assert raw(write(GOOD), test_path=test, features=9).test.features.shape == (2, 9)


def test_an_index_beyond_features_names_its_line(write, refused):
    path = write(GOOD)
    with refused(DataError, f"{path}:1: index 3", "expected 1 to 2", "features = 3"):
        raw(path, features=2)


def test_one_wild_index_does_not_ask_for_all_memory(write, refused):
    path = write("1 1:1\n2 2000000000:1\n")
    with refused(DataError, path, "2 rows of 2000000000 features take 32.0 GB", "expected at most", "line 2"):
        raw(path)
    with refused(DataError, path, "3000000000 features", "lower limit or features"):
        raw(write("1\n2\n"), features=3_000_000_000)


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n"])
def test_an_empty_file_is_named(write, refused, text):
    path = write(text)
    with refused(DataError, f"{path}: no line with data", "another file"):
        raw(path)


def test_a_file_without_features_is_named(write, refused):
    path = write("1\n2\n")
    with refused(DataError, f"{path}: no line has a feature", "give features"):
        raw(path)


def test_a_missing_file_is_named(tmp_path, refused):
    path = str(tmp_path / "nowhere.txt")
    with refused(DataError, f"{path}: no such file", "path"):
        raw(path)


def test_a_path_that_no_file_can_have_is_named(refused):
    with refused(DataError, r"'a\x00b' is not a path", "existing file"):
        raw("a\0b")


def test_a_folder_is_named(tmp_path, refused):
    with refused(DataError, f"{tmp_path}: cannot be read (Is a directory)", "path"):
        raw(str(tmp_path))


DAMAGES = [lambda b: b[:-9], lambda b: b[:20] + b"\xff\xff" + b[22:], lambda b: b[:-8] + bytes(8)]


@pytest.mark.parametrize("damage", DAMAGES, ids=["cut", "overwritten", "checksum"])
def test_damaged_gzip_is_named(tmp_path, refused, damage):
    path = tmp_path / "a.gz"
    path.write_bytes(damage(gzip.compress(GOOD.encode() * 50)))
    with refused(DataError, f"{path}: damaged gzip", "fetch it again"):
        raw(str(path))


def test_a_gzip_bomb_is_not_expanded(tmp_path, refused, monkeypatch):
    monkeypatch.setattr("fedsim.data.svmlight.MAX_TEXT", 1000)
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"\n" * 1001))
    with refused(DataError, f"{path}: longer than 1000 bytes"):
        raw(str(path))
    path.write_bytes(gzip.compress(GOOD.encode().ljust(1000, b"\n")))
    assert len(raw(str(path)).train) == 2


def test_one_class_is_refused(write, refused):
    with refused(DataError, "a.txt: all 2 training rows have class 0"):
        raw(write("5 1:1\n5 1:2\n"))


def test_two_test_sets_are_refused(write, refused):
    with refused(ConfigError, "test_path and test_fraction = 0.2", "keep one"):
        raw(write(GOOD), test_path=write(GOOD, "t"), test_fraction=0.2)


def test_a9a(libsvm_folder):
    dataset = LibSVM(str(libsvm_folder / "a9a.gz"), str(libsvm_folder / "a9a_test.gz")).load(0)
    assert dataset.train.features.shape == (32561, 124)
    assert dataset.test.features.shape == (16281, 124)
    assert torch.bincount(dataset.train.targets).tolist() == [24720, 7841]
    assert dataset.name == "a9a"


def test_the_line_of_a_row_counts_comments(write):
    text = read_svmlight(Path(write("# c\n1 1:1\n\n2 1:1\n")))
    assert [text.line(0), text.line(1)] == [2, 4]


def test_options_come_from_a_table():
    table = {"source": "libsvm", "path": "a", "limit": 3}
    assert msgspec.convert(table, Source) == LibSVM("a", limit=3)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(table | {"limits": 3}, Source)
