"""How the pages are built: ``sphinx-build docs docs/_build`` with the extra [docs]."""

from importlib.metadata import version as installed

project = "Chainrule"
author = "The Chainrule authors"
version = release = installed("chainrule")
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "Chainrule"
exclude_patterns = ["_build"]
suppress_warnings = ["misc.highlighting_failure"]  # the language's own blocks have no lexer
