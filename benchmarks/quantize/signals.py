"""Images and sounds to calibrate and evaluate on, out of ``data``'s photographs and text lines or synthesised."""

from __future__ import annotations

import numpy as np
from scipy import ndimage, signal

from benchmarks.quantize.task import Array

Rng = np.random.Generator


def photographs(images: dict[str, Array]) -> list[Array]:
    """RGB, H × W × 3, uint8, in the order of their names."""
    found = []
    for name in sorted(images):
        x = images[name]
        x = x.astype(np.uint8) * 255 if x.dtype == bool else x
        found.append(np.repeat(x[..., None], 3, axis=2) if x.ndim == 2 else x[..., :3])
    return found


def crop(image: Array, size: int, rng: Rng, left: bool | None = None) -> Array:
    """A random square of the image, scaled to ``size`` and turned over by chance; of one half of it if asked."""
    if left is not None:
        middle = image.shape[1] // 2
        image = image[:, :middle] if left else image[:, middle:]
    side = int(rng.integers(min(size, *image.shape[:2]) // 2 + 1, min(image.shape[:2]) + 1))
    y, x = (int(rng.integers(0, extent - side + 1)) for extent in image.shape[:2])
    part = image[y : y + side, x : x + side].astype(np.float32)
    part = part[:, ::-1] if rng.random() < 0.5 else part
    grid = (np.arange(size) + 0.5) * side / size - 0.5
    rows, columns = np.meshgrid(grid, grid, indexing="ij")
    if side > size:  # averages what falls on one pixel
        part = ndimage.uniform_filter(part, (max(1, side // size), max(1, side // size), 0))
    return np.stack(
        [ndimage.map_coordinates(part[..., c], [rows, columns], order=1, mode="nearest") for c in range(3)], axis=2
    )


def crops(images: list[Array], count: int, size: int, rng: Rng, left: bool | None = None) -> tuple[Array, Array]:
    """``count`` crops (N × size × size × 3, 0 to 255) of all images in turn, and which image each is from."""
    which = np.arange(count) % len(images)
    return np.stack([crop(images[i], size, rng, left) for i in which]), which


def page(lines: Array, rng: Rng) -> Array:
    """A page of 320 × 320 with six of the text lines (N × 3 × 48 × 320), as a text detector meets them."""
    chosen = lines[rng.choice(len(lines), 6, replace=False)]
    paper = np.full((3, 320, 320), float(np.median(chosen)), np.float32)
    for i, line in enumerate(chosen):
        paper[:, 8 + 52 * i : 56 + 52 * i] = line
    return np.clip(paper + rng.normal(0, 3, paper.shape), 0, 255).astype(np.float32)


FORMANTS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410))
"""Of five vowels, in Hz (Peterson and Barney, 1952)."""


def speech(seconds: float, rng: Rng, rate: int = 16000) -> Array:
    """Something that a voice detector takes for speech at times: vowels and hisses with pauses, over noise."""
    length = int(seconds * rate)
    out = rng.normal(0, 0.002, length)
    at = int(rng.uniform(0.1, 0.5) * rate)
    while at < length:
        for _ in range(int(rng.integers(2, 8))):
            n = int(rng.uniform(0.08, 0.25) * rate)
            pitch = rng.uniform(90, 220) * (1 + 0.1 * np.sin(np.linspace(0, 3, n) + rng.uniform(0, 6)))
            pulses = np.diff(np.floor(np.cumsum(pitch) / rate), prepend=0)
            voiced = signal.lfilter([1], [1, -0.95], pulses)
            for f in FORMANTS[rng.integers(len(FORMANTS))]:
                radius, angle = np.exp(-np.pi * 80 / rate), 2 * np.pi * f * rng.uniform(0.93, 1.07) / rate
                voiced = signal.lfilter([1 - radius], [1, -2 * radius * np.cos(angle), radius**2], voiced)
            hiss_length = int(rng.uniform(0.02, 0.08) * rate)
            hiss = signal.lfilter([1, -0.9], [1], rng.normal(0, 0.3, hiss_length))
            voiced *= np.hanning(n) / (np.abs(voiced).max() + 1e-9)
            syllable = np.concatenate([hiss * np.hanning(hiss_length) * 0.3, voiced]) * rng.uniform(0.1, 0.5)
            part = out[at : at + len(syllable)]
            part += syllable[: len(part)]
            at += int(len(syllable) * 0.9)
        at += int(rng.uniform(0.2, 1.2) * rate)
    return out.astype(np.float32)


def music(samples: int, rng: Rng, rate: int = 22050) -> Array:
    """Struck strings: some notes with decaying harmonics."""
    out = rng.normal(0, 0.001, samples)
    for _ in range(int(rng.integers(4, 14))):
        start = int(rng.integers(0, samples - rate // 8))
        t = np.arange(samples - start) / rate
        f = 440 * 2 ** ((rng.integers(40, 88) - 69) / 12)
        for k in range(1, 9):
            if k * f < rate / 2:
                out[start:] += 0.2 / k**1.3 * np.exp(-t * (2 + k)) * np.sin(2 * np.pi * k * f * t + rng.uniform(0, 6))
    return (out / max(1.0, float(np.abs(out).max()))).astype(np.float32)
