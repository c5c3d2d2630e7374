"""Every kind of picture file is read as it is seen, or refused in a line that says why."""

from __future__ import annotations

import io
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from hatrack.data.picture_files import Conversion, read_picture, refuse_dark
from hatrack.errors import DataError, UnfitDataError
from support.marks import examples
from support.picture_kinds import CHANNELS_OF, png, saved, seen, tiff

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (4, 6, 3), dtype=np.uint8)


def read(content: bytes, channels: int | None = 3, **limits: int) -> np.ndarray:
    """The pixels of a picture, ``(H, W, C)``."""
    return read_picture(content, "here", channels, **limits).pixels.permute(1, 2, 0).numpy()


def done(content: bytes, channels: int | None = 3) -> frozenset[Conversion]:
    return read_picture(content, "here", channels).conversions


# --- depth


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=20), st.sampled_from([1, 3]))
@settings(max_examples=examples(50), deadline=None)
def test_sixteen_bits_are_scaled_by_the_range_of_their_type(values: list[int], channels: int) -> None:
    nearest = [int(Fraction(value * 255, 65535) + Fraction(1, 2)) for value in values]
    for content in (png([values], 16, 0), tiff([values], 16, 1), tiff([values], 16, 1, byte_order=">")):
        picture = read_picture(content, "here", channels)
        assert picture.pixels[:, 0].tolist() == [nearest] * channels
        assert picture.brightest == max(values)
        assert picture.conversions == {Conversion.DEEP}


def test_twelve_bits_of_a_tiff_have_a_range_of_their_own() -> None:
    picture = read_picture(tiff([[0, 2048, 4095, 4095]], 12, 1), "here", 1)
    assert picture.pixels.flatten().tolist() == [0, 128, 255, 255]
    assert picture.brightest == 65535


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_white_may_be_zero(bits: int) -> None:
    most = (1 << bits) - 1
    assert read(tiff([[0, most, 0, 0, 0, 0, 0, 0]], bits, 0), 1).flatten().tolist() == [255, 0, *[255] * 6]
    assert read(tiff([[0, most, 0, 0, 0, 0, 0, 0]], bits, 1), 1).flatten().tolist() == [0, 255, *[0] * 6]


def test_dark_sixteen_bits_are_refused_whether_grey_or_colour() -> None:
    dark = RANDOM.integers(0, 4096, 12).tolist()
    for content in (png([dark], 16, 0), png([dark], 16, 2), tiff([dark], 16, 1), tiff([dark], 16, 2, channels=3)):
        picture = read_picture(content, "here", 3)
        assert picture.conversions == {Conversion.DEEP}
        with pytest.raises(DataError, match=r"there: its pictures of 16 bits have values up to \d+ of 65535"):
            refuse_dark(picture.brightest, "there")
    refuse_dark(None, "there")
    refuse_dark(1 << 14, "there")


def test_black_shapes_of_sixteen_bits_are_not_dark() -> None:
    picture = read_picture(png([[0, 0, 0, 65535, 0, 0, 0, 0]], 16, 6), "here", 1)
    assert picture.pixels.flatten().tolist() == [0, 255]
    assert picture.brightest is None
    assert picture.conversions == {Conversion.DEEP, Conversion.WHITE}


def test_five_bits_of_a_bmp_are_not_sixteen() -> None:
    dark = Image.fromarray(COLOUR // 16)
    header = bytearray(saved(dark, "BMP"))
    values = np.array([[31 << 10, 31 << 5, 31, 0]], dtype="<u2")
    header[18:26] = (4).to_bytes(4, "little") + (1).to_bytes(4, "little")
    header[28:30] = (16).to_bytes(2, "little")
    picture = read_picture(bytes(header[:54]) + values.tobytes(), "here", None)
    assert picture.pixels.permute(1, 2, 0).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]]]
    assert picture.brightest is None


@pytest.mark.parametrize(
    "content",
    [
        saved(Image.fromarray(np.ones((4, 4), dtype=np.float32)), "TIFF"),
        saved(Image.fromarray(np.ones((4, 4), dtype=np.int32)), "TIFF"),
        tiff([[1, 65000]], 16, 1, sign=2),
    ],
    ids=["floats", "32 bits", "16 bits with a sign"],
)
def test_numbers_without_a_range_are_refused(content: bytes) -> None:
    with pytest.raises(DataError, match=r"here: holds numbers of 32 bits or with a sign.*\.npz"):
        read(content)


# --- transparency


def oracle(row: list[int], bits: int, colour: int, key: list[int] | None, background: int) -> list[list[float]]:
    """The pixels of a row of a PNG, 0 to 255, computed from its values one by one."""
    most, count = (1 << bits) - 1, CHANNELS_OF[colour]
    pixels = [row[start : start + count] for start in range(0, len(row), count)]
    found = []
    for pixel in pixels:
        opaque = pixel[-1] / most if colour in (4, 6) else float(pixel != key)
        shown = [value / most for value in (pixel[:-1] if colour in (4, 6) else pixel)]
        found.append([255 * value for value in seen(shown * (1 if len(shown) == 3 else 3), opaque, background / 255)])
    return found


@pytest.mark.parametrize(
    ("bits", "colour"), [*((bits, 0) for bits in (1, 2, 4, 8, 16)), *((b, c) for b in (8, 16) for c in (2, 4, 6))]
)
@pytest.mark.parametrize("keyed", [False, True])
def test_every_kind_of_png(bits: int, colour: int, keyed: bool) -> None:
    count, most = CHANNELS_OF[colour], (1 << bits) - 1
    row = RANDOM.integers(0, most + 1, 12 * count).tolist()
    row[:count], row[count : 2 * count] = [0] * count, [most] * count
    key = row[2 * count : 3 * count] if keyed and colour in (0, 2) else None
    picture = read_picture(png([row], bits, colour, key), "here", 3)
    expected = oracle(row, bits, colour, key, 255)
    np.testing.assert_allclose(picture.pixels.permute(1, 2, 0)[0].numpy(), expected, atol=2.01)
    assert (Conversion.WHITE in picture.conversions) == (key is not None or colour in (4, 6))


def shape_in_alpha(value: int) -> tuple[bytes, np.ndarray]:
    """A picture of one colour, whose shape is in its opaqueness alone; and the shape."""
    alpha = np.array([[0, 255, 255, 0], [0, 128, 255, 0]], dtype=np.uint8)
    pixels = np.full((2, 4, 4), value, dtype=np.uint8)
    pixels[..., 3] = alpha
    return saved(Image.fromarray(pixels)), alpha


@pytest.mark.parametrize(("value", "way"), [(0, Conversion.WHITE), (90, Conversion.WHITE), (255, Conversion.BLACK)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_shape_in_alpha_alone_is_seen(value: int, way: Conversion, channels: int) -> None:
    content, alpha = shape_in_alpha(value)
    picture = read_picture(content, "here", channels)
    background = 255 if way is Conversion.WHITE else 0
    expected = alpha / 255 * value + (1 - alpha / 255) * background
    for channel in picture.pixels:
        np.testing.assert_allclose(channel.numpy(), expected, atol=1)
    assert picture.conversions == {way}


def test_nearly_white_shapes_are_seen_too() -> None:
    content, _ = shape_in_alpha(252)
    assert done(content) == {Conversion.BLACK}
    assert int(read(content).max()) - int(read(content).min()) > 200


def test_a_picture_that_is_seen_nowhere_is_refused_and_a_blank_one_is_not() -> None:
    with pytest.raises(DataError, match=r"here: is transparent all over.*save it without alpha"):
        read(saved(Image.fromarray(np.dstack([COLOUR, np.zeros((4, 6), np.uint8)]))))
    assert read(saved(Image.new("RGBA", (3, 2)))).tolist() == [[[255] * 3] * 3] * 2


def test_opaque_pictures_with_alpha_are_what_they_are_without() -> None:
    content = saved(Image.fromarray(np.dstack([COLOUR, np.full((4, 6), 255, np.uint8)])))
    assert np.array_equal(read(content), COLOUR)
    assert done(content) == frozenset()


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palettes_with_a_transparent_colour(kind: str) -> None:
    picture = Image.new("P", (3, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.putdata([0, 1, 2])
    content = saved(picture, kind, transparency=1)
    assert read(content).tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]
    assert read(saved(picture, kind)).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]


def test_without_channels_grey_and_colour_keep_theirs_and_their_transparent_colour() -> None:
    content = png([[7, 9, 200]], 8, 0, key=[9])
    assert read(content, None).flatten().tolist() == [7, 255, 200]
    assert read(png([[7, 9, 200]], 8, 0), None).flatten().tolist() == [7, 9, 200]


# --- colours, turning, several pictures


def test_colours_for_print() -> None:
    cmyk = Image.new("CMYK", (2, 1))
    cmyk.putdata([(0, 0, 0, 0), (0, 255, 255, 0)])
    assert read(saved(cmyk, "TIFF")).tolist() == [[[255, 255, 255], [255, 0, 0]]]
    assert done(saved(cmyk, "TIFF")) == {Conversion.PRINT}
    red = np.array(Image.open(io.BytesIO(saved(cmyk.resize((16, 8)), "JPEG", quality=100))).convert("RGB"))
    assert np.array_equal(read(saved(cmyk.resize((16, 8)), "JPEG", quality=100)), red)


def test_lab_is_refused_as_what_it_is() -> None:
    with pytest.raises(UnfitDataError, match="here: is a picture in LAB colours"):
        read(saved(Image.new("LAB", (2, 2)), "TIFF"))


@pytest.mark.parametrize("bits", [0, 1])
def test_pictures_of_one_bit(bits: int) -> None:
    assert read(saved(Image.new("1", (2, 2), bits)), 1).tolist() == [[[255 * bits]] * 2] * 2


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "I;16"), ("TIFF", "RGB"), ("WEBP", "RGB"), ("JPEG", "L")],
)
def test_pictures_are_turned_once_as_their_tag_says(kind: str, mode: str, orientation: int) -> None:
    flat = Image.fromarray(RANDOM.integers(0, 256, (16, 24), dtype=np.uint8))
    picture = {
        "RGB": lambda: Image.merge("RGB", [flat] * 3),
        "RGBA": lambda: Image.merge("RGBA", [flat] * 3 + [Image.new("L", flat.size, 255)]),
        "L": lambda: flat,
        "I;16": lambda: Image.fromarray(np.asarray(flat).astype(np.uint16) * 257),
    }[mode]()
    exif = Image.Exif()
    exif[0x0112] = orientation
    how = {"exif": exif, **({"lossless": True} if kind == "WEBP" else {})}
    plain = read(saved(picture, kind, **{key: value for key, value in how.items() if key != "exif"}), 1)[..., 0]
    moves = {
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.T,
        6: lambda x: np.rot90(x, -1),
        7: lambda x: x[::-1, ::-1].T,
        8: lambda x: np.rot90(x),
    }
    expected = moves.get(orientation, lambda x: x)(plain)
    content = saved(picture, kind, **how)
    assert np.array_equal(read(content, 1)[..., 0], expected)
    assert (Conversion.TURNED in done(content)) == (orientation in moves)


def test_damaged_exif_data_are_counted_where_they_are_a_supplement_and_refused_where_not() -> None:
    picture = Image.fromarray(COLOUR)
    exif = saved(picture, "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0")
    assert np.array_equal(read(exif), COLOUR)
    assert done(exif) == {Conversion.UNKNOWN_SIDE}
    with pytest.raises(DataError, match=r"here: (not a whole picture|is no picture)"):
        read(tiff([[1, 2]], 8, 1)[:70])


FRAMES = [Image.fromarray(np.full((4, 6, 3), value, np.uint8)) for value in (10, 200, 90)]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_a_moving_picture_the_first_is_taken(kind: str) -> None:
    how = {"lossless": True} if kind == "WEBP" else {}
    content = saved(FRAMES[0], kind, save_all=True, append_images=FRAMES[1:], **how)
    assert (read(content) == 10).all()
    assert done(content) == {Conversion.FIRST}


def test_several_pages_are_refused() -> None:
    with pytest.raises(DataError, match="here: holds 3 pictures; save those"):
        read(saved(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]))


def test_views_behind_a_cameras_picture_do_not_count() -> None:
    content = saved(FRAMES[0], "MPO", save_all=True, append_images=FRAMES[1:])
    assert (read(content) == 10).all()
    assert done(content) == frozenset()


# --- what is refused


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "CMYK", "I;16"])
def test_other_kinds_than_grey_and_colour_need_a_choice(mode: str) -> None:
    content = saved(Image.new(mode, (2, 2)), "TIFF")
    with pytest.raises(UnfitDataError, match=f"here: is a picture of kind {mode}; say channels = 1 or 3"):
        read(content, None)


def test_a_huge_picture_is_refused_by_its_header() -> None:
    with pytest.raises(DataError, match="here: is 6 x 4 pixels, more than 5 on a side"):
        read(saved(Image.fromarray(COLOUR)), largest_side=5)


@pytest.mark.parametrize("content", [b"", b"no picture", b"%!PS-Adobe-3.0", b"<svg/>"])
def test_what_is_no_picture_is_named(content: bytes) -> None:
    with pytest.raises(UnfitDataError, match=r"^here: is no picture of a kind that can be read$"):
        read(content)


def test_channels_by_their_definition() -> None:
    grey = np.asarray(ImageOps.grayscale(Image.fromarray(COLOUR)))
    assert np.array_equal(read(saved(Image.fromarray(COLOUR)), 1)[..., 0], grey)
    np.testing.assert_allclose(grey, COLOUR @ [0.299, 0.587, 0.114], atol=0.51)
    assert np.array_equal(read(saved(Image.fromarray(grey)), 3), np.dstack([grey] * 3))
