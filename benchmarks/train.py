"""Cost of distillation: a step of plain fine-tuning, of Align-KD from a store, from the teacher's stem (logits from a
store), and with the teacher in the same process.

    python benchmarks/train.py [--tokens 512] [--micro-batch 1] [--rounds 6] [--markdown]
    python benchmarks/train.py --layers 8 --teacher-layers 8 --vocabulary 4096
    python benchmarks/train.py --student MobileVLM_V2-1.7B --teacher MobileVLM_V2-7B --dtype bfloat16 --no-optimizer \
        --teacher-layers 1 --samples 1 --variant supervised --variant stored
    python benchmarks/train.py --layers 8 --teacher-layers 8 --vocabulary 4096 --micro-batch 8 --samples 8 \
        --variant supervised --variant stored --beside before
    python benchmarks/train.py --objectives all --rounds 4 --write-docs
    python benchmarks/train.py --variant supervised --variant stored2 --variant stem --variant stem2 --variant stem3
    python benchmarks/train.py --student MobileVLM_V2-1.7B --teacher MobileVLM_V2-7B --dtype bfloat16 \
        --optimizer adamw_8bit --micro-batch 4 --samples 32 --cap-gib 24

`stored2`, `stem2` and `stem3` compare the attention of the first two or three layers, of a store or of a stem of that
depth. They are measured where `--variant` names them.

All variants train the same student on the same batches with the code of the product, each in its own process. In each
round, each process does one step while the others wait, so that a ratio compares figures of the same time. "CPU" is the
processor time of the training process, which other work on the machine affects less than the seconds of a step. Plain
fine-tuning reads a store without targets. Weights are random, images are real handwriting, texts are as long as
`--tokens` allows, and the stores are dumped by `alignkd dump`'s own function.

Memory is the device's own figure on CUDA; on a CPU the sum of all living tensors, counted by a dispatch mode in a step
after the timed ones.

The default pair has the depths of the real one, 24 and 32 layers, at a quarter of its width (heads of 64 instead of
128), and a quarter of its vocabulary. The additional work of distillation does not grow with depth: one layer's
attention rows, the logits, the targets. So the first layer and the output head have the same share of all matrix
products as in the real student. Elementwise work (softmax, divergence, decoding) has four times the share that it has
at the real width, so the ratios are too high rather than too low. `--layers 8 --teacher-layers 8 --vocabulary 4096`
is the student of 28 M parameters of earlier figures.

`--no-optimizer` leaves out AdamW and its state: only forward and backward pass with weights in their own
dtype, for shapes whose state does not fit. Each process then also does a step of plain fine-tuning before each of its
steps, because processes differ by more than the measured effect; "in one process" compares these two steps. `--beside
plain` does the same with an optimiser; `--beside before` does a step with the attention loss as it was before its
queries and keys were made contiguous once and its chunks grew with the device (`cases/attention_before.py`).
`--objectives` compares objectives with plain fine-tuning, each in a process of its own that does both steps in turn:
presets (`docs/objectives.md`), and terms and divergences alone. `--at-once` of them run at the same time with one
thread each; ratios are of processor time. They read the targets of all objectives from two stores, one with a nucleus
and one with hidden states in place of logits, which cost a product with the teacher's head.
`--teacher-layers` also makes an official model shallower: stored targets keep their shapes, and the teacher fits if the
variant with the teacher is not measured.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import click
from cases.measuring import machine
from cases.objective_variants import CENTRES, ObjectiveVariant, objective_variants, store_of
from demo_rows.document_marks import write_between_marks
from real_shape import write_digits, write_random_checkpoint

from alignkd.pipeline.config.yaml_core import dump_yaml
from alignkd.student_train.config import OptimizerName
from alignkd.vlm.data.turns import Turn
from alignkd.vlm.families.mobilevlm.model.sizes import MEMBERS, official_config
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_preparation

DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
OBJECTIVES_MARK = "table of benchmarks/train.py --objectives"
VARIANTS = {
    "supervised": "(a) supervised only",
    "stored": "(b) from the store",
    "live": "(c) live teacher",
    "stem": "(d) from the stem",
    "stored2": "(e) from the store, layers 0 and 1",
    "stem2": "(f) from a stem of depth 2",
    "stem3": "(g) from a stem of depth 3",
}
BY_DEFAULT = ("supervised", "stored", "live", "stem")
QUESTION = "<image>\nWhich digit is written here, and how sure can one be of it?"
SENTENCE = "It is a {digit}, written by hand; the strokes leave little doubt. "
NO_TARGETS = {"attention": "none", "vision_all": "none", "vision_top": "none", "logits": {"kind": "none"}}
HEAD_SIZE = 64


@click.command()
@click.option("--student", default="small", show_default=True, help="small, or a member of the family.")
@click.option("--teacher", default="small", show_default=True, help="small, or a member of the family.")
@click.option("--layers", type=int, help="Of the student; default 24 of the small one.")
@click.option("--teacher-layers", type=int, help="Default 32 of the small one.")
@click.option("--width", default=512, show_default=True, help="Of the small student; its teacher has twice as much.")
@click.option("--vocabulary", default=8192, show_default=True, help="Of the small models.")
@click.option("--tokens", default=512, show_default=True, help="Length of every sample, vision tokens included.")
@click.option("--samples", default=4, show_default=True)
@click.option("--micro-batch", default=1, show_default=True)
@click.option("--accumulate", default=1, show_default=True, help="Micro-batches per step.")
@click.option("--objectives", help="Names of objectives, separated by commas, or all, in place of the variants.")
@click.option("--at-once", default=2, show_default=True, help="Objectives that are measured at the same time.")
@click.option("--rounds", default=6, show_default=True, help="Timed steps of each; one more warms up.")
@click.option("--profile", type=click.Choice(["compact", "exact"]), default="compact", show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--optimizer", type=click.Choice(get_args(OptimizerName)), default="adamw", show_default=True)
@click.option("--gradient-checkpointing", is_flag=True, help="train.gradient_checkpointing")
@click.option("--no-optimizer", is_flag=True, help="Forward and backward only, by torch alone.")
@click.option(
    "--beside", type=click.Choice(["plain", "before"]), help="Another step in each process, before each step."
)
@click.option("--data-workers", default=1, show_default=True)
@click.option("--variant", type=click.Choice(list(VARIANTS)), multiple=True, help="Only these; default the first 4.")
@click.option("--cap-gib", type=float, help="CUDA memory that (a) and (b) may use, as of a smaller card.")
@click.option("--one-at-a-time", is_flag=True, help="One after the other, where one device cannot hold all.")
@click.option("--out", type=click.Path(path_type=Path), help="Keep checkpoints and stores here; default: nowhere.")
@click.option("--markdown", is_flag=True, help="A table for docs/benchmarks.md.")
@click.option("--write-docs", is_flag=True, help="Put the table of --objectives into docs/benchmarks.md.")
def main(
    out: Path | None,
    variant: tuple[str, ...],
    objectives: str | None,
    at_once: int,
    rounds: int,
    markdown: bool,
    write_docs: bool,
    **options: Any,
) -> None:
    """Measure time and memory of a step of each variant."""
    print(f"`{' '.join(['python benchmarks/train.py', *sys.argv[1:]])}`\n\n{machine()}\n", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = out or Path(temporary)
        if objectives is not None:
            chosen = named_objectives(objectives)
            configs = prepare_objectives(folder, chosen, **options)
            found = measure_objectives(configs, rounds, at_once)
            print(objective_table(chosen, found, markdown))
            if write_docs:
                text = textwrap.fill(f"{machine()}; {at_once} at a time, one thread each; {rounds} rounds.", 100)
                write_between_marks(DOCUMENT, OBJECTIVES_MARK, f"{text}\n\n{objective_table(chosen, found, True)}")
            return
        names = variant or BY_DEFAULT
        configs = prepare(folder, names, **options)
        given = {name: options[name] for name in ("one_at_a_time", "cap_gib", "no_optimizer", "beside")}
        found = measure(configs, names, rounds, **given)
    print(table(found, markdown))


def prepare(
    out: Path,
    names: Sequence[str],
    *,
    student: str,
    teacher: str,
    layers: int | None,
    teacher_layers: int | None,
    width: int,
    vocabulary: int,
    tokens: int,
    samples: int,
    micro_batch: int,
    accumulate: int,
    profile: str,
    dtype: str,
    optimizer: str,
    gradient_checkpointing: bool,
    data_workers: int,
    **_: Any,
) -> dict[str, Path]:
    """Make checkpoints, data and stores; return the configuration of each variant in `names`."""
    write_inputs(out, student, teacher, layers, teacher_layers, width, vocabulary, samples, tokens)
    shared = {
        "micro_batch": micro_batch,
        "global_batch": micro_batch * accumulate,
        "optimizer": optimizer,
        "gradient_checkpointing": gradient_checkpointing,
        "data_workers": data_workers,
    }
    configs = {}
    for variant, targets, layers_compared in (
        ("supervised", NO_TARGETS, 0),
        ("stored", {"profile": profile}, 0),
        ("stem", {"profile": "stem"}, 0),
        ("stored2", {"profile": profile, "attention": {"layers": [0, 1]}}, 2),
        ("stem2", {"profile": "stem", "attention": {"layers": [0, 1]}}, 2),
        ("stem3", {"profile": "stem", "attention": {"layers": [0, 1, 2]}}, 3),
    ):
        if variant not in names and not (variant == "stored" and "live" in names):
            continue
        compared = {"attention_layers": {number: number for number in range(layers_compared)}}
        train = {
            "preset": "supervised" if variant == "supervised" else "paper",
            "losses": compared if layers_compared else {},
            **shared,
        }
        configs[variant] = write_config(out, variant, tokens, dtype, {"path": f"store-{variant}", **targets}, train)
        alignkd("dump", str(configs[variant]))
    return {**configs, **({"live": configs["stored"]} if "live" in names else {})}


def write_inputs(
    out: Path,
    student: str,
    teacher: str,
    layers: int | None,
    teacher_layers: int | None,
    width: int,
    vocabulary: int,
    samples: int,
    tokens: int,
) -> None:
    """Write both checkpoints and the data."""
    out.mkdir(parents=True, exist_ok=True)
    for role, name, depth, small in (
        ("student", student, layers, {"num_hidden_layers": 24, "hidden_size": width}),
        ("teacher", teacher, teacher_layers, {"num_hidden_layers": 32, "hidden_size": 2 * width}),
    ):
        if not (out / role).exists():
            write_model(out / role, name, depth, {**small, "vocab_size": vocabulary})
    write_data(out, samples, tokens)


def write_config(
    out: Path, name: str, tokens: int, dtype: str, store: Mapping[str, Any], train: Mapping[str, Any]
) -> Path:
    """Write the configuration of one variant; the path of the store is a name in `out`."""
    values = {
        "data": {"conversations": str(out / "data.json"), "images": str(out / "images"), "max_tokens": tokens},
        "teacher": {"checkpoint": str(out / "teacher"), "dtype": dtype, "sanity": "off"},
        "student": {"checkpoint": str(out / "student"), "dtype": dtype},
        "store": {"backend": "webdataset", **store, "path": str(out / store["path"])},
        "train": {"output": str(out / f"run-{name}"), "steps": 1000, **train},
    }
    path = out / f"{name}.yaml"
    path.write_text(dump_yaml(values), encoding="utf-8")
    return path


def alignkd(*arguments: str) -> None:
    """Run a command in its own process."""
    command = [sys.executable, "-m", "alignkd.pipeline.cli", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def named_objectives(names: str) -> dict[str, ObjectiveVariant]:
    """The objectives in the option `--objectives`."""
    known = objective_variants()
    wanted = [*known] if names == "all" else [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in known]:
        raise click.UsageError(f"--objectives: {', '.join(unknown)} is not among {', '.join(known)}")
    return {name: known[name] for name in wanted}


def prepare_objectives(
    out: Path,
    chosen: Mapping[str, ObjectiveVariant],
    *,
    student: str,
    teacher: str,
    layers: int | None,
    teacher_layers: int | None,
    width: int,
    vocabulary: int,
    tokens: int,
    samples: int,
    micro_batch: int,
    dtype: str,
    data_workers: int,
    **_: Any,
) -> dict[str, Path]:
    """Make checkpoints, data and the stores of all objectives; return the configuration of each."""
    write_inputs(out, student, teacher, layers, teacher_layers, width, vocabulary, samples, tokens)
    configs, dumped = {}, set()
    for name, variant in chosen.items():
        store = {"path": f"store-{variant.logits}", **store_of(variant.logits)}
        train = {"micro_batch": micro_batch, "data_workers": data_workers, **variant.train}
        if "centres" in train:
            train["centres"] = str(out / CENTRES)
        configs[name] = write_config(out, name.replace(" ", "-"), tokens, dtype, store, train)
        if variant.logits not in dumped:
            alignkd("dump", str(configs[name]))
            dumped.add(variant.logits)
        if "centres" in train and not (out / CENTRES).exists():
            alignkd("shards", "centres", str(out / store["path"]), "--out", str(out / CENTRES))
    return configs


def measure_objectives(configs: Mapping[str, Path], rounds: int, at_once: int) -> dict[str, list[float]]:
    """Processor time of a step of each objective, as a multiple of that of plain fine-tuning after or before it."""

    def ratios(item: tuple[str, Path]) -> list[float]:
        variant = Variant(item[0], item[1], cap_gib=None, no_optimizer=False, threads=1)
        found = []
        for number in range(rounds + 1):
            order = ("plain", "step") if number % 2 else ("step", "plain")
            seconds = {what: variant.ask(what)["cpu_seconds"] for what in order}
            if number:  # the first one warms up
                found.append(seconds["step"] / seconds["plain"])
        variant.end()
        print(f"{item[0]}: {statistics.median(found):.3f}", file=sys.stderr, flush=True)
        return found

    with ThreadPoolExecutor(at_once) as pool:
        return dict(zip(configs, pool.map(ratios, configs.items()), strict=True))


def objective_table(
    chosen: Mapping[str, ObjectiveVariant], found: Mapping[str, Sequence[float]], markdown: bool
) -> str:
    """A line per objective."""
    rows = [("objective", "logits", "CPU ratio", "lowest..highest")]
    for name, ratios in found.items():
        shown = f"{min(ratios):.2f}..{max(ratios):.2f}"
        rows.append((name, chosen[name].logits, f"{statistics.median(ratios):.3f}", shown))
    return as_text(rows, markdown)


def write_model(folder: Path, name: str, depth: int | None, small: dict[str, int]) -> None:
    """Write a checkpoint with random weights and the shape of an official or a small model."""
    raw = official_config(MEMBERS[0] if name == "small" else name)
    if name == "small":
        heads = small["hidden_size"] // HEAD_SIZE
        raw |= {**small, "num_attention_heads": heads, "num_key_value_heads": heads}
        raw |= {"intermediate_size": small["hidden_size"] * 11 // 4, "mm_hidden_size": 256, "mm_vision_tower": "clip"}
        tower = {"model_type": "clip_vision_model", "hidden_size": 256, "intermediate_size": 1024, "image_size": 336}
        tower |= {"num_hidden_layers": 6, "num_attention_heads": 4, "patch_size": 14, "hidden_act": "quick_gelu"}
        (folder / "clip").mkdir(parents=True)
        (folder / "clip" / "config.json").write_text(json.dumps(tower), encoding="utf-8")
    if depth is not None:
        raw["num_hidden_layers"] = depth
    write_random_checkpoint(folder, raw)


def write_data(out: Path, samples: int, tokens: int) -> None:
    """Write real handwriting; each answer repeats its sentence as often as the length allows."""
    digits = write_digits(out / "images", samples)
    builder = load_preparation(out / "student", template="v1")
    entries = []
    for number, digit in enumerate(digits):
        repeats = 1
        while length_of(builder, digit, repeats + 1) <= tokens:
            repeats += 1
        values = (QUESTION, SENTENCE.format(digit=digit) * repeats)
        turns = [{"from": who, "value": value} for who, value in zip(("human", "gpt"), values, strict=True)]
        entries.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (out / "data.json").write_text(json.dumps(entries), encoding="utf-8")


def length_of(builder: Any, digit: int, repeats: int) -> int:
    turns = [Turn("human", QUESTION), Turn("gpt", SENTENCE.format(digit=digit) * repeats)]
    return int(builder.tokenize(turns, [(0, 0)]).positions.length)


class Variant:
    """A process of train_variant.py."""

    def __init__(
        self, name: str, config: Path, *, cap_gib: float | None, no_optimizer: bool, threads: int | None = None
    ) -> None:
        command = [sys.executable, str(Path(__file__).with_name("train_variant.py")), str(config), name]
        if cap_gib is not None and name != "live":
            command.append(f"--cap-gib={cap_gib}")
        if no_optimizer:
            command.append("--no-optimizer")
        few = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **few}
        )
        self._answer()

    def ask(self, what: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        sys.exit(f"a variant ended with {self.process.wait()}")

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(
    configs: dict[str, Path],
    names: tuple[str, ...],
    rounds: int,
    *,
    one_at_a_time: bool,
    beside: str | None,
    **how: Any,
) -> dict[str, Any]:
    """Measure steps and memory of each variant."""
    found: dict[str, Any] = {}
    beside = beside or ("plain" if how["no_optimizer"] else None)
    for group in [(name,) for name in names] if one_at_a_time else [names]:
        variants = {name: Variant(name, configs[name], **how) for name in group}
        found |= {name: {"steps": []} for name in group}
        for number in range(rounds + 1):
            # the order alternates, so that no variant always runs after the same other one
            for name in (*variants,) if number % 2 else reversed(variants):
                other = variants[name].ask(beside) if beside else None
                step = variants[name].ask("step")
                if number:
                    found[name]["steps"].append(step | ({} if other is None else {"beside": other["cpu_seconds"]}))
        for name, variant in variants.items():
            found[name]["memory"] = variant.ask("memory")
            variant.end()
    return found


def table(found: dict[str, Any], markdown: bool) -> str:
    """A line per variant; ratios compare it with the first one in the same round."""
    header = ("step", "seconds", "ratio", "lowest..highest", "CPU ratio", "lowest..highest")
    header += ("tokens/s", "waiting", "peak MiB", "ratio", "between steps")
    first = next(iter(found.values()))
    beside = "beside" in first["steps"][0]
    header += ("CPU ratio in one process", "lowest..highest") if beside else ()
    rows = [header]
    for name, variant in found.items():
        seconds = statistics.median(step["seconds"] for step in variant["steps"])
        ratios, cpu_ratios = (
            [mine[clock] / other[clock] for mine, other in zip(variant["steps"], first["steps"], strict=True)]
            for clock in ("seconds", "cpu_seconds")
        )
        memory = variant["memory"]
        own = [step["cpu_seconds"] / step["beside"] for step in variant["steps"]] if beside else []
        rows.append(
            (
                VARIANTS[name],
                f"{seconds:.3f}",
                f"{statistics.median(ratios):.3f}",
                f"{min(ratios):.2f}..{max(ratios):.2f}",
                f"{statistics.median(cpu_ratios):.3f}",
                f"{min(cpu_ratios):.2f}..{max(cpu_ratios):.2f}",
                f"{variant['steps'][0]['tokens'] / seconds:,.0f}",
                f"{statistics.median(step['wait_share'] for step in variant['steps']):.1%}",
                f"{memory['peak']:,.0f}",
                f"{memory['peak'] / first['memory']['peak']:.3f}",
                f"{memory['held']:,.0f}",
                *([f"{statistics.median(own):.3f}", f"{min(own):.2f}..{max(own):.2f}"] if own else []),
            )
        )
    return as_text(rows, markdown)


def as_text(rows: Sequence[Sequence[str]], markdown: bool) -> str:
    """A heading and lines, as markdown or with aligned columns."""
    if markdown:
        lines = [f"| {' | '.join(row)} |" for row in rows]
        return "\n".join([lines[0], "|:--" + "|--:" * (len(rows[0]) - 1) + "|", *lines[1:]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


if __name__ == "__main__":
    main()
