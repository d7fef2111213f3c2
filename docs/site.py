"""Hook of mkdocs: links of the pages to files outside docs/ (`../bench/...`), which the site has no place for.

Pictures there are taken into the site; of other links the text stays. A link to nothing is an error.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(!?)\[([^\]]*)\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")


def outside(page: str, link: str) -> str | None:
    """The path from the repository's root of a link that leaves docs/."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if path.startswith("docs/") else path


def on_files(files, config):
    for file in [file for file in files if file.src_uri.endswith(".md")]:
        for _, _, link, _ in LINK.findall(Path(file.abs_src_path).read_text(encoding="utf-8")):
            path = outside(file.src_uri, link)
            if path and picture(path) and files.get_file_from_path(f"files/{path}") is None:
                files.append(File.generated(config, f"files/{path}", abs_src_path=str(ROOT / path)))
    return files


def picture(path: str) -> bool:
    return path.endswith((".png", ".svg"))


def on_page_markdown(markdown, page, config, files):
    def replaced(match):
        image, text, link, _ = match.groups()
        path = outside(page.file.src_uri, link)
        if path is None:
            return match[0]
        if not (ROOT / path).exists():
            raise PluginError(f"{page.file.src_uri}: no file {path}")
        if not picture(path):
            return text
        up = "../" * page.file.src_uri.count("/")
        return f"{image}[{text}]({up}files/{path})"

    return LINK.sub(replaced, markdown)
