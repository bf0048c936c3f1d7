"""Writes the stores of schema 3 in this folder, as they were before stores had sources and additions.

    PYTHONPATH=src:tests/pipeline python tests/storage/data/schema3/make_stores.py

It runs with the code of commit 1a0f8b7. `stores.tar.xz` holds the stores: two small ones, and the dump of the golden
samples that was killed after its first shard. `expected.json` has what the reader of that commit returned for each.
"""

import io
import json
import shutil
import tarfile
import tempfile
from pathlib import Path

from conftest import _small_manifest, _small_record

from alignkd import dump, dump_job
from alignkd.storage import StoreReader, open_writer

HERE = Path(__file__).parent
TESTS = HERE.parents[2]
GOLDEN = TESTS / "golden" / "mobilevlm_v2_tiny"


def write_small(path: Path, backend: str) -> None:
    writer = open_writer(path, _small_manifest().changed(backend=backend))
    for shard in writer.pending_shards():
        with writer.open_shard(shard) as sink:
            for index in writer.planned_samples(shard).tolist():
                if index == 1:
                    sink.quarantine(index, "id 1", "image is damaged")
                else:
                    sink.append(_small_record(index))
            sink.commit()


def write_unfinished(path: Path) -> None:
    nothing = dict.fromkeys(("attention", "vision_top", "vision_all"), "none")
    dump(
        dump_job(
            data={
                "conversations": str(GOLDEN / "v1.json"),
                "images": str(TESTS / "golden" / "images"),
                "template": "v1",
            },
            teacher={
                "checkpoint": str(GOLDEN / "teacher"),
                "vision_config": str(GOLDEN / "clip"),
                "dtype": "float32",
                "sanity": "off",
            },
            store={"path": str(path), "shard_size": 2, **nothing, "logits": {"kind": "topk", "top_k": 3}},
        )
    )
    shutil.rmtree(path / "shards" / "00000001")
    (path / "commits" / "00000001.json").unlink()


def described(path: Path) -> dict[str, object]:
    reader = StoreReader(path, allow_incomplete=True)
    return {
        "manifest_hash": reader.manifest.manifest_hash(),
        "root_hash": reader.root_hash(),
        "num_samples": reader.manifest.num_samples,
        "num_shards": reader.manifest.num_shards,
        "keys": list(reader.keys),
        "dataset_index": reader.dataset_index.tolist(),
        "quarantined": [entry.index for entry in reader.quarantined],
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, found = Path(folder), {}
        for backend in ("zarr", "webdataset"):
            write_small(root / backend, backend)
        write_unfinished(root / "unfinished")
        for path in sorted(root.iterdir()):
            found[path.name] = described(path)
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:xz") as file:
            for path in sorted(root.rglob("*")):
                info = file.gettarinfo(path, str(path.relative_to(root)))
                info.uid = info.gid = info.mtime = 0
                info.uname = info.gname = ""
                file.addfile(info, path.open("rb") if path.is_file() else None)
    (HERE / "stores.tar.xz").write_bytes(packed.getvalue())
    (HERE / "expected.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
