# SPDX-License-Identifier: Apache-2.0
"""Sphinx: `make docs` builds README.md, these pages and the API reference as one site, in build/docs."""

import importlib.metadata
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tools"))
import list_errors  # noqa: E402

(HERE / "errors.rst").write_text(list_errors.page())

project = "llm_datadist_torch"
release = importlib.metadata.version(project)
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]

# What a link or a name in these pages points to must exist. Names of other projects are not looked up: a build needs no
# network.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(torch|transformers|collections|enum|threading)\..*"),
    ("py:.*", r"Tensor|Any|int|str|bool|optional|dict\[.*"),
    ("py:class", r"llm_datadist_torch\.datadist\.result\.Result"),
]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"{project} {release}"
html_show_copyright = False
html_static_path = ["site.css"]
html_css_files = ["site.css"]
