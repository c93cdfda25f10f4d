"""The site is built from the pages without a warning, and its sidebar and its reference hold what they should."""
import ast
import html
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from tests.documentation.markdown import FOLDER, PAGES, ROOT, read_page

CONF = FOLDER / "conf.py"
SETTINGS = runpy.run_path(str(CONF))


def build(source: Path, target: Path) -> subprocess.CompletedProcess:
    """As scripts/documentation.sh does; with -m, Python finds the package in the current folder."""
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", str(source), str(target)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_site_is_built_without_a_warning(tmp_path):
    done = build(FOLDER, tmp_path)
    assert done.returncode == 0, done.stderr
    home = (tmp_path / "index.html").read_text(encoding="utf-8")
    for page in PAGES:
        text = (tmp_path / f"{page.stem}.html").read_text(encoding="utf-8")
        assert f'href="{page.stem}.html"' in home or page.stem == "index"
        pictures = re.findall(r'src="(_images/[^"]+)"', text)
        assert len(pictures) == len(read_page(page).pictures) and all((tmp_path / p).is_file() for p in pictures)
    reference = html.unescape((tmp_path / "api.html").read_text(encoding="utf-8"))
    assert all(f'id="{name}"' in reference for name in SETTINGS["REFERENCE"])


def test_a_link_to_nowhere_fails_the_build(tmp_path):
    source = tmp_path / "pages"
    source.mkdir()
    shutil.copy(CONF, source)
    (source / "index.md").write_text("# Home\n\nSee [there](quickstart.md#no-such-heading).\n")
    (source / "quickstart.md").write_text("# Quickstart\n")
    done = build(source, tmp_path / "site")
    assert done.returncode == 1 and "index.md:3" in done.stderr and "no-such-heading" in done.stderr


def test_every_page_has_one_place_in_the_sidebar():
    listed = [page for pages in SETTINGS["NAVIGATION"].values() for page in pages]
    assert len(set(listed)) == len(listed)
    assert {page.stem for page in PAGES} - set(listed) == {"index"}


def test_the_reference_has_everything_that_the_examples_import():
    blocks = [block.text for block in read_page(FOLDER / "api.md").blocks if block.language == "python"]
    imports = [node for block in blocks for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ImportFrom)]
    names = {f"{node.module}.{a.name}" for node in imports if node.module.startswith("c2f_nnunet") for a in node.names}
    assert names and names <= set(SETTINGS["REFERENCE"])


def test_the_script_builds_as_the_tests_do():
    script = (ROOT / "scripts" / "documentation.sh").read_text(encoding="utf-8")
    assert "python -m sphinx --fail-on-warning --keep-going --quiet" in script
    assert "/site/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
