"""metrics.jsonl of a resumed run equals that of an uninterrupted one; durations are readable."""

import json

import pytest

from zse_jax.runtime import console, metrics_file
from zse_jax.training import metric_logging


@pytest.mark.parametrize("end", ['{"step": 8, "tra', "\0\0\0\n", "\udcff", "7"])
def test_resuming_removes_later_lines_and_a_broken_last_one(tmp_path, end):
    file = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "train/loss": step / 10}) for step in (2, 4, 6)]
    file.write_bytes(("\n".join(lines) + "\n" + end).encode("utf-8", "surrogateescape"))
    metrics_file.keep_until(file, 4)
    assert [line["step"] for line in metrics_file.read_metrics(file)] == [2, 4]
    metrics_file.keep_until(file, -1)
    assert file.read_text() == ""


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl: line 2 is not JSON \(b'nonsense'\)"):
        metrics_file.read_metrics(file)


def test_a_new_run_starts_a_new_file_and_a_resumed_one_appends(tmp_path):
    for start, step in ((None, 2), (2, 4), (2, 6)):
        with metric_logging.Reporter(tmp_path, 10, start, tensorboard=False) as report:
            report.write(step, {"train/loss": 1.0})
    found = metrics_file.read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in found] == [2, 6]


class FullDisk:
    """A writer of TensorBoard files on a full disk."""

    def write_scalars(self, step, values):
        raise RuntimeError("{{function_node Flush}} events.out; No space left on device")

    close = flush = lambda self: self.write_scalars(0, {})


def test_a_full_disk_under_tensorboard_is_one_error(tmp_path):
    expected = r"^The TensorBoard files in .* cannot be written: No space left on device\. Fix"
    with (
        pytest.raises(OSError, match=expected),
        metric_logging.Reporter(tmp_path, 10, None, tensorboard=False) as report,
    ):
        report._writer = FullDisk()
        report.write(1, {"train/loss": 1.0})
    with (
        pytest.raises(OSError, match=expected),  # found when the files are closed
        metric_logging.Reporter(tmp_path, 10, None, tensorboard=False) as report,
    ):
        report._writer = FullDisk()
    with (
        pytest.raises(FloatingPointError),  # the cause stays visible
        metric_logging.Reporter(tmp_path, 10, None, tensorboard=False) as report,
    ):
        report._writer = FullDisk()
        raise FloatingPointError


def test_the_console_shows_losses_speed_and_time_to_go(tmp_path, capsys):
    with metric_logging.Reporter(tmp_path, 200, None, tensorboard=False) as report:
        report.images = 60
        report.training(50, {"loss": 1.25, "triplet": 0.5, "gradient_norm": 3.0})
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("step  50/200  25%  loss 1.2500  triplet 0.5000  ")
    assert "images/s  eta " in line


@pytest.mark.slow
def test_tensorboard_files_are_written(tmp_path):
    with metric_logging.Reporter(tmp_path, 10, None, tensorboard=True) as report:
        report.write(1, {"train/loss": 1.0})
    assert list(tmp_path.glob("events.out.tfevents.*"))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0s"), (59.6, "1m00s"), (192.4, "3m12s"), (18420.0, "5h07m"), (216000.0, "2d12h")],
)  # fmt: skip
def test_durations(seconds, text):
    assert console.duration(seconds) == text
