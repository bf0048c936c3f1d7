"""Class means of a store, the file that the command writes, and what training refuses of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from alignkd.pipeline.cli import main
from alignkd.storage import Codecs, LogitsCodec, StoreReader, as_float32
from alignkd.storage.record.record import HiddenStates
from alignkd.storage.tools.centres import class_means
from alignkd.student_train.objective.adapters import Adapters
from alignkd.student_train.objective.centres import Centres

NOTHING: dict[str, Any] = {"attention": "none", "vision_top": "none", "vision_all": "none"}
Store = Callable[..., Path]


@pytest.fixture(scope="module")
def store(dump: Any, v1_samples: Any, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """`store("hidden", dtype="float32")`: the golden samples with these logits."""
    made: dict[str, Path] = {}

    def of(kind: str, **settings: Any) -> Path:
        name = f"{kind} {settings}"
        if name not in made:
            codecs = Codecs(**NOTHING, logits=LogitsCodec(kind=kind, **settings))  # type: ignore[arg-type]
            made[name] = dump(tmp_path_factory.mktemp("centres") / "store", v1_samples, codecs=codecs)
        return made[name]

    return of


def written(store: Path, out: Path, *options: str) -> Any:
    return CliRunner().invoke(main, ["shards", "centres", str(store), "--out", str(out), *options])


def read(path: Path, **changes: Any) -> Centres:
    given: dict[str, Any] = {"fingerprint": {"weights": "golden"}, "store": "the store", "sizes": (512, 128)}
    return Centres.read(path, **{**given, **changes})


@pytest.mark.parametrize("min_count", [1, 2, 4])
def test_means_are_those_of_loops(store: Store, min_count: int) -> None:
    reader = StoreReader(store("hidden", dtype="float32"))
    by_token: dict[int, list[Any]] = {}
    for place in range(len(reader)):
        record = reader[place]
        assert isinstance(record.logits, HiddenStates)
        labels = [label for label in record.labels.tolist()[1:] if label != -100]
        for label, state in zip(labels, as_float32(record.logits.states), strict=True):
            by_token.setdefault(label, []).append(state.astype(np.float64))
    kept = {token: states for token, states in by_token.items() if len(states) >= min_count}
    found = class_means(reader, min_count=min_count)
    assert found.tokens.tolist() == sorted(kept) and found.counts.tolist() == [len(kept[t]) for t in sorted(kept)]
    np.testing.assert_allclose(found.means, [np.mean(kept[token], axis=0) for token in sorted(kept)], rtol=1e-6)
    assert found.left_out == len(by_token) - len(kept)
    rare = sum(len(states) for states in by_token.values()) - sum(map(len, kept.values()))
    assert found.positions_left_out == rare


def test_the_file_gives_the_centre_of_each_label(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "centres.safetensors"
    assert written(store("hidden"), out, "--min-count", "2").exit_code == 0
    first = out.read_bytes()
    again = written(store("hidden"), out, "--min-count", "2", "--json")  # replaces its own file
    assert again.exit_code == 0 and out.read_bytes() == first and '"tokens_left_out"' in again.output
    file = load_file(out)
    centres = read(out)
    labels = torch.tensor([int(file["tokens"][0]), 511, int(file["tokens"][-1])])
    assert 511 not in file["tokens"].tolist()
    found, has_centre = centres.of_labels(labels)
    assert has_centre.tolist() == [True, False, True]
    torch.testing.assert_close(found[0], file["centres"][0])
    torch.testing.assert_close(found[2], file["centres"][-1])
    assert (found[1] == 0).all()
    assert "centres" not in "".join(centres.state_dict())  # not in checkpoints


def test_part_of_a_store(store: Store) -> None:
    reader = StoreReader(store("hidden"))
    assert class_means(reader, min_count=1, max_records=2).records == 2
    assert class_means(reader, min_count=1, max_records=99).records == len(reader)


def test_what_the_command_refuses(store: Store, tmp_path: Path) -> None:
    found = written(store("topk"), tmp_path / "out")
    assert found.exit_code == 1 and "keeps logits 'topk', but class means need hidden states" in found.output
    found = written(store("hidden"), tmp_path / "out", "--min-count", "100000")
    assert found.exit_code == 1 and "no token has 100000 of the" in found.output
    (tmp_path / "mine").write_text("something")
    found = written(store("hidden"), tmp_path / "mine")
    assert found.exit_code == 1 and "already exists" in found.output


def test_what_training_refuses(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "centres.safetensors"
    assert written(store("hidden"), out, "--min-count", "1").exit_code == 0
    with pytest.raises(ValueError, match="of a teacher with weights golden, store the store is of one with other"):
        read(out, fingerprint={"weights": "other"})
    with pytest.raises(ValueError, match="expected M tokens below 512 and M rows of 64"):
        read(out, sizes=(512, 64))
    with pytest.raises(ValueError, match="expected M tokens below 3"):
        read(out, sizes=(3, 128))
    with pytest.raises(ValueError, match="No such file"):
        read(tmp_path / "absent")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(ValueError, match="cannot be read"):
        read(tmp_path / "text")
    save_file({"other": torch.zeros(2)}, tmp_path / "other")
    with pytest.raises(ValueError, match="cannot be read"):
        read(tmp_path / "other")


def test_adapters_of_stages_with_and_without_the_term(tmp_path: Path) -> None:
    """A stage with the loss may start from adapters of one without it, and the other way round."""

    def adapters(seed: int, *, states: bool) -> Adapters:
        made = Adapters(heads=(4, 2), hidden_sizes=(8, 6), states=states)
        made.initialise("pytorch", seed=seed)
        return made

    with_states, without = adapters(1, states=True), adapters(1, states=False)
    for name, value in without.state_dict().items():  # the others start as without it
        assert torch.equal(value, with_states.state_dict()[name]), name
    for source, target in ((without, adapters(2, states=True)), (with_states, adapters(2, states=False))):
        before = {name: value.clone() for name, value in target.state_dict().items()}
        source.save(tmp_path / "adapters.safetensors")
        target.load(tmp_path / "adapters.safetensors")
        for name, value in target.state_dict().items():
            expected = before[name] if name.startswith("state") else source.state_dict()[name]
            assert torch.equal(value, expected), name
    source = adapters(3, states=True)
    source.save(tmp_path / "adapters.safetensors")
    target = adapters(4, states=True)
    target.load(tmp_path / "adapters.safetensors")
    assert source.state_adapter is not None and target.state_adapter is not None
    assert torch.equal(target.state_adapter.weight, source.state_adapter.weight)
