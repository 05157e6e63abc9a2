"""Data sets: shapes and ranges, the folder in odd forms, downloads once, and the resumable shard."""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from config.settings.data import Data
from degan.data import Shard, load, prepare
from degan.data.base import ImageSource, PointSource
from degan.errors import DataError

RANDOM = np.random.default_rng(5)


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (11, 7), **how) -> Path:
    """A file with a random image of a mode; 16-bit for I;16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "I;16":
        image = Image.fromarray(RANDOM.integers(0, 65536, size[::-1], dtype=np.uint16))
    else:
        rgba = Image.fromarray(RANDOM.integers(0, 256, (*size[::-1], 4), dtype=np.uint8), "RGBA")
        image = rgba.convert(mode)
    image.save(path, **how)
    return path


def everything(source):
    return source.take(np.arange(len(source)))


def check(source, shape):
    samples = everything(source)
    assert source.sample_shape == shape
    assert samples.shape == (len(source), *shape)
    assert samples.dtype == torch.float32
    assert samples.min() >= -1 and samples.max() <= 1
    assert source.labels.dtype == np.int64
    assert source.labels.shape == (len(source),)
    assert set(source.labels) <= set(range(len(source.classes)))
    return samples


# --- data sets by name --------------------------------------------------------------------------


def test_digits_are_held_out_once_and_resized():
    data = Data(name="digits")
    prepare(data, 16)
    train, test = load(data, 16, "train"), load(data, 16, "test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.classes == tuple("0123456789")
    check(train, (1, 16, 16))
    own_size = check(load(data, 8, "test"), (1, 8, 8))
    assert (own_size.min(), own_size.max()) == (-1, 1)
    rows = {bytes(row.numpy()) for row in everything(load(data, 8, "train"))}
    assert sum(bytes(row.numpy()) in rows for row in own_size) == 0


def test_the_ring_has_eight_equal_modes_far_apart():
    data = Data(name="gaussian-ring")
    prepare(data, 28)
    train, test = load(data, 28, "train"), load(data, 28, "test")
    points = check(train, (2,)).numpy()
    assert not train.is_image
    assert len(test) == 2048
    assert np.all(np.bincount(train.labels) == 1024)
    centres = np.stack([points[train.labels == mode].mean(axis=0) for mode in range(8)])
    assert np.linalg.norm(centres, axis=1) == pytest.approx(0.8, abs=0.01)
    assert (points - centres[train.labels]).std() == pytest.approx(0.02, rel=0.05)
    assert np.array_equal(points, everything(load(data, 28, "train")).numpy())


def test_a_digest_changes_with_the_data_and_with_nothing_else():
    data = Data(name="digits")
    assert load(data, 8, "train").digest() == load(data, 8, "train").digest()
    assert load(data, 8, "train").digest() != load(data, 9, "train").digest()
    points = np.zeros((3, 2), np.float32)
    digests = {PointSource(points, [0, 1, label], ["a", "b"]).digest() for label in (0, 1)}
    assert len(digests) == 2


def test_a_part_that_is_neither_is_refused():
    with pytest.raises(ValueError, match="valid"):
        load(Data(name="digits"), 8, "valid")


@pytest.mark.skipif("DEGAN_TEST_DATA" not in os.environ, reason="DEGAN_TEST_DATA names no folder with MNIST")
def test_mnist_itself():
    data = Data(name="mnist", root=os.environ["DEGAN_TEST_DATA"], download=True)  # The files exist: nothing is fetched.
    prepare(data, 28)
    test = load(data, 28, "test")
    check(test, (1, 28, 28))
    assert len(test) == 10_000
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    check(load(data, 32, "test"), (1, 32, 32))


# --- torchvision's sets, without the network ----------------------------------------------------


def idx_files(folder: Path, count: int = 6) -> None:
    """MNIST's four files with `count` images each."""
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        images = struct.pack(">iiii", 0x803, count, 28, 28) + bytes(RANDOM.integers(0, 256, count * 784, np.uint8))
        labels = struct.pack(">ii", 0x801, count) + bytes(range(count))
        for name, content in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            (folder / name).write_bytes(content)


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_idx_files_are_read_with_a_home_folder_expanded(tmp_path, monkeypatch, name, folder):
    monkeypatch.setenv("HOME", str(tmp_path))
    idx_files(tmp_path / "data" / folder / "raw")
    data = Data(name=name, root="~/data")
    prepare(data, 32)
    source = load(data, 32, "train")
    check(source, (1, 32, 32))
    assert source.labels.tolist() == list(range(6))
    assert source.classes[0] == ("0" if name == "mnist" else "T-shirt/top")


def test_cifar_batches_become_channels_first(tmp_path, monkeypatch):
    from torchvision import datasets

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rows = RANDOM.integers(0, 256, (5, 4, 3072), dtype=np.uint8)
    contents = {f"data_batch_{number + 1}": {"data": rows[number], "labels": [0, 1, 2, 9]} for number in range(5)}
    contents["test_batch"] = contents["data_batch_1"]
    contents["batches.meta"] = {"label_names": list("abcdefghij")}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
    meta = hashlib.md5((folder / "batches.meta").read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": meta})
    data = Data(name="cifar10", root=str(tmp_path))
    with pytest.raises(DataError, match="cifar10: a file in .* is damaged"):  # torchvision checks the MD5s.
        load(data, 32, "test")
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    train = load(data, 32, "train")
    samples = check(train, (3, 32, 32))
    assert train.classes == tuple("abcdefghij")
    expected = torch.from_numpy(rows.reshape(20, 3, 32, 32)).float() / 127.5 - 1
    assert torch.allclose(samples, expected, atol=1e-6)


def test_missing_data_is_named_with_its_place_and_the_remedy(tmp_path):
    data = Data(name="mnist", root=str(tmp_path))
    for call in (lambda: prepare(data, 28), lambda: load(data, 28, "train")):
        with pytest.raises(DataError, match="train-images-idx3-ubyte; data.download=true fetches it") as caught:
            call()
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="data.root is not set; cifar10 needs"):
        prepare(Data(name="cifar10"), 32)


def test_a_truncated_file_is_named_as_damage(tmp_path):
    idx_files(tmp_path / "MNIST" / "raw")
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="is damaged .*remove that folder and fetch it again"):
        load(Data(name="mnist", root=str(tmp_path)), 28, "train")


def test_several_askers_download_once(tmp_path, monkeypatch):
    calls = []

    def download(self):
        calls.append(self.root)
        idx_files(Path(self.raw_folder))

    monkeypatch.setattr("torchvision.datasets.MNIST.download", download)
    root = tmp_path / "new" / "root"
    data = Data(name="mnist", root=str(root), download=True)
    askers = [threading.Thread(target=prepare, args=(data, 28), name=f"asker-{number}") for number in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(timeout=20)
    assert len(calls) == 1
    assert len(load(data, 28, "test")) == 6
    assert sorted(path.name for path in root.iterdir()) == [".degan-download.lock", "MNIST"]


def test_a_download_that_fails_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def download(self):
        idx_files(Path(self.raw_folder))
        raise RuntimeError("no\nroute")

    monkeypatch.setattr("torchvision.datasets.MNIST.download", download)
    with pytest.raises(DataError, match=r"could not download it to .*\(no route\); try again, or put .* by hand"):
        prepare(Data(name="mnist", root=str(tmp_path), download=True), 28)
    assert [path.name for path in tmp_path.iterdir()] == [".degan-download.lock"]


# --- a folder of images -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd_folder(tmp_path_factory):
    """A folder with every mode, several formats, odd sizes, files that are no images, and a class in two levels."""
    root = tmp_path_factory.mktemp("odd")
    for number, mode in enumerate(("1", "L", "LA", "P", "RGB", "RGBA", "I;16")):
        picture(root / "train" / "modes" / f"{number}.png", mode, (5 + 7 * number, 30 - 4 * number))
    picture(root / "train" / "formats" / "a.JPG", "CMYK", (300, 200))
    picture(root / "train" / "formats" / "deeper" / "b.webp", "RGBA", (1, 9))
    picture(root / "train" / "formats" / "c.gif", "P", (64, 64))
    picture(root / "train" / "formats" / "d.tiff", "RGB", (8, 8))
    (root / "train" / "formats" / "notes.txt").write_text("no image")
    (root / "train" / ".hidden").mkdir()
    picture(root / "val" / "modes" / "x.png", "L")
    picture(root / "val" / "formats" / "y.png", "L")
    return root


def test_any_mode_size_and_format_becomes_rgb_at_the_models_size(odd_folder):
    data = Data(name="folder", root=str(odd_folder))
    prepare(data, 16)
    train, test = load(data, 16, "train"), load(data, 16, "test")
    assert train.classes == test.classes == ("formats", "modes")
    assert np.bincount(train.labels).tolist() == [4, 7]
    assert test.labels.tolist() == [0, 1]
    check(train, (3, 16, 16))
    check(test, (3, 16, 16))  # The files are grey, but the training part has colour.


def test_grey_folders_have_one_channel(tmp_path):
    for name in "ab":
        for number, mode in enumerate(("1", "L", "LA", "I;16")):
            picture(tmp_path / name / f"{number}.png", mode, (9, 9))
    check(load(Data(name="folder", root=str(tmp_path)), 12, "train"), (1, 12, 12))


def test_a_picture_is_read_exactly_where_nothing_has_to_be_resized(tmp_path):
    wide = RANDOM.integers(0, 256, (8, 12, 3), dtype=np.uint8)
    for name in ("a/1.png", "a/2.png"):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(wide).save(tmp_path / name)
    source = load(Data(name="folder", root=str(tmp_path)), 8, "train")
    middle = wide[:, 2:10].transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
    assert np.abs(source.take([0])[0].numpy() - middle).max() < 1e-6


def test_sixteen_bits_keep_their_upper_eight_and_clear_pixels_are_white(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((4, 4), 0x80FF, dtype=np.uint16)).save(tmp_path / "a" / "1.png")
    Image.fromarray(np.zeros((4, 4, 2), dtype=np.uint8), "LA").save(tmp_path / "a" / "2.png")
    data = Data(name="folder", root=str(tmp_path))
    values = sorted(float(load(data, 4, part).take([0]).mean()) for part in ("train", "test"))
    assert values == pytest.approx([0x80 / 127.5 - 1, 1.0], abs=1e-6)


def test_a_tenth_of_each_class_is_held_out_whatever_the_disks_order(tmp_path):
    for name, count in (("big", 30), ("small", 2)):
        for number in range(count):
            picture(tmp_path / name / f"{number}.png", "L", (4, 4))
    data = Data(name="folder", root=str(tmp_path))
    train, test = load(data, 4, "train"), load(data, 4, "test")
    assert np.bincount(train.labels).tolist() == [27, 1]
    assert np.bincount(test.labels).tolist() == [3, 1]
    assert not set(train._paths) & set(test._paths)
    (tmp_path / "big" / "0.png").rename(tmp_path / "big" / "z.png")
    (tmp_path / "big" / "z.png").rename(tmp_path / "big" / "0.png")
    assert load(data, 4, "test")._paths == test._paths


def test_only_the_requested_pictures_are_decoded_and_only_once(tmp_path):
    for number in range(6):
        picture(tmp_path / "train" / "a" / f"{number}.png", "L", (4, 4))
    picture(tmp_path / "test" / "a" / "0.png", "L", (4, 4))
    source = load(Data(name="folder", root=str(tmp_path)), 4, "train")
    first = source.take([3, 3, 1])
    assert torch.equal(first[0], first[1])
    (tmp_path / "train" / "a" / "1.png").unlink()
    (tmp_path / "train" / "a" / "2.png").unlink()
    assert torch.equal(source.take([1])[0], first[2])
    with pytest.raises(DataError, match=r"2\.png is not a readable image"):
        source.take([2])


def test_a_folders_digest_follows_its_files(tmp_path):
    paths = [picture(tmp_path / "a" / f"{number}.png", "L", (4, 4)) for number in range(3)]
    data = Data(name="folder", root=str(tmp_path))
    before = load(data, 4, "train").digest()
    assert load(data, 4, "train").digest() == before
    for path in paths:
        picture(path, "L", (4, 4))
    assert load(data, 4, "train").digest() != before


def test_folder_errors_are_one_line_with_the_remedy(tmp_path):
    def words(root):
        with pytest.raises(DataError) as caught:
            source = load(Data(name="folder", root=root), 4, "train")
            everything(source)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "data.root is not set" in words(None)
    assert "there is no folder" in words(str(tmp_path / "nothing"))
    picture(tmp_path / "flat" / "1.png")
    assert "no sub-folders with images" in words(str(tmp_path / "flat"))
    picture(tmp_path / "single" / "a" / "1.png")
    assert "give every class two or more" in words(str(tmp_path / "single"))
    picture(tmp_path / "extra" / "train" / "a" / "1.png")
    picture(tmp_path / "extra" / "test" / "b" / "1.png")
    assert "there is no class 'b'" in words(str(tmp_path / "extra"))
    for name in ("1.png", "2.png"):
        picture(tmp_path / "broken" / "a" / name).write_bytes(b"no picture")
    assert "is not a readable image" in words(str(tmp_path / "broken"))
    for number in range(2):
        path = picture(tmp_path / "cut" / "a" / f"{number}.png", "RGB", (50, 50))
        path.write_bytes(path.read_bytes()[:-3000])
    assert "is not a readable image" in words(str(tmp_path / "cut"))


# --- the shard ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def numbers():
    """Points whose first coordinate is the number of the sample."""
    points = np.stack([np.arange(100) / 100, np.zeros(100)], axis=1)
    return PointSource(points, np.zeros(100, dtype=np.int64), ["all"])


def which(batch):
    return np.rint(batch[:, 0].numpy() * 100).astype(int).tolist()


def test_an_epoch_visits_every_sample_of_the_shard_once(numbers):
    shard = Shard(numbers, np.arange(10, 40), seed=1, worker=0, batch_size=10)
    epochs = [sum((which(shard.next_batch().samples) for _ in range(3)), []) for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(10, 40))
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_last_incomplete_batch_is_dropped(numbers):
    shard = Shard(numbers, np.arange(25), seed=1, worker=0, batch_size=10)
    assert (len(shard), shard.batches_per_epoch) == (25, 2)
    seen = [shard.epoch]
    for _ in range(5):
        assert len(shard.next_batch().samples) == 10
        seen.append(shard.epoch)
    assert seen == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 7])
def test_a_resumed_shard_continues_with_the_same_batches(numbers, steps):
    def fresh():
        return Shard(numbers, np.arange(23), seed=4, worker=2, batch_size=7)

    straight, resumed = fresh(), fresh()
    for _ in range(steps):
        straight.next_batch()
    state = straight.state()
    assert all(type(value) is int for value in state.values())
    resumed.next_batch()
    resumed.load_state(state)
    for _ in range(8):
        assert which(straight.next_batch().samples) == which(resumed.next_batch().samples)


def test_order_depends_on_seed_and_worker_only(numbers):
    def order(seed, worker):
        shard = Shard(numbers, np.arange(50), seed, worker, 50)
        return which(shard.next_batch().samples)

    torch.manual_seed(1)
    first = order(1, 0)
    torch.manual_seed(2)
    assert order(1, 0) == first
    assert len({tuple(order(seed, worker)) for seed in (1, 2) for worker in (0, 1)}) == 4


def test_a_batch_larger_than_the_shard_names_the_worker_and_both_sizes(numbers):
    with pytest.raises(DataError, match="worker 3 holds 5 samples, less than one batch of 8; lower data.batch_size"):
        Shard(numbers, np.arange(5), seed=1, worker=3, batch_size=8)


@pytest.mark.parametrize(("size", "batch"), [(24, 8), (30, 10)])
def test_a_position_from_other_settings_is_refused(numbers, size, batch):
    state = Shard(numbers, np.arange(size), 1, 0, batch).state()
    with pytest.raises(DataError, match="worker 0: the checkpoint was made with"):
        Shard(numbers, np.arange(30), 1, 0, 8).load_state(state)


def test_a_batch_has_the_labels_of_its_samples():
    """The shade of each sample is its label."""
    labels = np.array([3, 0, 2, 1, 2, 0])
    source = ImageSource(labels.astype(np.uint8)[:, None, None, None] * np.ones((1, 1, 2, 2), np.uint8), labels, "abcd")
    shard = Shard(source, np.array([5, 3, 0, 4]), seed=2, worker=1, batch_size=2)
    for _ in range(4):
        samples, found = shard.next_batch()
        assert samples.shape == (2, 1, 2, 2) and found.dtype == torch.int64 and found.shape == (2,)
        shades = torch.round((samples[:, 0, 0, 0] + 1) * 127.5).long()
        assert torch.equal(shades, found)
