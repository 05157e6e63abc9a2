"""The two parts of a data set: each sample is in one of them, with its own label, as in the files."""

from __future__ import annotations

import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from config.settings.data import Data
from degan.data import load
from degan.data.base import ImageSource, PointSource, resize, to_floats


def taken(source) -> np.ndarray:
    """All samples as bytes, uint8 (n, *sample_shape)."""
    return np.rint((source.take(np.arange(len(source))).numpy() + 1) * 127.5).astype(np.uint8)


# --- each reader's parts -------------------------------------------------------------------------


def test_the_digits_parts_are_the_bundled_ones_with_their_labels():
    from sklearn.datasets import load_digits

    bundled = load_digits()
    held_out = np.random.default_rng(20231).permutation(1797)[:360]
    for part, chosen in (("test", np.sort(held_out)), ("train", np.setdiff1d(np.arange(1797), held_out))):
        source = load(Data(name="digits"), 8, part)
        assert np.array_equal(taken(source)[:, 0], np.rint(bundled.images[chosen] * 255 / 16))
        assert np.array_equal(source.labels, bundled.target[chosen])


def test_the_rings_parts_are_drawn_apart_and_a_label_is_the_nearest_place():
    train, test = (load(Data(name="gaussian-ring"), 28, part) for part in ("train", "test"))
    angles = np.arange(8) * np.pi / 4
    places = 0.8 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for source in (train, test):
        points = source.take(np.arange(len(source))).numpy()
        apart = np.linalg.norm(points[:, None] - places, axis=2)
        assert np.array_equal(apart.argmin(axis=1), source.labels)
        assert (points - places[source.labels]).std(axis=0) == pytest.approx(0.02, rel=0.1)
        assert source.classes == tuple("01234567")
    first, second = (set(map(bytes, source.take(np.arange(2048)).numpy())) for source in (train, test))
    assert not first & second
    assert train.digest() != test.digest()


def idx_part(folder: Path, part: str, pixels: np.ndarray, labels: list[int]) -> None:
    count = len(pixels)
    images = struct.pack(">iiii", 0x803, count, 28, 28) + pixels.tobytes()
    (folder / f"{part}-images-idx3-ubyte").write_bytes(images)
    (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 0x801, count) + bytes(labels))


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_idx_files_give_each_part_its_own_images_and_labels(tmp_path, name, folder):
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(1)
    parts = {"train": (7, [3, 1, 4, 1, 5, 9, 2]), "t10k": (3, [8, 0, 6])}
    pixels = {part: random.integers(0, 256, (count, 28, 28), np.uint8) for part, (count, _) in parts.items()}
    for part, (_, labels) in parts.items():
        idx_part(raw, part, pixels[part], labels)
    for part, file in (("train", "train"), ("test", "t10k")):
        source = load(Data(name=name, root=str(tmp_path)), 28, part)
        assert np.array_equal(taken(source)[:, 0], pixels[file])
        assert source.labels.tolist() == parts[file][1]


def test_cifars_test_batch_is_the_test_part(tmp_path, monkeypatch):
    from torchvision import datasets

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(2)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    rows = {name: random.integers(0, 256, (2, 3072), dtype=np.uint8) for name in names}
    labels = {name: [number, 9 - number] for number, name in enumerate(names)}
    for name in names:
        (folder / name).write_bytes(pickle.dumps({"data": rows[name], "labels": labels[name]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    meta = hashlib.md5((folder / "batches.meta").read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": meta})
    for part, files in (("train", names[:5]), ("test", names[5:])):
        source = load(Data(name="cifar10", root=str(tmp_path)), 32, part)
        assert np.array_equal(taken(source), np.concatenate([rows[n] for n in files]).reshape(-1, 3, 32, 32))
        assert source.labels.tolist() == sum((labels[n] for n in files), [])


def plain(path: Path, grey: int) -> None:
    """A picture of one grey value, which identifies the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), grey).save(path)


def greys(source) -> list[int]:
    samples = taken(source)
    assert (samples == samples[:, :1, :1, :1]).all()
    return samples[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("part", ["test", "val"])
def test_a_folder_that_is_parted_keeps_its_parts(tmp_path, part):
    # The files come in another order than the classes, so a label can only be its folder's name.
    for place, start in (("train", 0), (part, 100)):
        for number, name in enumerate("cab"):
            for which in range(3 - number):
                plain(tmp_path / place / name / f"{which}.png", start + 10 * number + which)
    train, test = (load(Data(name="folder", root=str(tmp_path)), 4, wanted) for wanted in ("train", "test"))
    assert train.classes == test.classes == ("a", "b", "c")
    for source, start in ((train, 0), (test, 100)):
        assert greys(source) == [start + grey for grey in (10, 11, 20, 0, 1, 2)]
        assert source.labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert train.digest() != test.digest()


def test_where_there_are_test_and_val_the_test_part_is_taken(tmp_path):
    for number, place in enumerate(("train", "test", "val")):
        plain(tmp_path / place / "a" / "1.png", 10 * number)
    assert greys(load(Data(name="folder", root=str(tmp_path)), 4, "test")) == [10]


def test_of_an_undivided_folder_the_smallest_hashes_of_each_class_are_held_out(tmp_path):
    grey_of = {}
    for label, (name, count) in enumerate((("big", 25), ("small", 2), ("one", 1))):
        for number in range(count):
            grey_of[f"{name}/{number}.png"] = 60 * label + number
            plain(tmp_path / name / f"{number}.png", grey_of[f"{name}/{number}.png"])
    held_out = []
    for name, count in (("big", 2), ("small", 1)):  # A tenth, rounded; one of two; none of one.
        paths = sorted(path for path in grey_of if path.startswith(name))
        held_out += sorted(paths, key=lambda path: hashlib.sha256(path.encode()).hexdigest())[:count]
    train, test = (load(Data(name="folder", root=str(tmp_path)), 4, part) for part in ("train", "test"))
    assert sorted(greys(test)) == sorted(grey_of[path] for path in held_out)
    assert sorted(greys(train) + greys(test)) == sorted(grey_of.values())
    for source in (train, test):
        names = [source.classes[label] for label in source.labels]
        assert [("big", "small", "one")[grey // 60] for grey in greys(source)] == names


# --- how samples are read ------------------------------------------------------------------------


def test_a_turned_photograph_stands_upright(tmp_path):
    upright = np.zeros((4, 4), np.uint8)
    upright[0] = 200  # A bright line at the top.
    for number in range(2):
        exif = Image.Exif()
        exif[0x0112] = 6  # A viewer turns the picture by 90 degrees to the right.
        path = tmp_path / "a" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.rot90(upright)).save(path, exif=exif)
    for part in ("train", "test"):
        assert np.array_equal(taken(load(Data(name="folder", root=str(tmp_path)), 4, part))[0, 0], upright)


def test_a_large_photograph_keeps_the_detail_that_the_model_can_see(tmp_path):
    """A JPEG may be decoded at a fraction of its size, but at no smaller size than the model's."""
    random = np.random.default_rng(5)
    blocks = Image.fromarray(random.integers(0, 256, (64, 64), dtype=np.uint8)).resize((128, 128), Image.Resampling.BOX)
    for place in ("train", "test"):
        (tmp_path / place / "a").mkdir(parents=True)
        blocks.save(tmp_path / place / "a" / "1.jpg", quality=95)
    with Image.open(tmp_path / "train" / "a" / "1.jpg") as whole:
        expected = np.asarray(whole.resize((64, 64), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(taken(load(Data(name="folder", root=str(tmp_path)), 64, "train"))[0, 0] - expected).max() <= 1


@pytest.mark.parametrize("at", [60, -1])
def test_a_folders_digest_sees_a_change_at_either_end_of_a_large_file(tmp_path, at):
    for number in range(2):
        plain(tmp_path / "a" / f"{number}.png", number)
        path = tmp_path / "a" / f"{number}.bmp"
        Image.new("RGB", (200, 200)).save(path)
        assert path.stat().st_size > 2**16
    data = Data(name="folder", root=str(tmp_path))
    before = [load(data, 4, part).digest() for part in ("train", "test")]
    for number in range(2):
        path = tmp_path / "a" / f"{number}.bmp"
        raw = bytearray(path.read_bytes())
        raw[at] ^= 1
        path.write_bytes(raw)
    assert [load(data, 4, part).digest() for part in ("train", "test")] != before


def test_one_coloured_picture_in_either_part_makes_all_of_them_rgb(tmp_path):
    for place, mode in (("train", "L"), ("test", "RGB")):
        (tmp_path / place / "a").mkdir(parents=True)
        Image.new(mode, (4, 4)).save(tmp_path / place / "a" / "1.png")
    for part in ("train", "test"):
        assert load(Data(name="folder", root=str(tmp_path)), 4, part).sample_shape == (3, 4, 4)


def test_samples_come_in_the_order_that_is_asked_for():
    pixels = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    source = ImageSource(pixels, [0, 1, 2, 3], "abcd")
    assert np.rint((source.take([3, 0, 0, 2]).flatten().numpy() + 1) * 127.5).tolist() == [3, 0, 0, 2]
    with pytest.raises(IndexError):
        source.take([4])
    everything = source.take(np.arange(4))
    everything.zero_()
    assert float(source.take([0])) == -1, "what was taken is the taker's"
    points = PointSource(np.arange(8).reshape(4, 2) / 10, [0, 1, 2, 3], "abcd")
    assert points.take([3, 0, 0]).flatten().tolist() == pytest.approx([0.6, 0.7, 0, 0.1, 0, 0.1])
    points.take(np.arange(4)).zero_()
    assert points.take([3]).flatten().tolist() == pytest.approx([0.6, 0.7])


def test_bytes_become_floats_from_minus_one_to_one():
    assert to_floats(np.array([0, 51, 204, 255], np.uint8)).tolist() == pytest.approx([-1, -0.6, 0.6, 1], abs=1e-6)


@pytest.mark.parametrize(("side", "size"), [(28, 32), (32, 16), (28, 12)])
def test_resizing_is_bilinear_and_antialiased_as_pillow_does_it(side, size):
    pixels = np.random.default_rng(3).integers(0, 256, (3, 2, side, side), dtype=np.uint8)
    ours = resize(pixels, size)
    assert ours.shape == (3, 2, size, size) and ours.dtype == np.uint8
    for image, mine in zip(pixels.reshape(-1, side, side), ours.reshape(-1, size, size), strict=True):
        theirs = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
        apart = mine.astype(int) - theirs
        assert np.abs(apart).max() <= 1 and abs(apart.mean()) < 0.25, "rounded, not cut off"


def test_resizing_in_several_chunks_is_resizing_one_by_one():
    pixels = np.random.default_rng(4).integers(0, 256, (4100, 1, 4, 4), dtype=np.uint8)
    chosen = [0, 1999, 2000, 3999, 4000, 4099]
    assert np.array_equal(resize(pixels, 5)[chosen], resize(pixels[chosen], 5))
    assert torch.equal(to_floats(resize(pixels, 4)), to_floats(pixels))
