"""A source of made-up cases for the tests of what all converters share."""
import pytest

from tests.dataset_conversion.sources import GLAND, GRID, STEM, ct, load

parts, Target = load("parts.cases"), load("parts.target").Target


@pytest.fixture
def made(tmp_path):
    """made.case(name, …) → a case whose source is one small file; made.target; made.loaded: names in the order of reading.

    file: the source's name where it is not the case's.
    """

    class Made:
        target = Target(tmp_path / "Dataset001_Made", ids={"s": 1, "g": 2}, names={"s": "Stem", "g": "Gland"},
                        settings={"part": "all"}, about={"licence": "MIT"})
        loaded = []

        def case(self, name, training=True, organs=("s", "g"), error=None, patient=None, notes=(), file=None):
            source = tmp_path / f"{file or name}.source"
            if not source.exists():  # touching it again would count as a change
                source.touch()

            def scan():
                self.loaded.append(name)
                if error:
                    raise error
                masks = ((o, {"s": STEM, "g": GLAND, "e": 0 * GLAND}[o]) for o in organs)
                return parts.Scan(ct(sum(map(ord, file or name))), GRID, masks, notes)

            return parts.SourceCase(name, training, tuple(organs), (source,), scan, patient)

    return Made()
