"""The benchmark of large galleries: exact neighbours, the choice of a setting, and resuming."""

import argparse
import dataclasses
import json

import numpy as np
import pytest

from tests.benchmarks import gallery_scale, gallery_scale_process
from tests.benchmarks.gallery import clusters, drawn
from tests.benchmarks.gallery_scale import PARTS, VARIANTS, Results, Scale


@pytest.mark.parametrize("size", [7, 64, 300])
def test_neighbours_from_chunks_equal_those_of_all_products(size):
    centres = clusters(1000, 16)
    gallery, queries = drawn(centres, 300, 1), drawn(centres, 5, 2)
    parts = [(start, gallery[start : start + size]) for start in range(0, 300, size)]
    wanted = np.argsort(-(queries @ gallery.T), axis=1, kind="stable")[:, :20]
    np.testing.assert_array_equal(gallery_scale.truth(queries, parts, 20), wanted)


def test_recall_is_the_share_of_the_exact_neighbours_that_were_found():
    wanted = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    found = np.array([[4, 3, 2, 1], [5, 9, 10, -1]])
    assert gallery_scale.recall(found, wanted) == 5 / 8


def test_the_cheapest_setting_has_the_lowest_p95_of_those_with_enough_recall():
    searches = {
        "fast": {"recall": 0.94, "p95_ms": 1.0},
        "good": {"recall": 0.95, "p95_ms": 3.0},
        "slow": {"recall": 0.99, "p95_ms": 9.0},
    }
    assert gallery_scale.cheapest(searches) == "good"
    assert gallery_scale.cheapest(searches, 0.97) == "slow"
    assert gallery_scale.cheapest(searches, 1.0) is None


def test_sizes_are_powers_of_ten_up_to_the_largest():
    assert gallery_scale.powers(10**7) == [10**5, 10**6, 10**7]
    assert gallery_scale.powers(300_000) == [10**5, 300_000]
    assert gallery_scale.powers(2000) == [2000]


def test_chunks_do_not_depend_on_where_they_begin(monkeypatch):
    monkeypatch.setattr(gallery_scale_process, "CHUNK", 10)
    centres = clusters(1000, 4)
    every = dict(gallery_scale_process.chunks(centres, 0, 35))
    assert [len(some) for some in every.values()] == [10, 10, 10, 5]
    for start, some in gallery_scale_process.chunks(centres, 20, 35):
        np.testing.assert_array_equal(some, every[start])


def options(folder, **changes):
    values = {"output": str(folder), "scratch": None, "width": 16, "sketches": 4, "cache": 0.1}
    values |= {"plot": None, "only": None, "sizes": "2000", "photos": 2000, "before": 0.1}
    return argparse.Namespace(**values | changes)


@pytest.fixture
def measured(monkeypatch):
    """Replaces measurements; returns the list of those that were taken."""
    taken = []

    def search(self, name, setting):
        taken.append(f"{name} {gallery_scale.named(setting)}")
        return {"recall": 0.96, "p50_ms": 1.0, "p95_ms": 2.0, "memory_gb": 0.5}

    def task(self, name, /, **arguments):
        taken.append(name)
        return {"seconds": 3.0, "memory_gb": 1.0, "bytes": 1000}

    monkeypatch.setattr(Scale, "search", search)
    monkeypatch.setattr(Scale, "task", task)
    monkeypatch.setattr(Scale, "prepare", lambda self: self.folder.mkdir(parents=True))
    monkeypatch.setattr(Scale, "_drop", lambda self: None)
    monkeypatch.setattr(Scale, "_indices", lambda self: [])
    return taken


def test_a_resumed_run_skips_what_is_measured(tmp_path, measured, monkeypatch, capsys):
    gallery_scale.main(options(tmp_path, only="pq64"))
    settings = [f"pq64 {gallery_scale.named(one)}" for one in VARIANTS["pq64"].settings]
    assert measured == ["build_lance", *settings]
    saved = json.loads((tmp_path / "results.json").read_text())
    assert "2000/pq64/build" in saved["measurements"]

    measured.clear()
    gallery_scale.main(options(tmp_path, only="pq64"))
    assert not measured
    assert "| 2,000 | Lance IVF-PQ, 64 bytes | 3.0 |" in capsys.readouterr().out

    del saved["measurements"][f"2000/pq64/search/{settings[-1].removeprefix('pq64 ')}"]
    (tmp_path / "results.json").write_text(json.dumps(saved))
    monkeypatch.setattr(Scale, "prepare", lambda self: None)
    monkeypatch.setattr(Scale, "_indices", lambda self: ["pq64"])
    gallery_scale.main(options(tmp_path, only="pq64"))
    assert measured == settings[-1:]


def test_measurements_of_other_settings_are_not_mixed(tmp_path):
    results = Results(tmp_path, {"width": 16})
    results.measured("2000/pq64/build", lambda: {"seconds": 1.0})
    with pytest.raises(ValueError, match="width"):
        Results(tmp_path, {"width": 32})


def test_a_variant_that_does_not_fit_on_the_disk_is_skipped(tmp_path, measured, capsys):
    scale = Scale(2000, options(tmp_path), Results(tmp_path, {}))
    assert not scale._space("flat", 10**18)
    assert "Skipped" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="needs 1000000000.0 GB of disk"):
        scale._space("the table", 10**18, needs=True)


@pytest.mark.parametrize("name", [*VARIANTS, *PARTS])
def test_every_variant_and_part_has_a_need_of_disk(tmp_path, name):
    assert Scale(10**5, options(tmp_path), Results(tmp_path, {})).needed(name) > 0


def test_the_plot_is_an_image(tmp_path, measured):
    gallery_scale.main(options(tmp_path, only="flat"))
    file = tmp_path / "plot.png"
    gallery_scale.main(options(tmp_path, plot=str(file)))
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_small_galleries_are_measured_end_to_end(tmp_path, monkeypatch):
    """Three kinds of indexes with one setting each, and all parts, of 2,000 photos."""
    names = ("pq64", "faiss-pq64", "codes")
    for name in names:
        one = dataclasses.replace(VARIANTS[name], settings=VARIANTS[name].settings[-1:])
        monkeypatch.setitem(VARIANTS, name, one)
    gallery_scale.main(options(tmp_path, only=",".join([*names, *PARTS])))
    saved = json.loads((tmp_path / "results.json").read_text())["measurements"]
    for name in names:
        [found] = [one for key, one in saved.items() if key.startswith(f"2000/{name}/search/")]
        assert found["recall"] > (0 if name == "codes" else 0.9)
        assert found["memory_gb"] > 0
        assert found["p95_ms"] >= found["p50_ms"] > 0
        assert saved[f"2000/{name}/build"]["bytes"] > 0
    assert saved["2000/reindex"]["failed"] == 0
    assert saved["2000/reindex"]["searches_during"] > 0
    assert saved["2000/add"]["ratio"] > 0
