"""The benchmark of an album counts right photos as it says."""

import cv2
import numpy as np

from tests.benchmarks import album


def test_right_photos_among_the_first():
    similarity = np.array([[0.9, 0.1, 0.5, 0.4], [0.1, 0.2, 0.3, 0.4]])
    match = np.array([[True, False, False, True], [True, True, False, False]])
    np.testing.assert_allclose(album.right(similarity, match, 2), [0.5, 0.0])
    np.testing.assert_allclose(album.right(similarity, match, 3), [2 / 3, 1 / 3])


def test_mean_of_sketches_and_of_classes():
    values, classes = np.array([1.0, 1.0, 1.0, 0.0]), np.array(["cat", "cat", "cat", "dog"])
    assert album.by_class(values, classes) == "75.0, mean of classes 50.0 (cat 100, dog 0)"


def test_an_album_of_two_classes(tmp_path, capsys):
    shapes = {"circle": lambda image, at: cv2.circle(image, at, 40, (0, 0, 0), 3)}
    shapes["square"] = lambda image, at: cv2.rectangle(
        image, (at[0] - 40, at[1] - 40), (at[0] + 40, at[1] + 40), (0, 0, 0), 3
    )
    for kind, ground in ("photos", 180), ("sketches", 255):
        for name, draw in shapes.items():
            (tmp_path / kind / name).mkdir(parents=True)
            for at in (100, 120), (110, 130):
                image = np.full((240, 240, 3), ground, np.uint8)
                draw(image, at)
                cv2.imwrite(str(tmp_path / kind / name / f"{at[0]}.png"), image)
    folders = [f"--photos={tmp_path / 'photos'}", f"--sketches={tmp_path / 'sketches'}"]
    album.main(folders)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "4 sketches, 4 photos, 2 classes"
    # All photos are among the first 10, and half of them are right.
    assert lines[2] == "P@10 50.0, mean of classes 50.0 (circle 50, square 50)"
    assert lines[3].startswith("P@10 with expansion 50.0")
    assert lines[4].endswith("right 50 %") and "without the photos of their class" in lines[5]
    album.main([*folders, "--whole"])
    assert capsys.readouterr().out.splitlines() == lines, "only JPEGs are scaled down"
