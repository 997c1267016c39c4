"""Activation and heads of a CLIP, from the configs beside its weights, and the errors without."""

import functools
import json
import zipfile

import numpy as np
import pytest
from flax import nnx

from tests.zse_jax.models.test_clip import TINY
from tests.zse_jax.pretrained import test_openai_clip
from tests.zse_jax.pretrained.test_publishers import clip, written
from zse_jax.checkpoints import conversion
from zse_jax.models.clip import CLIP, CLIPSizes
from zse_jax.pretrained import clip_config, openai_clip, publishers

OPEN_CLIP = {
    "model_cfg": {
        "embed_dim": 1024,
        "vision_cfg": {"layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
        "text_cfg": {"width": 1024, "heads": 16, "layers": 24},
    }
}
HUGGING_FACE = {
    "model_type": "clip",
    "vision_config": {"hidden_act": "gelu", "num_attention_heads": 16},
    "text_config": {"hidden_act": "gelu", "num_attention_heads": 12},
}


@functools.cache
def _abstract() -> CLIP:
    return nnx.eval_shape(lambda: CLIP(CLIPSizes(**TINY), rngs=nnx.Rngs(0)))


def model(**changes) -> CLIP:
    """A model without memory, that says it has these sizes."""
    _abstract().sizes = CLIPSizes(**{**TINY, **changes})
    return _abstract()


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("open_clip_config.json", OPEN_CLIP, ("gelu", 16, 16)),
        (
            "open_clip_config.json",
            {"embed_dim": 512, "quick_gelu": True, "vision_cfg": {"width": 768}, "text_cfg": {}},
            ("quick_gelu", 12, 8),
        ),
        ("config.json", HUGGING_FACE, ("gelu", 16, 12)),
        ("config.json", {"model_type": "clip", "vision_config": {}}, ("quick_gelu", 12, 8)),
    ],
)
def test_a_config_beside_the_file_gives_activation_and_heads(tmp_path, name, config, expected):
    (tmp_path / name).write_text(json.dumps(config))
    (tmp_path / "model.safetensors").touch()
    found = clip_config.described(tmp_path / "model.safetensors")
    assert found == dict(zip(("activation", "heads", "text_heads"), expected, strict=True))


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("open_clip_config.json", {"a": 1}, "'vision_cfg'"),
        ("open_clip_config.json", [], "list"),
        (
            "open_clip_config.json",
            {"vision_cfg": {"timm_model_name": "vit"}, "text_cfg": {}},
            "not a Vision Transformer of CLIP",
        ),
        (
            "open_clip_config.json",
            {"vision_cfg": {"pool_type": "avg"}, "text_cfg": {"no_causal_mask": True}},
            "pool_type='avg', no_causal_mask=True, which is not supported",
        ),
        ("config.json", {"model_type": "clip", "vision_config": {"hidden_act": "relu"}}, "relu"),
    ],
)
def test_a_config_of_another_network_is_an_error(tmp_path, name, config, message):
    (tmp_path / name).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{name} cannot be used: .*{message}"):
        clip_config.described(tmp_path / "model.safetensors")


def test_a_file_alone_is_described_only_if_it_is_openais(tmp_path, monkeypatch):
    bare = tmp_path / "bare.safetensors"
    bare.write_bytes(b"x")
    assert clip_config.described(bare) == {}
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    assert clip_config.described(bare) == {}
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    monkeypatch.setattr(clip_config, "_OPENAI", {digest})
    assert clip_config.described(bare) == {"activation": "quick_gelu"}


@pytest.mark.parametrize(
    ("modules", "activation"),
    [
        (b"c__torch__.clip.model\nQuickGELU\n", "quick_gelu"),
        (b"c__torch__.torch.nn.modules.activation\nGELU\n", "gelu"),
        (b"c__torch__.torch.nn.modules.linear\nLinear\n", "quick_gelu"),
    ],
)
def test_an_archive_of_torch_script_has_the_activation_of_its_modules(
    tmp_path, modules, activation
):
    with zipfile.ZipFile(tmp_path / "ViT-B-32.pt", "w") as archive:
        archive.writestr("a/data.pkl", modules)
        archive.writestr("a/constants.pkl", b"")
    assert clip_config.described(tmp_path / "ViT-B-32.pt") == {"activation": activation}


def test_the_activation_must_be_known_and_the_models():
    clip_config.check_described(model(activation="gelu"), {})
    clip_config.check_described(model(), {"activation": "quick_gelu"})
    clip_config.check_described(model(heads=2), {"activation": "quick_gelu", "heads": 2})
    with pytest.raises(ValueError, match=r"activation=quick_gelu for .*activation=gelu for LAION"):
        clip_config.check_described(model(), {})
    with pytest.raises(ValueError, match="need --config.model.activation=gelu, but .*'quick_gelu'"):
        clip_config.check_described(model(), {"activation": "gelu"})
    with pytest.raises(ValueError, match="need --config.model.heads=1, but the model has heads=2"):
        clip_config.check_described(model(heads=2), {"activation": "quick_gelu", "heads": 1})
    with pytest.raises(ValueError, match="choose one of quick_gelu, gelu"):
        CLIP(CLIPSizes(**TINY, activation="relu"), rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_a_file_alone_is_refused_and_a_config_beside_it_decides(tmp_path):
    source = test_openai_clip.tiny(3)
    file = written(tmp_path / "clip.safetensors", test_openai_clip.published(source))
    retriever = clip(activation=None)
    with pytest.raises(ValueError, match=r"clip.safetensors: nothing says which activation"):
        publishers.start(retriever, file, "clip_prompt")
    heads = {"vision_cfg": {"width": 16, "head_width": 8}, "text_cfg": {"heads": 2}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"quick_gelu": True, **heads}))
    publishers.start(retriever, file, "clip_prompt")
    test_openai_clip.assert_equal(retriever.clip.visual, source.visual)
    arrays = test_openai_clip.published(source)
    config = conversion.config_of("openai_clip", arrays, file=file).model
    assert (config.activation, config.heads, config.text_heads) == ("quick_gelu", 2, 2)


def shapes(width, hidden, text_width=512):
    """The arrays of a large CLIP, without their memory."""

    def zeros(*shape):
        return np.broadcast_to(np.float32(0), shape)

    return {
        "visual.conv1.weight": zeros(width, 3, 14, 14),
        "visual.positional_embedding": zeros(257, width),
        "visual.transformer.resblocks.0.mlp.c_fc.weight": zeros(hidden, width),
        "transformer.resblocks.0.mlp.c_fc.weight": zeros(4 * text_width, text_width),
        "text_projection": zeros(text_width, 1024),
        "positional_embedding": zeros(77, text_width),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("width", "hidden", "heads"),
    [(768, 3072, 12), (1024, 4096, 16), (1280, 5120, 16), (1408, 6144, 16), (1664, 8192, 16)],
)
def test_heads_and_mlps_of_large_towers_are_those_of_openclip(width, hidden, heads):
    found = openai_clip.settings(shapes(width, hidden, 1280))
    assert (found["heads"], found["text_heads"]) == (heads, 20)
    assert found.get("mlp_width", 4 * width) == hidden


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["visual.conv1.weight", "visual.layer1.0.conv1.weight"], "a CLIP with a ResNet"),
        (["visual.conv1.weight", "visual.attnpool.c_proj.bias"], "a CLIP with a ResNet"),
        (["visual.conv1.weight", "visual.ln_pre.bias"], "have no text tower"),
        (["vision_model.pre_layrnorm.weight"], "have no text tower"),
        (["visual.conv1.weight", "text.transformer.x"], "other towers than CLIP's"),
    ],
)
def test_another_kind_of_clip_is_named(names, message):
    arrays = dict.fromkeys(names, np.zeros((1, 1), np.float32))
    with pytest.raises(ValueError, match=message):
        publishers.settings(publishers.publisher_of(arrays), arrays)
    with pytest.raises(ValueError, match=message):
        openai_clip.load(model(), arrays)
