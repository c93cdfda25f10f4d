"""Whether an organ that the coarse stage did not find is absent, or was only missed: weighed by what both are worth on this data.

A fine network looks at the place where an organ usually lies, and after a short training it draws one there whatever it
sees. The coarse stage sees the whole scan. How often it overlooks an organ that is there is counted on held-out cases,
and how often the organ lacks on the training cases; Bayes' rule says which of the two explains a miss better.
"""
from __future__ import annotations

from ..io.records import record

JEFFREYS = 0.5  # added to both outcomes' counts: the usual prior for a rate that may be 0 (Jeffreys 1946)


@record
class Presence:
    """One organ's counts; those of a left and right pair are added up, as the two share a network.

    found: held-out cases in which the coarse stage found it as such (`locate.is_whole`), of `present` that have it.
    absent: training cases that lack it, of `cases` in which it is annotated.
    """

    organ: str
    found: int
    present: int
    absent: int
    cases: int

    @property
    def odds_of_absence(self) -> float:
        """P(absent | not found) : P(present | not found); an absent organ is taken never to be found."""
        miss_rate = (self.present - self.found + JEFFREYS) / (self.present + 2 * JEFFREYS)
        absence = (self.absent + JEFFREYS) / (self.cases + 2 * JEFFREYS)
        return absence / ((1 - absence) * miss_rate)

    @property
    def a_miss_means_absent(self) -> bool:
        """Whether an organ that is not found counts as absent; never where no training case lacks it, or none tells of misses."""
        return self.absent > 0 and self.present > 0 and self.odds_of_absence > 1
