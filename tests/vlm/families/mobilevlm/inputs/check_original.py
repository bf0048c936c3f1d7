"""Compares the ids and pixels stored in the tests with what the original's own libraries give. No test: it needs them.

    python3.11 -m venv original
    original/bin/pip install transformers==4.33.1 "tokenizers<0.14" "numpy<2" pillow==10.2.0 "sentencepiece<0.3" \
        "protobuf<5" pytest hypothesis
    original/bin/python tests/vlm/families/mobilevlm/inputs/check_original.py
"""

import hashlib
import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import numpy as np
import PIL
import transformers
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[4] / "src"))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wrong_pixels() -> list[str]:
    wrong = []
    for name, box, size, pad, stored in load("test_images").ORIGINAL:
        crop = {"height": size, "width": size}
        processor = transformers.CLIPImageProcessor(size={"shortest_edge": size}, crop_size=crop)
        image = Image.open(HERE.parents[3] / "golden" / "images" / name).convert("RGB").crop(box)
        if pad:
            square = Image.new("RGB", (max(image.size),) * 2, tuple(int(mean * 255) for mean in processor.image_mean))
            square.paste(image, tuple((max(image.size) - side) // 2 for side in image.size))
            image = square
        pixels = processor.preprocess(image, return_tensors="np")["pixel_values"][0]
        digest = hashlib.sha256(np.ascontiguousarray(pixels, np.float32).tobytes()).hexdigest()[:16]
        wrong += [] if digest == stored else [f"{name} {box} {size} pad={pad}: {digest}, stored {stored}"]
    return wrong


def wrong_ids() -> list[str]:
    tests, wrong = load("test_tokenizer_legacy"), []
    for case, (files, stored) in tests.ORIGINAL.items():
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(tests.MODEL, folder)
            for name, value in files.items():
                (Path(folder) / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
            tokenizer = transformers.LlamaTokenizer.from_pretrained(folder)
        tokenizer.pad_token = tokenizer.unk_token
        for text, ids in zip(tests.TEXTS, stored, strict=True):
            found = tokenizer(text).input_ids
            wrong += [] if found == ids else [f"{case}, {text!r}: {found}, stored {ids}"]
    return wrong


if __name__ == "__main__":
    problems = wrong_pixels() + wrong_ids()
    print("\n".join(problems) or "all stored pixels and ids are the original's", end="\n")
    print(f"transformers {transformers.__version__}, Pillow {PIL.__version__}")
    sys.exit(bool(problems))
