"""Publishers are recognised by their parameter names, and fill the systems that accept them."""

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from tests.zse_jax.models.test_clip import TINY
from tests.zse_jax.pretrained import (
    test_efficientnet_lite,
    test_google_vit,
    test_openai_clip,
    test_timm_vit,
)
from tests.zse_jax.pretrained.weights import GOLDEN
from tests.zse_jax.random_weights import drawn
from zse_jax.pretrained import publishers, zse_sbir
from zse_jax.retrievers import create


def clip(seed=0, activation="quick_gelu"):
    settings = {"system": "clip_prompt", **TINY, "activation": activation}
    return drawn(lambda: create(settings, rngs=nnx.Rngs(params=0, dropout=1)), seed)


def written(path, arrays):
    save_file({name: np.array(array, order="C") for name, array in arrays.items()}, path)
    return path


def test_every_publisher_is_recognised_by_the_names_of_the_golden_weights():
    names = {
        "zse_sbir": json.loads((GOLDEN / "zse_manifest.json").read_text()),
        "openai_clip": json.loads((GOLDEN / "clip_manifest.json").read_text()),
        "torchvision_resnet": json.loads((GOLDEN / "resnet50_manifest.json").read_text()),
        "efficientnet_lite": test_efficientnet_lite.arrays_of(test_efficientnet_lite.abstract()),
        "google_vit": test_google_vit.published(),
        "timm_vit": test_timm_vit.published(),
        "huggingface_clip": test_openai_clip.hugging_face(
            test_openai_clip.published(test_openai_clip.tiny())
        ),
        "published_cmca": (cmca := json.loads((GOLDEN / "cmca_manifest.json").read_text())),
        "dinov2": [name for name in cmca if ".w_" not in name],
        "huggingface_dinov2": ["encoder.layer.0.layer_scale1.lambda1", "layernorm.weight"],
    }
    assert names.keys() == publishers.PUBLISHERS.keys()
    for name, listed in names.items():
        assert publishers.publisher_of(listed) == name


def test_exported_weights_load_back_exactly(tmp_path):
    source, target = test_google_vit.zse(3), test_google_vit.zse(4)
    arrays = zse_sbir.export(source)
    file = written(tmp_path / "best.safetensors", arrays)
    assert publishers.start(target, file, "zse") == "zse_sbir"
    jax.tree.map(
        np.testing.assert_array_equal, *(nnx.state(x, nnx.Param) for x in (source, target))
    )


@pytest.mark.slow
def test_exported_shapes_are_those_of_the_published_code_at_its_size():
    model = nnx.eval_shape(lambda: create({"system": "zse"}, rngs=nnx.Rngs(0)))
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), nnx.state(model, nnx.Param))
    nnx.update(model, zeros)
    manifest = json.loads((GOLDEN / "zse_manifest.json").read_text())
    exported = zse_sbir.export(model)
    assert {name: list(array.shape) for name, array in exported.items()} == manifest


@pytest.mark.slow
def test_a_vision_transformer_fills_zse_and_clip_fills_clip(tmp_path):
    model = test_google_vit.zse()
    vit = written(tmp_path / "vit.safetensors", test_google_vit.published())
    assert publishers.start(model, vit, "zse") == "google_vit"
    np.testing.assert_array_equal(
        model.tokenizer.retrieval_token[...], test_google_vit.published()["cls"]
    )
    source = test_openai_clip.tiny(3)
    file = written(tmp_path / "clip.safetensors", test_openai_clip.published(source))
    retriever = clip()
    assert publishers.start(retriever, file, "clip_prompt") == "openai_clip"
    test_openai_clip.assert_equal(retriever.clip.visual, source.visual)


@pytest.mark.slow
def test_weights_of_another_system_or_publisher_or_size_name_the_file(tmp_path):
    vit = written(tmp_path / "vit.safetensors", test_google_vit.published())
    with pytest.raises(ValueError, match="of google_vit, for the system zse, not clip_prompt"):
        publishers.start(clip(), vit, "clip_prompt")
    with pytest.raises(ValueError, match=r"vit.safetensors: These weights do not fit"):
        publishers.start(test_google_vit.zse(width=24), vit, "zse")
    strange = written(tmp_path / "x.safetensors", {"what": np.zeros(3, np.float32)})
    with pytest.raises(
        ValueError, match="named what, .*not of a known publisher.*zse_sbir: the pub"
    ):
        publishers.start(test_google_vit.zse(), strange, "zse")
