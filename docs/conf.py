"""The documentation site: ``make docs`` builds it into ``build/docs``, and any warning is an error."""

import re
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")  # of the libraries that autodoc imports: the warnings of Sphinx go another way

import snnfast  # noqa: E402

project = "snnfast"
version = release = snnfast.__version__
author = copyright = "the snnfast authors"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "snnfast"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["../llms.txt"]  # coding assistants look for it
html_show_sphinx = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"

# Pages are Markdown that reads well in a repository, too: headings have the same anchors there.
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_block"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings name shapes and dtypes, which say more than types
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_attr_annotations = False
python_maximum_signature_line_length = 88

nitpicky = True
# Names of other libraries, whose documentation is not looked up: the build needs no network.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|nn|snntorch|collections|typing|abc)\..*"),
    ("py:exc", r"TypeError|ValueError|RuntimeError|TypeError, ValueError"),
]

# Files of the repository that are pages of the site under another name.
_PAGES = {
    "../README.md": "index.md",
    "../CONTRIBUTING.md": "contributing.md",
    "../CHANGELOG.md": "changelog.md",
}


def _link_to_pages(app: Any, name: str, source: list[str]) -> None:
    for file, page in _PAGES.items():
        source[0] = re.sub(rf"\]\({re.escape(file)}(?=[)#])", f"]({page}", source[0])


def _check_pages(app: Any) -> None:
    missing = [file for file in _PAGES if not (Path(app.srcdir) / file).exists()]
    assert not missing, missing


def setup(app: Any) -> None:
    """Register the hooks of this file with Sphinx."""
    app.connect("builder-inited", _check_pages)
    app.connect("source-read", _link_to_pages)
