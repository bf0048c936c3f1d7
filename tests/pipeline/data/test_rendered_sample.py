"""The sample that `alignkd data stats` shows: its supervised text is the assistant's, for every family of models."""

import json
from pathlib import Path

import pytest
import tiny_data
import tiny_families
from click.testing import CliRunner

from alignkd.pipeline.cli import main
from alignkd.pipeline.data.stats.figures import Piece, RenderedSample
from alignkd.pipeline.data.stats.report import rendered_lines


def stats_of(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["data", "stats", *map(str, arguments), "--workers", "1"])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tiny_data.TinyData:
    return tiny_data.write(tmp_path_factory.mktemp("data"), tiny_data.ENTRIES[4:6])


@pytest.mark.parametrize(("family", "stop"), [("qwen3_vl", "<|im_end|>"), ("gemma3", "<end_of_turn>"), ("llava", "")])
def test_exactly_the_answers_and_their_ends_are_supervised(
    family: str, stop: str, data: tiny_data.TinyData, tmp_path: Path
) -> None:
    checkpoint = tiny_families.build(family, tmp_path / family)
    arguments = (data.conversations, "--images", data.images, "--checkpoint", checkpoint)
    report = json.loads(stats_of(*arguments, "--json"))
    rendered = report["rendered"]
    answers = [turn["value"] for turn in data.entries[0]["conversations"] if turn["from"] == "gpt"]
    supervised = [piece["text"] for piece in rendered["pieces"] if piece["supervised"]]
    assert [text.strip() for text in supervised] == [answer + stop for answer in answers]
    assert sum("vision tokens]" in piece["text"] for piece in rendered["pieces"]) >= 1
    assert (rendered["id"], rendered["index"]) == (data.entries[0]["id"], 0)

    lines = stats_of(*arguments).splitlines()
    start = next(number for number, line in enumerate(lines) if "as the model gets it" in line)
    assert f"{supervised[0].strip()}<<<" in "\n".join(lines[start:])
    assert bool(report["warnings"]) == any(line.startswith("warning: ") for line in lines)


def test_mobilevlm_shows_its_template(golden: Path, golden_images: Path) -> None:
    arguments = [golden / "v1.json", "--images", golden_images, "--checkpoint", golden / "teacher"]
    report = json.loads(stats_of(*arguments, "--vision-config", golden / "clip", "--json"))
    pieces = report["rendered"]["pieces"]
    entry = json.loads((golden / "v1.json").read_text())[report["rendered"]["index"]]
    answers = [turn["value"] for turn in entry["conversations"] if turn["from"] == "gpt"]
    assert "".join(piece["text"] for piece in pieces).startswith("<s> A chat between a curious user")
    supervised = [piece["text"].strip() for piece in pieces if piece["supervised"]]
    assert supervised == [f"{answer}</s>" for answer in answers]


def test_a_sample_is_indented_and_marked() -> None:
    pieces = (Piece(text="<s>Q: why?\nA:", supervised=False), Piece(text=" so\n\nit is", supervised=True))
    sample = RenderedSample(file="a.json", index=3, id="x", pieces=pieces)
    assert rendered_lines(sample)[1:] == ["  <s>Q: why?", "  A:>>> so", "", "  it is<<<"]
