"""One step: meshes, micro-batches, rematerialisation, donation, no transfers."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.collectives import collectives
from tests.zse_jax import shared_steps, small_systems, tiny
from tests.zse_jax.random_weights import drawn_state
from zse_jax.checkpoints import arrays
from zse_jax.models.rematerialisation import rematerialise
from zse_jax.retrievers import create
from zse_jax.retrievers.efficient_cnn import EfficientCNN
from zse_jax.runtime import sharding
from zse_jax.training import step

SYSTEMS = ("zse", "clip_prompt", "efficient_cnn", "cmca")


class Relating(NamedTuple):
    """A system with all of its losses that relate the samples of a batch, and their names.

    Wide layers and few samples: the compiler splits activations by features if it may.
    """

    system: str
    changes: dict[str, Any]
    losses: frozenset[str]


RELATING = {
    "zse": Relating(
        "zse", {"model.width": 128, "model.contrastive_weight": 1.0}, frozenset({"contrastive"})
    ),
    "clip_prompt category": Relating("clip_prompt", {}, frozenset()),
    "clip_prompt fine_grained": Relating(
        "clip_prompt",
        {"model.recipe": "fine_grained", "model.delta_weight": 10.0},
        frozenset({"delta"}),
    ),
    "efficient_cnn": Relating(
        "efficient_cnn",
        {"model.contrastive_weight": 1.0},
        frozenset({"quadruplet", "contrastive"}),
    ),
    "cmca": Relating(
        "cmca", {"model.mcc_weights": (4.0, 8.0)}, frozenset({"mcc_sketch", "mcc_photo"})
    ),
}


class Compiled(NamedTuple):
    """A step on a mesh, before and after compilation, and a batch for it."""

    setup: step.Setup
    lowered: Any
    program: Any
    batch: dict[str, np.ndarray]

    def first(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The losses of the first step, and AdamW's first moments: 0.1 times the gradient."""
        state, losses = self.program(drawn_state(self.setup), self.batch)
        moments = arrays.flat_arrays(state["optimizer"])
        gradient = [np.ravel(moments[name]) for name in sorted(moments) if "/mu/" in name]
        return jax.device_get(losses), np.concatenate(gradient)


def compiled(relating: Relating, mesh: jax.sharding.Mesh) -> Compiled:
    config = small_systems.config(relating.system, **relating.changes)
    fine = config.model.get("recipe") == "fine_grained"
    batch = small_systems.batch("zse" if fine else relating.system, 8)  # two of each either way
    setup = shared_steps.set_up(config, mesh)
    lowered = setup.step.lower(setup.abstract, batch)
    return Compiled(setup, lowered, lowered.compile(), batch)


@pytest.fixture(scope="module", params=RELATING)
def relating(request) -> Relating:
    return RELATING[request.param]


@pytest.fixture(scope="module")
def on_eight(relating) -> Iterator[Compiled]:
    """The step on a mesh of 2 x 4 devices that splits all but the smallest arrays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "MIN_SIZE", 64)
        yield compiled(relating, sharding.make_mesh(2, 4))


def one_device():
    return sharding.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def accumulated():
    """Two steps of ZSE on one device with two micro-batches: see `small_systems.steps`."""
    config = small_systems.config("zse", **{"train.accumulate": 2})
    return small_systems.steps(config, one_device(), small_systems.batch("zse"))


@pytest.mark.slow
def test_micro_batches_give_the_gradient_of_the_whole_batch(accumulated):
    batch = small_systems.batch("zse")
    whole, state = small_systems.steps(small_systems.config("zse"), one_device(), batch)
    parts, of_parts = accumulated
    np.testing.assert_allclose(parts, whole, rtol=2e-5)
    first, other = (arrays.flat_arrays(s["optimizer"]) for s in (state, of_parts))
    moments = [name for name in first if "/mu/" in name and "bias" not in name]
    assert moments
    for name in moments:
        scale = np.abs(first[name]).max()
        np.testing.assert_allclose(other[name], first[name], atol=2e-4 * scale, err_msg=name)


@pytest.mark.slow
def test_micro_batches_do_not_depend_on_the_mesh_and_need_no_transfer(accumulated, monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SIZE", 64)
    config, batch = (
        small_systems.config("zse", **{"train.accumulate": 2}),
        small_systems.batch("zse"),
    )
    one, _ = accumulated
    mesh = sharding.make_mesh(2, 4)
    placed = jax.device_put(batch, sharding.batch_sharding(mesh))
    setup = shared_steps.set_up(config, mesh)
    state, many = drawn_state(setup), []
    with jax.transfer_guard("disallow"):
        for _ in one:
            state, metrics = setup.step(state, placed)
            many.append(metrics)
        with pytest.raises(Exception, match="Disallowed host-to-device"):
            setup.step(state, batch)
    many = [[float(metrics[name]) for name in ("loss", "gradient_norm")] for metrics in many]
    np.testing.assert_allclose(many, one, rtol=1e-5)


@pytest.mark.slow
def test_each_micro_batch_draws_its_own_dropout(monkeypatch):
    tiny.install(monkeypatch.setattr)
    config = tiny.config(**{"train.accumulate": 2, "model.dropout": 0.5})
    setup = step.set_up(config, one_device())
    images = np.random.default_rng(0).integers(0, 256, (8, 2, 8, 8, 3), np.uint8)
    before = setup.init()
    count = int(before["random"]["dropout"]["rngs"]["count"].get_value())
    state, _ = setup.step(before, {"sketches": images, "photos": images})
    # Sketches and photos are encoded in turn, in each of the two.
    assert int(state["random"]["dropout"]["rngs"]["count"].get_value()) == count + 2 * 2


@pytest.mark.parametrize(
    ("system", "changes", "parts"),
    [
        ("efficient_cnn", {}, "quadruplet, batch statistics"),
        ("efficient_cnn", {"model.frozen_statistics": True}, r"\(quadruplet\)"),
        ("efficient_cnn", {"model.quadruplet_weight": 0.0}, r"\(batch statistics\)"),
        ("clip_prompt", {"model.recipe": "fine_grained"}, r"\(delta\)"),
    ],
)
def test_a_loss_that_relates_the_samples_of_a_batch_has_no_micro_batches(system, changes, parts):
    config = small_systems.config(system, **{"train.accumulate": 2}, **changes)
    with pytest.raises(ValueError, match=f"accumulate=2: .*{parts}.*Set config.train.accumulate=1"):
        step.set_up(config, one_device())


def test_other_losses_have_micro_batches():
    """A whole batch's gradient is tested above for ZSE; these are also means over samples."""
    plain = {"model.frozen_statistics": True, "model.quadruplet_weight": 0.0}
    for system, changes in (("clip_prompt", {}), ("efficient_cnn", plain)):
        step.set_up(
            small_systems.config(system, **{"train.accumulate": 2}, **changes), one_device()
        )


@pytest.mark.slow
def test_each_micro_batch_moves_batch_statistics(monkeypatch):
    monkeypatch.setattr(EfficientCNN, "across_samples", ())
    batch = small_systems.batch("efficient_cnn")
    once, twice = (
        small_systems.steps(small_systems.config("efficient_cnn", **{"train.accumulate": k}),
                            one_device(), batch, count=1)[1]["model"]
        for k in (1, 2)
    )  # fmt: skip
    mean = [s["backbone"]["stem_norm"]["mean"].get_value() for s in (once, twice)]
    # A running average m <- 0.9 m + 0.1 x: its part of x is 0.1, and 0.19 after two micro-batches.
    setup = shared_steps.set_up(small_systems.config("efficient_cnn"), one_device())
    first = drawn_state(setup)["model"]
    old = first["backbone"]["stem_norm"]["mean"].get_value()
    new = mean[0] - 0.9 * old, mean[1] - 0.81 * old
    np.testing.assert_allclose(new[1], 1.9 * new[0], rtol=0.05, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["zse", "efficient_cnn"])
def test_rematerialisation_changes_no_number(system):
    batch, flat = small_systems.batch(system), {"model.dropout": 0.3} if system == "zse" else {}
    kept, state = small_systems.steps(small_systems.config(system, **flat), one_device(), batch)
    config = small_systems.config(system, **{"train.remat": "blocks"}, **flat)
    again, other = small_systems.steps(config, one_device(), batch)
    np.testing.assert_allclose(again, kept, rtol=1e-5)
    draws, redrawn = (jax.tree.leaves(jax.tree.map(key_data, s["random"])) for s in (state, other))
    assert len(draws) == len(redrawn)
    assert all(np.array_equal(a, b) for a, b in zip(draws, redrawn, strict=True))
    statistics = [nnx.filter_state(s["model"], nnx.BatchStat) for s in (state, other)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *statistics)


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_rematerialisation_stores_less_for_the_backward_pass(system):
    """Measured by the residuals of jax.vjp: XLA's CPU backend moves the recomputation."""
    deeper = {"model.depth": 4} if system in ("zse", "clip_prompt") else {}

    def kept(remat: bool) -> int:
        model = nnx.eval_shape(
            lambda: create(
                small_systems.config(system, **deeper).model, rngs=nnx.Rngs(params=0, dropout=1)
            )
        )
        assert not remat or rematerialise(model) >= 2
        structure, parameters, rest = nnx.split(model, nnx.Param, ...)
        batch = {name: jnp.asarray(x) for name, x in small_systems.batch(system).items()}

        def pullback(parameters, rest):
            def loss(parameters):
                return nnx.merge(structure, parameters, rest, copy=True).loss(batch)[0]

            return jax.vjp(loss, parameters)[1]

        pullback = jax.eval_shape(pullback, parameters, rest)
        held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pullback))
        return held - sum(leaf.size * 4 for leaf in jax.tree.leaves(parameters))

    assert kept(True) < kept(False) / (1.4 if system == "efficient_cnn" else 2.5)


@pytest.mark.slow
def test_eight_devices_share_the_work(on_eight):
    """The compiler decides it, and once made every device compute all of ZSE's step."""
    each, together = (x.cost_analysis()["flops"] for x in (on_eight.program, on_eight.lowered))
    assert each < 1.3 * together / 8


@pytest.mark.slow
def test_devices_exchange_no_activations(on_eight, relating):
    """Only parameters, gradients, and embeddings and labels for losses that relate samples.

    The compiler once split ZSE's anchors by features, as their kernel is at fsdp=4, and warned of
    an "involuntary full rematerialization": it gathered them to split them by samples.
    """
    embeddings = 16 * 128 if relating.losses else 1  # elements: 16 images of one modality
    parameters = {leaf.size for leaf in jax.tree.leaves(on_eight.setup.abstract["model"])}
    gradients = parameters | {size // 4 for size in parameters}
    found = list(collectives(on_eight.program.as_text()))
    assert sum(one.gathers_parameters for one in found) > 5
    for one in found:
        expected = gradients if one.kind == "all-reduce" else ()
        sizes = {math.prod(shape) for shape in one.shapes}.difference(expected)
        assert one.gathers_parameters or max(sizes, default=0) <= embeddings, one


@pytest.mark.slow
def test_eight_devices_compute_the_losses_and_the_gradient_of_one(on_eight, relating):
    """Losses that relate samples are those of the whole batch, not of the samples of a device."""
    losses, gradient = on_eight.first()
    expected, of_one = compiled(relating, one_device()).first()
    assert relating.losses <= losses.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(losses[name], value, rtol=1e-5, err_msg=name)
    assert np.linalg.norm(gradient - of_one) < 1e-5 * np.linalg.norm(of_one)


@pytest.mark.slow
def test_a_step_reuses_the_memory_of_its_state():
    setup = shared_steps.set_up(small_systems.config("zse"), one_device())
    batch = small_systems.batch("zse")
    memory = setup.step.lower(setup.abstract, batch).compile().memory_analysis()
    size = sharding.bytes_per_device(setup.abstract)
    keys = len(jax.tree.leaves(setup.abstract["random"]))
    assert memory.alias_size_in_bytes >= size - 16 * keys


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({"train.remat": "all"}, "config.train.remat='all': choose one of none, blocks"),
        ({"train.remat": "blocks"}, "'tiny' has no blocks"),
    ],
)
def test_wrong_values_name_their_key(monkeypatch, flat, message):
    tiny.install(monkeypatch.setattr)
    with pytest.raises(ValueError, match=message):
        step.set_up(tiny.config(**flat), one_device())


def key_data(leaf):
    value = leaf.get_value() if hasattr(leaf, "get_value") else leaf
    is_key = jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(value) if is_key else value)
