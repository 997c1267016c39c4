"""The data checker: its findings, their severity, and its output."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from rich.console import Console

from data_pipelines import check, loading, prepared, splits
from data_pipelines.builders import folders
from data_pipelines.checking import contact_sheet, findings, inspection, published
from tests.data_pipelines.conftest import CLASSES, encode

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT.parent / "shared" / "splits.json"
SKETCHES = "256x256/sketch/tx_000000000000_ready"
PHOTOS = "256x256/photo/tx_000000000000_ready"
EXTENSION = "EXTEND_image_sketchy_ready"


def noise(*seed: int) -> np.ndarray:
    """A unique image with some ink."""
    return np.random.default_rng(seed).integers(0, 256, (12, 12, 3)).astype(np.uint8)


def path(root: Path, modality: str, class_name: str, n: int = 0) -> Path:
    """A file of `clean`."""
    if modality == "photo":
        return root / PHOTOS / class_name / f"n{CLASSES.index(class_name)}.jpg"
    return root / SKETCHES / class_name / f"n{CLASSES.index(class_name)}-{n + 1}.png"


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """125 classes with one photo, drawn twice: all images differ, without problems."""
    root = tmp_path_factory.mktemp("clean") / "Sketchy"
    for c, name in enumerate(CLASSES):
        for i, file in enumerate(
            [path(root, "photo", name), *(path(root, "sketch", name, n) for n in (0, 1))]
        ):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(noise(c, i)))
    return root


@pytest.fixture
def clean(template: Path, tmp_path: Path) -> Path:
    """A copy of `template`, for tests that damage it."""
    return shutil.copytree(template, tmp_path / "Sketchy")


def found(root: Path, **options) -> dict[str, findings.Finding]:
    """The findings by check, except "counts", because the folder is tiny."""
    report = check.check("sketchy", root, **options)
    return {f.check: f for f in report.findings if f.check != "counts"}


def name(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix()


def test_a_good_copy_is_fit_with_only_warnings_about_counts(template):
    report = check.check("sketchy", template)
    assert report.fit
    assert {f.check for f in report.findings} == {"counts"}
    assert {f.severity for f in report.findings} == {"warning"}


def test_counts_are_compared_with_the_published_lists(template):
    said = " ".join(f.message for f in check.check("sketchy", template).findings)
    assert "unseen classes have 50 sketches, the published test list 15,229" in said
    assert "seen classes have 100 photos, the published training list 68,401" in said
    assert "125 of 125 classes do not have the published 100 drawn photos" in said


def test_the_published_lists_are_those_of_the_shared_file():
    if not PUBLISHED.exists():
        pytest.skip(f"needs the published splits in {PUBLISHED}")
    lists = json.loads(PUBLISHED.read_text())
    assert {
        split: {
            modality: (lists[split][key]["train"], lists[split][key]["zero"])
            for modality, key in (("sketch", "sketches"), ("photo", "photos"))
        }
        for split in lists
    } == published.LISTED


def test_unreadable_files_are_named_with_the_reason(clean):
    broken = [path(clean, "sketch", "ant"), path(clean, "photo", "zebra")]
    broken[0].write_bytes(b"")
    broken[1].write_bytes(broken[1].read_bytes()[:60])
    finding = found(clean)["unreadable"]
    assert finding.severity == "error"
    assert {row[0] for row in finding.items} == {name(f, clean) for f in broken}
    assert all(row[1] for row in finding.items)
    assert not check.check("sketchy", clean).fit


@pytest.fixture
def test_folder(clean: Path) -> Path:
    """A folder with the unseen classes of split 2 alone."""
    for class_name in splits.get("sketchy_split2").seen:
        for folder in (SKETCHES, PHOTOS):
            shutil.rmtree(clean / folder / class_name)
    return clean


def test_evaluation_needs_the_unseen_classes_only_as_in_loading(test_folder, tmp_path):
    split = splits.get("sketchy_split2")
    where = {"data_dir": tmp_path / "prepared", "manual_dir": test_folder}
    for purpose, fit in (("evaluate", True), ("train", False)):
        report = check.check("sketchy", test_folder, split="sketchy_split2", purpose=purpose)
        assert report.fit == fit
        assert report.as_json()["for"] == purpose
        for modality in ("sketch", "photo"):
            with contextlib.nullcontext() if fit else pytest.raises(splits.ClassNamesError):
                items = loading.load_items(
                    "sketchy", modality, splits.needed(split, purpose), **where
                )
                assert set(items.labels.tolist()) == set(range(21))
    [finding] = [f for f in report.findings if f.check == "classes" and "sketch" in f.message]
    assert finding.message == "104 needed classes have no readable sketch."
    assert ("zebra", "has no sketch") in finding.items


def test_a_missing_unseen_class_is_an_error_for_both_purposes(test_folder):
    shutil.rmtree(test_folder / PHOTOS / "bat")
    for purpose in ("evaluate", "train"):
        report = check.check("sketchy", test_folder, split="sketchy_split2", purpose=purpose)
        assert not report.fit
    rows = [row for f in report.findings if f.check == "classes" for row in f.items]
    assert ("bat", "has no photo") in rows


@pytest.mark.parametrize("name", ["classes", "layout"])
def test_what_preparation_or_loading_refuses_cannot_be_accepted(clean, name):
    with pytest.raises(ValueError, match=f"--accept={name}: .*cannot be accepted.*--for=evaluate"):
        check.check("sketchy", clean, accept=[name])


def test_leakage_matters_for_training(clean):
    shutil.copy(path(clean, "photo", "cup"), path(clean, "photo", "bat"))
    assert not check.check("sketchy", clean).fit
    report = check.check("sketchy", clean, purpose="evaluate")
    assert report.fit
    assert {f.check: f.severity for f in report.findings}["leakage"] == "warning"


@pytest.mark.slow
def test_an_accepted_finding_is_a_note(clean):
    path(clean, "sketch", "ant").write_bytes(b"")
    assert check.check("sketchy", clean, accept=["unreadable"]).fit
    assert found(clean, accept=["unreadable"])["unreadable"].severity == "note"


def test_the_same_pixels_in_a_seen_and_an_unseen_class_are_leakage(clean):
    seen, unseen = path(clean, "photo", "zebra"), path(clean, "photo", "cup")
    unseen.write_bytes(encode(noise(CLASSES.index("zebra"), 0), "BMP"))  # Other bytes.
    finding = found(clean)["leakage"]
    assert finding.severity == "error"
    assert [set(row) for row in finding.items] == [{name(f, clean) for f in (seen, unseen)}]


def test_a_seen_sketch_among_unseen_photos_is_leakage(clean):
    shutil.copy(path(clean, "sketch", "zebra"), path(clean, "photo", "cup"))
    assert len(found(clean)["leakage"].items) == 1


@pytest.mark.slow
def test_leakage_depends_on_the_split(clean):
    shutil.copy(path(clean, "photo", "cup"), path(clean, "photo", "bat"))
    assert "leakage" in found(clean, split="sketchy_split1")  # cup is unseen, bat is seen
    assert "leakage" in found(clean, split="sketchy_split2")  # the other way round
    shutil.copy(path(clean, "photo", "cup"), path(clean, "photo", "swan"))
    shutil.copy(path(clean, "photo", "cow"), path(clean, "photo", "bat"))
    assert "leakage" not in found(clean)
    assert len(found(clean)["labels"].items) == 2
    assert found(clean)["labels"].severity == "warning"


def test_the_same_pixels_twice_in_a_class_are_duplicates(clean):
    pair = [path(clean, "sketch", "ant", n) for n in (0, 1)]
    shutil.copy(*pair)
    finding = found(clean)["duplicates"]
    assert finding.severity == "warning"
    assert finding.items == (tuple(name(f, clean) for f in pair),)


@pytest.mark.slow
def test_the_extension_may_repeat_the_drawn_photos(clean):
    for c, class_name in enumerate(CLASSES):
        (clean / EXTENSION / class_name).mkdir(parents=True)
        same, other = (clean / EXTENSION / class_name / f"{stem}.jpg" for stem in (f"n{c}", "x"))
        # A recompressed photo is found by its name, a renamed one by its pixels.
        same.write_bytes(encode(noise(c, 0), "JPEG"))
        other.write_bytes(encode(noise(c, 0)))
    assert found(clean).keys() == {"repeats"}
    assert found(clean)["repeats"].severity == "note"
    assert "250 photos repeat" in found(clean)["repeats"].message


def test_duplicates_and_leakage_in_the_extension_are_found(clean):
    for class_name in CLASSES:
        (clean / EXTENSION / class_name).mkdir(parents=True)
        (clean / EXTENSION / class_name / "x.png").write_bytes(
            encode(noise(CLASSES.index(class_name), 9))
        )
    shutil.copy(clean / EXTENSION / "ant/x.png", clean / EXTENSION / "ant/y.png")
    shutil.copy(path(clean, "photo", "cup"), clean / EXTENSION / "zebra/x.png")
    assert found(clean).keys() == {"duplicates", "leakage"}


def test_blank_images_are_listed_and_not_duplicates(clean):
    white, pale = path(clean, "sketch", "ant"), path(clean, "sketch", "cup")
    photo = path(clean, "photo", "cup")
    for file in (white, photo):
        file.write_bytes(encode(np.full((9, 9, 3), 255, np.uint8)))
    light = np.full((9, 9, 3), 255, np.uint8)
    light[4] = 101  # One step too light to count as ink.
    pale.write_bytes(encode(light))
    rows = dict(found(clean)["blank"].items)
    assert rows.keys() == {name(f, clean) for f in (white, pale, photo)}
    assert "R + G + B <= 300" in rows[name(pale, clean)]
    assert found(clean).keys() == {"blank"}


def test_unpaired_images_are_listed(clean):
    path(clean, "photo", "ant").rename(clean / PHOTOS / "ant" / "n9999.jpg")
    found_pairs = [f for f in check.check("sketchy", clean).findings if f.check == "pairs"]
    assert [len(f.items) for f in found_pairs] == [2, 1]
    assert found_pairs[0].items[0] == (f"{SKETCHES}/ant/n2-1.png", "its photo: n2")
    assert found_pairs[1].items[0][1] == "no sketch of n9999"


def test_photos_of_one_instance_are_ambiguous(clean):
    file = path(clean, "photo", "ant")
    file.with_suffix(".png").write_bytes(encode(noise(99)))
    assert len(found(clean)["pairs"].items) == 2


@pytest.mark.slow
def test_other_findings_are_reported_despite_mismatched_class_names(clean, capsys):
    (clean / PHOTOS / "wine_bottle").rename(clean / PHOTOS / "wine-bottle")
    path(clean, "sketch", "ant").write_bytes(b"")
    shutil.rmtree(clean / PHOTOS / "zebra")
    report = check.check("sketchy", clean)
    wrong = [f for f in report.findings if f.check == "classes"]
    assert ("wine-bottle", "is unknown: did you mean wine_bottle?") in wrong[0].items
    assert any(("zebra", "is missing") in f.items for f in wrong)
    assert "unreadable" in found(clean)
    assert report.as_json()["counts"]["photo"]["classes"]["wine-bottle"] == 1
    assert report.as_json()["counts"]["sketch"]["classes"]["wine-bottle"] == 0
    check.show(report, Console(width=200))
    assert "wine-bottle: is unknown: did you mean wine_bottle?" in capsys.readouterr().out


@pytest.mark.slow
def test_other_findings_are_reported_despite_an_empty_class(clean):
    path(clean, "photo", "ant").unlink()
    path(clean, "sketch", "bee").write_bytes(b"")
    assert found(clean).keys() >= {"classes", "unreadable"}
    assert ("ant", "has no photo") in found(clean)["classes"].items


def test_a_missing_layout_is_a_finding(tmp_path):
    (tmp_path / "something").mkdir()
    report = check.check("sketchy", tmp_path)
    assert [f.check for f in report.findings] == ["layout"]
    assert "256x256" in report.findings[0].message
    assert not report.fit
    assert not check.check("sketchy", tmp_path, purpose="evaluate").fit


def test_images_with_damaged_metadata_are_listed(clean):
    file = path(clean, "sketch", "bee")
    png, content = file.read_bytes(), b"eXIfgarbage"
    crc = zlib.crc32(content).to_bytes(4, "big")
    file.write_bytes(png[:33] + b"\0\0\0\7" + content + crc + png[33:])
    finding = found(clean)["metadata"]
    assert finding.items == ((file.relative_to(clean).as_posix(),),)
    assert finding.severity == "note"


def test_files_that_are_not_images_are_listed(clean):
    (clean / SKETCHES / "bee" / "checked.txt").write_text("ok")
    assert found(clean)["ignored"].items == ((f"{SKETCHES}/bee/checked.txt",),)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's own folder: three classes of two sketches and a photo, without pairs."""
    for c, class_name in enumerate(["bird", "cat", "dog"]):
        for i, file in enumerate(["sketch/{}/a.png", "sketch/{}/b.png", "photo/{}/c.png"]):
            target = tmp_path / "own" / file.format(class_name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(encode(noise(c, i)))
    return tmp_path / "own"


def test_unseen_classes_of_own_data_are_given(own):
    assert check.check("folder", own, unseen=["dog"]).findings == []
    without = check.check("folder", own)
    assert [(f.check, f.severity) for f in without.findings] == [("split", "warning")]
    shutil.copy(own / "photo/cat/c.png", own / "photo/bird/c.png")
    assert not check.check("folder", own, unseen=["bird"]).fit
    assert check.check("folder", own, unseen=["dog"]).fit


@pytest.mark.parametrize("unseen", [("bird", "cat", "dog"), ("bird", "cat")])
def test_training_needs_two_seen_classes_as_in_loading(own, tmp_path, unseen):
    assert check.check("folder", own, unseen=unseen, purpose="evaluate").fit
    report = check.check("folder", own, unseen=unseen)
    assert not report.fit
    [finding] = report.findings
    seen = sorted({"bird", "cat", "dog"} - {*unseen})
    items = [
        loading.load_items("folder", modality, seen, data_dir=tmp_path / "prepared", manual_dir=own)
        for modality in ("sketch", "photo")
    ]
    with pytest.raises(ValueError, match=re.escape(finding.message)):
        loading.train_batches(
            *items, kind="quadruplet", image_size=8, batch_size=2, seed=0, workers=0
        )


def test_evaluation_needs_unseen_classes(own):
    assert check.check("folder", own).fit
    assert not check.check("folder", own, purpose="evaluate").fit


def test_a_share_of_the_classes_is_unseen_as_in_training(own):
    split = check.check("folder", own, unseen=["40%"]).data.split
    assert split.unseen == splits.draw(["bird", "cat", "dog"], 0.4, seed=0)
    assert len(split.unseen) == 1


def test_a_share_is_drawn_with_the_seed_of_the_training(own, capsys):
    drawn = {splits.draw(["bird", "cat", "dog"], 0.4, seed) for seed in range(9)}
    assert len(drawn) > 1
    for seed in (0, 8):
        flags = ["--unseen=40%", f"--held_out_seed={seed}"]
        assert check.main(["--dataset=folder", f"--manual_dir={own}", *flags]) == check.FIT
        (name,) = splits.draw(["bird", "cat", "dog"], 0.4, seed)
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert [line[1] for line in lines if "unseen" in line][:2] == [name, "1"]
        assert any(line[1:4] == ["1", "class", "│"] for line in lines)


def test_pairs_by_name_are_one_note_and_pairs_of_a_list_are_checked(own, capsys):
    (own / "photo/cat/c.png").rename(own / "photo/cat/a.png")
    flags = ["--dataset=folder", f"--manual_dir={own}", "--unseen=dog"]
    assert check.main(flags) == check.FIT
    printed = capsys.readouterr().out
    assert "note names: 1 of 6 sketches are paired" in printed
    assert "sketch/dog/a.png" not in printed
    (finding,) = check.check("folder", own, unseen=["dog"]).findings
    assert ("sketch/dog/a.png",) in finding.items
    (own / "pairs.csv").write_text("sketch,photo\nsketch/cat/a.png,photo/cat/a.png\n")
    listed = {f.check for f in check.check("folder", own, unseen=["dog"]).findings}
    assert listed == {"pairs"}


def test_a_folder_without_images_is_told_what_it_must_contain(tmp_path, capsys):
    assert check.main(["--dataset=folder", f"--manual_dir={tmp_path}"]) == check.NOT_CHECKED
    error = capsys.readouterr().err
    assert f"{tmp_path} is empty" in error
    assert "sketch/CLASS/ and photo/CLASS/" in error
    with pytest.raises(FileNotFoundError, match=r"/no does not exist.*sketch/CLASS/"):
        prepared.prepare("folder", data_dir=tmp_path, manual_dir=tmp_path / "no")


def test_an_unknown_unseen_class_suggests_the_nearest(own):
    with pytest.raises(ValueError, match=r"no class 'dogs' \(did you mean dog\?\).*--unseen"):
        check.check("folder", own, unseen=["dogs"])


def test_other_findings_are_reported_despite_a_class_of_one_modality(own):
    shutil.rmtree(own / "photo/cat")
    (own / "sketch/dog/a.png").write_bytes(b"")
    report = check.check("folder", own, unseen=["dog"])
    assert {f.check for f in report.findings} == {"layout", "classes", "unreadable"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset=sketchi", "--manual_dir=DIR"], "did you mean sketchy?"),
        (["--dataset=doodles", "--manual_dir=DIR"], "no folder to check"),
        (["--dataset=sketchy", "--manual_dir=nowhere"], "nowhere does not exist"),
        (["--dataset=sketchy", "--manual_dir=DIR", "--split=sketchy_split3"], "did you mean"),
        (["--dataset=sketchy", "--manual_dir=DIR", "--split=quickdraw"], "not to 'sketchy'"),
        (["--dataset=sketchy", "--manual_dir=DIR", "--unseen=cat"], "--split="),
        (["--dataset=sketchy", "--manual_dir=DIR", "--accept=leak"], "did you mean leakage?"),
        (["--dataset=sketchy", "--manual_dir=DIR", "--contact_sheet=a.jpg"], "FILE.png"),
        (["--dataset=sketchy", "--manual_dir=DIR", "--contact_sheet=no/a.png"], "FILE.png"),
        (["--dataset=sketchy", "--manual_dir=DIR", "--splitt=x"], "did you mean --split?"),
        (["--manual_dir=DIR"], "--dataset"),
    ],
)
def test_bad_input_is_an_error_in_one_line(flags, message, template, capsys):
    assert check.main([flag.replace("DIR", str(template)) for flag in flags]) == check.NOT_CHECKED
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out


def test_the_output_has_a_table_the_findings_and_the_result(clean, capsys):
    path(clean, "sketch", "ant").write_bytes(b"")
    assert check.main(["--dataset=sketchy", f"--manual_dir={clean}"]) == check.UNFIT
    printed = capsys.readouterr().out
    assert all(class_name in printed for class_name in CLASSES)
    assert f"{SKETCHES}/ant/n2-1.png: the file is empty (0 bytes)" in printed
    assert "NOT fit to train on" in printed


def test_tables_are_not_cut_in_files_and_messages_agree_in_number(own, capsys):
    long = "a class of a rather long name " * 4
    for modality in ("sketch", "photo"):
        (own / modality / "cat").rename(own / modality / long.strip())
    (own / "sketch/dog/notes.txt").touch()
    assert check.main(["--dataset=folder", f"--manual_dir={own}", "--for=evaluate"]) == check.UNFIT
    printed = capsys.readouterr().out
    assert any(long.strip() in line for line in printed.splitlines())
    assert "1 file is skipped" in printed
    assert "NOT fit to evaluate on" in printed
    assert check.main(
        ["--dataset=folder", f"--manual_dir={own}", "--for=evaluate", "--unseen=dog"]
    ) == (check.FIT)
    assert capsys.readouterr().out.endswith("fit to evaluate on\n")


@pytest.mark.slow
def test_json_output_is_one_object(clean, tmp_path):
    shutil.copy(path(clean, "photo", "cup"), path(clean, "photo", "ant"))
    sheet = tmp_path / "sheet.png"
    arguments = ["--dataset=sketchy", f"--manual_dir={clean}", "--json", f"--contact_sheet={sheet}"]
    program = [sys.executable, "-m", "data_pipelines.check", *arguments]
    run = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == check.UNFIT, run.stderr
    report = json.loads(run.stdout)
    assert (report["split"], report["fit"], report["errors"]) == ("sketchy_split1", False, 1)
    assert report["counts"]["photo"]["unseen"] == 25
    assert report["counts"]["sketch"]["classes"]["ant"] == 2
    leak = next(f for f in report["findings"] if f["check"] == "leakage")
    assert len(leak["items"][0]) == 2
    assert report["contact_sheet"] == str(sheet)
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_several_processes_give_the_same_result(template, monkeypatch):
    files = folders.list_images(template / SKETCHES, template, CLASSES)[0][:8]
    alone = inspection.inspect_all(files)
    monkeypatch.setattr(inspection, "PARALLEL_FROM", 1)
    assert inspection.inspect_all(files) == alone


images = arrays.arrays(
    np.uint8,
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.just(3)),
    elements=st.integers(0, 1),
)


@hypothesis.given(images, images)
def test_digests_are_equal_if_and_only_if_the_pixels_are(tmp_path_factory, first, second):
    folder = tmp_path_factory.getbasetemp()
    digests = []
    for rgb in (first, second):
        content = encode(rgb)
        (folder / "x.png").write_bytes(content)
        digests.append(inspection.inspect(folders.ImageFile(folder, "x.png", "x", 1)).digest)
    assert (digests[0] == digests[1]) == np.array_equal(first, second)


def many_classes(root: Path, count: int, split: str = "") -> findings.DataSet:
    """A data set of `count` classes, all with the same image."""
    (root / "x.png").write_bytes(encode(noise(1)))
    names = [f"class {i} of a rather long name, which is cut off" for i in range(count)]
    files = [folders.ImageFile(root, "x.png", class_name, 1) for class_name in names]
    setting = splits.Split("folder", tuple(names[5:]), tuple(names[:5]))
    source = folders.Source(root, {"sketch": files, "photo": files[1:]})
    return findings.DataSet(source, inspection.inspect_all(files[:1]), setting, split)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 6, 450])
def test_a_contact_sheet_is_bounded(tmp_path, count):
    sheet = contact_sheet.contact_sheet(many_classes(tmp_path, count))
    assert sheet.mode == "RGB"
    assert max(sheet.size) < 4000


def test_a_contact_sheet_shows_unreadable_images(own):
    whole = contact_sheet.contact_sheet(check.check("folder", own).data)
    (own / "sketch/cat/a.png").write_bytes(b"")
    broken = contact_sheet.contact_sheet(check.check("folder", own).data)
    assert broken.size == whole.size
    assert broken != whole


@pytest.mark.slow
def test_the_real_images_are_fit_to_train_on(sketchy_folder, monkeypatch):
    # Both splits have the same files, which are read once.
    reports = [check.check("sketchy", sketchy_folder, split="sketchy_split1")]
    inspected = reports[0].data.inspected
    monkeypatch.setattr(
        inspection, "inspect_all", lambda files: {f.name: inspected[f.name] for f in files}
    )
    reports.append(check.check("sketchy", sketchy_folder, split="sketchy_split2"))
    for report in reports:
        assert report.fit
        assert {f.check for f in report.findings} <= {"counts", "pairs"}
