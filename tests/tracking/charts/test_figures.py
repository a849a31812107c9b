"""Every chart that has something to show is written as a PNG and an SVG."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from PIL import Image

from carft_sweep.tracking.charts import WIDTH, write_figures
from carft_sweep.tracking.charts.data import ChartData
from carft_sweep.tracking.comparison.compare import compare
from tests.tracking.made_up import kl_sweep


def test_png_and_svg_are_written_in_the_order_of_the_page_or_those_that_are_named(
    tmp_path: Path,
) -> None:
    evidence = ChartData(compare(kl_sweep(3), sweep="kl_weight"))
    names = ("id_ood", "response", "shifts")
    written = write_figures(evidence, tmp_path / "new" / "folder")
    assert [file.name for file in written] == [f"{n}.{k}" for n in names for k in ("png", "svg")]
    for file in written:
        if file.suffix == ".svg":
            root = ElementTree.fromstring(file.read_text())
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert float(root.attrib["width"]) <= WIDTH + 10
            continue
        with Image.open(file) as image:
            assert image.format == "PNG"
            assert WIDTH < image.width <= 2 * WIDTH + 20
            assert image.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
    assert write_figures(ChartData(compare([], sweep="empty")), tmp_path) == []
    (file,) = write_figures(evidence, tmp_path, ["png"], ["response"], scale=1.0)
    assert file.name == "response.png"
    with Image.open(file) as image:
        assert image.width <= WIDTH + 10
