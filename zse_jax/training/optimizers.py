"""The optimizer: AdamW, as in the published ZSE training, with optional schedule and clipping.

Decoupled weight decay (Loshchilov & Hutter, arXiv 1711.05101) on every parameter, including biases
and norms, as in the published training:
    m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2,
    p <- p - rate (m^ / (sqrt(v^) + eps) + weight_decay p).
With weight_decay 0 it is Adam, as for CLIP-AT. Each group of parameters can have its own rate.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax
from ml_collections import ConfigDict

from zse_jax.checkpoints.arrays import array_name
from zse_jax.runtime import config_io

OPTIMIZERS = ("adamw",)
SCHEDULES = ("constant", "cosine")

Groups = Mapping[str, str]
"""Path of each trainable parameter ("clip/visual/norm_pre/bias") -> its group."""


def create(
    config: ConfigDict, steps: int, groups: Groups | None = None, known: Sequence[str] = ()
) -> optax.GradientTransformation:
    """The gradient transformation of `config.optimizer`.

    Args:
      config: `name`, `learning_rate`, `weight_decay`, `b1`, `b2`, `eps`; `schedule`
        ("constant", or "cosine": down to `final_fraction` of the rate at the last step),
        `warmup_steps` (linear, from 0); `clip_norm` (maximum global gradient norm, or None);
        optionally `learning_rates` of single groups, which follow the same schedule; None: the
        common one.
      steps: length of the training, in steps.
      groups: of the trainable parameters (`Retriever.parameter_group`).
      known: the groups of the system (`Retriever.parameter_groups`).

    Raises:
      ValueError: an unknown optimizer, schedule or group, or a warm-up longer than the training.
    """
    _check("config.optimizer.name", config.name, OPTIMIZERS)
    rate = learning_rate(config, steps)
    adamw = optax.adamw(
        rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay
    )
    given = dict(config.get("learning_rates", {}))
    if rates := {name: rate for name, rate in given.items() if rate is not None}:
        for name in rates:
            _check("config.optimizer.learning_rates", name, tuple(known) or ("none",))
        adamw = optax.chain(adamw, _group_rates(rates, config.learning_rate, groups or {}))
    if config.clip_norm is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def _group_rates(
    rates: Mapping[str, float], common: float, groups: Groups
) -> optax.GradientTransformation:
    """Multiplies the updates of each group by its rate divided by the common one.

    This is equivalent to a separate rate, because AdamW's updates are proportional to the rate.
    """
    if common <= 0:
        raise ValueError(
            f"config.optimizer.learning_rate={common} must be positive if groups have their own "
            "rates (config.optimizer.learning_rates)."
        )

    def scale(updates: Any, _: Any) -> Any:
        def one(path: tuple, update: Any) -> Any:
            return update * (rates.get(groups[array_name(path)], common) / common)

        return jax.tree_util.tree_map_with_path(one, updates)

    return optax.stateless(scale)


def learning_rate(config: ConfigDict, steps: int) -> optax.Schedule:
    """The learning rate as a function of the step, counted from 0."""
    _check("config.optimizer.schedule", config.schedule, SCHEDULES)
    peak, warmup = config.learning_rate, config.warmup_steps
    if steps and not 0 <= warmup <= steps:  # without steps, nothing warms up
        raise ValueError(
            f"config.optimizer.warmup_steps={warmup} must lie between 0 and "
            f"config.train.steps={steps}. Train for more steps, or shorten the warm-up: "
            f"--config.optimizer.warmup_steps={steps // 10}."
        )
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(1, steps - warmup), config.final_fraction)
    else:
        after = optax.constant_schedule(peak)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def _check(key: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(
            f"{key}={name!r} is unknown: did you mean {config_io.nearest(name.lower(), known)!r}? "
            f"Known: {', '.join(known)}."
        )
