"""Photos are found once and read in bounded memory; other files are reported with a reason."""

import io
import itertools
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import ExifTags, Image

from data_pipelines import images
from data_pipelines.files import Entry
from tests.source import ROOT
from tests.zse_jax.gallery.conftest import photo
from zse_jax.gallery import photos


def test_folders_patterns_and_files_are_found_once_each(album, tmp_path):
    found = photos.find([album, album / "p0.png", f"{album}/*.png", album / "deep"])
    assert [c.file.name for c in found.files] == ["p0.png", "p1.png", "p2.png", "p3.png", "p4.png"]
    assert found.others == 1
    assert all(c.size > 0 and c.modified > 0 for c in found.files)
    assert photos.find(str(album)).files == found.files


def test_files_of_the_system_are_left_out_and_counted(album):
    (album / "._p0.png").write_bytes(b"\0\5\x16\7")
    photo(album / "@eaDir" / "p0" / "SYNOFILE_THUMB_M.png", 7)
    photo(album / ".Trash-1000" / "files" / "old.png", 8)
    found = photos.find([album])
    assert (len(found.files), found.others, found.system) == (5, 1, 3)
    found = photos.find([f"{album}/*.png"])
    assert (len(found.files), found.system) == (4, 1)
    found = photos.find([f"{album}/**/*.png"])
    assert (len(found.files), found.system) == (5, 3)
    assert len(photos.find([album / ".Trash-1000"]).files) == 1  # named by the user


def test_on_request_nothing_is_left_out(album):
    photo(album / "@eaDir" / "p0" / "SYNOFILE_THUMB_M.png", 7)
    photo(album / ".git" / "objects" / "a.png", 8)
    for place, count in ((album, 7), (f"{album}/**/*.png", 7)):
        found = photos.Found([place], include_hidden=True)
        assert (len([*found]), found.system) == (count, 0)


@pytest.mark.parametrize(
    "name",
    [".Trash-1000", "$RECYCLE.BIN", "@eaDir", ".thumbnails", ".git", ".svn", "CVS", "lost+found"],
)
def test_folders_of_the_system(tmp_path, name):
    photo(tmp_path / name / "a.png", 1)
    found = photos.find(tmp_path)
    assert (found.files, found.system) == ([], 1)


def test_videos_are_named(album):
    for name in ("a.MOV", "deep/b.mp4"):
        (album / name).write_bytes(b"\0\0\0\x14ftypqt  ")
    found = photos.find(album)
    assert [video.name for video in found.videos] == ["a.MOV", "b.mp4"]
    assert (len(found.files), found.others) == (5, 1)


def test_any_number_of_files_is_found_without_a_list_of_them(monkeypatch, tmp_path):
    taken = []

    def endless(folder, visited, system):
        for number in range(10**6):
            taken.append(number)
            yield Entry(folder / f"{number}.jpg", "file", tmp_path.stat())

    monkeypatch.setattr(photos, "walked", endless)
    monkeypatch.setattr(photos.stat, "S_ISREG", lambda mode: True)
    monkeypatch.setattr(photos.stat, "S_ISDIR", lambda mode: mode != 0)
    some = [*itertools.islice(iter(photos.Found(tmp_path)), 3)]
    assert [candidate.file.name for candidate in some] == ["0.jpg", "1.jpg", "2.jpg"]
    assert len(taken) == 3


def test_brackets_in_the_names_of_folders(album):
    for name in ("trip [2020]", "trip 2"):
        photo(album / name / "a.png", 7)
        photo(album / name / "b.jpg", 8)
    for pattern, count in (
        ("trip [2020]", 2), ("trip [2020]/*.png", 1), ("trip [2]/*", 2), ("t* [2020]/*.jpg", 1),
    ):  # fmt: skip
        assert len(photos.find([album / pattern]).files) == count, pattern


def test_states_of_files_of_any_date_fit_the_tables():
    for year in (1600, 1970, 2262, 2446):
        nanoseconds = (year - 1970) * 31_556_952 * 10**9
        status = os.stat_result((0,) * 6 + (9,) + (0,) * 3, {"st_mtime_ns": nanoseconds})
        size, modified = photos.state_of(status)
        assert size == 9
        assert -(2**63) <= modified < 2**63


def test_cyclic_links_end(album):
    (album / "deep" / "up").symlink_to(album, target_is_directory=True)
    (album / "self").symlink_to("self")
    (album / "broken.jpg").symlink_to("nowhere.jpg")
    found = photos.find([album])
    assert len(found.files) == 5
    assert found.links == 1
    assert [(file.name, reason) for file, reason in found.refused] == [
        ("broken.jpg", "No such file or directory")
    ]


def test_file_names_that_are_not_utf8_and_files_that_are_not_regular(album):
    strange = os.fsencode(album) + b"/caf\xe9.png"
    (album / "p1.png").rename(os.fsdecode(strange))
    os.mkfifo(album / "pipe.jpg")
    found = photos.find([album])
    assert strange in [os.fsencode(c.file) for c in found.files]
    assert photos.name_of(next(c.file for c in found.files if b"caf" in os.fsencode(c.file))) == (
        f"{album}/caf\\xe9.png"
    )
    assert [reason for _, reason in found.refused] == ["it is not a regular file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root can open every folder")
def test_a_folder_without_read_permission_is_reported(album):
    (album / "deep").chmod(0)
    try:
        found = photos.find([album])
    finally:
        (album / "deep").chmod(0o755)
    assert [reason for _, reason in found.refused] == [
        "the folder cannot be opened: Permission denied"
    ]


def test_a_folder_that_cannot_be_opened_is_reported(album, monkeypatch):
    iterdir = Path.iterdir

    def closed(path):
        if path.name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", closed)
    found = photos.find([album])
    assert len(found.files) == 4
    assert found.refused == [(album / "deep", "the folder cannot be opened: Permission denied")]


def test_places_that_do_not_exist():
    with pytest.raises(ValueError, match="--photos is missing: .*--photos=album"):
        photos.find([])
    with pytest.raises(FileNotFoundError, match="--photos=nothing: no file, folder or match"):
        photos.find(["nothing"])
    with pytest.raises(ValueError, match="ftp://host/album: this path cannot start with ftp"):
        photos.find(["ftp://host/album"])


@pytest.mark.parametrize("preprocessing", ["crop", "pad"])
def test_a_photo_is_prepared_as_for_the_evaluation(album, preprocessing):
    file = photo(album / "wide.jpg", 9, (400, 200))
    read = photos.read(file, 32, preprocessing)
    wanted = images.prepare_photo(images.decode(file.read_bytes()), 32, preprocessing)
    np.testing.assert_array_equal(read.image, wanted)
    np.testing.assert_array_equal(photos.prepared(file, 32, preprocessing), wanted)
    assert (read.width, read.height) == (400, 200)
    assert Image.open(io.BytesIO(read.thumbnail)).size == (photos.THUMBNAIL, photos.THUMBNAIL // 2)
    assert photos.read(file, 32, known=lambda digest: digest == read.digest).image is None


@pytest.mark.parametrize(("suffix", "kind"), [("heic", "HEIF"), ("avif", "AVIF")])
def test_photos_of_phones(tmp_path, suffix, kind):
    pillow_heif.register_heif_opener()
    rgb = np.zeros((48, 64, 3), np.uint8)
    rgb[:, :32] = 250, 10, 10
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2021:05:31 12:00:00"
    file = tmp_path / f"a.{suffix}"
    Image.fromarray(rgb).save(file, kind, exif=exif, quality=95)
    read = photos.read(file, 32)
    assert np.abs(read.image[5, 5].astype(int) - (250, 10, 10)).max() < 20
    assert (read.width, read.height, read.damaged_metadata) == (64, 48, False)
    assert read.format == kind.lower()
    encoded = file.read_bytes()
    place = encoded.rfind(b"Exif\0\0")
    if kind == "HEIF":  # Pillow writes no date to AVIF
        assert read.taken.year == 2021
        file.write_bytes(encoded[: place + 6] + b"\xff" * 20 + encoded[place + 26 :])
        assert photos.read(file, 32).taken is None
    file.write_bytes(encoded[: len(encoded) // 2])
    with pytest.raises(images.UnreadableImageError):
        photos.read(file, 32)


def dng(preview):
    """A RAW file with a JPEG preview and 64 x 64 sensor values."""
    side, jpeg = 64, io.BytesIO()
    preview.save(jpeg, "JPEG")
    sensor = np.full((side, side), 500, "<u2").tobytes()

    def directory(start, entries):
        """Bytes of a directory at `start`, followed by values that do not fit in 4 bytes."""
        table, extra = struct.pack("<H", len(entries)), b""
        after = start + 2 + 12 * len(entries) + 4
        for tag, kind, count, value in sorted(entries):
            if isinstance(value, bytes):
                if len(value) > 4:
                    offset, extra = after + len(extra), extra + value + bytes(len(value) % 2)
                    value = struct.pack("<I", offset)
                table += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
            else:
                table += struct.pack("<HHII", tag, kind, count, value)
        return table + bytes(4) + extra

    short, long, text, byte = 3, 4, 2, 1

    def both(second, picture, pixels):
        width, height = preview.size
        first = directory(8, [
            (254, long, 1, 1), (256, long, 1, width), (257, long, 1, height),
            (258, short, 3, struct.pack("<3H", 8, 8, 8)), (259, short, 1, 7),
            (262, short, 1, 6), (271, text, 6, b"Maker\0"), (272, text, 6, b"Model\0"),
            (273, long, 1, picture), (277, short, 1, 3), (279, long, 1, len(jpeg.getvalue())),
            (330, long, 1, second), (50706, byte, 4, bytes([1, 4, 0, 0])),
            (50708, text, 6, b"Model\0"), (274, short, 1, 1), (278, long, 1, height),
        ])  # fmt: skip
        raw_ = directory(second, [
            (254, long, 1, 0), (256, long, 1, side), (257, long, 1, side), (258, short, 1, 16),
            (259, short, 1, 1), (262, short, 1, 32803), (273, long, 1, pixels),
            (277, short, 1, 1), (278, long, 1, side), (279, long, 1, len(sensor)),
            (33421, short, 2, struct.pack("<2H", 2, 2)), (33422, byte, 4, bytes([0, 1, 1, 2])),
        ])  # fmt: skip
        return first, raw_

    first, raw_ = both(0, 0, 0)
    second = 8 + len(first)
    picture = second + len(raw_)
    pixels = picture + len(jpeg.getvalue())
    header = b"II*\0" + struct.pack("<I", 8)
    return header + b"".join(both(second, picture, pixels)) + jpeg.getvalue() + sensor


def test_the_preview_in_a_raw_file(tmp_path, monkeypatch):
    file = tmp_path / "a.DNG"
    file.write_bytes(dng(Image.new("RGB", (64, 48), "red")))
    assert photos.find(tmp_path).files[0].file == file
    read = photos.read(file, 32)
    assert (read.width, read.height, read.format) == (64, 48, "dng")
    assert tuple(read.image[5, 5]) == pytest.approx((254, 0, 0), abs=3)
    file.write_bytes(b"II*\0" + bytes(200))
    with pytest.raises(images.UnreadableImageError, match="its RAW preview cannot be read"):
        photos.read(file, 32)
    monkeypatch.setitem(sys.modules, "rawpy", None)
    [result] = photos.read_all([file], 32)
    assert photos.reason(result).startswith("it is a RAW file: install rawpy")


@pytest.mark.parametrize(
    ("name", "contents", "reason"),
    [
        ("page.jpg", b"<!DOCTYPE html><html><body>404</body></html>", r"not an image .*a web page"),
        ("empty.png", b"", r"the file is empty \(0 bytes\)"),
        ("noise.jpg", b"\xff\xd8\xff" + bytes(100), "its header cannot be read"),
        ("script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image of a known format"),
    ],
)
def test_files_that_are_not_photos_are_refused_with_a_reason(tmp_path, name, contents, reason):
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(images.UnreadableImageError, match=reason):
        photos.read(tmp_path / name, 32)


def test_photos_that_are_cut_off_or_too_small(tmp_path):
    whole = photo(tmp_path / "whole.png", 1, (64, 64)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(images.UnreadableImageError, match="do not decode"):
        photos.read(tmp_path / "cut.png", 32)
    with pytest.raises(images.UnreadableImageError, match="its 40 x 8 pixels are too small"):
        photos.read(photo(tmp_path / "thin.png", 1, (40, 8)), 32)


LARGE = """
import resource, sys
from PIL import Image
from data_pipelines import images
from zse_jax.gallery import photos
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[1:]:
    try:
        print(photos.read(photos.Path(name), 32)[3:5])
    except images.UnreadableImageError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_photos_of_200_megapixels_take_little_memory(tmp_path):
    large = Image.new("RGB", (20_000, 10_000), "red")
    large.save(tmp_path / "plain.jpg", quality=30)
    large.save(tmp_path / "large.png", compress_level=1)
    small = Image.new("RGB", (10_000, 6_000), "red")
    small.save(tmp_path / "progressive.jpg", progressive=True, quality=30)
    names = [str(tmp_path / n) for n in ("plain.jpg", "large.png", "progressive.jpg")]
    command = [sys.executable, "-c", LARGE, *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    plain, png, progressive, mebibytes = done.stdout.splitlines()
    assert plain == "(20000, 10000)"
    assert "it has too many pixels" in png
    assert "10000 x 6000 pixels are more than 50 million" in progressive
    assert int(mebibytes) < 200
