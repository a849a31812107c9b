"""The report as one HTML file that needs no network: verdict, table, charts, images, provenance."""

from tracking.page.html import document
from tracking.page.pictures import Pictures
from tracking.page.provenance import Fact, Provenance, SweepFile

__all__ = ["Fact", "Pictures", "Provenance", "SweepFile", "document"]
