"""Find photographs of the CamVid data set among the files of a folder.

Their terms do not let them travel with this project. A photograph is known by 256 bits: which of two
neighbouring cells of a 16 x 17 grid is brighter. They survive another size, JPEG and a half-transparent
overlay (at most 36 bits changed, where different streets differ in 87 or more), and hold no picture.
"""

import base64
import io
import re
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data" / "camvid"
FINGERPRINTS = Path(__file__).with_name("camvid_fingerprints.npy")
CELLS = 16
SAME_BITS = 50
SMALLEST_PANEL = 48
NAME = re.compile(r"(0001TP|0006R0|0016E5|Seq05VD)_f?\d{3,}")
PICTURES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
EMBEDDED = re.compile(rb"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR)(?:[A-Za-z0-9+/]|\\n){400,}={0,2}")


def fingerprint(picture):
    """(256,) bool."""
    cells = picture.convert("L").resize((CELLS + 1, CELLS), Image.Resampling.BOX)
    brightness = np.asarray(cells, np.int16)
    return (brightness[:, 1:] > brightness[:, :-1]).ravel()


def load_fingerprints():
    """(N, 256) bool, one row for each photograph of the data set's training and validation frames."""
    return np.unpackbits(np.load(FINGERPRINTS), axis=1).astype(bool)


def make_fingerprints(folder=SHARED):
    """The same, from the photographs; how the file was made: `np.save(FINGERPRINTS, np.packbits(..., axis=1))`."""
    return np.array([fingerprint(Image.open(path)) for path in sorted(folder.glob("*/images/*.jpg"))])


def list_files(root=ROOT):
    """The files that are, or could be, committed."""
    command = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode == 0:
        found = [root / name for name in done.stdout.decode().split("\0") if name]
    else:
        found = [path for path in root.rglob("*") if not any(p.startswith(".") for p in path.relative_to(root).parts)]
    return [path for path in found if path.is_file()]


def find_frames(paths, fingerprints):
    """Say where a photograph, or a photograph's name, is: `path: why`."""
    for path in paths:
        content = path.read_bytes()
        if NAME.search(path.name) or NAME.search(content.decode("latin-1")):
            yield f"{path}: a name"
        for picture in pictures_in(path, content):
            if any(is_known(panel, fingerprints) for panel in panels(picture)):
                yield f"{path}: a photograph"


def pictures_in(path, content):
    """The file as a picture, or the pictures inside a notebook, an HTML or an SVG file."""
    if path.suffix.lower() in PICTURES:
        yield Image.open(io.BytesIO(content)).convert("RGB")
        return
    for match in EMBEDDED.finditer(content):
        code = match.group().replace(b"\\n", b"").rstrip(b"=")
        code = code[: len(code) // 4 * 4] if len(code) % 4 == 1 else code + b"=" * (-len(code) % 4)
        yield Image.open(io.BytesIO(base64.b64decode(code))).convert("RGB")


def is_known(picture, fingerprints):
    return bool(((fingerprints ^ fingerprint(picture)).sum(axis=1) <= SAME_BITS).any())


def panels(picture, depth=6):
    """The picture and its parts, cut along empty rows and columns, as between the panels of a figure."""
    yield picture
    pixels = np.asarray(picture, np.int16)
    drawn = (np.abs(pixels - pixels[0, 0]) > 12).any(axis=2)
    for axis in (0, 1) if depth else ():
        parts = _runs(drawn.any(axis=1 - axis))
        if parts == [(0, drawn.shape[axis])]:
            continue
        for start, stop in parts:
            if stop - start >= SMALLEST_PANEL:
                box = (0, start, picture.width, stop) if axis == 0 else (start, 0, stop, picture.height)
                yield from panels(picture.crop(box), depth - 1)
        return


def _runs(filled):
    """Start and stop of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], filled, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
