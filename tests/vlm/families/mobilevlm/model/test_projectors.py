"""Every kind of projector: the original's numbers, a forward pass written out here, and checkpoints to the bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from alignkd.vlm.data.images import read_images
from alignkd.vlm.data.open import load_samples
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.mobilevlm.model.config import load_config
from alignkd.vlm.families.mobilevlm.model.projector import build_projector, is_projector_type, projector_grid
from alignkd.vlm.families.mobilevlm.model.projector_ldp import LDPProjector, squeezed_channels
from alignkd.vlm.families.mobilevlm.model.sizes import model_size
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model, load_preparation
from alignkd.vlm.families.mobilevlm.weights.loading import new_model
from alignkd.vlm.families.mobilevlm.weights.saving import save_model
from alignkd.vlm.inputs.batch import collate_sequences
from alignkd.vlm.weights.files import read_weights

TYPES = {"ldpnetv2": 144, "ldpnet": 144, "linear": 576, "mlp1x_gelu": 576, "mlp2x_gelu": 576, "mlp3x_gelu": 576}
Weights = dict[str, Tensor]
WriteCheckpoint = Callable[..., Path]
# What the original's classes give (torchvision 0.29.2, timm 1.0.31, see check_projector.py): channels -> output at
# tokens 0, 70 and 143, first three channels.
ORIGINAL = {
    64: [[-0.429759, -0.558082, -0.255862], [-0.430333, -0.508603, -0.454202], [-0.431084, -0.437382, -0.295664]],
    72: [[-0.427835, -0.571717, -0.577833], [-0.427658, -0.544062, -0.60828], [-0.429391, -0.370015, 0.09485]],
}


def waves(shape: tuple[int, ...], number: int) -> Tensor:
    """Numbers from a formula: no random generator, whose stream may change."""
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (0.5 * torch.sin(0.37 * count**2 + number)).reshape(shape).float()


@pytest.mark.parametrize("channels", ORIGINAL)
def test_ldp_gives_the_original_s_numbers(channels: int) -> None:
    projector = LDPProjector(32, channels)
    for number, parameter in enumerate(projector.parameters()):
        parameter.data = waves(tuple(parameter.shape), number)
    with torch.no_grad():
        found = projector(waves((1, 576, 32), 99))[0, [0, 70, 143], :3]
    torch.testing.assert_close(found, torch.tensor(ORIGINAL[channels]), rtol=1e-4, atol=1e-5)


def ldp(w: Weights, features: Tensor) -> Tensor:
    """Arithmetic of arXiv 2312.16886, written out from the weights by their checkpoint names."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
        scaled = (x - mean) / (variance + 1e-5).sqrt()
        return scaled * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    def block(name: str, x: Tensor, stride: int) -> Tensor:
        y = functional.conv2d(x, w[f"{name}.0.0.weight"], stride=stride, padding=1, groups=x.shape[1])
        y = norm(f"{name}.0.1", y)
        y = y * (y + 3).clamp(0, 6) / 6
        mean = y.mean((2, 3))
        squeezed = (mean @ w[f"{name}.1.fc1.weight"][..., 0, 0].T + w[f"{name}.1.fc1.bias"]).clamp(min=0)
        scale = squeezed @ w[f"{name}.1.fc2.weight"][..., 0, 0].T + w[f"{name}.1.fc2.bias"]
        y = y * ((scale + 3).clamp(0, 6) / 6)[..., None, None]
        y = torch.einsum("oi,bihw->bohw", w[f"{name}.2.0.weight"][..., 0, 0], y)
        return norm(f"{name}.2.1", y)

    x = linear("model.mlp.3", functional.gelu(linear("model.mlp.1", features)))
    side = int(x.shape[1] ** 0.5)
    x = x.transpose(1, 2).reshape(len(x), -1, side, side)
    x = x + block("model.mb_block.1.block", x, 1)
    return block("model.mb_block.2.block", x, 2).flatten(2).transpose(1, 2)


def expected(name: str, w: Weights, features: Tensor) -> Tensor:
    """The projector's output from its weights by their checkpoint names."""
    if name == "ldpnet":
        return ldp(w, features)
    if name == "linear":
        return features @ w["weight"].T + w["bias"]
    if name == "ldpnetv2":
        x = functional.gelu(features @ w["mlp.mlp.0.weight"].T + w["mlp.mlp.0.bias"])
        x = (x @ w["mlp.mlp.2.weight"].T + w["mlp.mlp.2.bias"]).transpose(1, 2)
        side = int(x.shape[2] ** 0.5)
        x = functional.adaptive_avg_pool2d(x.reshape(*x.shape[:2], side, side), (12, 12))
        x = x + functional.conv2d(x, w["peg.peg.0.weight"], w["peg.peg.0.bias"], padding=1, groups=x.shape[1])
        return x.flatten(2).transpose(1, 2)
    x = features
    for layer in range(int(name[3])):
        x = functional.gelu(x) if layer else x
        x = x @ w[f"{2 * layer}.weight"].T + w[f"{2 * layer}.bias"]
    return x


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("patch_grid", [24, 13])
def test_equals_the_arithmetic_written_out(name: str, patch_grid: int) -> None:
    torch.manual_seed(0)
    projector = build_projector(name, 32, 64, pooled_grid=12).double()
    for parameter in projector.parameters():
        nn.init.normal_(parameter, std=0.3)
    features = torch.randn(2, patch_grid**2, 32, dtype=torch.float64)
    with torch.no_grad():
        found = projector(features)
    assert found.shape == (2, projector_grid(name, patch_grid, 12) ** 2, 64)
    torch.testing.assert_close(found, expected(name, dict(projector.state_dict()), features), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name", ["mlp", "mlp0x_gelu", "mlp2x_relu", "mlp2x_gelu ", "ldpnetv3", "identity", "", None, 3]
)
def test_other_names_are_no_projectors(name: object) -> None:
    assert not is_projector_type(name)


@pytest.mark.parametrize(("channels", "squeezed"), [(2048, 512), (2560, 640), (64, 16), (72, 24), (8, 8)])
def test_squeezed_channels_are_rounded_as_the_original_does(channels: int, squeezed: int) -> None:
    assert squeezed_channels(channels) == squeezed


@pytest.fixture
def write_checkpoint(golden: Path, tmp_path: Path) -> WriteCheckpoint:
    """write_checkpoint(type, model_type): the golden student with another projector, randomly initialised."""

    def write(name: str, model_type: str = "mobilevlm", folder: str = "checkpoint", **changes: object) -> Path:
        path = tmp_path / folder
        shutil.copytree(golden / "student", path)
        raw = json.loads((path / "config.json").read_text())
        raw |= {"model_type": model_type, "mm_projector_type": name, **changes}
        (path / "config.json").write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")
        fresh = new_model(load_config(path, vision_config=golden / "clip"), seed=3)
        kept = {k: t for k, t in read_weights(golden / "student").items() if "mm_projector" not in k}
        own = {k: t.clone() for k, t in fresh.state_dict().items() if "mm_projector" in k}
        save_file(kept | own, path / "model.safetensors", metadata={"format": "pt"})
        return path

    return write


KEYS = {
    "linear": {"weight", "bias"},
    "mlp2x_gelu": {"0.weight", "0.bias", "2.weight", "2.bias"},
    "ldpnet": {f"model.mlp.{layer}.{part}" for layer in (1, 3) for part in ("weight", "bias")}
    | {
        f"model.mb_block.{block}.block.{part}"
        for block in (1, 2)
        for part in "0.0.weight 0.1.weight 0.1.bias 1.fc1.weight 1.fc1.bias 1.fc2.weight 1.fc2.bias "
        "2.0.weight 2.1.weight 2.1.bias".split()
    },
}


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("model_type", ["mobilevlm", "llava", "llava_llama"])
def test_load_save_load_is_identical_to_the_bit(
    write_checkpoint: WriteCheckpoint, golden: Path, tmp_path: Path, name: str, model_type: str
) -> None:

    source = write_checkpoint(name, model_type)
    before = read_weights(source)
    projector = {key.removeprefix("model.mm_projector.") for key in before if "mm_projector" in key}
    assert projector == KEYS[name]
    model = load_model(source, vision_config=golden / "clip")
    save_model(model, tmp_path / "saved", tokenizer_from=source)
    again, loaded = read_weights(tmp_path / "saved"), load_model(tmp_path / "saved", vision_config=golden / "clip")
    for weights in (again, loaded.state_dict()):
        assert weights.keys() == before.keys() and all(torch.equal(weights[key], before[key]) for key in before)
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            assert (tmp_path / "saved" / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize(("name", "vision_tokens"), TYPES.items())
def test_the_number_of_vision_tokens_follows_from_the_type(
    write_checkpoint: WriteCheckpoint, golden: Path, golden_images: Path, name: str, vision_tokens: int
) -> None:

    folder = write_checkpoint(name)
    builder = load_preparation(folder, template="v1", vision_config=golden / "clip")
    model = load_model(folder, vision_config=golden / "clip")
    size = model_size("mine", model.config)
    assert builder.vision_tokens == model.config.vision_tokens == size.vision_tokens == vision_tokens
    assert size.parameters["total"] == sum(tensor.numel() for tensor in read_weights(folder).values())
    sample = load_samples(golden / "v1.json")[0]
    example = builder.build(sample.turns, read_images(golden_images, sample.images))
    assert len(example.positions.vision_positions) == vision_tokens
    with torch.no_grad():
        batch = collate_sequences([example])
        vision = model.encode_images(batch.images, features=True)
        features = vision.features
        weights = {
            k.removeprefix("model.mm_projector."): t for k, t in model.state_dict().items() if "mm_projector" in k
        }
        embeds = model.embed(batch, vision)
        seen = embeds[0, example.positions.vision_positions]
    torch.testing.assert_close(seen, expected(name, weights, features)[0], rtol=1e-4, atol=1e-5)


def test_weights_of_another_projector_are_named(write_checkpoint: WriteCheckpoint, golden: Path) -> None:

    folder = write_checkpoint("mlp2x_gelu")
    raw = json.loads((folder / "config.json").read_text()) | {"mm_projector_type": "linear"}
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"missing model.mm_projector.bias; .*unknown model.mm_projector.\{0,2\}.bias"):
        load_model(folder, vision_config=golden / "clip")


def test_channels_that_the_original_would_round_are_refused(golden: Path, tmp_path: Path) -> None:
    raw = json.loads((golden / "student/config.json").read_text())
    raw |= {"mm_projector_type": "ldpnet", "hidden_size": 52, "num_attention_heads": 2, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match="hidden_size 52, but mm_projector_type 'ldpnet' takes multiples of 8"):
        load_config(tmp_path, vision_config=golden / "clip")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", [24, 12, 36, 26])
def test_pooling_of_a_grid_is_adaptive_pooling(side: int, dtype: torch.dtype) -> None:
    """To the bit at the official ratio of 2; its backward pass repeats on CUDA wherever the ratio divides."""
    pooling = build_projector("ldpnetv2", 8, 16, 12).dwn
    tokens = waves((2, side * side, 16), 1).to(dtype)
    grid = tokens.transpose(1, 2).reshape(2, 16, side, side).requires_grad_()  # in the memory order of the projector
    found, expected = pooling(grid), functional.adaptive_avg_pool2d(grid, (12, 12))
    factor = waves(tuple(found.shape), 2).to(dtype)
    own, other = (torch.autograd.grad((way * factor).sum(), grid)[0] for way in (found, expected))
    exact = side in (12, 24, 26)
    torch.testing.assert_close(found, expected, rtol=0 if exact else 1e-2, atol=0 if exact else 1e-6)
    torch.testing.assert_close(own, other, rtol=0 if exact else 1e-2, atol=0 if exact else 1e-6)
    assert (found.grad_fn.name() == "AvgPool2DBackward0") == (side % 12 == 0)
