"""Every link and picture of the pages leads to something that is there; addresses on the web are only looked at, not visited."""
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.documentation.markdown import FILES, FOLDER, PAGES, ROOT, name, parse, read_page


def broken(path: Path, root: Path = ROOT) -> list[str]:
    """What is wrong with a page's links and pictures."""
    page = read_page(path)
    wrong = [(link, problem) for link in page.links if (problem := _link_problem(path, link.text, root))]
    wrong += [(picture, "no such picture") for picture in page.pictures if not (path.parent / unquote(picture.text)).is_file()]
    return [f"{path.name}:{piece.line}: {piece.text}: {problem}" for piece, problem in wrong]


def _link_problem(path: Path, target: str, root: Path) -> str | None:
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        good = parts.scheme == "https" and re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc)
        return None if good else "no https address"
    file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not file.exists() or not file.is_relative_to(root):
        return "no such file in the repository"
    if parts.fragment and (file.suffix != ".md" or parts.fragment not in read_page(file).anchors):
        return "no heading with this anchor"
    return None


@pytest.mark.parametrize("path", FILES, ids=name)
def test_links_and_pictures_lead_somewhere(path):
    assert not broken(path)


@pytest.mark.parametrize("text, problem", [
    ("[a](other.md#two-words)", None),
    ("[a](#here) and ![p](p.png) and [w](https://example.org/x#y)", None),
    ("| a | b |\n|---|---|\n| 1 | [a](missing.md) |", "page.md:3: missing.md: no such file"),
    ("[a](../outside.md)", "page.md:1: ../outside.md: no such file in the repository"),
    ("[a](/other.md)", "page.md:1: /other.md: no such file"),
    ("text\n\n[a](other.md#one-word)", "page.md:3: other.md#one-word: no heading"),
    ("[a](p.png#two-words)", "no heading"),
    ("![p](q.png)", "page.md:1: q.png: no such picture"),
    ("[w](http://example.org)", "no https address"),
    ("[w](https://nowhere/x)", "no https address"),
    ("`[a](missing.md)`", None),
])  # fmt: skip
def test_a_broken_link_is_noticed(tmp_path, text, problem):
    root = tmp_path / "root"
    root.mkdir()
    for file, content in (("root/other.md", "# Two words"), ("root/p.png", ""), ("outside.md", "")):
        (tmp_path / file).write_text(content)
    (root / "page.md").write_text(text + "\n\n# Here\n")
    found = broken(root / "page.md", root)
    assert len(found) == (problem is not None) and (problem or "") in "".join(found)


@pytest.mark.parametrize("text, anchors", [
    ("# A clinic's own patients", ("a-clinics-own-patients",)),
    ("## 18. Surface DSC beside [DeepMind's](https://example.org) library", ("18-surface-dsc-beside-deepminds-library",)),
    ("## `c2f_train` and *more* – or less", ("c2f_train-and-more--or-less",)),
    ("# One\n\n# One\n\n# One\n", ("one", "one-1", "one-2")),
    ("```\n# no heading\n```\n\nTitle\n=====\n", ("title",)),
])  # fmt: skip
def test_anchors_are_githubs(text, anchors):
    assert parse(text).anchors == anchors


def test_the_readme_links_to_every_page():
    linked = {link.text.split("#")[0] for link in read_page(ROOT / "README.md").links}
    missing = [name(page) for page in PAGES if name(page) not in linked and page != FOLDER / "index.md"]
    assert PAGES and not missing
