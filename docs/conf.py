"""How Sphinx builds these pages: make docs."""

project = "Taskyard"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "Taskyard"
exclude_patterns = ["pictures"]
myst_heading_anchors = 3
# Links into the sources leave these pages; tests/test_docs.py follows them.
suppress_warnings = ["myst.xref_missing"]
