"""Organ names: ids, left/right pairs, TG-263 names, file-safe names and display colours."""
from __future__ import annotations

import colorsys
import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count
from typing import Sequence

import numpy as np

from .errors import DatasetError
from .sides import sides_of
from .tg263 import standard_names


@dataclass(frozen=True)
class LabelSet:
    """The organs of a data set in label order. organs[i] has the label id ids[i]; 0 is the background."""

    __pydantic_config__ = {"extra": "forbid"}
    organs: tuple[str, ...]
    ids: tuple[int, ...]

    @classmethod
    def from_names(cls, labels: dict[str, int]) -> "LabelSet":
        """From dataset.json's {"background": 0, "Organ": 1, …}; ids may have gaps."""
        organs = sorted(((name, i) for name, i in labels.items() if i != 0), key=lambda item: item[1])
        if len({i for _, i in organs}) != len(organs):
            raise DatasetError(f"labels: two organs share one id in {labels}; give each organ an id of its own")
        return cls(tuple(n for n, _ in organs), tuple(i for _, i in organs))

    @cached_property
    def sides(self) -> dict[str, tuple[str, str]]:
        """Sided organ → ('L'|'R', name without its side), see `sides_of`."""
        return sides_of(self.organs)

    @cached_property
    def standard(self) -> "LabelSet":
        """The same labels under TG-263's names, as far as it has them (`tg263.standard_names`, which tells what is kept: once)."""
        return LabelSet(tuple(standard_names(self.organs).values()), self.ids)

    @cached_property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """(left, right) organ names that share a stem, in label order of the left one."""
        both: dict[str, dict[str, str]] = {}
        for organ in self.organs:
            if organ in self.sides:
                side, stem = self.sides[organ]
                both.setdefault(stem.lower(), {})[side] = organ
        return tuple((s["L"], s["R"]) for s in both.values() if len(s) == 2)

    @cached_property
    def mirrored_channel(self) -> tuple[int, ...]:
        """Channel c (0 = background, i + 1 = organs[i]) → the channel it becomes when left and right are swapped."""
        channel = {organ: i + 1 for i, organ in enumerate(self.organs)}
        table = list(range(len(self.organs) + 1))
        for left, right in self.pairs:
            table[channel[left]], table[channel[right]] = channel[right], channel[left]
        return tuple(table)

    @cached_property
    def is_symmetric(self) -> bool:
        """Whether every sided organ has its partner: only then may patients be mirrored."""
        paired = {organ for pair in self.pairs for organ in pair}
        return all(organ in paired or organ not in self.sides for organ in self.organs)

    @property
    def channels(self) -> int:
        """Number of network output channels: the organs and the background."""
        return len(self.organs) + 1

    @property
    def dtype(self) -> type:
        """The smallest label type that holds every id: uint8, or uint16 beyond 255."""
        return np.uint8 if max(self.ids, default=0) < 256 else np.uint16

    def to_channels(self, label_map: np.ndarray) -> np.ndarray:
        """Label ids → channels 0…C; ids must be declared (the data set's verification checks that)."""
        table = np.zeros(max(self.ids, default=0) + 1, np.uint8 if len(self.organs) < 256 else np.uint16)
        table[list(self.ids)] = np.arange(1, len(self.ids) + 1)
        return _looked_up(table, label_map)

    def to_ids(self, channels: np.ndarray) -> np.ndarray:
        """Channels 0…C → label ids, in the smallest type; the inverse of `to_channels`."""
        return _looked_up(np.array((0, *self.ids), self.dtype), channels)

    def colour(self, organ: str) -> tuple[float, float, float]:
        """A display colour (r, g, b in 0…1), distinct per organ; both sides of a pair have the same hue, the left one darker."""
        named = {o: self.sides.get(o, ("", o)) for o in self.organs}
        stems = list(dict.fromkeys(stem.lower() for _, stem in named.values()))
        side, stem = named[organ]
        hue = (stems.index(stem.lower()) * 0.61803398875 + 0.02) % 1.0  # golden ratio: far hues for neighbours
        return colorsys.hsv_to_rgb(hue, 0.9, 0.75 if side == "L" else 1.0)


def _looked_up(table: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """table[indices], slice by slice: numpy makes a 64-bit copy of what it indexes by."""
    out = np.empty(indices.shape, table.dtype)
    for i, part in enumerate(indices):
        out[i] = table[part]
    return out


def member_name(organs: tuple[str, ...]) -> str:
    """The fine member of an organ or left/right pair: '3d_Mandible', '3d_Parotid'; safe as a folder name, letters of any script kept."""
    stem = sides_of(organs).get(organs[0], ("", organs[0]))[1] if len(organs) == 2 else organs[0]
    return "3d_" + re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", stem))


def member_names(groups: Sequence[tuple[str, ...]]) -> list[str]:
    """`member_name` of each group; where two would be one folder ('Eye' beside the pair 'Eye_L', 'Eye_R') the later one gets a number."""
    names: list[str] = []
    for group in groups:
        numbered = (f"{member_name(group)}{end}" for end in chain([""], (f"_{k}" for k in count(2))))
        names.append(next(name for name in numbered if name.casefold() not in map(str.casefold, names)))
    return names
