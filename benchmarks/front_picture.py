"""Draw the front of a run as a picture, for documents that cannot hold the interactive page.

    python benchmarks/front_picture.py runs/cifar10_resnet56 docs/front.png

Plotly's own image export drives a browser too, through a package that fetches one. This asks a Chromium that
is installed already, so that it works without a network and with a browser that can be named.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

import pandas as pd
from plotly.offline import get_plotlyjs

from autocompress.candidate import Measurement
from autocompress.config import LimitsSection
from autocompress.engine.run_folder import open_run, read_baseline, read_candidates, run_config
from autocompress.report.accuracy_view import accuracy_view, draw_accuracy_view
from autocompress.report.frame import candidates_frame

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT, SCALE = 1120, 470, 2
_PAGE = """<!doctype html><meta charset="utf-8"><body style="margin: 0; background: white">
<script>{script}</script>{figure}"""
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--hide-scrollbars", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def front_picture(frame: pd.DataFrame, baseline: Measurement, limits: LimitsSection, path: Path, browser: str) -> None:
    """Write the accuracy-latency view of a run to a PNG file.

    Args:
        frame: table of ``candidates_frame``.
        baseline: figures of the uncompressed file.
        limits: the study's limits, drawn as lines.
        path: the PNG file.
        browser: command of a Chromium.
    """
    figure = draw_accuracy_view(accuracy_view(frame, baseline, limits, "latency"))
    figure.update_layout(width=WIDTH, height=HEIGHT)
    html = figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False})
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "front.html"
        page.write_text(_PAGE.format(script=get_plotlyjs(), figure=html), encoding="utf-8")
        options = [
            f"--user-data-dir={folder}/profile",
            f"--screenshot={path.resolve()}",
            f"--window-size={WIDTH},{HEIGHT}",
            f"--force-device-scale-factor={SCALE}",
            "--virtual-time-budget=8000",
        ]
        subprocess.run([browser, *_FLAGS, *options, page.as_uri()], check=True, capture_output=True, timeout=120)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("png", type=Path, help="picture to write")
    parser.add_argument("--browser", default=next((name for name in BROWSERS if shutil.which(name)), None))
    arguments = parser.parse_args()
    if arguments.browser is None:
        parser.error(f"a picture needs a Chromium; none of {', '.join(BROWSERS)} is installed; name one with --browser")
    run = open_run(arguments.run)
    config, baseline = run_config(run), read_baseline(run)
    frame = candidates_frame(read_candidates(run), baseline, config.objective)
    front_picture(frame, baseline, config.limits, arguments.png, arguments.browser)


if __name__ == "__main__":
    main()
