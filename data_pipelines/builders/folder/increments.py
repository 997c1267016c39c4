"""Prepares a changed folder from its last version: unchanged images are neither read nor decoded.

An ArrayRecord file of the last version whose images are all unchanged is linked. From the others,
and from small ones, the unchanged images are copied as they are stored, so that neither removed
images nor ever more small files accumulate.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from data_pipelines import prepared, versions
from data_pipelines.builders import folders, packing
from data_pipelines.images import Modality


def reused(
    source: folders.Source, version: versions.Version, same: Mapping[str, versions.State]
) -> packing.Reused:
    """What of `version` can be used to prepare `source`.

    Args:
      source: the images of the folder.
      version: its last version.
      same: the present state of each unchanged file.
    """
    shards: dict[Modality, list[packing.WholeShard]] = {}
    stored: dict[Modality, packing.Stored] = {}
    rest: dict[Modality, list[folders.ImageFile]] = {}
    states: dict[str, versions.State] = {}
    for modality, files in source.images.items():
        present = {file.name: (file.class_name, file.instance) for file in files}
        _, index = prepared.open_split(version.folder, modality)
        columns = (index.rows, index.names, index.class_names, index.instances)
        at = {row: (name, (label, pair)) for row, name, label, pair in zip(*columns, strict=True)}
        full = len(files) / max(1, packing.shard_count(len(files)))
        shards[modality], copied, start = [], dict[str, tuple[int, str]](), 0
        records = prepared.record_files(version.folder, modality)
        for path, length in records:
            rows = range(start, start + length)
            start += length
            kept = [row for row in rows if at[row][0] in same]
            as_now = all(present[at[row][0]] == at[row][1] for row in kept)
            if len(kept) == length >= full / 2 and as_now:
                shards[modality].append(packing.WholeShard(Path(path), [at[x][0] for x in rows]))
            else:
                copied |= {at[row][0]: (row, same[at[row][0]].digest) for row in kept}
        stored[modality] = packing.Stored([path for path, _ in records], copied)
        linked = {name for shard in shards[modality] for name in shard.names}
        rest[modality] = [file for file in files if file.name not in linked]
        states |= {name: same[name] for name in (*linked, *copied)}
    return packing.Reused(dataclasses.replace(source, images=rest), shards, stored, states)
