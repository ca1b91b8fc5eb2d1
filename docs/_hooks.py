"""Pages that are made from the code when the site is built: the command line and the API.

`<!-- help: train -->` in a page becomes what `sae-lens train --help` prints. The pages under `api/`
list the modules of one part of the package each, so that a new module cannot be forgotten.
`<!-- releases -->` becomes a table of all released SAEs with a field to search it.
"""

from __future__ import annotations

import contextlib
import html
import io
import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from sae_lens.cli.main import COMMANDS, main
from sae_lens.loading.directory import registry

PACKAGE = Path(__file__).resolve().parent.parent / "sae_lens"

# page -> (title, folders or modules below the package)
API_PAGES = {
    "saes": ("The mathematics", ["saes"]),
    "activations": ("Where training data comes from", ["activations"]),
    "training": ("From batches to weights", ["training"]),
    "config": ("Configs of whole runs", ["config"]),
    "analysis": ("From SAEs to insight", ["analysis"]),
    "loading": ("Released SAEs as plain data", ["loading"]),
    "runners": (
        "Runners and evals",
        [
            "sae_training_runner.py",
            "multi_sae_training_runner.py",
            "cache_activations_runner.py",
            "pretokenize_runner.py",
            "evals.py",
            "registry.py",
        ],
    ),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the API pages."""
    for page, (title, sources) in API_PAGES.items():
        modules = [name for source in sources for name in _modules(PACKAGE / source)]
        body = "\n\n".join(f"::: {name}" for name in modules)
        files.append(File.generated(config, f"api/{page}.md", content=f"# {title}\n\n{body}\n"))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put the help texts of the commands and the table of releases in their places."""
    markdown = markdown.replace("<!-- releases -->", _releases())
    return re.sub(r"<!-- help: ([a-z-]*) -->", lambda found: _help(found[1]), markdown)


def _modules(source: Path) -> list[str]:
    """Modules with something public in them, by dotted name; thin re-exports are left out."""
    files = sorted(source.glob("**/*.py")) if source.is_dir() else [source]
    return [
        ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
        for file in files
        if file.exists() and re.search(r"^(class|def) [A-Za-z]", file.read_text(), re.MULTILINE)
    ]


# Rows whose text lacks one of the words typed are hidden.
_SEARCH = """\
<input id="release-search" type="search" placeholder="search: gemma, hook_z, 65k, ..."
 style="width:100%;padding:.5em" aria-label="Search the releases">
<p><span id="release-count"></span></p>
<script>
addEventListener("DOMContentLoaded", () => {
  const field = document.getElementById("release-search");
  const rows = [...document.querySelectorAll("table.releases tbody tr")];
  const update = () => {
    const words = field.value.toLowerCase().split(/\\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = (row.textContent + " " + row.dataset.ids).toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    document.getElementById("release-count").textContent = `${shown} of ${rows.length} releases`;
  };
  field.addEventListener("input", update);
  update();
});
</script>
"""


def _releases() -> str:
    """All releases as an HTML table, whose rows can be searched by everything in them."""
    heads = ("Release", "Model", "SAEs", "Ids, for example", "Format", "Files")
    lines = ["<table class='releases'><thead><tr>", *(f"<th>{head}</th>" for head in heads)]
    lines.append("</tr></thead><tbody>")
    for release in registry().values():
        ids = list(release.saes)
        words = {word for sae_id in ids for word in re.split(r"[^a-z0-9]+", sae_id.lower())}
        words = sorted(word for word in words if not word.isdigit())
        link = f"<a href='https://huggingface.co/{release.repo_id}'>{release.repo_id}</a>"
        if "dashboards" in release.links:
            link += f", <a href='{release.links['dashboards']}'>dashboards</a>"
        cells = [
            f"<code>{release.name}</code>",
            release.model,
            str(len(ids)),
            "<br>".join(f"<code>{sae_id}</code>" for sae_id in dict.fromkeys((ids[0], ids[-1]))),
            release.conversion_func or "sae_lens",
            link,
        ]
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f"<tr data-ids='{html.escape(' '.join(words))}'>{row}</tr>")
    lines.append("</tbody></table>")
    return _SEARCH + "\n" + "".join(lines) + "\n"


def _help(command: str) -> str:
    if command and command not in COMMANDS:
        raise ValueError(f"no such command: {command}; there are {', '.join(COMMANDS)}")
    os.environ["COLUMNS"] = "100"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main([command, "--help"] if command else ["--help"])
    return f"```text\n{printed.getvalue().rstrip()}\n```"
