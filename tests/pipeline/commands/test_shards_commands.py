"""Every `alignkd shards` command over real stores, as people and as scripts use it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from prepared_processes import PreparedProcesses
from safetensors import safe_open
from safetensors.numpy import load_file

from alignkd.pipeline.cli import main
from alignkd.pipeline.commands.shards import shards
from alignkd.pipeline.shards.verify import NOT_CHECKED, attention_line, labels_line
from alignkd.storage import Record, StoreReader, as_float32, open_writer
from alignkd.storage.tools.verify.attention_sums import AttentionSums
from alignkd.storage.tools.verify.label_shift import LabelVerdict, Outcome

ROOT = Path(__file__).parents[3]
KINDS: dict[str, dict[str, Any]] = {
    "compact": {"profile": "compact", "inputs": "embed", "backend": "webdataset"},
    "hidden": {"profile": "exact"},
}


@pytest.fixture(scope="module")
def stores(
    tmp_path_factory: pytest.TempPathFactory,
    golden: Path,
    golden_images: Path,
    prepared: PreparedProcesses,
    patience: float,
) -> dict[str, Path]:
    """Golden samples dumped: `compact` (tar, embedded images, nucleus) and `hidden` (zarr)."""
    folder = tmp_path_factory.mktemp("stores")
    model = {"checkpoint": str(golden / "teacher"), "vision_config": str(golden / "clip"), "dtype": "float32"}
    for name, store in KINDS.items():
        data = {"conversations": str(golden / "v1.json"), "images": str(golden_images), "template": "v1"}
        sections = {"data": data, "teacher": model, "store": {"path": str(folder / name), **store}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(sections))
    dump = "import sys; from alignkd.pipeline.cli import main\n"
    dump += "[main(['dump', n], standalone_mode=False) for n in sys.argv[1:]]"
    process = prepared.start("-c", dump, *(folder / f"{name}.yaml" for name in KINDS))
    assert process.wait(patience) == 0, process.errors()
    return {name: folder / name for name in KINDS}


@pytest.fixture(scope="module")
def small_store(tmp_path_factory: pytest.TempPathFactory, write_small_store: Callable[[Path], Path]) -> Path:
    """Five samples, one of them quarantined, top-3 logits; see `write_small_store`."""
    return write_small_store(tmp_path_factory.mktemp("small") / "store")


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(main, ["shards", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def run_json(*arguments: object, code: int = 0) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def one_line(result: Result) -> str:
    assert result.exit_code == 1 and result.stderr.startswith("alignkd: "), result.output
    assert len(result.stderr.strip().splitlines()) == 1
    return result.stderr


def test_ls_and_its_root_hash(stores: dict[str, Path], small_store: Path) -> None:
    listing = run_json("ls", stores["compact"])
    assert listing["records"] == 4 and listing["root_hash"] == StoreReader(stores["compact"]).root_hash()
    shown = run("ls", small_store).stdout
    assert "4 records, 1 unusable" in shown and "logits topk top_k 3 float16" in shown


def test_ls_lists_unusable_samples_with_their_reasons(stores: dict[str, Path], small_store: Path) -> None:
    (sample,) = StoreReader(small_store).quarantined
    found = run_json("ls", small_store, "--unusable")
    assert found == [{"shard": 0, "index": sample.index, "id": sample.id, "reason": sample.reason}]
    line, total = run("ls", small_store, "--unusable").stdout.splitlines()
    assert line == f"shard 0, sample {sample.id!r} (index {sample.index}): {sample.reason}"
    assert total == "1 unusable samples"
    assert run("ls", stores["compact"], "--unusable").stdout == "0 unusable samples\n"


@pytest.mark.parametrize("name", KINDS)
def test_show_tells_pieces_and_probabilities(stores: dict[str, Path], golden: Path, name: str) -> None:
    seen = run_json("show", stores[name], "--id", "ft-1")
    expected = load_file(golden / "ft-1.safetensors")["teacher.logits"].astype(np.float64)
    probs = np.exp(expected) / np.exp(expected).sum(1, keepdims=True)
    for row, exact in zip(seen["supervised"], probs, strict=True):
        assert row["top"][0]["id"] == exact.argmax()
        np.testing.assert_allclose([e["prob"] for e in row["top"]], np.sort(exact)[::-1][:5], rtol=0.03)
        assert row["label_prob"] == pytest.approx(exact[row["label"]], rel=0.03)
    assert "".join(seen["input_pieces"]).count("\u2581cat") == 2 and "<image>" in seen["input_pieces"]
    learnt = [
        piece for piece, supervised in zip(seen["input_pieces"], seen["input_supervised"], strict=True) if supervised
    ]
    assert learnt == [row["label_piece"] for row in seen["supervised"]] and learnt[-1] == "</s>"
    page = run("show", stores[name], "--id", "ft-1").stdout
    assert "[\u2581c] [at]" in page and f"label {learnt[0]}" in page
    grid = page.splitlines()[-12:]
    assert [len(line) for line in grid] == [36] * 12
    ranked = {int(rank): at for at, rank in enumerate("".join(grid).replace(".", " . ").split()) if rank != "."}
    assert [ranked[rank] for rank in range(1, 17)] == seen["focus"]


def test_show_without_tokenizer_and_with_one(small_store: Path, golden: Path) -> None:
    seen = run_json("show", small_store)
    assert seen["input_pieces"][0] == "#1" and seen["index"] == 0 and seen["supervised"][0]["top"][0]["piece"] == "#3"
    message = one_line(run("show", small_store, "--tokenizer", golden / "teacher" / "tokenizer.model"))
    assert "512 pieces, the store's teacher 50" in message
    assert "no record with --id nobody" in one_line(run("show", small_store, "--id", "nobody"))
    assert "the sample is unusable: " in one_line(run("show", small_store, "--index", "1"))
    assert run("show", small_store, "--id", "a", "--index", "1").exit_code == 2


def test_show_draws_the_attention(stores: dict[str, Path], golden_images: Path, tmp_path: Path) -> None:
    png = tmp_path / "pictures" / "one.png"
    assert run("show", stores["compact"], "--id", "ft-1", "--png", png, "--head", "3").exit_code == 0
    assert png.read_bytes().startswith(b"\x89PNG") and png.stat().st_size > 10_000
    plain = ("show", stores["hidden"], "--id", "ft-1", "--png", png)
    assert "--images" in one_line(run(*plain, "--images", tmp_path / "none"))
    assert run(*plain, "--images", golden_images, "--token", "animal").exit_code == 1
    assert "the store has heads 0..7" in one_line(run(*plain, "--images", golden_images, "--head", "8"))
    assert "is at 2 positions; choose one" in one_line(run(*plain, "--images", golden_images, "--token", "is"))
    (tmp_path / "chelsea.png").write_bytes((golden_images / "coffee.png").read_bytes())
    assert "the teacher saw" in one_line(run(*plain, "--images", tmp_path))


def test_verify_in_three_depths(stores: dict[str, Path], tmp_path: Path, small_store: Path) -> None:
    for options in ([], ["--quick"], ["--deep"]):
        report = run_json("verify", stores["hidden"], *options)
        assert report["ok"] and report["num_records"] == 4 and ("labels" in report) == (options == ["--deep"])
    assert run_json("verify", stores["compact"], "--deep")["labels"]["outcome"] == "no opinion"  # random weights
    assert (
        "labels: not checked: the teacher's predictions are close to uniform"
        in run("verify", stores["compact"], "--deep").stdout
    )
    assert "labels: " in run("verify", small_store, "--deep").stdout
    assert run("verify", small_store, "--deep", "--quick").exit_code == 2


def test_a_check_that_was_not_made_is_explained() -> None:
    """Every outcome is either a verdict or has a reason; so has a store without attention."""
    assert NOT_CHECKED.keys() | {"ok", "shifted", "implausible"} == set(get_args(Outcome))
    for outcome, reason in NOT_CHECKED.items():
        assert labels_line(LabelVerdict(outcome=outcome)) == f"labels: not checked: {reason}"  # type: ignore[arg-type]
    assert "takes it from the teacher's stem" in attention_line(AttentionSums(), from_stem=True)
    assert "no record has any" in attention_line(AttentionSums(), from_stem=False)


def test_verify_names_the_records_that_are_lost(stores: dict[str, Path], tmp_path: Path) -> None:
    assert run("convert", stores["hidden"], tmp_path / "copy", "--backend", "webdataset").exit_code == 0
    [tar] = (tmp_path / "copy").rglob("*.tar")
    data = bytearray(tar.read_bytes())
    reader = StoreReader(tmp_path / "copy")
    attention = as_float32(reader[2].attention).astype(np.float16).tobytes()  # type: ignore[arg-type]
    data[data.index(attention) + 1000] ^= 4
    tar.write_bytes(data)
    report = run_json("verify", tmp_path / "copy", code=1)
    assert [record["index"] for record in report["damaged_records"]] == [int(reader.dataset_index[2])]
    assert "attention" in report["problems"][0]["message"]


def test_verify_deep_catches_targets_off_by_one(stores: dict[str, Path], tmp_path: Path) -> None:
    """The golden teacher is random, so its most probable tokens become the labels; then targets move by one."""
    reader = StoreReader(stores["hidden"])
    head = {name: reader.attachment(name) for name in reader.manifest.attachments}
    rows = {record["index"]: record for record in (run_json("show", stores["hidden"], "--index", i) for i in range(4))}
    for name, shift in (("good", 0), ("bad", 1)):
        writer = open_writer(tmp_path / name, reader.manifest, head)
        with writer.open_shard(0) as sink:
            for index in writer.planned_samples(0).tolist():
                record = reader[reader.find(index=index)[0]]
                most_likely = [row["top"][0]["id"] for row in rows[index]["supervised"]]
                labels = record.labels.copy()
                labels[labels != -100] = np.roll(most_likely, shift)
                sink.append(Record(**{**record.__dict__, "labels": labels}))
            sink.commit()
    good = run_json("verify", tmp_path / "good", "--deep")
    assert good["ok"] and good["labels"]["outcome"] == "ok"
    assert good["labels"]["perplexity"] * 2 < good["labels"]["perplexity_next"]
    bad = run("verify", tmp_path / "bad", "--deep")
    assert bad.exit_code == 1 and "logits are shifted by one" in bad.stderr
    assert run("verify", tmp_path / "bad").exit_code == 0  # every byte is as written


def test_stats_says_what_is_stated_and_what_is_measured(stores: dict[str, Path]) -> None:
    found = run_json("stats", stores["compact"], "--exact", stores["hidden"])
    columns = {column["column"]: column for column in found["columns"]}
    assert columns["attention"]["codec"] == "sqrt_u8" and columns["entry_ids"]["codec"] == "nucleus float16"
    stated = {bound["field"]: bound for bound in found["stated"]["bounds"]}
    measured = {entry["field"]: entry for entry in found["measured"]}
    assert 0 < measured["attention"]["relative_l2"] < stated["attention"]["relative_l2"] < 0.02
    assert all(entry["beyond"] == 0 for entry in measured.values())
    text = run("stats", stores["compact"]).stdout
    assert (
        "not measured" in text
        and "the label is among the entries at 82 of 82" in text
        and "measured against" not in text
    )


def test_diff_exit_codes(stores: dict[str, Path]) -> None:
    same = run_json("diff", stores["hidden"], stores["compact"], "--ignore", "image_bytes")
    assert (
        same["equal"]
        and same["matched"] == 4
        and {"attention", "logits"} <= {entry["field"] for entry in same["fields"]}
    )
    different = run("diff", stores["hidden"], stores["compact"])
    assert different.exit_code == 1 and "image_bytes: differs in 3 records" in different.stdout
    assert run("diff", stores["hidden"], stores["hidden"]).stdout == "equal: 4 records in both\n"
    exact = run("diff", stores["hidden"], stores["compact"], "--ignore", "image_bytes", "--tolerance", "0")
    assert exact.exit_code == 1 and "beyond the tolerance" in exact.stdout


def test_diff_of_a_stem_store_names_what_is_not_compared(write_config: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("stem", "compact"):
        config = write_config(f"{name}.yaml", drop=("student", "train"))
        sections = yaml.safe_load(config.read_text()) | {"store": {"path": str(tmp_path / name), "profile": name}}
        config.write_text(yaml.safe_dump(sections))
        assert CliRunner().invoke(main, ["dump", str(config)]).exit_code == 0
    for ours, theirs, holder in (("stem", "compact", "B"), ("compact", "stem", "A")):
        found = run("diff", tmp_path / ours, tmp_path / theirs)
        (line,) = [line for line in found.stdout.splitlines() if line.startswith("not compared")]
        assert f"stored only in {holder}: attention, vision_embeddings, vision_top_embeddings, vision_top_index" in line
        assert "differs in" not in found.stdout and found.exit_code == 1
        rest = run("diff", tmp_path / ours, tmp_path / theirs, *line.partition("alone: ")[2].split())
        assert rest.exit_code == 0 and rest.stdout.endswith("equal: 4 records in both\n")


def test_convert_and_index(stores: dict[str, Path], tmp_path: Path) -> None:
    assert run_json("convert", stores["hidden"], tmp_path / "tar", "--backend", "webdataset")["num_records"] == 4
    assert "nothing left to do" in run("convert", stores["hidden"], tmp_path / "tar", "--backend", "webdataset").stdout
    [idx] = (tmp_path / "tar").rglob("*.idx")
    idx.unlink()
    assert run("index", tmp_path / "tar").exit_code == 1
    assert run_json("index", "--rebuild", tmp_path / "tar")["rebuilt"] == 1
    assert run("diff", stores["hidden"], tmp_path / "tar").exit_code == 0
    assert "only webdataset stores have an index" in one_line(run("index", stores["hidden"]))


def test_export_decoded_and_raw(stores: dict[str, Path], tmp_path: Path) -> None:
    store, out, raw = stores["compact"], tmp_path / "one.safetensors", tmp_path / "raw.safetensors"
    assert run("export", store, "--id", "ft-1", "--out", out).exit_code == 0
    listed = run_json("export", store, "--id", "ft-1", "--out", raw, "--raw")["tensors"]
    decoded, stored = load_file(out), load_file(raw)
    assert decoded["tqv_attention"].dtype == np.float32 and stored["attention"].dtype == np.uint8
    by_hand = stored["attention_scale"].astype("f4")[..., None] * (stored["attention"] / np.float32(255)) ** 2
    np.testing.assert_allclose(decoded["tqv_attention"], by_hand.transpose(1, 0, 2), rtol=1e-5)
    scale = stored["vision_embeddings_scale"].astype("f4")
    np.testing.assert_allclose(decoded["vision_embeddings"], stored["vision_embeddings"] * scale, rtol=1e-5)
    assert decoded["image_bytes_0"].tobytes().startswith(b"\x89PNG") and listed["attention"] == [121, 8, 144]
    with safe_open(raw, "np") as file:
        assert json.loads(file.metadata()["codecs"])["attention"]["codec_id"] == "sqrt_u8"


def test_merge_and_gc(stores: dict[str, Path], small_store: Path, tmp_path: Path) -> None:
    assert "are in two stores" in one_line(run("merge", small_store, small_store, tmp_path / "all"))
    merged = run_json("merge", small_store, small_store, tmp_path / "all", "--keep-first", "--backend", "webdataset")
    assert (merged["num_records"], merged["num_quarantined"], len(merged["duplicates"])) == (4, 6, 4)
    assert "cannot be merged" in one_line(run("merge", small_store, stores["hidden"], tmp_path / "none"))
    assert run("merge", small_store, tmp_path / "none").exit_code == 2
    (tmp_path / "all" / ".tmp-dead").mkdir()
    assert "1 leftovers would be removed" in run("gc", tmp_path / "all", "--dry-run").stdout
    assert run_json("gc", tmp_path / "all", "--older-than", "1h")["leftovers"][0]["state"] == "young"
    assert run_json("gc", tmp_path / "all")["leftovers"][0]["state"] == "removed"
    assert run("gc", tmp_path / "all", "--older-than", "soon").exit_code == 2


def test_select_writes_a_list_that_training_takes(
    stores: dict[str, Path], small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For people and as JSON; the same list twice, nothing of others is replaced, other samples are refused."""
    store, out = stores["hidden"], tmp_path / "half.json"
    reference = stores["compact"]
    found = run("select", store, "--by", "difference", "--reference", reference, "--out", out)
    assert found.exit_code == 0, found.output
    assert f"{store}: by difference (ratio 0.5, reference {reference}): 2 of 4 samples kept, 2 dropped" in found.output
    assert f"train from it with `store: [{{path: {store}, samples: {out}}}]`" in found.output
    listed = json.loads(out.read_text())
    assert listed["counts"] == {"dropped": 2, "kept": 2, "without_score": 0} and len(listed["kept"]) == 2
    again = run("select", store, "--by", "perplexity", "--max", 1e9, "--out", out, "--json")
    document = json.loads(again.output)
    assert (document["kept"], document["dropped"], document["settings"]) == (4, 0, {"max": 1e9})
    monkeypatch.chdir(tmp_path)
    assert run("select", store, "--by", "perplexity", "--ratio", 1, "--out", "here.json").exit_code == 0
    rank = json.loads(run("select", store, "--by", "label-rank", "--k", 600, "--out", out, "--json").output)
    assert rank["kept"] == 4 and rank["undecided"] == 0 and rank["settings"] == {"k": 600, "min": 1.0}

    (tmp_path / "mine.json").write_text("{}")
    for arguments, code, message in (
        (["--by", "perplexity", "--ratio", 0.5, "--out", tmp_path / "mine.json"], 1, "mine.json: already exists"),
        (["--by", "perplexity", "--ratio", 0.5, "--out", store / "list.json"], 1, "lies in the store"),
        (["--by", "visual-advantage", "--min", 0.1, "--out", out], 1, "keeps no visual_advantage; dump the data with"),
        (["--by", "perplexity", "--out", out], 2, "--by perplexity needs --ratio, --min or --max"),
        (["--by", "difference", "--out", out], 2, "--by difference needs --reference"),
        (["--by", "label-rank", "--out", out], 2, "--by label-rank needs --k"),
        (["--by", "perplexity", "--k", 3, "--max", 9, "--out", out], 2, "--k belongs to --by label-rank"),
        (["--by", "perplexity", "--min", 3, "--max", 2, "--out", out], 2, "--min is 3, more than --max 2"),
        (["--by", "perplexity", "--min", "nan", "--out", out], 2, "'--min': nan is not finite, expected a number"),
        (["--by", "perplexity", "--ratio", "nan", "--out", out], 2, "'--ratio': nan is not finite"),
        (["--by", "perplexity", "--ratio", 0.5, "--max", 2, "--out", out], 2, "give one kind"),
        (["--by", "difference", "--reference", small_store, "--out", out], 1, "give a reference of the same data"),
    ):
        refused = run("select", store, *arguments)
        assert refused.exit_code == code and message in refused.output, refused.output


def test_documents_name_every_command() -> None:
    text = (ROOT / "README.md").read_text() + "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    assert not [name for name in shards.commands if f"alignkd shards {name} " not in text]


LOOKING = """
import sys
from alignkd.pipeline.cli import main
store, out = sys.argv[1:]
for command in (["ls", store], ["show", store, "--index", "0"], ["stats", store], ["verify", store],
                ["diff", store, store], ["export", store, "--index", "0", "--out", out + "/x.safetensors"],
                ["convert", store, out + "/tar", "--backend", "webdataset"], ["index", out + "/tar"], ["gc", store],
                ["select", store, "--by", "label-rank", "--k", "3", "--out", out + "/list.json"]):
    try:
        main(["shards", *command], standalone_mode=False)
    except SystemExit as stop:
        assert not stop.code, command
try:
    main(["shards", "verify", "--deep", store], standalone_mode=False)
except SystemExit as stop:
    assert stop.code == 1  # made-up numbers are no attention
heavy = ("torch", "transformers", "deepspeed", "webdataset", "matplotlib", "PIL")
sys.exit(str([name for name in heavy if name in sys.modules]))
"""


def test_no_command_loads_what_is_heavy(small_store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOOKING, str(small_store), str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert found.stderr.splitlines()[-1] == "[]", found.stderr
