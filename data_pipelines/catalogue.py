"""Data sets of TFDS's own catalogue: downloaded by TFDS, opened where TFDS puts them, not copied.

They need a feature "image", encoded, and a feature "label", a class label. Their train and test
splits are for another task (domain adaptation, say) and are taken together.
"""

import contextlib
import io
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


def is_prepared(names: Iterable[str], root: Path) -> bool:
    """Whether all these data sets of TFDS's catalogue are in `root`, TFDS's data_dir."""
    return not _missing(names, root)


def prepare(names: Iterable[str], homepage: str, root: Path, config: Any) -> None:
    """Downloads and prepares those data sets that are not in `root`.

    Args:
      names: in TFDS's catalogue, such as "domainnet/sketch".
      homepage: an address of the server that holds the archives.
      root: TFDS's data_dir.
      config: a `tfds.download.DownloadConfig`.

    Raises:
      ConnectionError: when the server cannot be reached.
    """
    missing = _missing(names, root)
    if not missing:
        return
    _check_network(homepage, list(missing), root)
    for name, builder in missing.items():
        print(f"Preparing TFDS's {name}, this once, in {builder.data_dir}", flush=True)
        with contextlib.redirect_stdout(io.StringIO()):  # Progress goes to the other stream.
            builder.download_and_prepare(download_config=config)
    print(f"The archives in {root / 'downloads'} are not needed any more.", flush=True)


def _missing(names: Iterable[str], root: Path) -> dict[str, Any]:
    builders = {name: _builder(name, root) for name in names}
    return {name: found for name, found in builders.items() if not Path(found.data_dir).exists()}


class Opened(NamedTuple):
    """A prepared data set of the catalogue.

    Attributes:
      source: serialized examples, by row.
      class_names: by label.
      folder: where it lies.
      files: the record files that it needs.
    """

    source: Any
    class_names: Sequence[str]
    folder: Path
    files: Sequence[str]


def open_dataset(name: str, root: Path) -> Opened:
    """Every record of the data set `name`, which lies in `root`, TFDS's data_dir.

    Raises:
      ValueError: when it is prepared in a format that cannot be read at random.
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
                f"{name} is prepared as {stored} in {builder.data_dir}, which cannot be read at "
                "random. Give another folder, in which it is prepared as array_record: "
                "--config.data.data_dir=DIR."
            )
        return builder
    return tfds.builder(name, data_dir=root, file_format="array_record")


def _check_network(homepage: str, names: Sequence[str], root: Path) -> None:
    """TFDS would try for minutes, and then speak of urllib3."""
    try:
        request = urllib.request.Request(homepage, method="HEAD")
        urllib.request.urlopen(request, timeout=30).close()
    except urllib.error.HTTPError:
        pass  # A server that answers is there.
    except OSError as error:
        raise ConnectionError(
            f"{' and '.join(names)} are not prepared in {root} and download themselves, but "
            f"{homepage} cannot be reached ({error}). Start again with a network; or prepare them "
            "on a machine that has one, copy the folder of the data set from its data_dir into "
            f"{root}, and give that: --config.data.data_dir=DIR."
        ) from error
