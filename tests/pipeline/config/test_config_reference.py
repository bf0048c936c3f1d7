"""docs/configuration.md names every key as the models have it."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from alignkd.pipeline.config.problems import section_model
from alignkd.pipeline.config.reference import meanings, tables, with_tables
from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.config.yaml_core import parse_yaml
from alignkd.pipeline.configs.catalogue import recipe_text, recipe_titles
from alignkd.storage.codecs.settings import LOGITS_DEFAULTS, LogitsCodec

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_the_page_has_the_tables_of_today() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page) == page, (
        "write them again: python -m alignkd.pipeline.config.reference docs/configuration.md"
    )


def models(model: type[BaseModel]) -> list[type[BaseModel]]:
    found = [section for name in model.model_fields if (section := section_model(model, name)) is not None]
    return found + [inner for section in found for inner in models(section)]


@pytest.mark.parametrize("model", models(RunConfig), ids=lambda model: model.__name__)
def test_every_key_is_explained_and_stands_in_the_tables(model: type[BaseModel]) -> None:
    assert set(meanings(model)) == set(model.model_fields)
    assert all(f"| `{name}` | " in tables() for name in model.model_fields)


def test_the_defaults_of_a_kind_of_logits_are_those_that_are_explained() -> None:
    told = meanings(LogitsCodec)
    for kind, settings in LOGITS_DEFAULTS.items():
        for name, value in settings.items():
            assert re.search(rf"(?<![\w.]){re.escape(str(value))}(?!\w)", told[name]), (kind, name, value)


def test_what_the_page_tells_of_yaml() -> None:
    rows = dict(
        re.findall(r"^\| `([^`]+)`[^|]*\| (?:the number )?(\S+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert rows["010"] == str(parse_yaml("010"))
    for text in ("off", "1:30", "2024-01-01"):
        assert rows[text] == "text" and parse_yaml(text) == text


def test_every_recipe_tells_where_relative_paths_start() -> None:
    for name in recipe_titles():
        assert "Relative paths start at the folder in which a command is run" in recipe_text(name)
