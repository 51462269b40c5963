"""Commands, configurations and files named in the manual and the README exist."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from edged.config.load import load
from edged.ctl.main import VERBS, verb_parser

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MANUAL = sorted(DOCS.rglob("*.md"))
PAGES = [*MANUAL, *sorted(ROOT.glob("*.md"))]


def text_of(page):
    """Return the page without blocks between ``` lines."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)


def anchors(page):
    """Return the anchors of a page's headings, as made by a forge and the site."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page):
    """Return the lines in blocks of commands, and the text in `code`."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.M | re.S)
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", text_of(page))])


def named(page):
    return str(page.relative_to(ROOT))


def links(page):
    return sorted(
        {*re.findall(r"\]\(([^):]+)\)", text_of(page)), *re.findall(r"<img src=\"([^\":]+)\"", text_of(page))}
    )


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    broken = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", MANUAL, ids=named)
def test_links_stay_in_the_manual(page):
    """A site contains the folder docs only."""
    targets = [(page.parent / link.partition("#")[0]).resolve() for link in links(page) if not link.startswith("#")]
    assert [target for target in targets if not target.is_relative_to(DOCS)] == []


def test_every_page_is_in_the_contents():
    reached, pending = set(), [DOCS / "index.md"]
    while pending:
        page = pending.pop()
        reached.add(page)
        found = {(page.parent / link.partition("#")[0]).resolve() for link in links(page)}
        pending += [target for target in found if target.suffix == ".md" and target.exists() and target not in reached]
    assert set(DOCS.rglob("*.md")) - reached == set()


def test_every_page_is_in_the_site():
    def pages(nav):
        for entry in nav:
            for value in entry.values():
                yield from [value] if isinstance(value, str) else pages(value)

    nav = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    assert sorted(pages(nav)) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_exist(page):
    verbs = re.findall(r"edgectl(?: --?[\w-]+(?: [\w@]+)?)*? ([a-z][a-z-]+)\b", commands(page))
    targets = re.findall(r"^make ([a-z-]+)", commands(page), re.M)
    makefile = (ROOT / "Makefile").read_text()
    assert [verb for verb in verbs if verb not in VERBS] == []
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.M)] == []


LINES = [
    pytest.param(line, id=f"{named(page)}: {line}")
    for page in PAGES
    for block in re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.M | re.S)
    for line in re.findall(r"^(?:sudo )?(edgectl .*)", block, re.M)
]


@pytest.mark.parametrize("line", LINES)
def test_commands_have_the_arguments_of_their_verbs(line):
    _, *words = shlex.split(re.split(r" [|>]|&&", line)[0], comments=True)
    verb = next(word for word in words if word in VERBS)
    words.remove(verb)
    verb_parser(verb).parse_args(words)


EXAMPLES = [
    pytest.param(block, id=f"{named(page)}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"^```toml\n(.*?)^```$", page.read_text(), re.M | re.S))
    if "[project." not in block and "thermal-zone" not in block  # a package and a plug-in: test_plug_in_page.py
    if "preprocess = " not in block  # a manifest: end_to_end/test_first_pipeline.py
]


@pytest.mark.parametrize("block", EXAMPLES)
def test_configurations_are_sound(block, tmp_path):
    (tmp_path / "edged.toml").write_text(block)
    load([tmp_path / "edged.toml"])


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 140


def test_the_architecture_names_parts_that_exist():
    rows = re.findall(r"^\| (`.+?) \|", (DOCS / "development/architecture.md").read_text(), re.M)
    parts = [part for row in rows for part in re.findall(r"`(\w+)`", row)]
    assert "core" in parts
    assert [part for part in parts if not list((ROOT / "edged").glob(f"{part}*"))] == []
