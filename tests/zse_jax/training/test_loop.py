"""Training: the same on any mesh and after any interruption, and stopped when it diverges."""

import json
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import survival
from tests.zse_jax import shared_steps, tiny
from zse_jax.checkpoints import reading, writing
from zse_jax.runtime import config_io, sharding
from zse_jax.runtime.metrics_file import read_metrics
from zse_jax.training import loop, optimizers, profiling
from zse_jax.training.step import set_up

SELECT = "relation/exact/mAP@all"


@pytest.fixture(autouse=True)
def tiny_system(monkeypatch):
    tiny.install(monkeypatch.setattr)


def losses(config, mesh, steps=4):
    setup = shared_steps.set_up(config, mesh)
    state, batches = setup.init(), loop.training_batches(config, setup.model, mesh)
    found = []
    for _ in range(steps):
        state, metrics = setup.step(state, next(batches))
        found.append([float(metrics["loss"]), float(metrics["gradient_norm"])])
    return np.array(found), state


def lines(workdir):
    """metrics.jsonl without the times."""
    return [
        {key: value for key, value in line.items() if not key.startswith("time/")}
        for line in read_metrics(workdir / "metrics.jsonl")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (2, 4)])
def test_losses_do_not_depend_on_the_mesh(monkeypatch, dropout, data, fsdp):
    monkeypatch.setattr(sharding, "MIN_SIZE", 64)
    config = tiny.config(**{"model.dropout": dropout})
    one, _ = losses(config, sharding.make_mesh(1, 1, jax.devices()[:1]))
    many, state = losses(config, sharding.make_mesh(data, fsdp))
    np.testing.assert_allclose(many, one, rtol=1e-5)
    kernel = state["model"]["first"]["kernel"].get_value()
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(192 // fsdp, 16)}


def test_a_step_donates_its_state_and_advances_the_dropout_keys():
    config, mesh = tiny.config(), sharding.make_mesh()
    setup = shared_steps.set_up(config, mesh)
    before = setup.init()
    batch = next(loop.training_batches(config, setup.model, mesh))
    after, _ = setup.step(before, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before["model"]))
    counts = after["random"]["dropout"]["rngs"]["count"]
    assert int(counts.get_value()) > 0


def test_parameters_are_float32_at_any_compute_dtype():
    setup = set_up(tiny.config(compute_dtype="bfloat16"), sharding.make_mesh())
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves(setup.abstract["model"])}
    assert dtypes == {"float32"}


def test_a_run_evaluates_saves_and_reports(tmp_path, capsys):
    results = loop.train(tiny.config(), tmp_path)
    written = lines(tmp_path)
    evaluated = [line["step"] for line in written if "validation/token/exact/mAP@all" in line]
    trained = [line["step"] for line in written if "train/loss" in line]
    assert evaluated == [0, 6, 12]
    assert trained == [2, 3, 4, 6, 8, 9, 10, 12]
    assert json.loads((tmp_path / "metrics.json").read_text()) == results
    reached = {
        line["step"]: line[f"validation/{SELECT}"]
        for line in written
        if line["step"] and f"validation/{SELECT}" in line
    }
    assert results["test"][SELECT] == reached[results["step"]] == max(reached.values())
    assert results["untrained"][SELECT] == written[0][f"validation/{SELECT}"]
    output = capsys.readouterr().out
    assert "tiny on doodles" in output
    assert "computing in float32 on 8 CPU devices (data=8 x fsdp=1)" in output


@pytest.mark.slow
def test_a_longer_second_run_continues_the_first(tmp_path, reference):
    loop.train(tiny.config(**{"train.steps": 6}), tmp_path)
    loop.train(tiny.config(), tmp_path)
    assert lines(tmp_path) == lines(reference)


@pytest.mark.slow
def test_a_finished_cosine_run_is_extended_with_the_schedule_of_the_new_length(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(loop.Run, "finish", lambda run: {})
    cosine = {"optimizer.schedule": "cosine", "evaluation.every": 0}
    loop.train(tiny.config(**cosine, **{"train.steps": 6}), tmp_path)
    before = lines(tmp_path)
    capsys.readouterr()
    extended = tiny.config(**cosine, **{"train.steps": 12})
    loop.train(extended, tmp_path)
    assert "from step 6 on, the learning rate follows the cosine schedule of 12 steps (0 ->" in (
        capsys.readouterr().out
    )
    after = lines(tmp_path)
    assert after[: len(before)] == before
    rates = {line["step"]: line["train/learning_rate"] for line in after if "train/loss" in line}
    schedule = optimizers.learning_rate(extended.optimizer, 12)
    assert rates[8] == pytest.approx(float(schedule(7)), rel=1e-6)
    assert rates[8] > 0
    assert config_io.read_yaml(tmp_path / "config.yaml").train.steps == 12
    assert (tmp_path / "checkpoints" / "12").is_dir()


def test_a_run_is_not_made_shorter_than_the_step_it_has_reached(tmp_path, reference):
    workdir = shutil.copytree(reference, tmp_path / "run")
    with pytest.raises(ValueError, match=r"train.steps=9, but .* has reached step 12: give 12 or"):
        loop.train(tiny.config(**{"train.steps": 9}), workdir)


@pytest.mark.slow
def test_a_run_starts_from_the_workdir_of_another_with_a_fresh_optimizer(tmp_path, reference):
    config = tiny.config(init_from=str(reference), **{"train.steps": 3, "evaluation.every": 3})
    results = loop.train(config, tmp_path)
    best = lines(reference)
    step = reading.step_of(reference)
    value = next(line[f"validation/{SELECT}"] for line in best if line["step"] == step
                 and f"validation/{SELECT}" in line)  # fmt: skip
    assert results["untrained"][SELECT] == pytest.approx(value)
    assert reading.read_config(tmp_path).init_from == str(reference)


@pytest.mark.slow
def test_a_run_with_another_config_is_not_continued(tmp_path):
    loop.train(tiny.config(**{"train.steps": 2}), tmp_path)
    with pytest.raises(ValueError, match="another config; differing: model.width 16 -> 32"):
        loop.train(tiny.config(**{"model.width": 32}), tmp_path)


@pytest.mark.slow
def test_the_test_set_is_evaluated_apart_where_it_is_larger(tmp_path, capsys):
    changes = {"evaluation.sketch_stride": 2, "train.steps": 3, "evaluation.every": 3}
    results = loop.train(tiny.config(**changes), tmp_path)
    assert "step 3. Test set, complete: 24 sketches x 24 photos" in capsys.readouterr().out
    assert results["test"] != results["validation"]
    low, high = results["test_details"]["intervals_95"]["token"]["exact"]["mAP@all"]
    assert low < results["test"]["token/exact/mAP@all"] < high
    assert {x["sketches"] for x in results["test_details"]["by_class"].values()} == {3}
    file = tmp_path / "metrics.json"
    written = file.stat().st_mtime_ns
    assert loop.train(tiny.config(**changes), tmp_path) == results
    assert file.stat().st_mtime_ns == written
    assert "This run is already complete" in capsys.readouterr().out


@pytest.mark.slow
def test_half_a_results_file_is_reported_and_made_again(tmp_path, reference, caplog):
    workdir = shutil.copytree(reference, tmp_path / "run")
    file = workdir / "metrics.json"
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    loop.train(tiny.config(), workdir)
    assert file.read_text() == whole
    assert "metrics.json is damaged" in caplog.text


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    changes = {"checkpoint.every": 3, "evaluation.every": 0, "log.every": 50}
    loop.train(tiny.config(**{**changes, "train.steps": 3}), tmp_path)
    loss = tiny.Tiny.loss
    monkeypatch.setattr(
        tiny.Tiny, "loss", lambda *args: jax.tree.map(lambda x: x * np.nan, loss(*args))
    )
    with pytest.raises(FloatingPointError) as error:
        loop.train(tiny.config(**changes), tmp_path)
    message = str(error.value)
    assert "diverged at step 4: gradient_norm nan, loss nan, triplet nan" in message
    assert f"the last good checkpoint is {tmp_path}/checkpoints/3" in message
    with writing.Checkpoints(tmp_path, select=SELECT) as checkpoints:
        assert checkpoints.latest == 3


@pytest.mark.slow
def test_the_loop_waits_for_the_device_only_to_report(tmp_path, monkeypatch):
    fetched, device_get = [], jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: fetched.append(0) or device_get(tree))
    monkeypatch.setattr(loop.Run, "finish", lambda run: {})
    loop.train(tiny.config(**{"log.every": 4, "evaluation.every": 0}), tmp_path)
    assert len(fetched) == len(lines(tmp_path)) == len([3, 4, 6, 8, 9, 12])


def test_the_host_runs_at_most_two_steps_ahead_of_the_device(monkeypatch):
    waited = []
    monkeypatch.setattr(jax, "block_until_ready", waited.append)
    run = object.__new__(loop.Run)
    run.pending, run.config = [], tiny.config(**{"log.every": 100})
    run.health = profiling.Health()
    for step in range(6):
        run.note(step, {"loss": jnp.float32(step)}, first=False, batch={})
    assert [int(losses["loss"]) for losses in waited] == [0, 1, 2, 3]


@pytest.mark.slow
def test_no_step_reads_the_storage(tmp_path, reference, monkeypatch):
    workdir, read, listening = shutil.copytree(reference, tmp_path / "run"), [], [False]

    def hook(event, args):
        if listening[0] and args and str(args[0]).startswith(str(workdir)):
            read.append((event, *args))

    note = loop.Run.note

    def noted(run, step, *args, **options):
        note(run, step, *args, **options)
        listening[0] = step < 15

    sys.addaudithook(hook)
    monkeypatch.setattr(loop.Run, "note", noted)
    changes = {"evaluation.every": 0, "checkpoint.every": 0, "train.steps": 17}
    loop.train(tiny.config(**changes), workdir)
    assert read == []


@pytest.mark.slow
def test_another_validation_setting_starts_a_new_record_and_keeps_the_old_best(
    tmp_path, reference, capsys
):
    workdir = shutil.copytree(reference, tmp_path / "run")
    before = reading.step_of(workdir)
    changes = {"evaluation.sketch_stride": 2, "train.steps": 15, "evaluation.test_sketch_stride": 2}
    results = loop.train(tiny.config(**changes), workdir)
    output = capsys.readouterr().out
    assert "earlier evaluations do not compare: the best step is chosen from step 12" in output
    assert results["step"] == reading.step_of(workdir) >= 12
    assert results["untrained"] == {}  # it was measured on other sketches
    assert (workdir / "checkpoints" / str(before)).is_dir()
    evaluated = [line["step"] for line in lines(workdir) if f"validation/{SELECT}" in line]
    assert evaluated == [0, 6, 12, 12, 15]  # step 12 again, on the new subset
    again = loop.train(tiny.config(**changes), workdir)
    assert again == results


@pytest.mark.slow
def test_other_evaluations_that_compare_keep_the_record(tmp_path, reference, capsys):
    workdir = shutil.copytree(reference, tmp_path / "run")
    loop.train(tiny.config(**{"evaluation.batch_size": 16, "evaluation.every": 12}), workdir)
    assert "do not compare" not in capsys.readouterr().out
    assert [line["step"] for line in lines(workdir) if f"validation/{SELECT}" in line] == [0, 6, 12]


@pytest.mark.slow
def test_shortlists_are_evaluated_where_the_strides_are_equal(tmp_path, reference):
    workdir = shutil.copytree(reference, tmp_path / "run")
    results = loop.train(tiny.config(**{"evaluation.shortlists": (5,)}), workdir)
    assert "relation@5/exact/mAP@all" in results["test"]
    assert results["test"][SELECT] == results["validation"][SELECT]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.batch_size": 15}, "config.train.batch_size=15 does not divide.*choose 8 or 16"),
        ({"evaluation.batch_size": 3}, "config.evaluation.batch_size=3 does not divide"),
        ({"mesh.fsdp": 3}, "config.mesh.fsdp=3 does not divide the 8 CPU devices"),
        ({"evaluation.select": "relation/mAP"}, "did you mean 'relation/.*mAP"),
        ({"optimizer.name": "sgd"}, "config.optimizer.name='sgd'"),
        ({"data.split": "sketchy_split3"}, "sketchy_split"),
        ({"checkpoint.keep_last": 0}, "config.checkpoint.keep_last=0"),
    ],
)
def test_wrong_values_name_their_key(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        loop.train(tiny.config(**changes), tmp_path)


def test_a_workdir_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"--workdir=.*/file/run cannot be written"):
        loop.train(tiny.config(), tmp_path / "file" / "run")


@pytest.mark.slow
def test_a_run_killed_at_any_step_resumes_to_the_bit(tmp_path, reference):
    program = [sys.executable, "-m", "tests.zse_jax.tiny", str(tmp_path)]
    for step in (1, 4, 10):  # before the first save, during the second, after the third
        done = subprocess.run([*program, f"--die-at={step}"], timeout=300, check=False)
        assert done.returncode == -signal.SIGKILL
    loop.train(tiny.config(), tmp_path)
    assert survival.different(tmp_path, reference) == []
