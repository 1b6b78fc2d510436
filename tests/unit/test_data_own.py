"""Clients' own files: what they hold, how they are read, and every way in which they do not fit the experiment."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fedsim
from fedsim.data import Federation, Iid, Natural, Own, deal
from fedsim.data.table import read_table
from fedsim.ends.part import part_of
from fedsim.errors import CheckpointError, ConfigError, DataError
from fedsim.experiment import Experiment
from fedsim.simulation.run import resume
from fedsim.simulation.setup import prepare
from tests.own_files import OWN, SIZES, digits, write_images, write_three

Refused = Callable[..., Any]
CSV = "x,y,kind\n1,2,0\n3,4.5,1\n"


def own(paths: list[Path] | list[str], samples: list[int], **more: Any) -> Own:
    table = {"source": "own", "shape": [2], "classes": 2, "samples": samples, "paths": [str(path) for path in paths]}
    return msgspec.convert({**table, **more}, Own)


def one(folder: Path, text: str, name: str = "a.csv", samples: int = 2, **more: Any) -> Federation:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return own([path], [samples], **more).federation()


def test_three_formats_hold_the_same_samples(tmp_path: Path) -> None:
    paths = write_three(tmp_path)
    source = msgspec.convert({**OWN["data"], "paths": paths}, Own)
    found = source.federation()
    pixels, targets = digits()
    assert found.sizes.tolist() == SIZES
    expected = torch.from_numpy(pixels[: sum(SIZES)]).reshape(-1, 1, 8, 8).to(torch.float64) / 255 / 0.2
    assert torch.equal(found.targets[:90], torch.from_numpy(targets[:90]))
    torch.testing.assert_close(found.features[:90], expected[:90], rtol=1e-15, atol=0)
    # A folder's order is that of its names: by class, then by number.
    order = torch.argsort(torch.from_numpy(targets[90:120]), stable=True)
    assert torch.equal(found.targets[90:], torch.from_numpy(targets[90:120])[order])
    torch.testing.assert_close(found.features[90:], expected[90:][order], rtol=2e-7, atol=0)
    # What a machine has of it are the same bits, whatever the others have.
    for client in range(3):
        alone = msgspec.structs.replace(source, paths=tuple(p if i == client else "" for i, p in enumerate(paths)))
        for precision in (torch.float32, torch.float64):
            here, everywhere = alone.federation().to("cpu", precision), found.to("cpu", precision)
            assert here.sizes.tolist() == [size if i == client else 0 for i, size in enumerate(SIZES)]
            assert torch.equal(here.shard(client).features, everywhere.shard(client).features)
            assert torch.equal(here.shard(client).targets, everywhere.shard(client).targets)


@pytest.mark.parametrize(
    ("name", "text", "more"),
    [
        ("a.csv", CSV, {}),
        ("a.csv.gz", CSV, {}),
        ("A.CSV", "1,2,0\r\n\r\n3,4.5,1\r\n", {}),
        ("a.csv", "\ufeff" + CSV, {}),
        ("a.csv", 'kind,x,"y, really"\n0,1, 2\n"1",3,"4.5"\n', {"label": "kind"}),
        ("a.csv", CSV.replace(",0\n", ",no\n").replace(",1\n", ",yes\n"), {"names": ["no", "yes"]}),
        ("a.csv", CSV.replace(",0\n", ",-1.0\n"), {"names": ["-1", "+1"]}),
        ("a.csv", CSV.replace(",0\n", ",-1.0\n"), {"classes": 0}),
        ("a.svm", "-1 1:1 2:2\n+1 1:3 2:4.5\n", {"names": ["-1", "1"]}),
        ("a.txt", "0 1:1 2:2\n1 1:3 2:4.5 # last\n", {}),
        ("a.svm", "\ufeff0 1:1 2:2\n1 1:3 2:4.5\n", {}),
        ("a.libsvm.gz", "-1 1:1 2:2\n1 1:3 2:4.5\n", {"classes": 0}),
    ],
)
def test_what_is_read(name: str, text: str, more: dict[str, Any], tmp_path: Path) -> None:
    found = one(tmp_path, text, name, **more)
    assert found.features.tolist() == [[1, 2], [3, 4.5]]
    assert found.targets.tolist() == ([-1.0, 1.0] if more.get("classes") == 0 else [0, 1])
    assert (found.classes, found.features.dtype) == (more.get("classes", 2) or None, torch.float64)


def test_constants_are_declared(tmp_path: Path) -> None:
    assert one(tmp_path, CSV, mean=[1, 2], scale=[2.0]).features.tolist() == [[0, 0], [1, 1.25]]
    assert one(tmp_path, CSV, mean=[1], scale=[1.0, 0.5], bias=True).features.tolist() == [[1, 0, 2], [1, 2, 7]]


@given(st.lists(st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 3), min_size=1, max_size=5))
def test_a_number_comes_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, ...]]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.csv"
    path.write_text("\n".join(",".join(map(repr, row)) for row in rows))
    table = read_table(path, 2)
    assert [list(map(repr, row)) for row in table.features.tolist()] == [list(map(repr, row[:2])) for row in rows]
    assert list(table.labels) == [repr(row[2]) for row in rows]


WRONG = {
    ("a.csv", "1,2,0\n"): ["a.csv: 1 samples, but data.samples says 2 for client 0; mend either"],
    ("a.csv", CSV + "5,6,0\n"): ["a.csv: 3 samples, but data.samples says 2 for client 0"],
    ("a.csv", ""): ["a.csv: no line with data"],
    ("a.csv", "x,y,kind\n"): ["a.csv: no line with data"],
    ("a.csv", "1,2,0\n\n3,4\n"): ["a.csv:3: 2 columns, expected 3, which are 2 features and a label"],
    ("a.csv", "x;y;kind\n1;2;0\n"): ["a.csv:1: 1 columns, expected 3", "it is separated by semicolons"],
    ("a.csv", "1,5;2;0\n3;4;1\n"): ["a.csv:1: 2 columns, expected 3", "it is separated by semicolons"],
    ("a.csv", "1\t2\t0\n3\t4\t1\n"): ["a.csv:1: 1 columns, expected 3", "it is separated by tabs"],
    ("a.csv", "x,y,kind\n1,2,0\n3,four,1\n"): ["a.csv:3: column 2 ('y') is 'four', expected one finite number"],
    ("a.csv", "1,2,0\n3,,1\n"): ["a.csv:2: column 2 is '', expected one finite number"],
    ("a.csv", "1,2,0\n3,1_000,1\n"): ["a.csv:2: column 2 is '1_000'"],
    ("a.csv", "1,2,0\n3,nan,1\n"): ["a.csv:2: column 2 is 'nan'"],
    ("a.csv", "1,2,0\n3,1e999,1\n"): ["a.csv:2: column 2 is '1e999'"],
    ("a.csv", '1,2,0\n3,"4,1\n'): ["a.csv: not CSV"],
    ("a.csv", "1,2,0\n3,4,7\n"): ["a.csv:2: label '7', expected one of 0 to 1"],
    ("a.csv", "1,2,0\n3,4,cat\n"): ["a.csv:2: label 'cat', expected one of 0 to 1"],
    ("a.csv", "1,2,0\n3,4,0.5\n"): ["a.csv:2: label '0.5', expected one of 0 to 1"],
    ("a.svm", "0 1:1\n1 3:1\n"): ["a.svm:2: index 3, expected 1 to 2, the number of features; set data.shape = 3"],
    ("a.svm", "0 1:1\n\n2 2:1\n"): ["a.svm:3: label '2.0', expected one of 0 to 1"],
    ("a.svm", "0 1:1\n1 2:x\n"): ["a.svm:2: value 'x' of index 2"],
    ("a.parquet", "1"): ["a.parquet: ends in none of .csv, .svm, .libsvm, .txt; give the path of such a file"],
    ("README", "1"): ["README: ends in none of .csv"],
}


@pytest.mark.parametrize(("name", "text"), WRONG)
def test_a_file_that_does_not_fit(name: str, text: str, tmp_path: Path, refused: Refused) -> None:
    with refused(DataError, str(tmp_path), *WRONG[name, text]):
        one(tmp_path, text, name)


def test_other_files_that_do_not_fit(tmp_path: Path, refused: Refused) -> None:
    with refused(DataError, "a.csv:1: 0 columns are named 'kin' (data.label) (did you mean 'kind'?)"):
        one(tmp_path, CSV, label="kin")
    with refused(DataError, "a.csv:3: label '1', expected one of no, yes"):
        one(tmp_path, CSV.replace(",0\n", ",no\n"), names=["no", "yes"])
    with refused(DataError, "a.csv:2: label 'no', expected one finite number"):
        one(tmp_path, CSV.replace(",0\n", ",no\n"), classes=0)
    with refused(DataError, "a.csv: data row 1 (from 0) has NaN or infinity in its features"):
        one(tmp_path, "1,2,0\n3,1e300,1\n", scale=[1e-300])
    with refused(DataError, "b.csv: no such file; "):
        own([tmp_path / "b.csv"], [2]).federation()
    with refused(DataError, "b.csv.gz: no such file; "):
        own([tmp_path / "b.csv.gz"], [2]).federation()
    with refused(DataError, "images: no such file or folder; give the path of such a file, or of a folder of images"):
        own([tmp_path / "images"], [2]).federation()
    with refused(ConfigError, "data.paths has 2 items, expected 0 or 1; "):
        own(["a", "b"], [2]).federation()
    (tmp_path / "c.csv").write_bytes(b"1,2,0\n\xff,4,1\n")
    with refused(DataError, "c.csv: byte 6 is not UTF-8 text"):
        own([tmp_path / "c.csv"], [2]).federation()


def test_numbers_that_float32_has_not(tmp_path: Path, refused: Refused) -> None:
    for text, more, where in (
        ("1,2,0\n3,1e300,1\n", {}, "client 0, its row 1"),
        ("1,2,-1e39\n3,4,1\n", {"classes": 0}, "client 0, its row 0"),
    ):
        found = one(tmp_path, text, **more)
        assert found.to("cpu", torch.float64).features.dtype == torch.float64
        with refused(DataError, f"own data: a number of {where} is too large for float32; scale the data, or set run."):
            found.to("cpu", torch.float32)
    tested = replace(one(tmp_path, CSV), test=one(tmp_path, "1,2,0\n3,1e300,1\n").all())
    with refused(DataError, "own data: a number of the test set is too large for float32"):
        tested.to("cpu", torch.float32)


def test_a_folder_that_does_not_fit(tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    folder, pixels = tmp_path / "images", digits()[0][:2]
    images = own([folder], [2], shape=[1, 8, 8])
    folder.mkdir()
    with refused(DataError, "images: no images, expected a folder for each class"):
        images.federation()
    write_images(folder, pixels, digits()[1][:2])
    assert images.federation().targets.tolist() == [0, 1]
    (folder / ".hidden").touch()
    assert msgspec.structs.replace(images, shape=(3, 8, 8)).federation().features.shape == (2, 3, 8, 8)
    with refused(ConfigError, "is a folder of images, but data.shape = [64]; expected channels (1 or 3)"):
        msgspec.structs.replace(images, shape=(64,)).federation()
    with refused(DataError, "0000.png: 8 x 8 pixels, expected 9 x 8 (data.shape)"):
        msgspec.structs.replace(images, shape=(1, 9, 8)).federation()
    with refused(DataError, "images/1/0001.png: label '1', expected one of 0, one"):
        msgspec.structs.replace(images, names=("0", "one")).federation()
    Image.new("I;16", (8, 8)).save(folder / "1" / "0001.png")
    with refused(DataError, "images/1/0001.png: mode I;16, expected 8 bits, grey or RGB"):
        images.federation()
    (folder / "1" / "0001.png").write_bytes((folder / "0" / "0000.png").read_bytes()[:60])
    with refused(DataError, "images/1/0001.png: no readable image"):
        images.federation()
    (folder / "1" / "0001.png").write_text("nothing")
    with refused(DataError, "images/1/0001.png: no readable image"):
        images.federation()
    (folder / "1" / "0001.png").unlink()
    os.mkfifo(folder / "1" / "0001.png")
    with refused(DataError, "images/1/0001.png: a pipe or a device, which may never end"):
        images.federation()
    (folder / "1" / "0001.png").unlink()
    (folder / "notes.txt").touch()
    with refused(DataError, "images/notes.txt: not a folder"):
        images.federation()
    (folder / "notes.txt").unlink()
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with refused(DataError, "images/0/0000.png: to read images takes Pillow; pip install 'fedsim[images]'"):
        images.federation()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"classes": 1}, "data.classes = 1: expected at least 2"),
        ({"names": ["a"]}, "data.names has 1 items, expected 0 or 2; "),
        ({"names": ["a", "a"]}, "data.names = ['a', 'a']: expected different names"),
        ({"mean": [1, 2, 3]}, "data.mean has 3 items, expected 0 or 1 or 2; "),
        ({"bias": True, "shape": [1, 2, 2]}, "data.bias = true, but data.shape = [1, 2, 2]"),
    ],
)
def test_an_experiment_that_cannot_be(more: dict[str, Any], message: str, tmp_path: Path, refused: Refused) -> None:
    with refused(ConfigError, message):
        one(tmp_path, CSV, **more)


def test_clients_are_dealt_nothing(tmp_path: Path, refused: Refused) -> None:
    source = own([tmp_path / "a.csv"], [2])
    (tmp_path / "a.csv").write_text(CSV.replace(",1\n", ",0\n"))
    with refused(ConfigError, "partition.scheme = 'iid', but clients bring their own data; set"):
        deal(source, Iid(1), 0)
    assert deal(source, Natural(), 0).sizes.tolist() == [2]
    with refused(DataError, "client 0 has only class 0 (2 rows)"):
        deal(source, Natural(single_class="refuse"), 0)


def test_where_data_lies_is_no_part_of_the_experiment(tmp_path: Path) -> None:
    blind = Experiment.of(**OWN)
    named = Experiment.of(**{**OWN, "data": {**OWN["data"], "paths": ["a", "b", "c"], "test": "d.csv"}})
    other = Experiment.of(**{**OWN, "data": {**OWN["data"], "samples": [40, 50, 31]}})
    assert blind.identifier() == named.identifier() != other.identifier()


def test_weights_are_the_experiments(tmp_path: Path) -> None:
    paths = write_three(tmp_path)
    whole = Experiment.of(**{**OWN, "data": {**OWN["data"], "paths": paths}})
    blind, known = prepare(Experiment.of(**OWN)), prepare(whole)
    assert torch.equal(blind.weights, known.weights)
    torch.testing.assert_close(known.weights, torch.tensor([40, 50, 30]) / 120)
    uniform = prepare(Experiment.of(**{**OWN, "server": {"step": 0.1, "weights": "uniform"}}))
    torch.testing.assert_close(uniform.weights, torch.full((3,), 1 / 3))


def test_what_needs_all_data_says_so(tmp_path: Path, refused: Refused) -> None:
    for step in ("1/L", "theory"):
        blind = Experiment.of(**{**OWN, "server": {"step": step}})
        with refused(ConfigError, f"server.step = '{step}': constants of all clients' data are not known here"):
            prepare(blind)
    with refused(DataError, "client 0's data is not here, and this needs the data of all 3 clients; name it in data."):
        fedsim.run(Experiment.of(**OWN), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with refused(DataError, "client 2's data is not here; start its node with data='/path/of/it' in --node-config"):
        part_of(prepare(Experiment.of(**OWN)), 2)


def test_a_simulation_is_resumed_with_the_same_files(tmp_path: Path, refused: Refused) -> None:
    paths = write_three(tmp_path)
    data = {**OWN["data"], "paths": paths, "test": paths[1]}
    whole = Experiment.of(**{**OWN, "data": data, "algorithm": "sgd", "server": {"step": 0.1}, "rounds": 20})
    result = fedsim.run(whole, tmp_path / "run")
    assert result.metrics[-1]["loss"] < result.metrics[0]["loss"]
    assert result.metrics[-1]["test_accuracy"] > 0.5
    assert resume(tmp_path / "run").digest == result.digest
    text = (tmp_path / "a.csv").read_text()
    (tmp_path / "a.csv").write_text(text.replace(",0.0,", ",0.5,", 1))
    with refused(CheckpointError, "the data is not what this run began with"):
        resume(tmp_path / "run")


def test_federation_digest_follows_the_file(tmp_path: Path) -> None:
    first = one(tmp_path, CSV)
    assert one(tmp_path, CSV.replace("4.5", "4.50")).digest() == first.digest()
    assert one(tmp_path, CSV.replace("4.5", "4.6")).digest() != first.digest()
    assert replace(first, name="other").digest() == first.digest()
