"""The files of a sweep that has ended: in its folder, and as artifacts of its run in a store."""

COMPARISON, PAGE = "comparison.json", "report.html"
FIGURES = ("id_ood.png", "response.png")
"""The two charts of the report that the sweep's own page in a store shows."""
COMPARED = ("comparison.md", "comparison.csv", COMPARISON)
FILES = (*COMPARED, PAGE, *FIGURES)
