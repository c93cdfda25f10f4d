"""Left and right in organ names: which side a name says, and the name without it."""
from __future__ import annotations

import re
from collections.abc import Sequence

_APART = r"[ _\-.,()\[\]]+"
_SIDE = re.compile(
    # a bare letter glued to the name by nothing but case ("rTemporal") is too weak a sign, unless its partner is there (`sides_of`)
    rf"(?:(?P<pre>left|right|lt|rt)(?:{_APART}|(?=(?-i:[A-Z])))|(?P<letter>[lr]){_APART})(?P<prestem>.+)"
    rf"|(?P<stem>.+?)(?:{_APART}|(?<=(?-i:[a-z]))(?=(?-i:Left|Right|Lt|Rt|[LR])$))(?P<post>left|right|lt|rt|l|r)",
    re.IGNORECASE,
)
# (left, right): what is too weak a sign by itself, and counts beside the partner only; of other languages as well
_WORDS = (("l", "r"), ("lt", "rt"), ("left", "right"), ("g", "d"), ("gauche", "droite"), ("li", "re"), ("links", "rechts"), ("izq", "der"),
          ("sin", "dx"), ("sin", "dex"))  # fmt: skip
_LEFT = {left for left, _ in _WORDS}
_FORMS = [
    form.replace("SIDE", f"(?P<side>{left}|{right})").replace("APART", _APART)
    for left, right in _WORDS for form in (r"SIDEAPART(?P<stem>.{3,})", r"(?P<stem>.{3,}?)APARTSIDE", r"(?P<stem>.+?)APARTSIDE(?P<rest>APART.+)")
] + [r"(?P<side>l|r)(?P<stem>.{3,})", r"(?P<stem>.{3,}?)(?P<side>l|r)"]  # fmt: skip


def side_and_stem(name: str) -> tuple[str, str] | None:
    """('L'|'R', name without its side) for a sided organ name; None for an unsided one.

    >>> side_and_stem("Parotid_L"), side_and_stem("Right Optic Nerve"), side_and_stem("Parotid (Rt)")
    (('L', 'Parotid'), ('R', 'Optic Nerve'), ('R', 'Parotid'))
    """
    hit = _SIDE.fullmatch(_bare(name))
    if not hit:
        return None
    word = hit["pre"] or hit["letter"] or hit["post"]
    return word[0].upper(), _bare(hit["prestem"] or hit["stem"])


def sides_of(organs: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Sided organ → ('L'|'R', name without its side), as far as these organs' names tell.

    Where its partner is there, a side is also a letter glued to the name (LParotid, PAROTIDR), a word within it (Lobe_L_Temporal) and
    other languages' words (Parotide D).

    >>> sides_of(["PAROTIDL", "PAROTIDR", "CANAL"])
    {'PAROTIDL': ('L', 'PAROTID'), 'PAROTIDR': ('R', 'PAROTID')}
    """
    found = {organ: side for organ in organs if (side := side_and_stem(organ))}
    for form in _FORMS:
        partners: dict[str, dict[str, tuple[str, str]]] = {}
        for organ in organs:
            if organ not in found and (hit := re.fullmatch(form, _bare(organ), re.IGNORECASE)):
                stem = _bare(hit["stem"] + hit.groupdict().get("rest", ""))
                partners.setdefault(stem.lower(), {})["L" if hit["side"].lower() in _LEFT else "R"] = (organ, stem)
        found |= {organ: (letter, stem) for both in partners.values() if len(both) == 2 for letter, (organ, stem) in both.items()}
    return found


def _bare(name: str) -> str:
    """A name without what stands about it."""
    return name.strip(" _-.,()[]")
