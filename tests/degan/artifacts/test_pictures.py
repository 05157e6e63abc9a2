"""Pictures: pixel values, tiles, gaps, points, and files that are whole."""

import numpy as np
import pytest
import torch
from PIL import Image

from degan.artifacts import pictures
from degan.artifacts.pictures import GAP, PLOT_PIXELS, grid, save_png, to_uint8


def test_bytes_of_known_values():
    values = torch.tensor([-1.0, 0.0, 1.0, -7.0, 7.0, float("nan"), float("inf"), float("-inf")]).reshape(1, 1, 2, 4)
    assert to_uint8(values).flatten().tolist() == [0, 128, 255, 0, 255, 0, 255, 0]


def test_every_byte_survives_the_way_there_and_back():
    levels = torch.arange(256, dtype=torch.float32) / 127.5 - 1
    assert to_uint8(levels.reshape(1, 1, 16, 16)).flatten().tolist() == list(range(256))


def test_channels_come_last():
    samples = torch.stack([torch.full((4, 6), level) for level in (-1.0, 0.0, 1.0)])[None]
    array = to_uint8(samples)
    assert array.shape == (1, 4, 6, 3) and array.dtype == np.uint8
    assert array[0, 2, 3].tolist() == [0, 128, 255]


def test_tensors_and_arrays_give_the_same_and_stay_as_they_are():
    samples = torch.rand(5, 3, 8, 8, requires_grad=True)
    before = samples.detach().clone()
    assert np.array_equal(grid(samples, 2), grid(samples.detach().numpy(), 2))
    assert torch.equal(samples.detach(), before)


@pytest.mark.parametrize(("size", "factor"), [(8, 7), (28, 2), (32, 2), (64, 1), (100, 1)])
def test_small_images_are_magnified_by_a_whole_factor(size, factor):
    samples = torch.rand(1, 1, size, size) * 2 - 1
    sheet = grid(samples, 8)
    assert sheet.shape == (size * factor, size * factor, 3)
    assert np.array_equal(sheet[::factor, ::factor, :1], to_uint8(samples)[0])


def test_tiles_stand_in_reading_order_with_a_gap_of_one_pixel():
    samples = torch.linspace(-1, 1, 5).reshape(5, 1, 1, 1).expand(5, 1, 64, 64)
    sheet = grid(samples, 3)
    assert sheet.shape == (2 * 64 + 1, 3 * 64 + 2, 3) and sheet.dtype == np.uint8
    for index in range(5):
        top, left = index // 3 * 65, index % 3 * 65
        tile = sheet[top : top + 64, left : left + 64]
        assert (tile == round(index / 4 * 255 + 1e-6)).all()
    assert (sheet[64] == GAP).all() and (sheet[:, 64] == GAP).all()
    assert (sheet[65:, 130:] == GAP).all()  # The sixth place is empty.


def test_fewer_samples_than_columns_make_no_empty_columns():
    assert grid(torch.zeros(2, 1, 64, 64), 8).shape == (64, 129, 3)


def dark(sheet):
    """The mask of the ink, without the pale lines."""
    return np.argwhere(sheet.min(axis=2) < 200)


@pytest.mark.parametrize(("point", "right", "up"), [((0.5, 0.5), 1, 1), ((-0.5, 0.5), -1, 1), ((0.5, -0.75), 1, -1)])
def test_a_point_is_where_it_should_be(point, right, up):
    sheet = grid(torch.tensor([point]), 1)
    assert sheet.shape == (PLOT_PIXELS, PLOT_PIXELS, 3)
    y, x = dark(sheet).mean(axis=0)
    middle = (PLOT_PIXELS - 1) / 2
    assert x == pytest.approx(middle * (1 + point[0] / pictures.PLOT_LIMIT), abs=1)
    assert y == pytest.approx(middle * (1 - point[1] / pictures.PLOT_LIMIT), abs=1)
    assert np.sign(x - middle) == right and np.sign(middle - y) == up


def test_points_outside_stick_to_the_edge_in_red_and_nan_is_left_out():
    inside, outside = grid(torch.tensor([[0.5, 0.5]]), 1), grid(torch.tensor([[99.0, 0.5], [float("nan"), 0.0]]), 1)
    y, x = dark(outside).mean(axis=0)
    assert x > PLOT_PIXELS - 4 and abs(y - dark(inside).mean(axis=0)[0]) < 1
    red, _, blue = outside[round(y), -1].astype(int)
    assert red > blue


def test_dense_places_are_darker():
    once, often = grid(torch.tensor([[0.5, 0.5]]), 1), grid(torch.tensor([[0.5, 0.5]] * 5000), 1)
    assert often.min() < once.min()


@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (4, 2, 8, 8), (4, 3), (4, 8, 8), (0, 2)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="grid: expected"):
        grid(torch.zeros(shape), 2)


def test_no_columns_are_refused():
    with pytest.raises(ValueError, match="columns"):
        grid(torch.zeros(1, 1, 8, 8), 0)


def test_images_only_as_bytes():
    with pytest.raises(ValueError, match="to_uint8"):
        to_uint8(torch.zeros(3, 2))


def test_a_png_holds_what_was_saved_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "fakes-000500.png"
    for seed in (0, 1):
        array = grid(torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1, 2)
        save_png(path, array)
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), array)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_failed_save_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "reals.png"
    save_png(path, np.zeros((4, 4, 3), dtype=np.uint8))
    before = path.read_bytes()

    def full(self, file, format):
        with open(file, "wb") as out:
            out.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="no space"):
        save_png(path, np.ones((4, 4, 3), dtype=np.uint8))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["reals.png"]
