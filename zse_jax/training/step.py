"""The train state, and one step of training as a pure function of (state, batch).

What changes is a dict of three parts, each saved on its own; what does not is a hashable
`Definition`. `set_up` compiles the step for a mesh, with the state donated and every array where
`zse_jax.runtime.sharding` puts it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from zse_jax import retrievers
from zse_jax.checkpoints import arrays
from zse_jax.models.rematerialisation import rematerialise
from zse_jax.retrievers.base import Retriever
from zse_jax.runtime import sharding
from zse_jax.training import optimizers

REMAT = ("none", "blocks")
"""What the backward pass computes again instead of keeping it: nothing, or each block's inside."""

State = dict[str, nnx.State]
"""What a step changes: "model" (parameters), "random" (dropout keys), "optimizer"."""

Batch = Mapping[str, Array]


class Definition(NamedTuple):
    """What a step does not change: the structure of model and optimizer."""

    model: nnx.GraphDef[Retriever]
    optimizer: nnx.GraphDef[nnx.Optimizer]


def split(model: Retriever, optimizer: nnx.Optimizer) -> tuple[Definition, State]:
    """A model and its optimizer as what stays and what changes."""
    model_definition, *parts = nnx.split(model, nnx.RngState, ...)
    optimizer_definition, moments = nnx.split(optimizer)
    state = {"random": parts[0], "model": parts[1], "optimizer": moments}
    return Definition(model_definition, optimizer_definition), state


def merge_model(definition: Definition, state: State) -> Retriever:
    """The model in a train state; shares its arrays."""
    return nnx.merge(definition.model, state["random"], state["model"])


def train_step(
    definition: Definition, state: State, batch: Batch, accumulate: int = 1
) -> tuple[State, dict[str, Float[Array, ""]]]:
    """One update: the next state, and the loss, its terms and the gradient's norm before it.

    Args:
      definition, state: of model and optimizer.
      batch: arrays with the sample as leading axis.
      accumulate: micro-batches into which the batch is cut, which go through the network one after
        the other. The gradient, the loss and its terms are the means over them: what the whole
        batch gives where a loss is a mean over samples (ZSE; CLIP-AT by categories), dropout's
        draws aside. Where samples of a batch meet (EfficientCNN's mining and batch statistics,
        CLIP-AT's L_delta), they meet within their micro-batch only, as in a smaller batch.
    """
    model = merge_model(definition, state)
    optimizer = nnx.merge(definition.optimizer, state["optimizer"])
    if accumulate == 1:
        metrics, grads = _gradient(model, optimizer.wrt, batch)
    else:
        metrics, grads = _accumulated(model, optimizer.wrt, batch, accumulate)
    optimizer.update(model, grads)
    metrics["gradient_norm"] = optax.global_norm(grads)
    return split(model, optimizer)[1], metrics


def _gradient(model: Retriever, wrt: Any, batch: Batch) -> tuple[dict[str, Array], nnx.State]:
    """The loss and its terms, and the gradient by the parameters that `wrt` selects."""
    gradient = nnx.value_and_grad(
        lambda model: model.loss(batch), argnums=nnx.DiffState(0, wrt), has_aux=True
    )
    (loss, terms), grads = gradient(model)
    return {"loss": loss, **terms}, grads


def _accumulated(
    model: Retriever, wrt: Any, batch: Batch, count: int
) -> tuple[dict[str, Array], nnx.State]:
    """As `_gradient`, the means over `count` micro-batches; what else moves, moves in their order.

    Every `count`-th sample belongs to one: so each stays on the device on which it is.
    """
    structure, parameters, *others = nnx.split(model, nnx.Param, ...)

    def step(carry: tuple[nnx.State, nnx.State], micro_batch: Batch) -> Any:
        total, moving = carry
        model = nnx.merge(structure, parameters, moving, copy=True)  # variables of this trace
        metrics, grads = _gradient(model, wrt, micro_batch)
        total = jax.tree.map(jnp.add, total, grads)
        _, _, *others = nnx.split(model, nnx.Param, ...)
        return (total, others[0]), metrics

    def cut(array: Array) -> Array:
        return array.reshape(-1, count, *array.shape[1:]).swapaxes(0, 1)

    zeros = jax.tree.map(jnp.zeros_like, nnx.state(model, wrt))
    carry, metrics = jax.lax.scan(step, (zeros, others[0]), jax.tree.map(cut, dict(batch)))
    nnx.update(model, carry[1])
    return (
        {name: values.mean(axis=0) for name, values in metrics.items()},
        jax.tree.map(lambda total: total / count, carry[0]),
    )


@dataclasses.dataclass(frozen=True)
class Only:
    """A filter of `flax.nnx`: the variables at these paths."""

    paths: frozenset[tuple[Any, ...]]

    def __call__(self, path: tuple[Any, ...], value: Any) -> bool:
        """Whether the variable at `path` is one of them."""
        del value
        return path in self.paths


def trainable(model: Retriever) -> tuple[Any, optimizers.Groups]:
    """Which parameters of `model` train, as a filter, and the optimizer's group of each.

    The others get no gradients and no optimizer state; see `Retriever.parameter_group`.
    """
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    groups = {path: group for path in paths if (group := model.parameter_group(path)) is not None}
    named = {"/".join(map(str, path)): group for path, group in groups.items()}
    return nnx.Param if len(groups) == len(paths) else Only(frozenset(groups)), named


def complete(config: ConfigDict) -> ConfigDict:
    """The config with what its data says: the seen classes, where the system wants their names.

    They then travel with the checkpoint, in the order of the training labels.

    Raises:
      ValueError, FileNotFoundError: as `settings.split_of`.
    """
    if "class_names" not in config.model or config.model.class_names is not None:
        return config
    from zse_jax.evaluation import (
        data_selection,  # which needs the data pipelines, as nothing else here does
    )

    config = config.copy_and_resolve_references()
    config.model.class_names = tuple(data_selection.split_of(config, config.data).seen)
    return config


class Setup(NamedTuple):
    """A train state before it exists.

    Attributes:
      model: the retriever with shapes in place of arrays.
      definition: its structure and the optimizer's.
      abstract: the train state with shapes, types and shardings in place of arrays.
      init: makes the state, each array where it belongs.
      step: compiled `train_step`; takes (state, batch), and uses up the state.
    """

    model: Retriever
    definition: Definition
    abstract: State
    init: Callable[[], State]
    step: Callable[[State, Batch], tuple[State, dict[str, Array]]]


def set_up(config: ConfigDict, mesh: Mesh) -> Setup:
    """Everything about the train state that `config` decides, placed on `mesh`.

    Raises:
      ValueError: values that do not fit each other, the network, or the mesh.
    """
    accumulate = config.train.get("accumulate", 1)
    remat = config.train.get("remat", "none")
    if remat not in REMAT:
        raise ValueError(f"config.train.remat={remat!r}: choose one of {', '.join(REMAT)}.")

    def create() -> tuple[Retriever, nnx.Optimizer]:
        parameters, dropout = jax.random.split(jax.random.key(config.seed))
        rngs = nnx.Rngs(params=parameters, dropout=dropout)
        model = retrievers.create(config.model.to_dict(), dtype=config.compute_dtype, rngs=rngs)
        if remat == "blocks" and not rematerialise(model):
            raise ValueError(
                f"config.train.remat='blocks': the system {config.model.system!r} is not made of "
                "blocks that could be computed again; set it to 'none'."
            )
        wrt, groups = trainable(model)
        transformation = optimizers.create(
            config.optimizer, config.train.steps, groups, model.parameter_groups
        )
        return model, nnx.Optimizer(model, transformation, wrt=wrt)

    model, optimizer = nnx.eval_shape(create)
    definition, shapes = split(model, optimizer)
    sharding.check_fsdp(mesh, shapes)
    shardings = sharding.state_shardings(mesh, shapes)
    step = jax.jit(
        functools.partial(train_step, definition, accumulate=accumulate),
        donate_argnums=0,
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
    )
    init = jax.jit(lambda: split(*create())[1], out_shardings=shardings)
    return Setup(model, definition, arrays.abstract_state(shapes, shardings), init, step)


def placed(state: State, model: Retriever, setup: Setup) -> State:
    """`state` with the variables of `model`, each where it belongs on the mesh."""

    def place(leaf: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.sharding == like.sharding:
            return leaf
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, like.sharding, whole.__getitem__)

    _, *parts = nnx.split(model, nnx.RngState, ...)
    return state | {"model": jax.tree.map(place, parts[1], setup.abstract["model"])}
