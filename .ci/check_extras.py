"""Run by the interpreter that has the wheel without any extra: each extra's use ends with the line that names it.

Usage: python check_extras.py DEMO, a folder that `alignkd demo` wrote.
"""

import subprocess
import sys
import tempfile
from importlib.metadata import metadata
from pathlib import Path

import yaml

# extras that no command of alignkd uses
OF_THE_PROJECT = {"dev", "docs"}
# refused for the lack of a CUDA device first; tests/pipeline/runs/test_before_the_teacher.py hides the packages
NEED_A_GPU = {"kernels"}


def main(demo: Path) -> None:
    """Start a command for each extra."""
    with tempfile.TemporaryDirectory() as folder:
        commands = commands_of(demo, Path(folder))
        extras = set(metadata("alignkd").get_all("Provides-Extra", [])) - OF_THE_PROJECT - NEED_A_GPU
        assert extras <= commands.keys(), f"no command for {sorted(extras - commands.keys())}"
        for extra in sorted(extras):
            command = [sys.executable, "-m", "alignkd", *commands[extra]]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            lines = [line for line in done.stderr.splitlines() if line.startswith("alignkd: ")]
            assert done.returncode == 1 and len(lines) == 1, f"{command} ended with {done.returncode}: {done.stderr}"
            assert f"pip install 'alignkd[{extra}]'" in lines[0] and "Traceback" not in done.stderr, lines[0]
            print(f"without {extra}: {lines[0]}")


def commands_of(demo: Path, folder: Path) -> dict[str, list[str]]:
    """Extra -> arguments of a command that needs it."""
    settings = yaml.safe_load((demo / "configs" / "align_kd-seed-0.yaml").read_text(encoding="utf-8"))

    def changed(name: str, section: str, **keys: object) -> str:
        values = settings | {section: settings[section] | keys}
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return str(path)

    foreign = folder / "qwen"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model_type": "qwen2_vl"}', encoding="utf-8")
    first, *_ = sorted((demo / "stores").iterdir())
    return {
        "azure": ["shards", "ls", "az://container/store"],
        "browse": ["shards", "browse", str(first)],
        "families": ["data", "stats", str(settings["data"]["conversations"]), "--checkpoint", str(foreign)],
        "gcs": ["shards", "ls", "gs://bucket/store"],
        "quantized": ["train", changed("quantized", "train", optimizer="adamw_8bit", output=str(folder / "out"))],
        "ray": ["dump", changed("ray", "store", path=str(folder / "store")), "--ray"],
        "trackio": ["train", changed("trackio", "train", report_to=["trackio"], output=str(folder / "out"))],
        "wandb": ["train", changed("wandb", "train", report_to=["wandb"], output=str(folder / "out"))],
        "remote": ["shards", "ls", "s3://bucket/store"],
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
