"""What the documentation links to outside of docs/ becomes pages of the site; links go to them.

In the repository ``../src/headway/run.py`` is a file beside the page. The site is built from
``docs`` alone, so README, CONTRIBUTING and CHANGELOG are taken in as pages, and a source file that
any page links to as a page that shows it. A link to nothing is left as it stands: the strict build
refuses it.
"""

from __future__ import annotations

import os.path
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Markdown files of the repository's root, and the pages that they are in the site."""
LANGUAGES = {"py": "python", "yaml": "yaml", "toml": "toml"}
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:|#|/)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that do not lie in docs/."""
    texts = {f"docs/{f.src_uri}": f.content_string for f in files.documentation_pages()}
    for name, page in PAGES.items():
        texts[name] = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=relinked(texts[name], name)))
    linked = {target for name, text in texts.items() for target in targets(text, name)}
    for target in sorted(linked - set(PAGES)):
        if not target.startswith(("docs/", "..")) and (ROOT / target).is_file():
            content = source_page(target)
            files.append(
                File.generated(
                    config, page_of(target), content=content, inclusion=InclusionLevel.NOT_IN_NAV
                )
            )
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links of a page of docs/ that lead out of it."""
    if page.file.generated_by:
        return markdown
    return relinked(markdown, f"docs/{page.file.src_uri}")


def targets(text: str, name: str) -> set[str]:
    """What a file of the repository links to, from the repository's root."""
    prose = FENCE.sub("", text)
    return {resolved(link, name) for link, _ in LINK.findall(prose)}


def resolved(link: str, name: str) -> str:
    """A link in file ``name``, from the repository's root."""
    return os.path.normpath(PurePosixPath(name).parent / link)


def page_of(target: str) -> str:
    """The site's page of a file of the repository."""
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return PAGES.get(target, f"source/{target}.md")


def relinked(text: str, name: str) -> str:
    """The text of file ``name`` with its links as they lead in the site."""
    here = PurePosixPath(page_of(name)).parent

    def led(found: re.Match[str]) -> str:
        target = resolved(found[1], name)
        if not (ROOT / target).is_file():
            return found[0]
        return f"]({os.path.relpath(page_of(target), here)}{found[2] or ''})"

    parts = FENCE.split(text)
    return "".join(part if part.startswith("```") else LINK.sub(led, part) for part in parts)


def source_page(target: str) -> str:
    """A page that shows one source file."""
    text = (ROOT / target).read_text(encoding="utf-8")
    language = {"py": "python", "yaml": "yaml", "toml": "toml"}.get(
        target.rpartition(".")[2], "text"
    )
    return f"# {target}\n\n`````{language}\n{text.rstrip()}\n`````\n"
