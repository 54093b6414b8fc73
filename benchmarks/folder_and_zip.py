"""The same images from a folder and from a zip of it, at 96 px: train, eval and predict agree.

To the bit: every untimed number of the log, every weight, every score.

    python benchmarks/folder_and_zip.py --data ants-bees
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import safetensors.numpy

from recorded import record, skipway

TIMED = ("seconds", "images_per_second", "waiting", "memory_mib")


def zipped(folder: Path, into: Path) -> Path:
    """The folder as a zip, its own name the root inside."""
    with zipfile.ZipFile(into, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))
    return into


def outcome(data: Path, run: Path, epochs: str, images: list[str]) -> dict[str, Any]:
    """Digest of the weights, the untimed log, and the answers of eval and predict."""
    trained = skipway("train", data, "--out", run, "--epochs", epochs, "--set", "data.size=96")
    weights = safetensors.numpy.load_file(run / "best.safetensors")
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].tobytes())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": digest.hexdigest(),
        "log": [{k: v for k, v in row.items() if k not in TIMED} for row in rows],
        "metrics": trained["metrics"],
        "eval": skipway("eval", run, data),
        "predict": skipway("predict", run, *images),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", default="10")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        archive = zipped(options.data, Path(place) / f"{options.data.name}.zip")
        images = sorted(map(str, (options.data / "val").rglob("*.jpg")))[:20]
        folder, packed = (
            outcome(data, Path(place) / name, options.epochs, images)
            for name, data in (("folder", options.data), ("zip", archive))
        )
    equal = {key: folder[key] == packed[key] for key in folder}
    record(
        "folder_and_zip",
        {
            "epochs": options.epochs,
            "equal": equal,
            "weights_sha256": [folder["weights"], packed["weights"]],
            "metrics": [folder["metrics"], packed["metrics"]],
        },
    )
    sys.exit(0 if all(equal.values()) else 1)


if __name__ == "__main__":
    main()
