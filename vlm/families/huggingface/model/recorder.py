"""Records queries, keys and mask of attention layers of any model of transformers, without changing what they compute.

Attention modules of transformers look up their attention function under the name in their `config`. While a module is
watched it has a shallow copy of its configuration, which names a function that keeps references to its arguments and
calls the function that was there. Masks are built from the model's configuration, so they stay the same; positions,
norms of queries and keys, and scaling are in the arguments already. Nothing of size [H, L, L] is made.

Shapes: B samples, H query heads, K key heads, L positions, R rows, d size of a head.
"""

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from alignkd.vlm.attention.attention_rows import RowInputs, selected_rows
from alignkd.vlm.attention.layer import AttentionLayer

RECORDING = "alignkd_recording"
# Functions whose masks are known to be None, bool [B, 1, L, L], or additive of that shape.
RECORDABLE = ("sdpa", "eager")
_WATCH = "_alignkd_watch"


Judge = Callable[["RecordedLayer", Tensor, Tensor], None]


class PassStopped(Exception):  # noqa: N818 - not an error
    """The pass was stopped at a recorded layer, as asked."""


@dataclass
class RecordedLayer(AttentionLayer):
    """Arguments of the attention function of one layer in its last call.

    Attributes:
        module: the attention module.
        implementation: the name of its own attention function.
        judge: called with values [B, K, L, d] and output [B, L, H, d] once they are there, as the self-checks need;
            afterwards nothing of the layer is kept.
        stops: whether to end the pass by `PassStopped` once queries and keys are known.
        query_BHLd, key_BKLd: with positions applied, as the attention function received them.
        mask: the mask as it received it; None: causal for sdpa.
        options: its other arguments by name.
    """

    module: nn.Module
    implementation: str
    judge: Judge | None = None
    stops: bool = False
    query_BHLd: Tensor | None = None
    key_BKLd: Tensor | None = None
    mask: Tensor | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        """B, number of samples."""
        return len(self._recorded()[0])

    @property
    def num_heads(self) -> int:
        """H, query heads."""
        return int(self._recorded()[0].shape[1])

    @property
    def scaling(self) -> float:
        """Factor of the scores."""
        given = self.options.get("scaling")
        return float(self._recorded()[0].shape[-1] ** -0.5 if given is None else given)

    @property
    def softcap(self) -> float | None:
        """Soft cap of the scores, None without one."""
        given = self.options.get("softcap")
        return None if given is None else float(given)

    @property
    def has_mask_per_head(self) -> bool:
        """Whether heads have masks of their own, which `visible` does not read."""
        return self.mask is not None and self.mask.shape[1] != 1

    @property
    def is_causal(self) -> bool:
        """Whether each row attends to exactly the keys up to itself, so that there is no mask."""
        if self.mask is not None or self.implementation != "sdpa":
            return False
        given = self.options.get("is_causal")
        return bool(getattr(self.module, "is_causal", True) if given is None else given)

    def row_inputs(self, rows_BR: Tensor, samples_B: Tensor | None = None) -> RowInputs:
        """Queries of rows and keys; see `AttentionLayer.row_inputs`."""
        query_BHLd, key_BKLd = self._recorded()
        has_gradient = query_BHLd.requires_grad or key_BKLd.requires_grad  # LoRA may train one of them
        if torch.is_grad_enabled() and not has_gradient and _is_trained(self.module):
            # happens with reentrant checkpointing, which runs the layer without a graph
            number = getattr(self.module, "layer_idx", "?")
            raise RuntimeError(f"the queries and keys of decoder layer {number} were recorded without gradient")
        if samples_B is None:
            samples_B = torch.arange(len(rows_BR), device=rows_BR.device)
        else:
            key_BKLd = key_BKLd[samples_B]
        groups = query_BHLd.shape[1] // key_BKLd.shape[1]
        query_BRHd = selected_rows(query_BHLd.transpose(1, 2), rows_BR, samples_B)
        return RowInputs(
            query_BHRd=query_BRHd.transpose(1, 2),
            key_BHLd=key_BKLd if groups == 1 else key_BKLd.repeat_interleave(groups, dim=1),
            rows_BR=rows_BR,
            scaling=self.scaling,
            softcap=self.softcap,
            visible_BRL=None if self.is_causal else self.visible(rows_BR, samples_B),
        )

    def visible(self, rows_BR: Tensor, samples_B: Tensor) -> Tensor:
        """bool [B, R, L], the keys that each row attends to."""
        length = self._recorded()[1].shape[2]
        if self.mask is None:
            if not self.is_causal:
                return torch.ones(*rows_BR.shape, length, dtype=torch.bool, device=rows_BR.device)
            return torch.arange(length, device=rows_BR.device) <= rows_BR[..., None]
        mask_BLL = self.mask[:, 0]  # a mask per head is refused by the self-check
        samples_B = samples_B if len(mask_BLL) > 1 else torch.zeros_like(samples_B)
        rows_BRL = mask_BLL[samples_B[:, None], rows_BR]
        if rows_BRL.dtype == torch.bool:
            return rows_BRL
        return rows_BRL > torch.finfo(rows_BRL.dtype).min / 2

    def _recorded(self) -> tuple[Tensor, Tensor]:
        if self.query_BHLd is None or self.key_BKLd is None:
            raise RuntimeError("no decoder pass was recorded")
        return self.query_BHLd, self.key_BKLd


@contextmanager
def recorded_layers(
    attentions: Sequence[nn.Module], *, judge: Judge | None = None, stops: bool = False
) -> Iterator[list[RecordedLayer]]:
    """Record these attention modules while the model runs inside the block; see `RecordedLayer` for the arguments.

    The configurations are put back before a backward pass, in which gradient checkpointing runs the layers again.
    """
    with ExitStack() as stack:
        yield [stack.enter_context(_recorded_layer(module, judge, stops)) for module in attentions]


def implementation_of(attention: nn.Module) -> str:
    """The name of the attention function of a module, `sdpa` for example."""
    config: Any = attention.config
    return str(config._attn_implementation)


@contextmanager
def _recorded_layer(attention: nn.Module, judge: Judge | None, stops: bool) -> Iterator[RecordedLayer]:
    module: Any = attention
    own = module.config
    layer = RecordedLayer(module=module, implementation=implementation_of(module), judge=judge, stops=stops)
    assert layer.implementation in RECORDABLE, f"recorded twice, or not loaded by this package: {layer.implementation}"
    module.config = copy.copy(own)
    module.config._attn_implementation_internal = RECORDING
    # in a list, because a module that is an attribute of a module becomes its child
    setattr(module, _WATCH, [layer])
    try:
        yield layer
    finally:
        module.config = own
        delattr(module, _WATCH)


def _record(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """The registered attention function: keeps its arguments and calls the module's own function."""
    layer: RecordedLayer = getattr(module, _WATCH)[0]
    layer.query_BHLd, layer.key_BKLd, layer.mask, layer.options = query, key, attention_mask, options
    if layer.stops:
        raise PassStopped
    output, weights = _own_function(module, layer.implementation)(module, query, key, value, attention_mask, **options)
    if layer.judge is not None:
        layer.judge(layer, value, output)
        layer.query_BHLd = layer.key_BKLd = layer.mask = None
    return output, weights


AttentionInterface.register(RECORDING, _record)


def _own_function(module: nn.Module, implementation: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """What the module would have called: its file may have own functions, and an own table of them."""
    for kind in type(module).__mro__:
        file = sys.modules[kind.__module__]
        eager = getattr(file, "eager_attention_forward", None)
        table = getattr(file, "ALL_ATTENTION_FUNCTIONS", None)
        if implementation == "eager" and eager is not None:
            return eager  # type: ignore[no-any-return]
        if implementation != "eager" and table is not None:
            return table[implementation]  # type: ignore[no-any-return]
    return ALL_ATTENTION_FUNCTIONS[implementation]  # type: ignore[no-any-return]


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
