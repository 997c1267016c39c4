"""The train state, and one training step as a pure function of (state, batch).

The state is a dict of three parts, which are saved separately; everything else is a hashable
`Definition`. `set_up` compiles the step for a mesh, with the state donated and sharded according to
`zse_jax.runtime.sharding`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.nnx import filterlib
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from zse_jax import retrievers
from zse_jax.checkpoints import initial_weights
from zse_jax.checkpoints.arrays import abstract_state, split_model
from zse_jax.retrievers import registry
from zse_jax.retrievers.base import Retriever
from zse_jax.retrievers.rngs import rngs
from zse_jax.runtime import sharding
from zse_jax.training import optimizers

State = dict[str, nnx.State]
"""The train state: "model" (parameters), "random" (dropout keys), "optimizer"."""

Batch = Mapping[str, Array]


class Definition(NamedTuple):
    """The structure of the model and the optimizer, which a step does not change."""

    model: nnx.GraphDef[Retriever]
    optimizer: nnx.GraphDef[nnx.Optimizer]


def split(model: Retriever, optimizer: nnx.Optimizer) -> tuple[Definition, State]:
    """Splits a model and its optimizer into their structure and the train state."""
    model_definition, state = split_model(model)
    optimizer_definition, moments = nnx.split(optimizer)
    return Definition(model_definition, optimizer_definition), state | {"optimizer": moments}


def merge_model(definition: Definition, state: State) -> Retriever:
    """The model of a train state; shares its arrays."""
    return nnx.merge(definition.model, state["random"], state["model"])


def train_step(
    definition: Definition, mesh: Mesh, state: State, batch: Batch, accumulate: int = 1
) -> tuple[State, dict[str, Float[Array, ""]]]:
    """One update: the next state, and the loss, its terms and the gradient norm before the update.

    Each device computes the loss of its samples with whole parameters, and updates its part of the
    parameters: see `sharding.gathered` and `sharding.scattered`.

    Args:
      definition, state: of model and optimizer.
      mesh: over which the state is sharded.
      batch: arrays with the sample as leading axis.
      accumulate: number of micro-batches, which are processed one after the other. The gradient,
        the loss and its terms are means over them. They equal those of the whole batch, except for
        dropout, because `set_up` accepts only losses that are means over samples.
    """
    model = merge_model(definition, state | {"model": sharding.gathered(mesh, state["model"])})
    optimizer = nnx.merge(definition.optimizer, state["optimizer"])
    if accumulate == 1:
        metrics, grads = _gradient(model, optimizer.wrt, mesh, batch)
    else:
        metrics, grads = _accumulated(model, optimizer.wrt, mesh, batch, accumulate)
    nnx.update(model, nnx.filter_state(state["model"], nnx.Param))
    optimizer.update(model, grads)
    metrics["gradient_norm"] = optax.global_norm(grads)
    return split(model, optimizer)[1], metrics


def _gradient(
    model: Retriever, wrt: Any, mesh: Mesh, batch: Batch
) -> tuple[dict[str, Array], nnx.State]:
    """The loss and its terms, and the gradient with respect to the parameters of filter `wrt`.

    The parameters are whole; the gradient is sharded as the parameters in the train state.
    """
    gradient = nnx.value_and_grad(
        lambda model: model.loss(batch), argnums=nnx.DiffState(0, wrt), has_aux=True
    )
    (loss, terms), grads = gradient(model)
    return {"loss": loss, **terms}, sharding.scattered(mesh, grads)


def _accumulated(
    model: Retriever, wrt: Any, mesh: Mesh, batch: Batch, count: int
) -> tuple[dict[str, Array], nnx.State]:
    """As `_gradient`, but means over `count` micro-batches; updates other variables sequentially.

    A micro-batch takes every `count`-th sample, so that each sample stays on its device.
    """
    structure, parameters, *others = nnx.split(model, nnx.Param, ...)

    def step(carry: tuple[nnx.State, nnx.State], micro_batch: Batch) -> Any:
        total, changing = carry
        model = nnx.merge(structure, parameters, changing, copy=True)  # variables of this trace
        metrics, grads = _gradient(model, wrt, mesh, micro_batch)
        total = jax.tree.map(jnp.add, total, grads)
        _, _, *others = nnx.split(model, nnx.Param, ...)
        return (total, others[0]), metrics

    def micro_batches(array: Array) -> Array:
        return array.reshape(-1, count, *array.shape[1:]).swapaxes(0, 1)

    zeros = sharding.scattered(mesh, jax.tree.map(jnp.zeros_like, nnx.state(model, wrt)))
    inputs = jax.tree.map(micro_batches, dict(batch))
    carry, metrics = jax.lax.scan(step, (zeros, others[0]), inputs)
    nnx.update(model, carry[1])
    return (
        {name: values.mean(axis=0) for name, values in metrics.items()},
        jax.tree.map(lambda total: total / count, carry[0]),
    )


def trainable(model: Retriever) -> tuple[Any, optimizers.Groups]:
    """A filter for the parameters of `model` that train, and the optimizer group of each.

    The others have no gradients and no optimizer state; see `Retriever.parameter_group`.
    """
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    groups = {path: group for path in paths if (group := model.parameter_group(path)) is not None}
    named = {"/".join(map(str, path)): group for path, group in groups.items()}
    return nnx.Param if len(groups) == len(paths) else filterlib.PathIn(*groups), named


IMAGES = 48
"""Sketches, and as many photos, in a batch of class groups whose size follows from the classes."""


def complete(config: ConfigDict) -> ConfigDict:
    """The config with the settings that follow from its classes.

    Of several alternatives, `init_from` becomes the one that `training_record.untrained` chooses.
    Other settings are filled where they are None: `model.class_names`, the classes in the order of
    the training labels, and `model.seen_classes`, their number, for systems that have these keys;
    for a system that trains on groups of classes also `train.batch_size`, all classes but at most
    `IMAGES`, and `train.sampler`, with as many sketches and photos of each class as make `IMAGES`
    of them. They are saved with checkpoints.

    Raises:
      ValueError: no batch size for another system; and as `data_selection.split_of`.
      FileNotFoundError: as `data_selection.split_of`.
    """
    keys = ("class_names", "seen_classes")
    open_ = [key for key in keys if key in config.model and config.model[key] is None]
    choose = len(initial_weights.alternatives(config.init_from)) > 1
    if not open_ and config.train.batch_size is not None and not choose:
        return config
    from zse_jax.evaluation import data_selection, training_record  # grain, which a step does not

    config = config.copy_and_resolve_references()
    if choose:
        config.init_from = training_record.untrained(config)
    classes = tuple(data_selection.split_of(config, config.data).seen)
    values = {"class_names": classes, "seen_classes": len(classes)}
    config.model.update({key: values[key] for key in open_})
    if config.train.batch_size is None:
        kind = config.train.sampler or registry.implementation(config.model.system).batch_kind
        if kind != "class_group":
            raise ValueError(
                f"config.train.batch_size has no value, which only the sampler class_group can "
                f"choose; this one is {kind}. Set it, for example --config.train.batch_size=16."
            )
        config.train.batch_size = min(len(classes), IMAGES)
        config.train.sampler = f"class_group:{-(-IMAGES // config.train.batch_size)}"
    return config


class Setup(NamedTuple):
    """The compiled functions of a config on a mesh, before any array exists.

    Attributes:
      model: the retriever with shapes in place of arrays.
      definition: the structure of the retriever and the optimizer.
      abstract: the train state with shapes, types and shardings in place of arrays.
      init: creates the initial train state on the mesh.
      step: compiled `train_step`; takes (state, batch) and donates the state.
    """

    model: Retriever
    definition: Definition
    abstract: State
    init: Callable[[], State]
    step: Callable[[State, Batch], tuple[State, dict[str, Array]]]


def set_up(config: ConfigDict, mesh: Mesh) -> Setup:
    """Prepares the initialisation and the step of `config` on `mesh`.

    Raises:
      ValueError: values that do not fit each other, the network, or the mesh.
    """
    accumulate = config.train.get("accumulate", 1)
    remat = config.train.get("remat", "none")

    def create() -> tuple[Retriever, nnx.Optimizer]:
        parameters, dropout = jax.random.split(jax.random.key(config.seed))
        model = retrievers.create(
            config.model.to_dict(),
            dtype=config.compute_dtype,
            remat=remat,
            rngs=rngs(params=parameters, dropout=dropout),
        )
        wrt, groups = trainable(model)
        transformation = optimizers.create(
            config.optimizer, config.train.steps, groups, model.parameter_groups
        )
        return model, nnx.Optimizer(model, transformation, wrt=wrt)

    model, optimizer = nnx.eval_shape(create)
    if accumulate > 1 and (parts := model.across_samples):
        raise ValueError(
            f"config.train.accumulate={accumulate}: the loss of {config.model.system!r} relates "
            f"all samples of a batch ({', '.join(parts)}). Micro-batches would give another "
            "gradient. Set config.train.accumulate=1; to save memory, set "
            "config.train.remat='blocks', a smaller config.train.batch_size, or more devices."
        )
    definition, shapes = split(model, optimizer)
    sharding.check_fsdp(mesh, shapes)
    shardings = sharding.state_shardings(mesh, shapes)
    step = jax.jit(
        functools.partial(train_step, definition, mesh, accumulate=accumulate),
        donate_argnums=0,
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
    )
    init = jax.jit(lambda: split(*create())[1], out_shardings=shardings)
    return Setup(model, definition, abstract_state(shapes, shardings), init, step)


def placed(state: State, model: Retriever, setup: Setup) -> State:
    """`state` with the variables of `model`, placed on the mesh."""

    def place(leaf: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.sharding == like.sharding:
            return leaf
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, like.sharding, whole.__getitem__)

    variables = split_model(model)[1]["model"]
    return state | {"model": jax.tree.map(place, variables, setup.abstract["model"])}
