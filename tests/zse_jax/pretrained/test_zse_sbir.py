"""Golden parity: the published network, its loss, gradients and AdamW steps, float32 on the CPU.

Tolerances are those of tests/golden/README.md. One fixture runs everything once, at full size.
"""

import functools
import json
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs import default
from tests.zse_jax.pretrained.weights import GOLDEN, draw
from tests.zse_jax.random_weights import drawn
from zse_jax.pretrained import zse_sbir
from zse_jax.retrievers import create
from zse_jax.retrievers.zse import ZSE
from zse_jax.training.optimizers import create as create_optimizer

pytestmark = pytest.mark.slow


def relative_error(got, want) -> float:
    got, want = (np.asarray(x, np.float64).ravel() for x in (got, want))
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


class Run(NamedTuple):
    """What our network makes of the golden weights and inputs."""

    tokens: np.ndarray
    pairs: tuple
    losses: list[float]
    terms: dict
    gradients: dict[str, float]
    updates: dict[str, float]


@pytest.fixture(scope="module")
def expected():
    return np.load(GOLDEN / "zse.npz")


@pytest.fixture(scope="module")
def model():
    model = drawn(lambda: create({"system": "zse"}, rngs=nnx.Rngs(params=0, dropout=1)))
    zse_sbir.load(model, draw("zse"))
    return nnx.view(model, deterministic=True)


@pytest.fixture(scope="module")
def run(model) -> Run:
    rng = np.random.default_rng(7)
    sketches, photos = (
        jnp.asarray(rng.standard_normal((2, 3, 224, 224), dtype=np.float32).transpose(0, 2, 3, 1))
        for _ in range(2)
    )
    graphdef, parameters, rest = nnx.split(model, nnx.Param, ...)
    names = {path: source.name for path, source in zse_sbir.table(model).items()}

    def norms(tree) -> dict[str, float]:
        return {
            names[path]: float(np.linalg.norm(np.asarray(leaf[...], np.float64)))
            for path, leaf in nnx.to_flat_state(tree)
        }

    settings = default.get_config().optimizer
    settings.learning_rate = 1e-4
    optimizer = create_optimizer(settings, steps=4)

    def loss(parameters):
        """The loss and its terms; also the tokens and pairs from which the model computes it."""
        outputs = {}

        def record(name: str):
            method = getattr(ZSE, name)

            def recorded(*arguments):
                outputs[name] = method(*arguments)
                return outputs[name]

            return mock.patch.object(ZSE, name, recorded)

        with record("tokens"), record("pairs"):
            batch = {"sketches": sketches[None], "photos": photos[None]}
            value, terms = nnx.merge(graphdef, parameters, rest).loss(batch)
        return value, (terms, outputs)

    # One program, and optimised: at this size, running it takes longer than compiling it.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
    def step(parameters, state):
        (value, aux), gradients = jax.value_and_grad(loss, has_aux=True)(parameters)
        updates, state = optimizer.update(gradients, state, parameters)
        return optax.apply_updates(parameters, updates), state, value, aux, gradients

    current, state = parameters, optimizer.init(parameters)
    losses, first = [], None
    for _ in range(4):
        current, state, value, aux, gradients = step(current, state)
        losses.append(float(value))
        first = first or (*aux, norms(gradients))
    terms, outputs, gradient_norms = first
    change = jax.tree.map(lambda new, old: new - old, current, parameters)
    return Run(
        np.asarray(outputs["tokens"]),
        outputs["pairs"],
        losses,
        terms,
        gradient_norms,
        norms(change),
    )


def test_tokens_after_self_attention(run, expected):
    tokens = run.tokens[:, expected["token_index"]]
    assert relative_error(tokens[:2], expected["sketch_tokens"]) < 1e-4
    assert relative_error(tokens[2:], expected["photo_tokens"]) < 1e-4


def test_tokens_after_cross_attention(run, expected):
    tokens = np.concatenate([run.pairs.sketch_tokens, run.pairs.photo_tokens])
    assert relative_error(tokens[:, expected["token_index"]], expected["cross_tokens"]) < 1e-4


@pytest.mark.parametrize("name", ["cosine", "logit", "score"])
def test_relation(run, expected, name):
    assert relative_error(getattr(run.pairs, name), expected[name]) < 1e-4


def test_loss_and_its_terms(run, expected):
    assert relative_error(run.terms["triplet"], expected["triplet"]) < 1e-4
    assert relative_error(run.terms["relation"], expected["mse"]) < 1e-4
    assert relative_error(run.losses[0], expected["loss"]) < 1e-4


def test_loss_over_four_adamw_steps(run, expected):
    np.testing.assert_allclose(run.losses, expected["loss_trace"], rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("gradients", 2e-3), ("updates", 5e-3)], ids=["gradients", "updates"]
)
def test_norm_of_every_parameter(run, kind, tolerance):
    stem = {"gradients": "gradient", "updates": "update"}[kind]
    expected = json.loads((GOLDEN / f"zse_{stem}_norms.json").read_text())
    compared = {name: norm for name, norm in expected.items() if norm is not None}
    assert len(compared) > 170
    got = getattr(run, kind)
    far = {n: (got[n], v) for n, v in compared.items() if abs(got[n] - v) > tolerance * abs(v)}
    assert not far


def test_every_published_name_is_used_or_ignored(model):
    used = {source.name for source in zse_sbir.table(model).values()}
    published = json.loads((GOLDEN / "zse_manifest.json").read_text())
    unused = [name for name in published if name not in used]
    assert len(unused) == 16
    assert all(name.startswith("ca.encoder.layers.") for name in unused)
