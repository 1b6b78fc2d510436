import gzip
import hashlib
import struct
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from fedsim.data import FashionMNIST, fashion
from fedsim.data.files import opened, read_at_most
from fedsim.errors import DataError


def idx(numbers):
    numbers = np.asarray(numbers, dtype=np.uint8)
    return bytes([0, 0, 8, numbers.ndim]) + struct.pack(f">{numbers.ndim}I", *numbers.shape) + numbers.tobytes()


def contents(train=6, test=3):
    """The four files of a small set: image i is filled with the number i."""
    images = {"train": np.arange(train), "t10k": np.arange(test)}
    return {
        f"{part}-{kind}": idx(np.tile(i[:, None, None], (1, 28, 28)) if kind == "images-idx3-ubyte" else i % 10)
        for part, i in images.items()
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    }


@pytest.fixture
def folder(tmp_path):
    for at, (stem, content) in enumerate(contents().items()):
        name, packed = (stem, content) if at % 2 else (f"{stem}.gz", gzip.compress(content))
        (tmp_path / name).write_bytes(packed)
    return tmp_path


def load(folder, **options):
    return FashionMNIST(str(folder), **options).load(0)


def test_images_are_scaled_and_have_one_channel(folder):
    dataset = load(folder)
    assert dataset.train.features.shape == (6, 1, 28, 28)
    assert dataset.test.features.shape == (3, 1, 28, 28)
    assert dataset.train.features.dtype == torch.float32
    assert torch.equal(dataset.train.features[:, 0, 5, 5], torch.arange(6) / 255)
    assert dataset.train.targets.tolist() == [0, 1, 2, 3, 4, 5]
    assert dataset.train.classes == 10


def test_limit_keeps_the_first_training_rows(folder):
    dataset = load(folder, limit=4)
    assert dataset.train.targets.tolist() == [0, 1, 2, 3]
    assert len(dataset.test) == 3


def test_missing_files_name_three_ways_out(folder, refused):
    (folder / "t10k-labels-idx1-ubyte").unlink()
    parts = ("t10k-labels-idx1-ubyte", "apt install dataset-fashion-mnist", "data.download=true", "data.path")
    with refused(DataError, str(folder), *parts):
        load(folder)
    assert not FashionMNIST(str(folder)).present()


def test_labels_that_do_not_match_the_images_are_named(folder, refused):
    (folder / "train-labels-idx1-ubyte").write_bytes(idx([0, 1]))
    with refused(DataError, "train-labels-idx1-ubyte: 2 labels for 6 images of train-images-idx3-ubyte.gz"):
        load(folder)


def test_a_label_beyond_the_classes_is_named(folder, refused):
    (folder / "train-labels-idx1-ubyte").write_bytes(idx([0, 1, 2, 10, 4, 5]))
    with refused(DataError, "train-labels-idx1-ubyte: label 10 in row 3", "expected 0 to 9"):
        load(folder)


def test_images_of_two_sizes_are_named(folder, refused):
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(idx(np.zeros((3, 8, 8))))
    with refused(DataError, str(folder), "(28, 28)", "(8, 8)", "expected equal"):
        load(folder)


def test_fashion_mnist(fashion_mnist_folder):
    dataset = load(fashion_mnist_folder, limit=1000)
    assert dataset.test.features.shape == (10000, 1, 28, 28)
    assert torch.bincount(dataset.test.targets).tolist() == [1000] * 10
    assert FashionMNIST(str(fashion_mnist_folder)).present()


def test_the_pinned_digests_are_those_of_the_distributed_files(fashion_mnist_folder):
    for stem, digest in fashion.DIGESTS.items():
        packed = fashion_mnist_folder / f"{stem}.gz"
        with opened(packed if packed.is_file() else fashion_mnist_folder / stem) as file:
            assert hashlib.sha256(read_at_most(file, 1 << 26)).hexdigest() == digest


class Quiet(SimpleHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def log_message(self, *args):
        Quiet.asked.append(self.path)


@pytest.fixture
def origin(tmp_path, monkeypatch):
    """A server of the small set, as the place where Fashion-MNIST is published, and an empty home."""
    served = tmp_path / "served"
    served.mkdir()
    for stem, content in contents().items():
        (served / f"{stem}.gz").write_bytes(gzip.compress(content))
    Quiet.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=served))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(fashion, "ORIGIN", f"http://127.0.0.1:{server.server_port}/")
    digests = {stem: hashlib.sha256(content).hexdigest() for stem, content in contents().items()}
    monkeypatch.setattr(fashion, "DIGESTS", digests)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


def cached(tmp_path):
    return sorted(path.name for path in (tmp_path / "home/.cache/fedsim/fashion-mnist").glob("*"))


def test_a_download_is_kept(origin, tmp_path):
    dataset = load(tmp_path / "nowhere", download=True)
    assert dataset.train.targets.tolist() == [0, 1, 2, 3, 4, 5]
    assert cached(tmp_path) == sorted(f"{stem}.gz" for stem in contents())
    assert len(Quiet.asked) == 4
    load(tmp_path / "nowhere", download=True)
    assert len(Quiet.asked) == 4


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda packed: packed[:-4], "cannot be downloaded"),
        (lambda packed: packed[:30] + b"\xff\xff\xff\xff" + packed[34:], "cannot be downloaded"),
        (lambda packed: b"<html>not found</html>", "cannot be downloaded"),
        (lambda packed: gzip.compress(b"another file"), "has sha256"),
    ],
)
def test_a_damaged_download_leaves_nothing(origin, tmp_path, refused, damage, why):
    file = origin / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    with refused(DataError, f"{fashion.ORIGIN}t10k-images-idx3-ubyte.gz", why, "apt install", "data.path"):
        load(tmp_path / "nowhere", download=True)
    assert cached(tmp_path) == ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]


def test_a_bomb_is_cut_off(origin, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(fashion, "MAX_BYTES", 4000)
    with refused(DataError, "train-images-idx3-ubyte.gz: its content has sha256"):
        load(tmp_path / "nowhere", download=True)
    assert cached(tmp_path) == []


def test_a_file_that_is_not_served_is_named(origin, tmp_path, refused):
    (origin / "train-labels-idx1-ubyte.gz").unlink()
    with refused(DataError, "train-labels-idx1-ubyte.gz: cannot be downloaded (HTTP Error 404", "apt install"):
        load(tmp_path / "nowhere", download=True)


def test_a_cache_that_cannot_be_written_is_named(origin, tmp_path, refused):
    (tmp_path / "home").write_text("a file where the folder should be")
    with refused(DataError, "train-images-idx3-ubyte.gz: cannot be written", "data.path"):
        load(tmp_path / "nowhere", download=True)
