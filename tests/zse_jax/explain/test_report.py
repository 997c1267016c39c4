"""The HTML report: one file with everything in it, for every system and protocol."""

import html.parser
import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zse_jax
from tests.zse_jax import tiny
from tests.zse_jax.explain import patches
from zse_jax import evaluate
from zse_jax.explain import report, report_parts
from zse_jax.explain.correspondence import Explainer
from zse_jax.retrieval import protocols
from zse_jax.runtime import cli
from zse_jax.training import loop

CLASSES = ("cat", "hot_dog", "<b>zebra</b>")


class Page(html.parser.HTMLParser):
    """Parses a page: its tags with their attributes, its text, and whether tags are closed."""

    EMPTY = ("meta", "link", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def images(count, seed):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, tiny.SIZE, tiny.SIZE, 3), dtype=np.uint8)


def batches(pictures, labels):
    labels = np.asarray(labels, np.int32)
    return [{"image": pictures, "label": labels, "mask": np.ones(len(labels), bool)}]


SKETCHES, PHOTOS = images(9, seed=0), images(12, seed=1)
SKETCH_LABELS, PHOTO_LABELS = np.arange(9) % 3, np.arange(12) % 3


@pytest.fixture(scope="module")
def retriever():
    return patches.Patches(dtype=jnp.float32, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def evaluation(retriever):
    return protocols.zero_shot(
        retriever, batches(SKETCHES, SKETCH_LABELS), batches(PHOTOS, PHOTO_LABELS),
        rankings=["token"], class_names=CLASSES, name="Unseen", notes={"split": ("a", "b")},
    )  # fmt: skip


def material(**changed):
    return report.Material(sketches=SKETCHES, photos=PHOTOS, **changed)


@pytest.fixture(scope="module")
def page(evaluation, retriever):
    vectors = np.random.default_rng(0).standard_normal((21, 8)).astype(np.float32)
    labels = np.concatenate([SKETCH_LABELS, PHOTO_LABELS])
    made = material(
        explainer=Explainer(retriever),
        embedded=report.Embedded(vectors, labels, np.arange(21) < 9),
        records=[{"step": i, "train/loss": 1.0, "v/token/exact/mAP@all": 0.1} for i in range(3)],
        about={"checkpoint": "runs/x"},
        config='{"seed": 0}',
        warnings=["not zero-shot"],
    )
    return report.report(evaluation, made)


@pytest.mark.slow
def test_the_page_is_well_formed(page):
    Page(page)


@pytest.mark.slow
def test_the_page_loads_nothing(page):
    found = Page(page)
    assert all(image["src"].startswith("data:image/webp;base64,") for image in found.all("img"))
    tags = [*found.all("a"), *found.all("link"), *found.all("use")]
    links = [link.get("href", link.get("xlink:href")) for link in tags]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not found.all("iframe")
    assert "@import" not in page
    assert not re.findall(r"url\((?!#)", page)
    policy = next(m for m in found.all("meta") if "http-equiv" in m)["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")


@pytest.mark.slow
def test_every_picture_has_alternative_text(page):
    found = Page(page)
    assert len(found.all("img")) > 30
    assert all(image["alt"] for image in found.all("img"))
    assert all(svg["aria-label"] for svg in found.all("svg"))
    assert len(found.all("svg")) == 4


@pytest.mark.slow
def test_links_in_the_page_have_targets(page):
    found = Page(page)
    names = [attributes["id"] for _, attributes in found.tags if "id" in attributes]
    assert len(names) == len(set(names))
    assert {link["href"][1:] for link in found.all("a")} <= set(names)


@pytest.mark.slow
def test_metrics_have_intervals(page, evaluation):
    value = evaluation.values["token"]["exact"]["mAP@all"]
    low, high = evaluation.intervals()["token"]["exact"]["mAP@all"]
    assert f"{100 * value:.1f} {100 * low:.1f}\N{EN DASH}{100 * high:.1f}" in Page(page).text


@pytest.mark.slow
def test_names_from_outside_are_escaped(page):
    assert "<b>zebra" not in page
    assert "&lt;b&gt;zebra" in page
    assert "hot dog" in Page(page).text


@pytest.mark.slow
def test_the_run_is_described(page):
    text = Page(page).text
    for part in ("runs/x", '{"seed": 0}', "a, b", "not zero-shot", "similarity of grey patches"):
        assert part in text


@pytest.mark.slow
def test_each_query_is_explained_and_the_first_of_a_group_is_unfolded(page):
    details = Page(page).all("details")
    explained = re.findall(r"Why photo \d+ \([^)]*, (?:right|wrong)\)\?", Page(page).text)
    assert len(explained) >= 9
    assert sum("open" in attributes for attributes in details) == 3


@pytest.mark.slow
def test_without_an_explainer_the_page_says_why(evaluation):
    made = report.report(evaluation, material(unexplained="It has no places."))
    assert "This report has no explanations: It has no places." in Page(made).text
    assert "Why photo" not in made


@pytest.mark.slow
def test_an_unknown_headline_is_an_error_that_lists_the_metrics(evaluation):
    with pytest.raises(
        ValueError, match=r"'token/vox/mAP@all' was not measured.*token/voc/mAP@all"
    ):
        report.report(evaluation, material(headline="token/vox/mAP@all"))


@pytest.mark.slow
def test_best_typical_and_worst_queries_are_of_different_classes(evaluation):
    by = report_parts.headline(evaluation, "token/exact/mAP@all")
    values = evaluation.by_query["token"]["exact"]["mAP@all"]
    right = evaluation.photo_labels[evaluation.top["token"]] == SKETCH_LABELS[:, None]
    chosen = report_parts.chosen_queries(evaluation, by, right, 3)
    assert [*chosen] == ["best", "typical", "worst"]
    assert len({query for queries in chosen.values() for query in queries}) == 9
    assert {SKETCH_LABELS[query] for query in chosen["best"]} == {0, 1, 2}
    assert chosen["best"][0] == values.argmax()
    assert values[chosen["worst"][0]] == values.min()
    assert max(values[chosen["worst"]]) <= max(values[chosen["best"]])


@pytest.mark.slow
def test_the_example_of_a_confusion_is_the_earliest(evaluation):
    for row in report_parts.confusions(evaluation, "token"):
        sketch, photo, rank = row["example"]
        assert evaluation.top["token"][sketch, rank - 1] == photo
        first, second = (
            [name.replace("_", " ") for name in CLASSES].index(row[key])
            for key in ("sketch_class", "photo_class")
        )
        assert (SKETCH_LABELS[sketch], PHOTO_LABELS[photo]) == (first, second)
        others = evaluation.photo_labels[evaluation.top["token"][first == SKETCH_LABELS]] == second
        assert others.any(axis=0).argmax() + 1 == rank


@pytest.mark.slow
def test_fine_grained_results_use_the_matching_photo(retriever):
    labels = np.arange(9) % 3
    found = protocols.fine_grained(
        retriever, batches(SKETCHES, labels), batches(PHOTOS[:9], labels), rankings=["token"],
        sketch_instances=np.arange(9), photo_instances=np.arange(9), class_names=CLASSES,
    )  # fmt: skip
    made = report.report(
        found,
        material(
            headline="token/class/Acc@1",
            sketch_instances=np.arange(9),
            photo_instances=np.arange(9),
            explainer=Explainer(retriever),
        ),
    )
    text = Page(made).text
    assert "matching photo at rank" in text
    assert "The matching photo is among the first k" in text
    assert "Acc@10" in text


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patches.install(patch.setattr)
        loop.train(tiny.config(**{"train.steps": 2}), path)
        yield path


def run(*arguments):
    from absl import flags

    options, argv = flags.FlagValues(), ["evaluate", *map(str, arguments)]
    evaluate.define_flags(options, argv)
    cli.parse(options, argv)
    evaluate.main(options)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["category", "fine_grained"])
def test_the_program_writes_the_report(workdir, tmp_path, protocol, capsys):
    file = tmp_path / "deep" / "report.html"
    run(
        f"--checkpoint={workdir}", f"--report={file}",
        f"--config.evaluation.protocol={protocol}", "--config.evaluation.shortlists=(4,)",
    )  # fmt: skip
    found = Page(file.read_text())
    assert f"wrote {file}" in capsys.readouterr().out
    for part in (str(workdir), "similarity of grey patches", "relation@4", "(t-SNE)", "train"):
        assert part in found.text
    headline = {"category": "relation/exact/mAP@all", "fine_grained": "relation/class/Acc@1"}
    assert f"By {headline[protocol]}, worst first." in found.text
    assert file.stat().st_size < 15e6
    assert zse_jax.__version__ in found.text
