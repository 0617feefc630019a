"""From the bytes of an image to the square that the model sees: every kind of image, just the rows that it takes."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lightning_shards.data import png
from lightning_shards.data.crop import Crop, resize
from lightning_shards.data.decode import DecodeError, decode_image, decode_jpeg, decode_mask, jpeg_frame, scratch
from lightning_shards.data.image_header import Frame, read_frame
from lightning_shards.data.png import MOST_CHUNKS, unpack
from PIL import Image

from .conftest import picture
from .samples import decoded, image

SUBSAMPLINGS = (0x411111, 0x420000 | 0x2111, 0x221111, 0x211111, 0x121111, 0x111111)


def with_exif(data: bytes, orientation: int) -> bytes:
    """A JPEG whose EXIF tag says how to turn it."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation, 0, 0, 0, 0, 0, 0])
    return data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]


def variant(mode: Callable[[np.ndarray], np.ndarray], extension: str = ".png") -> bytes:
    return cv2.imencode(extension, mode(picture(0)[:, :, ::-1]))[1].tobytes()


def test_all_kinds_of_images_come_out_upright_and_in_rgb() -> None:
    turned = with_exif(cv2.imencode(".jpg", image(1, 20, 40))[1].tobytes(), 6)
    assert decode_image(turned).shape == (40, 20, 3)
    gray = decode_image(variant(lambda x: x[:, :, 0]))
    assert gray.shape == (24, 24, 3) and (gray[:, :, 0] == gray[:, :, 2]).all()
    alpha = decode_image(variant(lambda x: np.dstack([x, np.full((24, 24), 9, np.uint8)])))
    assert np.array_equal(alpha, picture(0))
    webp = decode_image(variant(lambda x: x, ".webp")).astype(int)
    assert np.abs(webp.mean((0, 1)) - picture(0).mean((0, 1))).max() < 12
    deep = decode_image(variant(lambda x: x.astype(np.uint16) * 257))
    assert deep.dtype == np.uint8 and np.array_equal(deep, picture(0))


@settings(max_examples=100, deadline=None)
@given(
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]),
    shape=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    level=st.integers(0, 9),
    opencv=st.booleans(),  # it writes chunks of 8 KB, PIL of 64
    seed=st.integers(0, 99),
)
def test_an_unpacked_png_is_the_same_image(
    mode: str, shape: tuple[int, int], level: int, opencv: bool, seed: int
) -> None:
    file, pixels = io.BytesIO(), Image.fromarray(image(seed, *shape))
    if opencv:
        file.write(cv2.imencode(".png", image(seed, *shape), [cv2.IMWRITE_PNG_COMPRESSION, level])[1].tobytes())
    elif mode == "I;16":
        Image.fromarray(image(seed, *shape)[:, :, 0].astype(np.uint16) * 257).save(file, "png")
    else:
        pixels.convert(mode).save(file, "png", compress_level=level)
    data = file.getvalue()
    unpacked = unpack(data)
    assert unpacked is not data and unpacked[unpacked.index(b"IDAT") + 4 :][:2] == b"\x78\x01"
    for reader in (lambda png: Image.open(io.BytesIO(png)), lambda png: cv2.imdecode(np.frombuffer(png, np.uint8), 1)):
        assert np.array_equal(np.asarray(reader(unpacked)), np.asarray(reader(data)))


def filtered(mask: np.ndarray, filters: list[int]) -> bytes:
    """A gray PNG whose lines have these filters (W3C PNG, section 9), in turn."""
    numbers = np.pad(mask.astype(int), ((1, 0), (1, 0)))
    left, above, both = numbers[1:, :-1], numbers[:-1, 1:], numbers[:-1, :-1]
    distances = np.abs(np.stack([above - both, left - both, left + above - 2 * both]))
    nearest = np.choose(distances.argmin(0), [left, above, both])
    guesses = [0 * left, left, above, (left + above) // 2, nearest]
    lines = b"".join(
        bytes([kind]) + ((mask[row] - guesses[kind][row]) % 256).astype(np.uint8).tobytes()
        for row, kind in zip(range(len(mask)), itertools.cycle(filters), strict=False)
    )
    header = mask.shape[1].to_bytes(4, "big") + mask.shape[0].to_bytes(4, "big") + b"\x08\0\0\0\0"
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    parts = (len(body).to_bytes(4, "big") + kind + body + _sum(kind + body) for kind, body in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _sum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "big")


@settings(max_examples=100, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    filters=st.lists(st.integers(0, 4), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
@example((5, 7), [0], 1).via("as PIL writes palettes")
@example((5, 7), [1], 1).via("as OpenCV writes masks")
@example((9, 7), [2, 0, 1, 2], 1).via("lines that depend on one neighbour")
def test_a_mask_has_its_stored_numbers_with_any_filters(shape: tuple[int, int], filters: list[int], seed: int) -> None:
    mask = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    data = filtered(mask, filters)
    assert np.array_equal(decode_mask(data), mask)
    assert np.array_equal(mask, np.asarray(Image.open(io.BytesIO(data))))
    (top, bottom), (left, right) = (sorted(np.random.default_rng(seed).integers(0, side, 2).tolist()) for side in shape)
    seen = decode_mask(data, (top, left, bottom - top + 1, right - left + 1))
    assert np.array_equal(seen, mask[top : bottom + 1, left : right + 1])
    cut = data[: int(len(data) * 0.7)]
    with pytest.raises(DecodeError):
        decode_mask(cut)


def test_a_large_mask_is_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png, "_MOST_SUMMED", 100)
    mask = np.random.default_rng(0).integers(0, 256, (31, 40), np.uint8)
    assert np.array_equal(decode_mask(filtered(mask, [1])), mask)


def test_pngs_that_cannot_be_unpacked_stay_as_they_are() -> None:
    data = variant(lambda x: x)
    broken, unsure = bytearray(data), bytearray(data)
    broken[data.index(b"IDAT") + 20] ^= 1
    unsure[data.index(b"IEND") - 5] ^= 1  # the last byte of the chunk's checksum
    interlaced = bytearray(data)
    interlaced[28] = 1
    larger = bytearray(data)
    larger[20] = 1  # 16 million rows more than there are
    changed = [bytes(array) for array in (broken, unsure, interlaced, larger)]
    for bad in (*changed, data[:40], data[:20], data.replace(b"IDAT", b"IDAX")):
        assert unpack(bad) is bad
    with pytest.raises(DecodeError):
        decode_image(bytes(larger))
    whole, start = decode_image(data), data.index(b"IDAT") - 4
    for chunks in (MOST_CHUNKS - 9, 2 * MOST_CHUNKS):  # of no bytes, before those that have some
        padded = data[:start] + (bytes(4) + b"IDAT" + zlib.crc32(b"IDAT").to_bytes(4, "big")) * chunks + data[start:]
        assert (unpack(padded) is padded) == (chunks > MOST_CHUNKS) and np.array_equal(decode_image(padded), whole)


def test_jpegs_that_are_turned_or_cmyk_are_left_to_opencv(tmp_path: Path) -> None:
    upright = cv2.imencode(".jpg", image(1, 20, 40))[1].tobytes()
    as_long = with_exif(upright, 0).replace(b"\x12\0\x03\0\0\0\x01\0\0\0\0", b"\x12\0\x04\0\0\0\x01\0\x06\0\0")
    assert not jpeg_frame(as_long) and decode_image(as_long).shape == (40, 20, 3)
    assert jpeg_frame(upright) and jpeg_frame(with_exif(upright, 1)) and not jpeg_frame(with_exif(upright, 8))
    Image.fromarray(image(2, 20, 40)).convert("CMYK").save(tmp_path / "cmyk.jpg")
    cmyk = (tmp_path / "cmyk.jpg").read_bytes()
    assert not jpeg_frame(cmyk) and decode_image(cmyk).shape == (20, 40, 3)
    out = np.zeros((16, 16, 3), np.uint8)
    for data in (cmyk, with_exif(upright, 8)):
        Crop(16)(data, None, out)
        assert out.std() > 5


def test_a_bomb_is_refused_without_being_unpacked() -> None:
    bomb = b"\x89PNG\r\n\x1a\n"
    size = (80_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    for chunk in (b"IHDR" + size, b"IDAT" + zlib.compress(bytes(1000)), b"IEND"):
        bomb += (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    with pytest.raises(DecodeError, match=r"^has more than 134,217,728 pixels, or a side of more than 1,048,576"):
        decode_image(bomb)
    jpeg = bytearray(cv2.imencode(".jpg", image(1, 20, 40))[1].tobytes())
    frame = read_frame(bytes(jpeg))
    assert frame and (frame.height, frame.width) == (20, 40)
    jpeg[frame.at : frame.at + 4] = b"\xff\xf0" * 2
    with pytest.raises(DecodeError, match="65520 x 65520 pixels"):
        Crop(16)(bytes(jpeg), None, np.zeros((16, 16, 3), np.uint8))


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    rows=st.integers(1, 150),
    by=st.sampled_from([1, 1, 2, 4, 8]),
    gray=st.booleans(),
    sampling=st.sampled_from(SUBSAMPLINGS),
    options=st.sampled_from([(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 3)]),
)
def test_the_rows_of_a_crop_are_those_of_the_whole_image(
    height: int, width: int, rows: int, by: int, gray: bool, sampling: int, options: tuple[int, ...]
) -> None:
    if by > 1:
        height, width = max(height, 8 * by), max(width, 8 * by)
    pixels = image(height, height, width)
    settings_ = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling, *options]
    data = cv2.imencode(".jpg", pixels[:, :, 0] if gray else pixels, settings_)[1].tobytes()
    frame = jpeg_frame(data)
    assert frame and (frame.height, frame.width, frame.components) == (height, width, 1 if gray else 3)
    assert frame.one_scan == (options[:1] != (cv2.IMWRITE_JPEG_PROGRESSIVE,))
    flags = {1: cv2.IMREAD_COLOR_RGB, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4}
    whole = decoded(data, flags.get(by, cv2.IMREAD_REDUCED_COLOR_8))
    whole = whole if by == 1 else whole[:, :, ::-1]
    part = decode_jpeg(data, frame, by, rows, keep=False)
    assert part is not None
    wanted = min(rows // by, len(whole))
    assert part.shape[1:] == whole.shape[1:] and wanted <= len(part) <= len(whole)
    assert np.array_equal(part[:wanted], whole[:wanted])


def test_what_lies_below_a_crop_is_not_decoded(capfd: pytest.CaptureFixture[str]) -> None:
    """Damage there does no harm, and the decoder's warnings about the rest do not reach the terminal."""
    pixels = image(1, 400, 300)
    data = cv2.imencode(".jpg", pixels)[1].tobytes()
    frame = jpeg_frame(data)
    assert frame
    whole = decode_image(data)
    damaged = data[: len(data) * 2 // 3] + bytes(len(data) // 4) + b"\xff\xd9"
    part = decode_jpeg(damaged, frame, 1, 200, keep=True)
    assert part is not None and np.array_equal(part[:200], whole[:200])
    assert not np.array_equal(decode_image(damaged)[300:], whole[300:])
    assert capfd.readouterr().err == ""
    with pytest.raises(DecodeError, match="cannot be decoded"):
        decode_image(data[:30] + b"\xff\xd9")


def test_each_thread_uses_its_memory_again() -> None:
    first = scratch("a", (4, 5, 3))
    assert scratch("a", (2, 2, 3)).base is first.base and scratch("b", (4, 5, 3)).base is not first.base
    kept = decode_image(cv2.imencode(".jpg", image(1, 20, 20))[1].tobytes())
    before = kept.copy()
    decode_image(cv2.imencode(".jpg", image(2, 20, 20))[1].tobytes())
    assert np.array_equal(kept, before)


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    seed=st.integers(0, 1000),
    ratio=st.sampled_from([(3 / 4, 4 / 3), (1.0, 1.0)]),
    extension=st.sampled_from([".jpg", ".png"]),
)
def test_crops_lie_inside_and_cover_what_was_asked(
    height: int, width: int, seed: int, ratio: tuple[float, float], extension: str
) -> None:
    crop = Crop(32, (0.3, 0.9), ratio)
    draws = np.random.default_rng(seed).random(crop.draws)
    top, left, h, w = crop.box(height, width, draws)
    assert 0 <= top <= top + h <= height and 0 <= left <= left + w <= width and h >= 1 and w >= 1
    if min(height, width) > 30 and 0.8 < height / width < 1.25:
        assert 0.27 < h * w / (height * width) < 0.93 and 0.7 < w / h < 1.4
    assert w == h or ratio != (1.0, 1.0), "square, whatever the image is"
    for choice in (draws, None):
        out = np.zeros((32, 32, 3), np.uint8)
        crop(cv2.imencode(extension, np.full((height, width, 3), 7, np.uint8))[1].tobytes(), choice, out)
        assert (out == 7).all()


def test_a_flip_mirrors_the_same_crop() -> None:
    for extension in (".png", ".jpg"):
        data = cv2.imencode(extension, image(0, 40, 50))[1].tobytes()
        draws = np.random.default_rng(1).random(Crop(16).draws)
        outs = [np.zeros((16, 16, 3), np.uint8) for _ in range(2)]
        for out, flip in zip(outs, (0.0, 1.0), strict=True):
            Crop(16, flip=flip)(data, draws, out)
        assert np.array_equal(outs[0], outs[1][:, ::-1]) and outs[0].std() > 5


def error(height: int, width: int, seed: int, how: Callable[[np.ndarray, np.ndarray], object]) -> float:
    """Mean difference of what `how` makes of a region from PIL's antialiased bilinear filter, of 255."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    region, out = np.asarray(cv2.GaussianBlur(noise, (0, 0), 0.8), np.uint8), np.zeros((64, 64, 3), np.uint8)
    how(region, out)
    exact = np.asarray(Image.fromarray(region).resize((64, 64), Image.Resampling.BILINEAR), int)
    return float(np.abs(out - exact).mean())


@pytest.mark.parametrize("reduction", [1.3, 1.6, 2.0, 2.2, 2.6, 3.0])
def test_resizing_is_close_to_an_antialiased_filter(reduction: float) -> None:
    """Closer than linear interpolation by itself everywhere, and than averaging areas where it matters."""

    def plain(interpolation: int) -> Callable[[np.ndarray, np.ndarray], object]:
        return lambda region, out: cv2.resize(region, (64, 64), dst=out, interpolation=interpolation)

    shapes = [(round(64 * reduction), round(64 * reduction * aspect)) for aspect in (0.8, 1.0)]
    ours, linear, area = (
        np.mean([error(*shape, seed, how) for shape in shapes for seed in range(5)])
        for how in (resize, plain(cv2.INTER_LINEAR), plain(cv2.INTER_AREA))
    )
    assert ours < 0.8 * linear and (reduction < 1.5 or ours < 0.8 * area), (ours, linear, area)


def test_what_lies_around_a_region_plays_no_part() -> None:
    pixels, outs = image(3, 120, 120), [np.zeros((64, 64, 3), np.uint8) for _ in range(2)]
    other = np.full_like(pixels, 255)
    other[5:115, 5:115] = pixels[5:115, 5:115]
    for whole, out in zip((pixels, other), outs, strict=True):
        resize(whole[5:115, 5:115], out)
    assert np.array_equal(outs[0], outs[1])


def test_a_large_jpeg_is_decoded_at_a_part_of_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_shards.data import crop as module

    asked = []

    def noted(data: bytes, frame: Frame, by: int, rows: int, keep: bool) -> np.ndarray | None:
        asked.append(by)
        return decode_jpeg(data, frame, by, rows, keep)

    monkeypatch.setattr(module, "decode_jpeg", noted)
    data = cv2.imencode(".jpg", image(1, 600, 600))[1].tobytes()
    for size, by in ((301, 1), (250, 2), (100, 4), (16, 8)):
        out = np.zeros((size, size, 3), np.uint8)
        Crop(size, center=1.0)(data, None, out)
        exact = np.asarray(Image.fromarray(decode_image(data)).resize((size, size), Image.Resampling.BILINEAR), int)
        assert asked.pop() == by and np.abs(out - exact).mean() < 2


def test_what_simplejpeg_refuses_is_tried_by_opencv() -> None:
    """Such as a newer version of JFIF, which makes it warn of the header."""
    data = bytearray(cv2.imencode(".jpg", image(1, 40, 50))[1].tobytes())
    whole, outs = decode_image(bytes(data)), [np.zeros((32, 32, 3), np.uint8) for _ in range(2)]
    Crop(32)(bytes(data), None, outs[0])
    data[data.index(b"JFIF") + 5] = 9
    frame = jpeg_frame(bytes(data))
    assert frame and decode_jpeg(bytes(data), frame, 1, 40, keep=False) is None
    assert np.array_equal(decode_image(bytes(data)), whole)
    Crop(32)(bytes(data), None, outs[1])
    assert np.array_equal(outs[0], outs[1])


PLAIN, PROGRESSIVE, OTHER = (
    cv2.imencode(extension, image(5, 90, 70), options)[1].tobytes()
    for extension, options in ((".jpg", ()), (".jpg", (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)), (".png", ()))
)


@settings(max_examples=400, deadline=None)
@given(
    data=st.sampled_from([PLAIN, PLAIN, PROGRESSIVE, PROGRESSIVE, OTHER]),
    place=st.floats(0, 1, exclude_max=True),
    change=st.sampled_from(["flip", "fill", "cut", "insert"]),
    seed=st.integers(0, 1 << 16),
)
@example(data=PLAIN, place=0.28125, change="fill", seed=0)  # a warning, then an error, before the first row
def test_damage_is_a_decode_error_or_a_picture_of_its_own(data: bytes, place: float, change: str, seed: int) -> None:
    """Never another error, and never pixels that an image before has left in memory."""
    at, noise = int(place * len(data)), np.random.default_rng(seed).bytes(64)
    damaged = {
        "flip": data[:at] + bytes([data[at] ^ 1 << seed % 8]) + data[at + 1 :],
        "fill": data[:at] + noise + data[at + 64 :],
        "cut": data[:at] + data[at + 64 :],
        "insert": data[:at] + b"\0\0\0\xff\xb5\0\2" + data[at:],
    }[change]
    draws = np.random.default_rng(seed).random(Crop(16).draws)
    found: list[object] = []
    for colour in (0, 255):
        out = np.zeros((16, 16, 3), np.uint8)
        Crop(16)(cv2.imencode(".jpg", np.full((200, 200, 3), colour, np.uint8))[1].tobytes(), None, out)
        try:
            Crop(16)(damaged, draws, out)
            found.append(out.tolist())
        except DecodeError as error:
            found.append(error.args)
    assert found[0] == found[1]


def test_headers_that_decoders_understand_differently_are_left_to_opencv() -> None:
    """A marker without a length hides another header from a reader that takes it for one with a length."""
    visible, hidden = (cv2.imencode(".jpg", image(1, *shape))[1].tobytes() for shape in ((16, 400), (400, 16)))
    body = b"\xff\xe0" + (0xFFE0).to_bytes(2, "big") + hidden[4:]
    assert read_frame(b"\xff\xd8\xff\x01" + body + bytes(0xFFE0 - len(body)) + visible[2:]) is None


def test_limits_hold_whichever_module_comes_first() -> None:
    """OpenCV reads its limit of pixels when it is imported; a PNG of 12,000 x 12,000 pixels is below its own."""
    code = r"""
import struct, zlib
from lightning_shards.data.worker import WorkerSpec
from lightning_shards.data.decode import DecodeError
from lightning_shards.data.decode import decode_image
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
side = 12_000
header = chunk(b"IHDR", struct.pack(">II", side, side) + bytes([8, 0, 0, 0, 0]))
pixels = chunk(b"IDAT", zlib.compress(bytes(side * (side + 1)), 1))
try:
    decode_image(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b""))
except DecodeError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("refused\n", "")
