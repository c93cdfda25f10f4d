"""Reads the repository's Markdown as GitHub does: headings and their anchors, links, pictures, code."""
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "documentation"
PAGES = tuple(sorted(FOLDER.glob("*.md")))
FILES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md", *PAGES)
_READER = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True)
class Piece:
    """A link's target, a picture's, or code; line: where the paragraph, table row or block that holds it begins."""

    line: int
    text: str
    language: str = ""


@dataclass(frozen=True)
class Page:
    """blocks: fenced code; spans: code within the text."""

    anchors: tuple[str, ...]
    links: tuple[Piece, ...]
    pictures: tuple[Piece, ...]
    blocks: tuple[Piece, ...]
    spans: tuple[Piece, ...]


def name(path: Path) -> str:
    """A file as the tests call it: its path in the repository."""
    return path.relative_to(ROOT).as_posix()


@cache
def read_page(path: Path) -> Page:
    return parse(path.read_text(encoding="utf-8"))


def parse(text: str) -> Page:
    tokens = _READER.parse(text)
    titles = [inline for heading, inline in zip(tokens, tokens[1:]) if heading.type == "heading_open"]
    inner = [(token.map[0] + 1, child) for token in tokens if token.type == "inline" for child in token.children]
    return Page(
        anchors(_plain(title) for title in titles),
        tuple(Piece(line, token.attrGet("href")) for line, token in inner if token.type == "link_open"),
        tuple(Piece(line, token.attrGet("src")) for line, token in inner if token.type == "image"),
        tuple(Piece(token.map[0] + 1, token.content, token.info.strip()) for token in tokens if token.type == "fence"),
        tuple(Piece(line, token.content) for line, token in inner if token.type == "code_inline"),
    )


def _plain(title: Token) -> str:
    """A heading's text without its markup."""
    return "".join(child.content for child in title.children if child.type in ("text", "code_inline"))


def anchors(titles) -> tuple[str, ...]:
    """GitHub's anchors of a page's headings: lower case, only letters, digits, '_', '-', a '-' for each space; a second one gets -1."""
    seen, found = Counter(), []
    for title in titles:
        slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
        found.append(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return tuple(found)
