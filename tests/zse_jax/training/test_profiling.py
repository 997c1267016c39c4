"""The cost of a step, the time the device waits for input, and profiles."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.zse_jax import small_systems, tiny
from zse_jax.retrievers import create
from zse_jax.runtime import sharding
from zse_jax.runtime.metrics_file import read_metrics
from zse_jax.training import loop, profiling


def test_flop_and_memory_of_a_step_are_per_device():
    mesh = sharding.make_mesh()
    split, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    step = jax.jit(
        lambda state, batch: (state, {"loss": jnp.sum(jnp.tanh(batch @ state))}),
        in_shardings=(everywhere, split), donate_argnums=0,
    )  # fmt: skip
    state = jax.ShapeDtypeStruct((256, 512), jnp.float32, sharding=everywhere)
    batch = jax.ShapeDtypeStruct((64, 256), jnp.float32, sharding=split)
    _, cost = profiling.compile_step(step, state, batch, mesh.size)
    product = 2 * 64 * 256 * 512 / 8
    assert product <= cost.flops < 1.2 * product
    assert cost.state_bytes == pytest.approx(4 * (256 * 512 + 64 * 256 / 8), rel=0.01)
    assert cost.temporary_bytes > 0
    assert profiling.compile_step(step, state, batch, 8, accumulate=3)[1].flops == 3 * cost.flops


def test_an_unlisted_device_is_measured_and_virtual_devices_share_its_rate(monkeypatch):
    rates = iter([8e12])
    monkeypatch.setattr(profiling, "matrix_rate", lambda dtype: next(rates))
    profiling.device_rate.cache_clear()
    assert profiling.device_rate("float32") == (1e12, True)
    assert profiling.device_rate("float32").measured
    profiling.device_rate.cache_clear()
    monkeypatch.setitem(profiling.PEAK, jax.devices()[0].device_kind, 100)
    assert profiling.device_rate("bfloat16") == (1e14, False)
    profiling.device_rate.cache_clear()


def test_matrix_products_have_a_rate():
    assert 1e7 < profiling.matrix_rate("float32", size=64, count=2, rounds=1) < 1e16


def test_parameters_are_counted_by_group_and_frozen_last():
    model = nnx.eval_shape(
        lambda: create(
            {**small_systems.CLIP, "trainable": "layer_norm", "system": "clip_prompt"},
            rngs=nnx.Rngs(0),
        )
    )
    groups = profiling.parameter_groups(model)
    assert list(groups) == ["layer_norm", "prompt", "frozen"]
    assert groups["prompt"] == 2 * 3 * 32
    total = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert sum(groups.values()) == total


class Outputs:
    """Replaces a step's outputs; ready after `finish`."""

    def __init__(self):
        self._ready = threading.Event()

    def block_until_ready(self):
        assert self._ready.wait(60)

    def finish(self, health):
        self._ready.set()
        while not health._done:  # the watcher's thread notes it
            time.sleep(0.001)


def delayed(event):
    while True:
        event()
        yield {}


def test_input_wait_counts_only_while_the_device_is_idle():
    with profiling.Health() as health:
        outputs = Outputs()
        batches = delayed(lambda: time.sleep(0.05))
        health.fetch(batches)  # the first step: nothing ran before
        health.started(outputs)
        health.fetch(batches)  # the device is busy all along
        assert health.timing(1.0, 1.0)["input_wait"] == 0
        outputs.finish(health)
        health.fetch(batches)  # and now idle
        assert 0.05 <= health.timing(1.0, 1.0)["input_wait"] <= 1
        assert health.timing(1.0, 1.0)["input_wait"] == 0

        late = Outputs()
        health.started(late)
        halfway = delayed(lambda: (time.sleep(0.05), late.finish(health), time.sleep(0.05)))
        began = time.monotonic()
        health.fetch(halfway)
        whole = time.monotonic() - began
        assert 0.05 <= health.timing(1.0, whole)["input_wait"] * whole <= whole - 0.05


def test_utilisation_is_achieved_over_peak_flops():
    with profiling.Health() as health:
        assert "mfu" not in health.timing(1.0, 1.0)
        health.cost = profiling.Cost(2e12, 10, 10)
        health.rate = profiling.Rate(10e12, measured=False)
        found = health.timing(2.5, 1.0)
    assert found["mfu"] == 0.5
    assert found["host_memory_gb"] > 0.01


def test_the_cost_is_reported_with_the_peak_rate():
    text = profiling.describe(profiling.Cost(5e9, 10**9, 2 * 10**9), profiling.Rate(1e11, True))
    assert text.startswith("a step: 5.0 GFLOP and 3.00 GB on each device (1.00 GB state and batch)")
    assert "peak rate 100 GFLOP/s (cpu, measured)" in text


def test_the_time_of_a_run_is_estimated_once_from_its_first_steps(monkeypatch):
    ends = iter([10.0, 11.0, 12.0, 40.0, 41.0, 42.0])  # an evaluation after the third
    with profiling.Health() as health:
        monkeypatch.setattr(profiling.time, "monotonic", lambda: next(ends))
        for _ in range(profiling.FIRST_STEPS):
            assert health.estimate(90) == ""
            outputs = Outputs()
            health.started(outputs)
            outputs.finish(health)
        said = health.estimate(90)
        assert "a step takes 1 s" in said
        assert "90 more take about 1m30s" in said
        assert health.estimate(90) == ""


@pytest.mark.parametrize("window", [(3,), (5, 3), (-1, 2), (0, 13)])
def test_an_invalid_window_is_an_error(tmp_path, window):
    with pytest.raises(ValueError, match=r"config.profile=.*must be \(start, stop\)"):
        profiling.Trace(window, 12, tmp_path)


def test_a_trace_needs_a_local_folder():
    with pytest.raises(ValueError, match="profile a run with a local --workdir"):
        profiling.Trace((0, 1), 12, "gs://bucket/run")


@pytest.mark.slow
def test_a_run_reports_its_cost_and_profiles_the_requested_steps(tmp_path, monkeypatch, capsys):
    tiny.install(monkeypatch.setattr)
    monkeypatch.setattr(loop.Run, "finish", lambda run: {})
    config = tiny.config(**{"evaluation.every": 0, "train.steps": 4, "profile": (2, 3)})
    loop.train(config, tmp_path)
    assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))
    output = capsys.readouterr().out
    assert "GFLOP and" in output
    assert f"Wrote a profile of steps (2, 3) to {tmp_path}/plugins/profile" in output
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]
    times = {name for name in last if name.startswith("time/")}
    assert {"time/mfu", "time/input_wait", "time/host_memory_gb"} <= times
    assert 0 < last["time/mfu"] < 2
    assert np.isfinite([last[name] for name in times]).all()
