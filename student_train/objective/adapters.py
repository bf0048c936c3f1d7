"""The 1x1 convolutions that carry the teacher's targets into the student's space (eq. 1, 3 and 4)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from alignkd.student_train.errors import TrainError, unreadable
from alignkd.vlm.finite import check_finite
from alignkd.vlm.weights.tensor_file import open_tensors, save_tensors

AdapterInit = Literal["pytorch", "mean_of_heads", "grouped_heads"]
STATE_WEIGHT = "state_adapter.weight"


class Adapters(nn.Module):
    """`attn_adapter` mixes Ht teacher heads into Hs, `proj_adapter` maps Dt to Ds; both are trained with the student.

    Parameter names and shapes are those of the reference code's checkpoints. Where attention of several layers of the
    student is compared, `attn_adapter` is that of the first of them, and `attn_adapters` holds one for each further
    layer by its number. Where the loss `nd` compares hidden states of different widths, `state_adapter` maps the
    student's to the teacher's.
    """

    def __init__(
        self,
        *,
        heads: tuple[int, int],
        hidden_sizes: tuple[int, int],
        layers: Sequence[int] | None = None,
        states: bool = False,
    ) -> None:
        """`heads` is (Ht, Hs), `hidden_sizes` is (Dt, Ds), `layers` are the student's; None is a single one; `states`:
        whether there is a `state_adapter`."""
        super().__init__()
        self.layers = None if layers is None or len(layers) < 2 else tuple(layers)
        self.attn_adapter = nn.Conv2d(*heads, kernel_size=1)
        self.attn_adapters = nn.ModuleDict(
            {str(layer): nn.Conv2d(*heads, kernel_size=1) for layer in (self.layers or ())[1:]}
        )
        self.proj_adapter = nn.Conv1d(*hidden_sizes, kernel_size=1)
        self.state_adapter = nn.Linear(hidden_sizes[1], hidden_sizes[0], bias=False) if states else None

    @property
    def sizes(self) -> dict[str, tuple[int, ...] | bool]:
        """The arguments of the constructor, by name."""
        attention, vision = self.attn_adapter, self.proj_adapter
        return {
            "heads": (attention.in_channels, attention.out_channels),
            "hidden_sizes": (vision.in_channels, vision.out_channels),
            **({} if self.layers is None else {"layers": self.layers}),
            **({} if self.state_adapter is None else {"states": True}),
        }

    def initialise(self, how: AdapterInit, *, seed: int) -> None:
        """Fresh weights that depend on `seed` alone.

        "pytorch" is the initialisation of the reference code (Kaiming uniform, random bias). "mean_of_heads" starts
        every student head at the mean of the teacher's heads with no bias. The target is then a distribution from the
        first step on, which suits short runs that cannot first learn the mixing. "grouped_heads" starts each student
        head at the mean of its own group of neighbouring teacher heads, so that a head with one clear task is not
        averaged away. In every case the projection starts random.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.attn_adapter.reset_parameters()
            self.proj_adapter.reset_parameters()
            for further in self.of_layers[1:]:  # after those that every run has, which start as without them
                further.reset_parameters()
            if self.state_adapter is not None:
                self.state_adapter.reset_parameters()
        for adapter in self.of_layers:
            if how == "mean_of_heads":
                nn.init.constant_(adapter.weight, 1 / adapter.in_channels)
            if how == "grouped_heads":
                adapter.weight.data.copy_(group_means(*adapter.weight.shape[:2])[:, :, None, None])
            if how != "pytorch":
                nn.init.zeros_(adapter.bias)  # type: ignore[arg-type]

    @property
    def of_layers(self) -> list[nn.Conv2d]:
        """The adapters of attention, one for each of the student's layers."""
        return [self.attn_adapter, *self.attn_adapters.values()]  # type: ignore[list-item]

    def adapt_attention(self, teacher_BHRC: Tensor) -> Tensor:
        """[B, Ht, R, C] -> float32 [B, Hs, R, C]; half-precision weights are applied in float32."""
        weight_ST, bias_S = self.attention_weights()
        return functional.conv2d(teacher_BHRC.float(), weight_ST[:, :, None, None], bias_S)

    def attention_weights(self, place: int = 0) -> tuple[Tensor, Tensor]:
        """Weight and bias of the adapter at a place in `of_layers`: float32 [Hs, Ht] and [Hs]."""
        conv = self.of_layers[place]
        return conv.weight.float().flatten(1), conv.bias.float()  # type: ignore[union-attr]

    def adapt_no_attention(self) -> Tensor:
        """The adapted attention of a made-up teacher, a sum: reaches all adapters if a batch has no target."""
        parts = []
        for place, conv in enumerate(self.of_layers):
            weight_ST, bias_S = self.attention_weights(place)
            none_B = conv.weight.new_zeros((1, conv.in_channels, 1, 1), dtype=torch.float32)
            parts.append(functional.conv2d(none_B, weight_ST[:, :, None, None], bias_S).sum())
        return torch.stack(parts)

    def adapt_no_vision(self) -> Tensor:
        """The same for vision embeddings."""
        conv = self.proj_adapter
        return self.adapt_vision(conv.weight.new_zeros((1, conv.in_channels)))

    def adapt_vision(self, teacher_PD: Tensor) -> Tensor:
        """[P, Dt] -> float32 [P, Ds]; a convolution of size 1 is a product with its weight."""
        conv = self.proj_adapter
        bias_S = conv.bias.float()  # type: ignore[union-attr]
        return functional.linear(teacher_PD.float(), conv.weight.float().flatten(1), bias_S)

    def adapt_states(self, student_ND: Tensor) -> Tensor:
        """[N, Ds] -> float32 [N, Dt]; without an adapter the states as they are."""
        if self.state_adapter is None:
            return student_ND.float()
        return functional.linear(student_ND.float(), self.state_adapter.weight.float())

    def save(self, path: Path) -> None:
        """Write the weights as safetensors, float32."""
        save_tensors({name: value.float().contiguous() for name, value in self.state_dict().items()}, path)

    def load(self, path: Path) -> None:
        """Read weights written by `save` or by the reference code's layout.

        A `state_adapter` that only one of both sides has is left as it is: stages may differ in the loss `nd`.

        Raises:
            TrainError: the file is not a readable safetensors file, or names or shapes do not fit this pair of models.
            InputError: a value is not finite.
        """
        try:
            with open_tensors(path) as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except OSError as error:
            raise unreadable(f"adapters {path}", error) from error
        except SafetensorError as error:
            raise TrainError(f"adapters {path}: cannot be read ({error}); give a safetensors file") from error
        own = self.state_dict()
        if own.keys() & {STATE_WEIGHT} != found.keys() & {STATE_WEIGHT}:
            found.pop(STATE_WEIGHT, None)
            found |= {name: own[name] for name in own.keys() & {STATE_WEIGHT}}
        wanted = {name: tuple(value.shape) for name, value in own.items()}
        shapes = {name: tuple(value.shape) for name, value in found.items()}
        if shapes != wanted:
            raise TrainError(
                f"adapters {path}: expected shapes {wanted}, found {shapes}; they belong to another teacher or student"
            )
        for name, value in found.items():
            check_finite(value, name, path)
        self.load_state_dict(found)


def group_means(num_students: int, num_teachers: int) -> Tensor:
    """[Hs, Ht] weights: student head s is the mean of the teacher heads t with floor(t * Hs / Ht) = s.

    With more student than teacher heads some groups are empty; such a head starts at the nearest teacher head.
    """
    group_of = torch.arange(num_teachers) * num_students // num_teachers
    weights = (group_of == torch.arange(num_students)[:, None]).float()
    for head in (weights.sum(dim=1) == 0).nonzero().flatten().tolist():
        weights[head, head * num_teachers // num_students] = 1.0
    return weights / weights.sum(dim=1, keepdim=True)
