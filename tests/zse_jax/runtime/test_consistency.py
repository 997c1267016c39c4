"""Errors name the process that differs from the others, and the difference."""

import json
import time

import pytest

from zse_jax.runtime import consistency, distributed


def test_one_process_agrees_with_itself(tmp_path):
    consistency.agree({"config.seed": 0})
    consistency.check_shared(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_fingerprint_of_the_code_follows_the_files(monkeypatch, tmp_path):
    before = consistency.code_version()
    assert before == consistency.code_version()
    (tmp_path / "zse_jax").mkdir()
    (tmp_path / "zse_jax" / "agreement.py").write_text("other = True\n")
    monkeypatch.setattr(consistency, "__file__", str(tmp_path / "zse_jax" / "agreement.py"))
    assert before["code version"] != consistency.code_version()["code version"]


@pytest.fixture
def three_hosts(monkeypatch):
    """`exchange` as process 0 of three sees it; the others say the same, changed by `others`."""
    others = [{}, {}]

    def exchange(text, seconds=0.0):
        said = json.loads(text) if text else None
        return [text, *(json.dumps(deep(said, change)) if said else "" for change in others)]

    def deep(said, change):
        return said | change | {"facts": said["facts"] | change.get("facts", {})}

    monkeypatch.setattr(distributed, "together", lambda: True)
    monkeypatch.setattr(distributed, "exchange", exchange)
    return others


def test_the_process_that_disagrees_is_named_with_its_keys(three_hosts):
    three_hosts[1].update(host="far", facts={"config.seed": "1", "code version": '"0.2"'})
    with pytest.raises(ValueError, match="do not run the same thing") as error:
        consistency.agree({"config.seed": 0, "code version": "0.1", "config.log.every": 5})
    message = str(error.value)
    assert "process 2 on far: code version is" in message
    assert "config.seed is 1 there and 0 elsewhere" in message
    assert "process 1" not in message
    assert "log.every" not in message


def test_clocks_that_differ_are_reported(three_hosts, caplog):
    consistency.agree({"config.seed": 0})
    assert not caplog.text
    three_hosts[0].update(host="late", time=time.time() - 90)
    consistency.agree({"config.seed": 0})
    assert "differ by 90 s (process 1 on late is last)" in caplog.text


def test_a_folder_that_others_do_not_see_is_an_error(tmp_path, monkeypatch):
    said = [["mark", "mark"], ["", ""], ["", "far"]]
    monkeypatch.setattr(distributed, "together", lambda: True)
    monkeypatch.setattr(distributed, "exchange", lambda *_: said.pop(0))
    with pytest.raises(OSError, match="is not seen by process 1 on far"):
        consistency.check_shared(tmp_path)
    assert not list(tmp_path.iterdir())
