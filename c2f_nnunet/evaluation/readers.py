"""How far two human readers agree, to stand beside a model's DSC: on other patients, by other readers, so a yardstick and no bound."""
from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Literal

from ..io import records
from ..io.records import record
from ..sides import side_and_stem

FILE = Path(__file__).with_name("two_readers.json")


@record
class ReaderOrgan:
    """Two readers' mean DSC (0…1) for one organ and the number of scans. family: a pattern on the letters of the name without its side."""

    family: str
    side: Literal["L", "R", ""]
    dsc: float
    scans: int


@record
class TwoReaders:
    """two_readers.json: the column's title, the number of scans, where the figures come from, and the figures."""

    title: str
    scans: int
    source: str
    organs: tuple[ReaderOrgan, ...]

    @property
    def note(self) -> str:
        """What must be known when reading the column."""
        return f"{self.title}: {self.source}; other scans than those of this report, and other readers than drew its references"

    def of(self, organ: str) -> ReaderOrgan | None:
        """The figures for an organ by its TG-263 name or another common one; None where it is not known, or one side of a pair is meant
        and the name tells none.

        >>> two_readers().of("OpticNrv_L").dsc, two_readers().of("Left Optic Nerve").dsc, two_readers().of("Parotids")
        (0.793, 0.793, None)
        """
        side, stem = side_and_stem(organ) or ("", organ)
        letters = re.sub(r"[^a-z]", "", stem.lower())
        return next((o for o in self.organs if o.side == side and re.search(o.family, letters)), None)


@cache
def two_readers() -> TwoReaders:
    """The figures that come with the package."""
    return records.read(TwoReaders, FILE)
