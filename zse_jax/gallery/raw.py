"""RAW files of cameras: the JPEG preview that the camera stored in them.

The preview is read by LibRaw, through the package `rawpy` (the extra `raw` of this project).
"""

import io
from importlib import import_module

from data_pipelines.images import UnreadableImageError

SUFFIXES = (
    *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2"),
    *(".raf", ".pef", ".srw", ".3fr", ".iiq", ".erf", ".rwl"),
)
"""File name extensions of RAW files, in lower case."""


class MissingDecoderError(Exception):
    """The package that reads RAW files is not installed."""


def preview(encoded: bytes) -> bytes:
    """The JPEG preview in a RAW file, with its orientation and date.

    Raises:
      MissingDecoderError: `rawpy` is not installed.
      UnreadableImageError: the file is not a RAW file, is damaged, or has no JPEG preview.
    """
    try:
        rawpy = import_module("rawpy")
    except ImportError as error:
        raise MissingDecoderError(
            "it is a RAW file: install rawpy (`pip install rawpy`), which reads the preview in it"
        ) from error
    try:
        with rawpy.RawPy() as file:
            file.open_buffer(io.BytesIO(encoded))
            found = file.extract_thumb()
    except rawpy.LibRawError as error:
        raise UnreadableImageError(f"its RAW preview cannot be read ({error})") from error
    if found.format != rawpy.ThumbFormat.JPEG:
        raise UnreadableImageError("it is a RAW file without a JPEG preview: save it as JPEG")
    return found.data
