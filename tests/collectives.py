"""The communication between devices in a compiled program, read from its text."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_LINE = re.compile(rf"^\s*(?:ROOT )?%\S+ = (.*?) ({'|'.join(KINDS)})(?:-start)?\(.*", re.MULTILINE)
_ARRAY = re.compile(r"([a-z]+)(\d*)\[([\d,]*)\]")
_NAME = re.compile(r'op_name="([^"]*)"')


class Collective(NamedTuple):
    """One operation.

    Attributes:
      kind: one of `KINDS`.
      shapes: of its results on each device.
      bytes: size of these. A ring of n devices sends (n - 1) / n of it from each, and twice as much
        for an all-reduce.
      source: the JAX operation that it belongs to.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    bytes: int
    source: str

    @property
    def gathers_parameters(self) -> bool:
        """Whether it is an all-gather by `sharding.gathered`.

        jax 0.10 names the constraint as its source, and jax 0.12 the parameter.
        """
        named = self.source.endswith("sharding_constraint") or self.source.startswith("state[")
        return self.kind == "all-gather" and named


def collectives(program: str) -> Iterator[Collective]:
    """The collectives in the text of a compiled program; those of a loop's body count once."""
    for match in _LINE.finditer(program):
        shapes, size = [], 0
        for _, bits, dimensions in _ARRAY.findall(match[1]):
            shapes.append(tuple(int(n) for n in dimensions.split(",") if n))
            size += math.prod(shapes[-1]) * (int(bits) // 8 if bits else 1)  # without: pred
        source = _NAME.search(match[0])
        yield Collective(match[2], tuple(shapes), size, source[1] if source else "")
