"""Data sets in the TFDS catalogue: TFDS downloads and prepares them; they are read in place.

They must have an encoded feature "image" and a class label "label". Their train and test splits
were made for other tasks, such as domain adaptation, and are read together.
"""

import contextlib
import io
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


def is_prepared(names: Iterable[str], root: Path) -> bool:
    """Whether all these data sets are prepared in `root`, the data_dir of TFDS."""
    return not _missing(names, root)


def prepare(names: Iterable[str], homepage: str, root: Path, config: Any) -> None:
    """Downloads and prepares the data sets that are not in `root`.

    Args:
      names: names in the TFDS catalogue, such as "domainnet/sketch".
      homepage: a URL on the server of the archives.
      root: the data_dir of TFDS.
      config: a `tfds.download.DownloadConfig`.

    Raises:
      ConnectionError: if the server cannot be reached.
    """
    missing = _missing(names, root)
    if not missing:
        return
    _check_network(homepage, list(missing), root)
    for name, builder in missing.items():
        print(f"Preparing the TFDS data set {name} in {builder.data_dir}", flush=True)
        with contextlib.redirect_stdout(io.StringIO()):  # Progress bars go to stderr.
            builder.download_and_prepare(download_config=config)
    print(f"You can now delete the archives in {root / 'downloads'}.", flush=True)


def _missing(names: Iterable[str], root: Path) -> dict[str, Any]:
    builders = {name: _builder(name, root) for name in names}
    return {name: found for name, found in builders.items() if not Path(found.data_dir).exists()}


class Opened(NamedTuple):
    """A prepared data set of the catalogue.

    Attributes:
      source: random access to serialized examples.
      class_names: class name of each label.
      folder: folder of the data set.
      files: paths of its record files.
    """

    source: Any
    class_names: Sequence[str]
    folder: Path
    files: Sequence[str]


def open_dataset(name: str, root: Path) -> Opened:
    """Opens all records of the data set `name` in `root`, the data_dir of TFDS.

    Raises:
      ValueError: if its file format does not support random access.
    """
    import tensorflow_datasets as tfds

    builder = _builder(name, root)
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    return Opened(
        builder.as_data_source("train+test", deserialize_method=raw).data_source,
        builder.info.features["label"].names,
        Path(builder.data_dir),
        [i.filename for split in builder.info.splits.values() for i in split.file_instructions],
    )


def _builder(name: str, root: Path) -> Any:
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=root)
    if Path(builder.data_dir).exists():
        stored = builder.info.file_format.value
        if stored != "array_record":
            raise ValueError(
                f"{name} is prepared as {stored} in {builder.data_dir}, a format without random "
                "access. Set --config.data.data_dir to another folder to prepare it as "
                "array_record."
            )
        return builder
    return tfds.builder(name, data_dir=root, file_format="array_record")


def _check_network(homepage: str, names: Sequence[str], root: Path) -> None:
    """Fails early with a clear message; TFDS would retry for minutes."""
    try:
        request = urllib.request.Request(homepage, method="HEAD")
        urllib.request.urlopen(request, timeout=30).close()
    except urllib.error.HTTPError:
        pass  # The server answers.
    except OSError as error:
        raise ConnectionError(
            f"{' and '.join(names)} must be downloaded into {root}, but {homepage} cannot be "
            f"reached ({error}). Connect to the network and retry. Or prepare the data set on a "
            "machine with a network, copy its folder from the data_dir there into a folder here, "
            "and set --config.data.data_dir to this folder."
        ) from error
