from __future__ import annotations

import pytest
import torch

from hatrack.data import CommonForm, Fitting, ImageDataset, as_rgb32, channel_statistics, load_subset
from hatrack.errors import InputError

PAD = CommonForm(Fitting.PAD)
RESIZE = CommonForm(Fitting.RESIZE)


def dataset(form: CommonForm, channels: int = 1, height: int = 28, width: int = 28) -> ImageDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (7, channels, height, width), dtype=torch.uint8, generator=generator)
    y = torch.zeros(7, dtype=torch.int64)
    scaled = x.double() / 255
    mean, std = scaled.mean((0, 2, 3)).tolist(), scaled.std((0, 2, 3), correction=0).tolist()
    return ImageDataset("tiny", x, y, x[:2], y[:2], ("a",), tuple(mean), tuple(std), "somewhere", form)


def statistics(images: torch.Tensor) -> tuple[list[float], list[float]]:
    scaled = images.double() / 255
    return scaled.mean((0, 2, 3)).tolist(), scaled.std((0, 2, 3), correction=0).tolist()


@pytest.mark.parametrize(("height", "width"), [(28, 28), (31, 20)])
@pytest.mark.parametrize("channels", [1, 3])
def test_padding_puts_zeros_around_and_follows_with_the_constants(channels: int, height: int, width: int) -> None:
    plain = dataset(PAD, channels, height, width)
    common = as_rgb32(plain)
    top, left = (32 - height) // 2, (32 - width) // 2
    assert common.x_train.shape == (7, 3, 32, 32)
    assert common.x_test.shape == (2, 3, 32, 32)
    inside = common.x_train[:, :, top : top + height, left : left + width]
    assert torch.equal(inside, plain.x_train.expand(-1, 3, -1, -1))
    assert common.x_train.long().sum() == inside.long().sum(), "all else is zero"
    mean, std = statistics(common.x_train)
    assert common.mean == pytest.approx(mean, abs=1e-12)
    assert common.std == pytest.approx(std, abs=1e-12)
    assert (common.name, common.origin) == (plain.name, plain.origin)
    assert torch.equal(common.y_train, plain.y_train)


@pytest.mark.slow
def test_published_constants_are_those_of_padding() -> None:
    subset = load_subset()
    common = as_rgb32(subset)
    assert common.mean == (0.2190,) * 3
    assert common.std == (0.3318,) * 3
    mean, std = statistics(common.x_train)
    assert mean == pytest.approx([0.219] * 3, abs=5e-3), "a part of the set has nearly the whole one's"
    assert std == pytest.approx([0.3318] * 3, abs=5e-3)


def test_resizing_of_a_ramp_is_that_ramp() -> None:
    ramp = torch.arange(64, dtype=torch.uint8).repeat(64, 1)[None, None].repeat(7, 1, 1, 1) * 4
    plain = dataset(RESIZE, 1, 64, 64)
    common = as_rgb32(ImageDataset("ramp", ramp, plain.y_train, ramp[:1], plain.y_test[:1], ("a",), (0.5,), (0.2,)))
    # Two columns, 8i and 8i + 4, make one; at the edges the wider antialiasing filter is cut off.
    assert common.x_train[0, 0, 0, 1:-1].tolist() == [8 * column + 2 for column in range(1, 31)]
    assert common.mean == (0.5,) * 3
    assert common.std == (0.2,) * 3


def test_resizing_more_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = as_rgb32(dataset(RESIZE)).x_train
    monkeypatch.setattr("hatrack.data.rgb32.CHUNK", 3)
    assert torch.equal(as_rgb32(dataset(RESIZE)).x_train, whole)


def test_what_has_the_form_stays() -> None:
    colour = dataset(PAD, 3, 32, 32)
    assert as_rgb32(colour) is colour
    grey = dataset(PAD, 1, 32, 32)
    assert torch.equal(as_rgb32(grey).x_train, grey.x_train.expand(-1, 3, -1, -1))
    assert as_rgb32(grey).mean == grey.mean * 3


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(InputError, match="tiny: images of 2 channels"):
        as_rgb32(dataset(PAD, 2))
    with pytest.raises(InputError, match="tiny: images of 20 x 40 cannot be padded"):
        as_rgb32(dataset(PAD, 1, 40, 20))


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(("name", "mean", "std"), [("mnist", 0.1, 0.2752), ("fashion", 0.2190, 0.3318)])
def test_real_sets_have_the_published_constants(
    name: str, mean: float, std: float, request: pytest.FixtureRequest
) -> None:
    common = as_rgb32(request.getfixturevalue(name))
    assert (common.mean, common.std) == ((mean,) * 3, (std,) * 3)
    (computed, *_), (deviation, *_) = channel_statistics(common.x_train[:, :1])
    assert computed == pytest.approx(mean, abs=1.5e-4)  # the paper rounds MNIST's 0.10006 to 0.1
    assert round(deviation, 4) == std


@pytest.mark.slow
@pytest.mark.data
def test_real_letters_keep_their_constants(notmnist: ImageDataset) -> None:
    common = as_rgb32(notmnist)
    assert common.x_train.shape == (8000, 3, 32, 32)
    assert (common.mean, common.std) == ((0.4254,) * 3, (0.4501,) * 3)
    (mean, *_), (std, *_) = channel_statistics(common.x_test[:, :1])
    assert mean == pytest.approx(0.4254, abs=0.01), "a sample"
    assert std == pytest.approx(0.4501, abs=0.01)
