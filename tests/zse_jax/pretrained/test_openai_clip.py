"""CLIP's weights: golden parity, both publishers' names, and files that do not fit.

Tolerances are those of tests/golden/README.md.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.zse_jax.models.test_clip import TINY
from tests.zse_jax.pretrained.weights import GOLDEN, draw
from tests.zse_jax.random_weights import drawn
from zse_jax.losses import cosine_triplet
from zse_jax.models.clip import CLIP, CLIPSizes, tokenize
from zse_jax.pretrained import files, openai_clip
from zse_jax.pretrained.mapping import patch_matrix, transpose
from zse_jax.retrievers import create


def relative_error(got, want) -> float:
    got, want = (np.asarray(x, np.float64).ravel() for x in (got, want))
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def tiny(seed=0, **changes) -> CLIP:
    return drawn(lambda: CLIP(CLIPSizes(**{**TINY, **changes}), rngs=nnx.Rngs(0)), seed)


def published(clip: CLIP) -> dict[str, np.ndarray]:
    """A model's parameters under OpenAI's names and in OpenAI's layout."""
    parameters = dict(nnx.to_flat_state(nnx.state(clip, nnx.Param)))
    arrays = {}
    for path, source in openai_clip.table(clip).items():
        array = np.asarray(parameters[path][...])
        if source.layout is patch_matrix:
            size = clip.visual.patch_size
            array = array.reshape(size, size, 3, -1).transpose(3, 2, 0, 1)
        arrays[source.name] = array.T if source.layout is transpose else array
    return arrays


def hugging_face(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """OpenAI's arrays as Hugging Face publishes them."""
    named = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    }
    parts = {
        "visual.ln_pre": "vision_model.pre_layrnorm", "ln_1": "layer_norm1", "ln_2": "layer_norm2",
        "visual.ln_post": "vision_model.post_layernorm", "ln_final": "text_model.final_layer_norm",
        "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
        "visual.transformer.resblocks": "vision_model.encoder.layers",
        "transformer.resblocks": "text_model.encoder.layers",
    }  # fmt: skip
    found = {
        "text_model.embeddings.position_ids": np.arange(77)[None],
        "vision_model.embeddings.position_ids": np.arange(50)[None],
    }
    for name, array in arrays.items():
        if name == "visual.proj":
            found["visual_projection.weight"] = array.T
        elif name == "text_projection":
            found["text_projection.weight"] = array.T
        else:
            theirs = named.get(name, name)
            for ours, part in parts.items():
                theirs = theirs.replace(ours, part)
            if ".attn.in_proj_" in theirs:
                for letter, third in zip("qkv", np.split(array, 3), strict=True):
                    part = f".self_attn.{letter}_proj."
                    found[theirs.replace(".attn.in_proj_", part)] = third
            else:
                found[theirs] = array
    return found


def parameters(module) -> dict:
    return {
        path: np.asarray(leaf[...])
        for path, leaf in nnx.to_flat_state(nnx.state(module, nnx.Param))
    }


def assert_equal(one, other):
    one, other = parameters(one), parameters(other)
    assert one.keys() == other.keys()
    for path, array in one.items():
        np.testing.assert_array_equal(array, other[path], err_msg=str(path))


@pytest.mark.slow
def test_golden_outputs(golden):
    expected = golden("clip")
    model = nnx.eval_shape(lambda: CLIP(rngs=nnx.Rngs(0)))
    weights = draw("clip")
    assert set(weights) == {source.name for source in openai_clip.table(model).values()}
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), nnx.state(model))
    nnx.update(model, state)
    openai_clip.load(model, weights)
    rng = np.random.default_rng(11)
    images = rng.standard_normal((2, 3, 224, 224), dtype=np.float32).transpose(0, 2, 3, 1)
    sketch, photo = (jnp.asarray(rng.standard_normal((3, 768), np.float32)) for _ in range(2))
    encode = nnx.jit(CLIP.encode_image)
    texts = json.loads((GOLDEN / "clip_token_ids.json").read_text())
    found = {
        "plain": encode(model, jnp.asarray(images)),
        "sketch_prompted": encode(model, jnp.asarray(images), sketch),
        "photo_prompted": encode(model, jnp.asarray(images), photo),
        "text": nnx.jit(CLIP.encode_text)(model, jnp.asarray(tokenize(list(texts)))),
    }
    positive = found["photo_prompted"]
    found["triplet"] = cosine_triplet(
        found["sketch_prompted"], positive, positive[::-1], margin=0.2
    )
    assert found.keys() == expected.keys()
    errors = {name: relative_error(found[name], expected[name]) for name in expected}
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_openais_names_fill_every_parameter(dtype):
    source, model = tiny(0), tiny(1)
    arrays = {name: array.astype(dtype) for name, array in published(source).items()}
    extra = {"input_resolution": 16, "context_length": 12, "vocab_size": 49408}
    openai_clip.load(model, arrays | {name: np.asarray(n) for name, n in extra.items()})
    if dtype == np.float32:
        assert_equal(model, source)
    assert {array.dtype for array in parameters(model).values()} == {np.dtype(np.float32)}


def test_hugging_faces_names_fill_every_parameter(tmp_path):
    from safetensors.numpy import save_file

    source, model = tiny(0), tiny(1)
    arrays = {k: np.array(v, order="C") for k, v in hugging_face(published(source)).items()}
    save_file(arrays, tmp_path / "model.safetensors")
    openai_clip.load(model, files.read(tmp_path / "model.safetensors"))
    assert_equal(model, source)


def test_an_unused_name_and_a_parameter_without_source_are_errors():
    arrays = published(tiny())
    arrays["visual.ln_prefix.bias"] = arrays.pop("visual.ln_pre.bias")
    with pytest.raises(ValueError) as error:
        openai_clip.load(tiny(), arrays)
    assert "not used: visual.ln_prefix.bias" in str(error.value)
    assert "visual.norm_pre.bias (expected as visual.ln_pre.bias)" in str(error.value)


def test_a_missing_part_of_a_projection_is_an_error_with_hugging_faces_name():
    arrays = hugging_face(published(tiny()))
    name = "text_model.encoder.layers.1.self_attn.v_proj.bias"
    del arrays[name]
    with pytest.raises(ValueError, match=f"incomplete.*Missing: {name}"):
        openai_clip.load(tiny(), arrays)


@pytest.mark.slow
@pytest.mark.parametrize("rename", [lambda arrays: arrays, hugging_face])
def test_another_size_of_clip_is_an_error_that_names_it(rename):
    with pytest.raises(ValueError, match=r"another size of CLIP: patch_size=8 \(the model: 4\)"):
        openai_clip.load(tiny(patch_size=4), rename(published(tiny())))
    with pytest.raises(ValueError, match=r"text_width=8 \(the model: 4\).*L/14"):
        openai_clip.load(tiny(text_width=4), rename(published(tiny())))


def test_anything_but_a_dict_of_arrays_is_an_error():
    with pytest.raises(ValueError, match=r"not a str.*zse_jax.pretrained.files.read"):
        openai_clip.load(tiny(), "ViT-B-32.pt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text_tower", "encoders"), [(True, "separate"), (False, "separate_norms")]
)
def test_a_retriever_fills_both_towers_and_encodes_its_classes_again(text_tower, encoders):
    settings = {
        "system": "clip_prompt", **TINY, "context_length": 16, "encoders": encoders,
        "class_names": ("cat", "hot-air_balloon"), "text_tower": text_tower,
    }  # fmt: skip
    retriever = create(settings, rngs=nnx.Rngs(params=0, dropout=1))
    prompt = np.asarray(retriever.photo_prompt[...])
    source = tiny(3, context_length=16)
    openai_clip.load(retriever, published(source))
    assert_equal(retriever.clip.visual, source.visual)
    assert_equal(retriever.sketch_visual, source.visual)
    np.testing.assert_array_equal(retriever.photo_prompt[...], prompt)
    texts = source.encode_text(jnp.asarray(tokenize(["a photo of a cat"])))
    want = texts / jnp.linalg.norm(texts, axis=1, keepdims=True)
    np.testing.assert_allclose(retriever.class_text[:1], want, rtol=1e-5, atol=1e-6)
    assert (retriever.clip.text is not None) == text_tower
    if text_tower:
        assert_equal(retriever.clip.text, source.text)
