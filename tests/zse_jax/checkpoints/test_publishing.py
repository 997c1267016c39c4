"""A published model equals its checkpoint; its card states what is known, and no more."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from huggingface_hub import ModelCard
from safetensors.numpy import load_file, save_file

import zse_jax
from tests.zse_jax import small_systems, tiny
from tests.zse_jax.checkpoints.test_writing import Position
from tests.zse_jax.gallery.conftest import photo
from tests.zse_jax.random_weights import drawn
from zse_jax import retrievers
from zse_jax.checkpoints import hub as hub_
from zse_jax.checkpoints import publishing, reading
from zse_jax.checkpoints.arrays import flat_arrays, split_model
from zse_jax.checkpoints.writing import Checkpoints
from zse_jax.gallery import index
from zse_jax.retrievers import registry
from zse_jax.runtime import config_io

METRICS = {
    "token/exact/mAP@all": 0.25, "token/voc/mAP@all": 0.26, "relation/exact/mAP@all": 0.5,
    "relation/exact/P@100": 0.4,
}  # fmt: skip

RECORD = {
    "sources": [{"data": "doodles", "split": "doodles", "classes": ["cat"], "images": "AAAAAAAA"}],
    "unknown": [],
}

pytestmark = pytest.mark.usefixtures("tiny_system")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run with best step 3 and the metrics of its final evaluation."""
    from zse_jax.runtime import sharding
    from zse_jax.training.step import set_up

    folder = tmp_path_factory.mktemp("run")
    state = set_up(tiny.config(), sharding.make_mesh()).init()
    with Checkpoints(folder, select="relation/exact/mAP@all") as checkpoints:
        checkpoints.trained = RECORD
        for step, value in ((3, 0.9), (6, 0.3)):
            metrics = {"relation/exact/mAP@all": value}
            checkpoints.save(step, state, Position(step), tiny.config(), metrics)
    (folder / "metrics.json").write_text(json.dumps({"step": 3, "test": METRICS}))
    return folder


@pytest.fixture(scope="module")
def shared(workdir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared") / "tiny-model"
    assert zse_jax.save_pretrained(workdir, folder, license="apache-2.0") == str(folder)
    return folder


@pytest.fixture
def damaged(shared, tmp_path):
    return Path(shutil.copytree(shared, tmp_path / "damaged"))


def embeddings(retriever):
    images = np.random.default_rng(0).integers(0, 256, (3, tiny.SIZE, tiny.SIZE, 3), np.uint8)
    return np.asarray(retriever.embedding(retriever.encode(jnp.asarray(images), "photo")))


@pytest.mark.slow
def test_it_gives_what_the_checkpoint_gives(workdir, shared):
    assert sorted(path.name for path in shared.iterdir()) == sorted(hub_.FILES)
    assert len({path.stat().st_mode for path in shared.iterdir()}) == 1  # readable to others
    assert np.array_equal(embeddings(zse_jax.load(shared)), embeddings(zse_jax.load(workdir)))
    assert reading.step_of(shared) == 3
    assert reading.read_config(shared) == reading.read_config(workdir)
    step, loaded = reading.load_step(shared)
    assert step == 3
    assert isinstance(loaded, tiny.Tiny)


@pytest.mark.slow
def test_a_shared_model_can_be_shared_again(shared, tmp_path):
    zse_jax.save_pretrained(shared, tmp_path / "again", license="apache-2.0")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (
        shared / "model.safetensors"
    ).read_bytes()
    about, again = (
        json.loads((f / "config.json").read_text()) for f in (shared, tmp_path / "again")
    )
    assert about == again


@pytest.mark.slow
def test_a_loaded_system_is_saved_with_the_weights_that_it_has_now(workdir, tmp_path):
    retriever = zse_jax.load(workdir)
    retriever.first.bias[...] += 1.0
    zse_jax.save_pretrained(retriever, tmp_path / "changed")
    changed = zse_jax.load(tmp_path / "changed")
    assert np.array_equal(embeddings(changed), embeddings(retriever))
    assert not np.array_equal(embeddings(changed), embeddings(zse_jax.load(workdir)))
    assert "Not measured" in (tmp_path / "changed/README.md").read_text()


class Normed(tiny.Tiny):
    """A system that also has running statistics."""

    def __init__(self, *, width=16, dropout=0.1, image_size=8, dtype, rngs):
        super().__init__(
            width=width, dropout=dropout, image_size=image_size, dtype=dtype, rngs=rngs
        )
        self.norm = nnx.BatchNorm(8, rngs=rngs)


def test_half_precision_halves_the_file_and_is_read_as_float32(workdir, shared, tmp_path):
    half = zse_jax.save_pretrained(workdir, tmp_path / "half", dtype="float16")
    sizes = [(Path(folder) / hub_.WEIGHTS).stat().st_size for folder in (half, shared)]
    assert sizes[0] < 0.6 * sizes[1]
    models = [zse_jax.load(folder) for folder in (half, shared)]
    rounded, whole = (jax.tree.leaves(nnx.state(model, nnx.Param)) for model in models)
    for one, other in zip(rounded, whole, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, np.asarray(other).astype(np.float16))
    again = zse_jax.save_pretrained(half, tmp_path / "again", dtype="float16")
    assert (Path(again) / hub_.WEIGHTS).read_bytes() == (Path(half) / hub_.WEIGHTS).read_bytes()
    assert "before rounding to float16" in (Path(half) / hub_.CARD).read_text()


def test_folders_of_the_machine_are_not_published(workdir, tmp_path):
    config = reading.read_config(workdir).copy_and_resolve_references().unlock()
    config.data.manual_dir = config.data.data_dir = private = str(tmp_path / "private")
    shared = zse_jax.save_pretrained(workdir, tmp_path / "shared", config=config)
    assert "private" not in (Path(shared) / hub_.CONFIG).read_text()
    assert config.data.manual_dir == private


def test_values_beyond_half_precision_are_an_error(workdir, tmp_path):
    model = zse_jax.load(workdir)
    _, first = nnx.to_flat_state(nnx.state(model, nnx.Param))[0]
    first[...] = first[...] + 1e6
    with pytest.raises(ValueError, match="cannot represent"):
        zse_jax.save_pretrained(model, tmp_path / "half", dtype="float16")


def test_an_untrained_system_keeps_its_running_statistics(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "SYSTEMS", {"normed": tiny.system(f"{__name__}:Normed")})
    config = tiny.config().unlock()
    config.model.system = "normed"
    retriever = Normed(dtype=jnp.float32, rngs=nnx.Rngs(0))
    retriever.norm.mean[...] = jnp.arange(8.0)
    with pytest.raises(ValueError, match="config=config"):
        zse_jax.save_pretrained(retriever, tmp_path / "model")
    zse_jax.save_pretrained(retriever, tmp_path / "model", config=config)
    loaded = zse_jax.load(tmp_path / "model")
    assert loaded.norm.mean[...].tolist() == list(range(8))
    assert loaded.norm.use_running_average
    assert np.array_equal(loaded.first.kernel[...], retriever.first.kernel[...])
    text = (tmp_path / "model/README.md").read_text()
    assert "# model\n\ntiny.\n" in text
    assert "not trained with zse_jax" in text


VARIANTS = [
    *((name, {}) for name in registry.SYSTEMS),
    ("clip_prompt", {"text_tower": True, "encoders": "separate", "class_names": None}),
    ("efficient_cnn", {"knowledge_weight": 1.0}),
]


@pytest.mark.parametrize(("system", "changes"), VARIANTS)
def test_every_system_is_the_same_after_saving_and_loading(system, changes, tmp_path):
    config = small_systems.config(system).unlock()
    config.model.update(changes)

    def make():
        return retrievers.create(config.model, rngs=nnx.Rngs(params=0, dropout=1))

    retriever = drawn(make)
    zse_jax.save_pretrained(retriever, tmp_path / "model", config=config)
    saved, loaded = (
        flat_arrays(split_model(x)[1]["model"])
        for x in (retriever, zse_jax.load(tmp_path / "model"))
    )
    assert {k: x.shape for k, x in loaded.items()} == {k: x.shape for k, x in saved.items()}
    for name, array in saved.items():
        np.testing.assert_array_equal(loaded[name], array, err_msg=name)


@pytest.mark.parametrize("system", small_systems.SIZES)
def test_every_system_has_a_card(system):
    config = config_io.to_plain(small_systems.config(system))
    about = {
        "version": "0", "step": 9, "parameters": 1, "metrics": {}, "measured": "", "config": config,
    }  # fmt: skip
    assert registry.SYSTEMS[system].paper in publishing.card(about, name="ann/x")


def test_the_card_states_what_is_known(shared):
    text = (shared / "README.md").read_text()
    for part in (
        "# tiny-model", "24 seen classes for training", "8 unseen classes for testing", "snowman",
        "| token/exact | 25.0 | - |", "| relation/exact | 50.0 | 40.0 |", "- `exact` divides",
        "- `voc` interpolates", "chosen by `relation/exact/mAP@all`", "apache-2.0",
        'zse_jax.load("tiny-model")', f"Saved by zse_jax {zse_jax.__version__}", "jax ",
        "all sketches and photos of the unseen classes", "**Zero-shot.**", "## Limits", "generated",
    ):  # fmt: skip
        assert part in text, part
    assert "`hits` divides" not in text
    assert "{{" not in text
    assert "{%" not in text


def test_the_hub_understands_the_card(shared):
    card = ModelCard.load(shared / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "zse_jax"
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert results["relation, exact, mAP@all"] == 0.5
    assert {result.dataset_type for result in card.data.eval_results} == {"doodles"}


def test_the_card_does_not_claim_what_is_not_known(workdir, tmp_path):
    zse_jax.save_pretrained(workdir / "checkpoints/6", tmp_path / "six")
    text = (tmp_path / "six/README.md").read_text()
    assert "the subset by which checkpoints are chosen" in text
    assert "| relation/exact | 30.0 |" in text
    assert "| license | not stated" in text
    assert ModelCard(text).data.license is None


def test_the_record_of_the_training_data_is_shared(shared, workdir):
    assert reading.read_record(shared) == reading.read_record(workdir) == RECORD
    retriever = zse_jax.load(shared)
    assert reading.record_of(retriever) == RECORD


@pytest.mark.parametrize(
    ("record", "said", "unsaid"),
    [
        ({"unknown": ["vit.npz"]}, "training data of vit.npz are not recorded", "**Zero-shot.**"),
        ({"classes": ["Snow-man"]}, "trained on 1 of 8 unseen classes (snowman)", "model-index"),
        ({"not_zero_shot": "trained on 3 of 9 photos"}, "was trained on 3 of 9 photos", "model-in"),
        (None, "**Zero-shot: not known.**", "**Zero-shot.**"),
    ],
)
def test_the_card_says_what_trained(record, said, unsaid):
    config = config_io.to_plain(tiny.config())
    if record is not None:
        source = RECORD["sources"][0] | {"classes": record.pop("classes", [])}
        record = RECORD | {"sources": [source]} | record
    about = {
        "version": "0", "step": 9, "parameters": 1, "metrics": METRICS, "measured": "x",
        "config": config, "training_data": publishing.summary(record),
    }  # fmt: skip
    text = publishing.card(about, name="ann/x")
    assert said in text
    assert unsaid not in text


def test_nothing_is_overwritten(shared, tmp_path):
    with pytest.raises(FileExistsError, match="new or an empty"):
        zse_jax.save_pretrained(shared, shared)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is a file"):
        zse_jax.save_pretrained(shared, tmp_path / "file")


def test_damage_is_an_error(damaged):
    file = damaged / "model.safetensors"
    contents = file.read_bytes()
    file.write_bytes(contents[:-2] + bytes([contents[-2] ^ 64]) + contents[-1:])
    with pytest.raises(ValueError, match="damaged: .*Download it again"):
        zse_jax.load(damaged)
    file.write_bytes(contents[:100])
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read.*Download it again"):
        zse_jax.load(damaged)


def test_weights_that_do_not_fit_are_listed(damaged):
    arrays = load_file(damaged / "model.safetensors")
    arrays["extra"] = arrays.pop("first/bias")
    save_file(arrays, damaged / "model.safetensors")
    with pytest.raises(ValueError, match="first/bias is not in.*extra is only in"):
        zse_jax.load(damaged)


def test_weights_of_no_publisher_and_a_damaged_config_are_errors(damaged):
    (damaged / "config.json").write_text('{"architectures": ["CLIPModel"]}')
    with pytest.raises(ValueError, match=r"first/bias, .* are not of a known publisher"):
        zse_jax.load(damaged)
    (damaged / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json cannot be read"):
        zse_jax.load(damaged)


@pytest.fixture
def hub(fake_hub, monkeypatch):
    """The fake hub, to which models can also be uploaded; `private` of the last new one."""

    class Api(huggingface_hub.HfApi):
        def create_repo(self, repo_id, *, private, exist_ok, repo_type):
            assert exist_ok
            assert repo_type == "model"
            fake_hub.private = private

        def upload_folder(self, *, repo_id, revision, folder_path, commit_message):
            name = f"{repo_id}@{revision}" if revision else repo_id
            shutil.copytree(folder_path, fake_hub.folder / name)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return fake_hub


def test_a_model_goes_to_the_hub_and_back(hub, workdir):
    assert zse_jax.save_pretrained(workdir, "hf://ann/sketches") == "hf://ann/sketches"
    assert hub.private
    assert 'load("hf://ann/sketches")' in (hub.folder / "ann/sketches/README.md").read_text()
    assert np.array_equal(
        embeddings(zse_jax.load("hf://ann/sketches")), embeddings(zse_jax.load(workdir))
    )
    assert reading.read_config("hf://ann/sketches").model.system == "tiny"
    zse_jax.save_pretrained(workdir, "hf://ann/sketches@v2", private=False)
    assert not hub.private
    assert reading.step_of("hf://ann/sketches@v2") == 3


@pytest.mark.slow
def test_an_index_may_be_of_a_model_on_the_hub(hub, workdir, tmp_path):
    zse_jax.save_pretrained(workdir, "hf://ann/sketches")
    photo(tmp_path / "album/p.png", 0)
    index.build([tmp_path / "album"], tmp_path / "index", "hf://ann/sketches")
    assert index.open(tmp_path / "index").info()["checkpoint"] == "hf://ann/sketches"
    assert isinstance(index.open(tmp_path / "index").retriever(), tiny.Tiny)


def test_what_the_hub_does_not_have(hub, workdir):
    with pytest.raises(FileNotFoundError, match=r"hf://ann/other could not be downloaded.*hf auth"):
        zse_jax.load("hf://ann/other")
    hub.add("ann/empty", {"README.md": b""})
    with pytest.raises(ValueError, match=r"hf://ann/empty contains no file of weights"):
        zse_jax.load("hf://ann/empty")
    with pytest.raises(FileNotFoundError, match="pip install absent-model"):
        zse_jax.load("package:absent-model")
    for wrong in ("hf://sketches", "hf://../x y"):
        with pytest.raises(ValueError, match="hf://owner/name"):
            zse_jax.load(wrong)
    huggingface_hub.HfApi.upload_folder = lambda *_, **__: 1 / 0
    with pytest.raises(OSError, match=r"could not be uploaded.*ZeroDivisionError.*hf auth login"):
        zse_jax.save_pretrained(workdir, "hf://ann/sketches")


def test_without_the_client_the_error_says_how_to_install_it(monkeypatch, workdir):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="pip install huggingface_hub"):
        zse_jax.load("hf://ann/sketches")
    with pytest.raises(ValueError, match="pip install huggingface_hub"):
        zse_jax.save_pretrained(workdir, "hf://ann/sketches")


@pytest.mark.slow
def test_loading_imports_no_package_that_it_does_not_need(workdir, shared):
    program = (
        "import sys, zse_jax; assert 'jax' not in sys.modules; "
        "from tests.zse_jax import tiny; tiny.install(); "
        f"zse_jax.load({str(workdir)!r}), zse_jax.load({str(shared)!r}); "
        "unwanted = {'clu', 'gradio', 'huggingface_hub', 'tensorflow', 'tensorflow_datasets'}; "
        "print(*unwanted & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
