"""Save, load and refuse adapter files."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from alignkd.student_train.objective.adapters import Adapters


def fresh(seed: int = 0) -> Adapters:
    adapters = Adapters(heads=(8, 4), hidden_sizes=(128, 64))
    adapters.initialise("pytorch", seed=seed)
    return adapters


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    adapters, other = fresh(1), fresh(2)
    adapters.save(tmp_path / "adapters.safetensors")
    other.load(tmp_path / "adapters.safetensors")
    for name, value in adapters.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_names_and_shapes_are_the_reference_layout(golden_folder: Path) -> None:
    golden = load_file(golden_folder / "adapters.safetensors")
    assert {n: v.shape for n, v in golden.items()} == {n: v.shape for n, v in fresh().state_dict().items()}


def test_other_shapes_are_refused(golden_folder: Path) -> None:
    adapters = Adapters(heads=(16, 4), hidden_sizes=(128, 64))
    with pytest.raises(
        ValueError, match=r"expected shapes .*16.* found shapes|expected shapes .*16.*, found .*8"
    ) as error:
        adapters.load(golden_folder / "adapters.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"not safetensors"])
def test_unreadable_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "adapters.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"adapters .*cannot be read"):
        fresh().load(path)


def test_initialisation_depends_on_the_seed_alone() -> None:
    first, second = fresh(5), fresh(6)
    state = torch.get_rng_state()
    second.initialise("pytorch", seed=5)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.attn_adapter.weight, second.attn_adapter.weight)
    assert not torch.equal(first.attn_adapter.weight, fresh(6).attn_adapter.weight)


def test_mean_of_heads_starts_as_a_distribution() -> None:
    adapters = Adapters(heads=(8, 4), hidden_sizes=(128, 64))
    adapters.initialise("mean_of_heads", seed=0)
    teacher_BHRC = torch.rand(2, 8, 3, 5).softmax(-1)
    torch.testing.assert_close(
        adapters.adapt_attention(teacher_BHRC), teacher_BHRC.mean(1, keepdim=True).expand(-1, 4, -1, -1)
    )


@pytest.mark.parametrize(
    ("heads", "expected"),
    [((4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]), ((2, 4), [[1, 0], [1, 0], [0, 1], [0, 1]]), ((1, 1), [[1]])],
)
def test_grouped_heads_keep_neighbours_together(heads: tuple[int, int], expected: list[list[float]]) -> None:
    adapters = Adapters(heads=heads, hidden_sizes=(8, 8))
    adapters.initialise("grouped_heads", seed=0)
    torch.testing.assert_close(adapters.attn_adapter.weight[:, :, 0, 0], torch.tensor(expected, dtype=torch.float32))
    assert not adapters.attn_adapter.bias.any()
