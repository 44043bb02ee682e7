"""Tables, maps and images -> figures and a static results site (`write_site`)."""

from diffmining_core.report.page import render_index, write_site
from diffmining_core.report.source import SiteSource

__all__ = ["SiteSource", "render_index", "write_site"]

ALGO = "report-5"
"""Version of the page's layout; part of its units' keys."""
