# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's last part: score the result, put the pictures on one sheet, say where all is."""

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageDraw

MARGIN, CAPTION = 12, 22


def main() -> None:
    """Report on the demo of a capture in a folder; the third argument is the set-up's seconds."""
    capture, out, set_up = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    result = json.loads((out / "result.json").read_text())
    job = Path(result["job_dir"])
    views = out / "views"
    backend("render", job, "--out", views, "--split", "test")
    scores = json.loads(backend("evaluate", views / "ids", capture / "gt"))["things"]
    write_sheet(capture, out, views, result)
    done = [json.loads(line) for line in (job / "events.jsonl").read_text().splitlines()][-1]
    things, surfaces = (result["kinds"].count(kind) for kind in ("thing", "surface"))
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in done["seconds"].items())
    print(f"""
Found {things} objects and {surfaces} surfaces, in {len(result["kinds"])} collections.
Against the ground truth, on test views: {scores["TP"]} of {scores["n_gt"]} objects found, \
{scores["FP"]} false, PQ {scores["PQ"]:.3f}, mIoU {scores["mIoU"]:.3f}; PSNR {done["psnr"]:.1f} dB.
Set-up {set_up} s; from the button to the objects {result["job_seconds"]:.0f} s ({stages}).
Contact sheet  {out / "sheet.png"}
Blender file   {out / "scene.blend"}
Isolated       {", ".join(f"{name}.png" for name in result["isolated"])} in {out}
Job folder     {job}""")


def backend(*arguments: object) -> str:
    """Run the backend's command line; returns its standard output."""
    command = [sys.executable, "-I", "-X", "utf8", "-m", "unified_lift", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def write_sheet(capture: Path, out: Path, views: Path, result: dict) -> None:
    """Photo, rendering and label map above, three objects below."""
    photo = next((capture / "images").glob(f"{result['view']}.*"))
    objects = json.loads((Path(result["job_dir"]) / "objects.json").read_text())["objects"]
    labels = color_labels(views / "ids" / f"{result['view']}.png", objects)
    pictures = [
        ("Photo (not trained on)", Image.open(photo)),
        ("Rendered in Blender", Image.open(out / "scene.png")),
        ("Objects", labels),
        *((name, Image.open(out / f"{name}.png")) for name in result["isolated"]),
    ]
    width, height = pictures[0][1].size
    cell = (width + MARGIN, height + CAPTION + MARGIN)
    sheet = Image.new("RGB", (3 * cell[0] + MARGIN, 2 * cell[1] + MARGIN), (38, 38, 38))
    draw = ImageDraw.Draw(sheet)
    for i, (caption, picture) in enumerate(pictures):
        x, y = MARGIN + i % 3 * cell[0], MARGIN + i // 3 * cell[1]
        draw.text((x, y), caption, fill=(230, 230, 230), font_size=14)
        picture = picture.convert("RGBA")
        sheet.paste(checkerboard(picture.size), (x, y + CAPTION))
        sheet.paste(picture, (x, y + CAPTION), picture)
    sheet.save(out / "sheet.png")


def checkerboard(size: tuple[int, int]) -> Image.Image:
    """What shows through where a picture is transparent."""
    board = Image.new("RGB", size, (90, 90, 90))
    draw = ImageDraw.Draw(board)
    for x in range(0, size[0], 16):
        for y in range(x % 32 // 16 * 16, size[1], 32):
            draw.rectangle((x, y, x + 15, y + 15), fill=(110, 110, 110))
    return board


def color_labels(path: Path, objects: list[dict]) -> Image.Image:
    """A label map in the colours of its objects; unassigned is black."""
    colors = {entry["id"]: tuple(round(255 * c) for c in entry["color"]) for entry in objects}
    labels = Image.open(path)
    picture = Image.new("RGB", labels.size)
    values = labels.get_flattened_data()
    picture.putdata([colors.get(value, (0, 0, 0)) for value in values])
    return picture


main()
