"""Channels of arrays are found where they are, and asked for where that is not certain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hatrack.errors import DataError, InputError, UnfitDataError
from hatrack.streams.own.image_axes import ImageAxes, channels_first
from support.own_sources import PICTURES, RANDOM, archive, built, from_toml, pictures

FIRST, LAST = ImageAxes.CHANNELS_FIRST, ImageAxes.CHANNELS_LAST


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        *(((size, size + 1, channels), LAST) for channels in (1, 3, 4) for size in (2, 6, 32)),
        *(((channels, size, size + 1), FIRST) for channels in (1, 3, 4) for size in (5, 6, 32)),
        ((3, 4, 4), FIRST),
        ((1, 3, 3), FIRST),
        ((13, 64, 64), FIRST),
        ((2, 5, 7), FIRST),
        ((3, 32, 3), None),
        ((1, 28, 1), None),
        ((4, 6, 3), None),
        ((3, 3, 3), None),
        ((3, 3, 1), None),
        ((64, 64, 13), None),
        ((64, 64, 2), None),
    ],
)
def test_the_sizes_tell_or_do_not(shape: tuple[int, ...], axes: ImageAxes | None) -> None:
    array = RANDOM.integers(0, 256, (2, *shape), dtype=np.uint8)
    said = {FIRST: array, LAST: np.moveaxis(array, 3, 1)}
    if axes is None:
        with pytest.raises(UnfitDataError, match=r'here has the shape .* say axes = "NCHW" or axes = "NHWC"'):
            channels_first(array, None, "here")
    else:
        assert np.array_equal(channels_first(array, None, "here"), said[axes])
    for each, expected in said.items():
        assert np.array_equal(channels_first(array, each, "here"), expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.int64])
def test_arrays_with_channels_last(channels: int, kind: type, tmp_path: Path) -> None:
    x = RANDOM.integers(0, 256, (30, 8, 6, channels)).astype(kind)
    task = built(archive(tmp_path / "a.npz", x_train=x, x_test=x[:9] + 0))
    assert task.input_shape == (channels, 8, 6)
    assert np.array_equal(task.train.source, np.moveaxis(x, 3, 1))
    assert (task.train.source.dtype == torch.uint8) == (kind is np.uint8)
    loaded = task.train.load()[0]
    torch.testing.assert_close(loaded.mean((0, 2, 3)), torch.zeros(channels), atol=1e-4, rtol=0)


def test_axes_are_said_for_a_task_of_an_npz(tmp_path: Path) -> None:
    x = RANDOM.integers(0, 256, (30, 3, 8, 3), dtype=np.uint8)
    archive(tmp_path / "a.npz", x_train=x, x_test=x[:9])
    text = '[[task]]\npath = "a.npz"\n'
    with pytest.raises(DataError, match=r"x_train has the shape \(30, 3, 8, 3\)"):
        from_toml(tmp_path, text)
    assert torch.equal(from_toml(tmp_path, f'{text}axes = "NCHW"\n').train.source, torch.from_numpy(x))
    last = from_toml(tmp_path, f'{text}axes = "NHWC"\n').train.source
    assert torch.equal(last, torch.from_numpy(np.moveaxis(x, 3, 1).copy()))
    with pytest.raises(InputError, match="axes must be one of NCHW, NHWC, not 'HWC'"):
        from_toml(tmp_path, f'{text}axes = "HWC"\n')
    archive(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"x_train has the shape \(30, 4\), which is not NHWC; leave out axes"):
        from_toml(tmp_path, f'{text}axes = "NHWC"\n')
    pictures(tmp_path / "set", {"a": 3, "b": 3})
    with pytest.raises(InputError, match=r"axes are for an \.npz file, not for"):
        from_toml(tmp_path, f'{PICTURES}axes = "NHWC"\n')


@pytest.mark.parametrize("channels", [1, 3])
def test_a_fourth_channel_has_no_meaning_that_is_known(channels: int, tmp_path: Path) -> None:
    x = RANDOM.integers(0, 256, (30, 8, 6, 4), dtype=np.uint8)
    archive(tmp_path / "a.npz", x_train=x, x_test=x[:9])
    with pytest.raises(DataError, match=rf"a\.npz: images of 4 channels cannot be made images of {channels}.*save"):
        from_toml(tmp_path, f'[[task]]\npath = "a.npz"\nchannels = {channels}\n')
    assert from_toml(tmp_path, '[[task]]\npath = "a.npz"\nresize = [4, 3]\n').input_shape == (4, 4, 3)
