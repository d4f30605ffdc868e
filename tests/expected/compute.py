"""Computes what the end-to-end tests expect, without any code of Sandpiper.

    python -m venv .venv && .venv/bin/pip install -r requirements.txt
    .venv/bin/python compute.py OUT_DIR

OUT_DIR then holds

- magika.onnx: the model of the `magika` package (Apache-2.0), for the file type example;
- files/: the samples of files/ beside this script, and binary ones made here;
- expected.json: {"digits": [{"file", "digit", "probs", "pixels"}],
                  "iris": [{"row", "label", "probabilities"}],
                  "filetype": [{"file", "label", "score", "model_label"}]};
  files of `digits` lie in examples/digits/images, those of `filetype` in OUT_DIR/files;
- models/: small ONNX models and their answers, see onnx_models.py.

onnxruntime and the official `magika` package give the answers. Pictures pass through Pillow and
the pre-processing below, written from its description and not from the example's source.
"""

import gzip
import io
import json
import random
import shutil
import struct
import sys
import time
import wave
import zipfile
import zlib
from pathlib import Path

import magika
import numpy as np
import onnxruntime
from PIL import Image

import onnx_models

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent.parent / "examples"
DIGITS = EXAMPLES / "digits" / "model" / "digits.onnx"
IRIS = EXAMPLES / "iris" / "model" / "iris.onnx"
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def main():
    if len(sys.argv) != 2:
        raise SystemExit("usage: compute.py OUT_DIR")
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    started = time.time()

    def say(text):
        print(f"{time.time() - started:5.1f} s  {text}", flush=True)

    shutil.copyfile(
        Path(magika.__file__).parent / "models" / "standard_v3_3" / "model.onnx",
        out / "magika.onnx",
    )
    say("magika.onnx")
    expected = {"digits": digits()}
    say(f"digits: {len(expected['digits'])} images, each as its name says")
    expected["iris"] = iris()
    say(f"iris: {len(expected['iris'])} rows")
    expected["filetype"] = filetypes(samples(out / "files"))
    for one in expected["filetype"]:
        model = "" if one["model_label"] == one["label"] else f" (model: {one['model_label']})"
        print(f"           {one['file']}: {one['label']}{model} {one['score']:.3f}")
    say(f"filetype: {len(expected['filetype'])} files")
    (out / "expected.json").write_text(json.dumps(expected, indent=1, allow_nan=False) + "\n")
    count = onnx_models.write(out / "models", DIGITS)
    say(f"models: {count} models")
    say(f"wrote {out}")


# Digits


def digits():
    session = onnxruntime.InferenceSession(DIGITS, providers=["CPUExecutionProvider"])
    answers = []
    for path in sorted((EXAMPLES / "digits" / "images").iterdir()):
        pixels = picture_to_8x8(path)
        (probs,) = session.run(["probs"], {"image": pixels[None, None]})
        digit = int(probs[0].argmax())
        if NAMES[digit] != path.stem.split("-")[0]:
            raise SystemExit(f"{path.name} is taken for a {digit}")
        answers.append(
            {
                "file": path.name,
                "digit": digit,
                "probs": probs[0].tolist(),
                "pixels": pixels.reshape(-1).tolist(),
            }
        )
    return answers


def picture_to_8x8(path):
    """Reads a picture of one digit as f32[8,8], ink 0..1."""
    brightness = luma(path)
    inside = brightness[1:-1, 1:-1]
    border_sum, border_count = brightness.sum() - inside.sum(), brightness.size - inside.size
    ink = 255 - brightness if border_sum > 127 * border_count else brightness
    if ink.max() < 16:
        raise SystemExit(f"{path.name} holds no digit")
    rows, columns = np.nonzero(4 * ink > ink.max())
    ink = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    height, width = ink.shape
    side = max(height, width)
    square = np.zeros((side, side), np.int64)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = ink
    # In eighths of a pixel, pixel j is [8j, 8j+8) and cell i is [side*i, side*(i+1)): the areas
    # are whole numbers, and only the last division rounds.
    overlap = np.zeros((8, side), np.int64)
    for i in range(8):
        for j in range(side):
            overlap[i, j] = max(0, min(side * (i + 1), 8 * (j + 1)) - max(side * i, 8 * j))
    cells = overlap @ square @ overlap.T
    return (cells / cells.max()).astype(np.float32)


def luma(path):
    """Whole numbers 0..255, with transparency over white."""
    with Image.open(path) as image:
        colour = np.asarray(image.convert("RGBA"), np.int64)
    alpha = colour[:, :, 3]
    colour = (colour[:, :, :3] * alpha[:, :, None] + 255 * (255 - alpha[:, :, None]) + 127) // 255
    return (colour @ np.array([299, 587, 114]) + 500) // 1000


# Iris


def iris():
    rows = [
        [5.1, 3.5, 1.4, 0.2],
        [4.4, 2.9, 1.4, 0.2],
        [5.7, 4.4, 1.5, 0.4],
        [7.0, 3.2, 4.7, 1.4],
        [5.5, 2.3, 4.0, 1.3],
        [5.9, 3.2, 4.8, 1.8],
        [6.3, 2.5, 4.9, 1.5],
        [6.3, 3.3, 6.0, 2.5],
        [5.8, 2.7, 5.1, 1.9],
        [7.9, 3.8, 6.4, 2.0],
        [6.0, 3.0, 4.8, 1.8],
        [0.0, 0.0, 0.0, 0.0],
        [-1.0, 1e3, -1e3, 0.5],
    ]
    session = onnxruntime.InferenceSession(IRIS, providers=["CPUExecutionProvider"])
    inputs = {"X": np.array(rows, np.float32)}
    label, probabilities = session.run(["label", "probabilities"], inputs)
    return [
        {"row": row, "label": int(one), "probabilities": three.tolist()}
        for row, one, three in zip(rows, label, probabilities)
    ]


# File types


def samples(directory):
    """Fills the directory with the sample files and returns their paths."""
    directory.mkdir(exist_ok=True)
    for path in (HERE / "files").iterdir():
        shutil.copyfile(path, directory / path.name)
    python = (HERE / "files" / "sample.py").read_bytes()
    noise = random.Random(5)
    powers = (b"%d,%d,%d\n" % (n, n**2, n**3) for n in range(900))
    made = {
        "picture.png": png(),
        "letter.txt.gz": gzip.compress((HERE / "files" / "sample.txt").read_bytes(), mtime=0),
        "two-files.zip": archive(),
        "program.elf": elf(sections=True),
        "tone.wav": tone(),
        "noise.bin": noise.randbytes(3000),
        # Below the model's threshold for a kind, binary and text.
        "no-sections.elf": elf(sections=False),
        "outline.rst": b"Title\n=====\n\n* one\n* two\n",
        # Where the reading of the first and last 4,096 bytes and its stripping show.
        "long.csv": b"n,square,cube\n" + b"".join(powers),
        "python-after-blanks": b" \t\r\n\v\f" * 100 + python + b"\n" * 700,
        "python-after-many-blanks": b" " * 5000 + python,
        "blanks": b" \n" * 50,
        "two-thousand-and-forty-eight-bytes.py": (python * 4)[:2048],
        # Around the eight bytes that the model needs.
        "three-bad-bytes": b"\xff\xfe\x80",
        "seven-bytes": b"import\n",
        "eight-bytes": b"import x",
        "seven-bytes-and-blanks": b"\n\nabcdefg\n\n",
        "eight-accents": "éèàùâêîô".encode(),
    }
    for name, content in made.items():
        (directory / name).write_bytes(content)
    return sorted(directory.iterdir())


def filetypes(paths):
    detector = magika.Magika()
    answers = []
    for path in paths:
        result = detector.identify_bytes(path.read_bytes())
        answers.append(
            {
                "file": path.name,
                "label": str(result.output.label),
                "score": float(result.score),
                "model_label": str(result.dl.label),
            }
        )
    return answers


def png():
    def chunk(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    rows = b"".join(b"\0" + bytes((x * y) % 256 for x in range(32)) for y in range(32))
    header = struct.pack(">IIBBBBB", 32, 32, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def archive():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("sample.txt", "sample.csv"):
            info = zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0))
            file.writestr(info, (HERE / "files" / name).read_bytes(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def elf(sections):
    """A whole x86-64 Linux program that prints a line and ends, with or without section headers."""
    text = b"hello\n"
    base, start = 0x400000, 120
    code = bytes.fromhex("b801000000bf0100000048be") + struct.pack("<Q", base + start + 39)
    code += b"\xba" + struct.pack("<I", len(text)) + bytes.fromhex("0f05b83c00000031ff0f05")
    code = code.ljust(39, b"\x90") + text
    size = start + len(code)
    names = b"\0.text\0.shstrtab\0"
    table = [
        (0,) * 10,
        (1, 1, 6, base + start, start, len(code), 0, 0, 1, 0),
        (7, 3, 0, 0, size, len(names), 0, 0, 1, 0),
    ]
    tail = names + b"".join(struct.pack("<IIQQQQIIQQ", *row) for row in table)
    at, count, strings = (size + len(names), 3, 2) if sections else (0, 0, 0)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    kind = struct.pack("<HHIQQQI", 2, 62, 1, base + start, 64, at, 0)
    kind += struct.pack("<HHHHHH", 64, 56, 1, 64, count, strings)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    return ident + kind + segment + code + (tail if sections else b"")


def tone():
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        square = (4000 if n // 9 % 2 else -4000 for n in range(1500))
        file.writeframes(b"".join(struct.pack("<h", sample) for sample in square))
    return buffer.getvalue()


if __name__ == "__main__":
    main()
