"""Hooks of mkdocs: the site's files are those of the repository, and every public name has a page."""

from __future__ import annotations

import os.path
from pathlib import Path

from docstrings import ROLE
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from reference import PUBLIC_MODULES, documentation, names_of, pages

REPOSITORY_FILES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "docs/*.svg",
    "docs/report/*",
    "docs/site/site.css",
    "examples/*.*",
    "benchmarks/results/README.md",
    "src/hatrack/data/subset/NOTICE",
)
"""Pages, and the files that they show or link to."""

INDEX = "reference/index.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the reference behind the glossary."""
    page_of = pages()
    modules = []
    for module in PUBLIC_MODULES:
        explained_here = [name for name in names_of(module) if page_of[name].startswith(f"reference/{module}/")]
        names = [{name.rpartition(".")[2]: page_of[name]} for name in explained_here if name not in PUBLIC_MODULES]
        modules.append({module: [page_of[module], *names]})
    assert config.nav is not None
    behind = next(place for place, entry in enumerate(config.nav) if "Glossary" in entry) + 1
    config.nav.insert(behind, {"Reference": [INDEX, *modules]})
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Take files by their paths in the repository, so that links between them hold, and make the reference."""
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    root = Path(config.config_file_path).parent
    for path in sorted(path for pattern in REPOSITORY_FILES for path in root.glob(pattern)):
        file = File(path.relative_to(root).as_posix(), str(root), config.site_dir, config.use_directory_urls)
        file.dest_uri = file.dest_uri.removeprefix("docs/").removeprefix("site/")
        files.append(file)
    page_of = pages()
    contents = {INDEX: "# Reference\n\n" + _table(PUBLIC_MODULES, page_of, INDEX)}
    for name, page in page_of.items():
        if name in PUBLIC_MODULES:
            table = _table(names_of(name), page_of, page)
            contents[page] = f"---\ntitle: {name}\n---\n\n::: {name}\n    options:\n      members: false\n\n{table}"
        else:
            contents.setdefault(page, f"::: {name}\n")
    for page, content in contents.items():
        files.append(File.generated(config, page, content=content))
    return files


def _table(names: list[str] | tuple[str, ...], page_of: dict[str, str], shown_on: str) -> str:
    """Write a table of names with the first paragraphs of their docstrings."""
    rows = ["| | |", "|---|---|"]
    for name in names:
        link = os.path.relpath(page_of[name], os.path.dirname(shown_on))  # noqa: PTH120 - a link, not a file
        title = name if shown_on == INDEX else name.rpartition(".")[2]
        first = " ".join(documentation(name).partition("\n\n")[0].split())
        text = ROLE.sub(r"`\1`", first).replace("|", r"\|")
        rows.append(f"| [`{title}`]({link}) | {text} |")
    return "\n".join(rows)
