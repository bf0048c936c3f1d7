"""A micro-batch's targets in their stored form, until the losses decode them on their device.

Shape letters: B samples, R attention rows, C attention columns, Ht teacher heads, N supervised positions of the whole
batch, E entries of all positions, K the largest number of entries of a position, V vocabulary, Dt teacher hidden size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from alignkd.student_train.data.decode import EncodedTensor
from alignkd.student_train.losses.logits.sampled_logit import SampledDistribution
from alignkd.student_train.losses.logits.truncated_distribution import TruncatedDistribution
from alignkd.student_train.losses.ragged import ragged_places
from alignkd.vlm.families.stem import TextRows


@dataclass(frozen=True, kw_only=True)
class AttentionTargets:
    """Attention of layers of the teacher in B blocks, padded on the right.

    A sample is one block, which has 0 rows if the sample is text-only. If the columns are vision tokens, a sample with
    several images has one block per image; attention of chosen layers has one block, with the columns of all images.

    Attributes:
        rows_BR, cols_BC: int64 positions in the spliced sequence, 0 where padded.
        num_rows_B, num_cols_B: real rows and columns, plain integers.
        coded_BRHC: token-major as stored, 0 where padded; the heads of each of `layers` one after the other. None until
            the teacher's stem has computed it.
        samples_B: int64, the sample of each block; None if every sample is one block.
        block_samples: the same as plain integers.
        layers: numbers of the teacher's layers; None: its first layer that has attention.
        lengths_2B: int64, `num_rows_B` and `num_cols_B` beside the other tensors: masks then wait for no copy.
    """

    rows_BR: Tensor
    cols_BC: Tensor
    num_rows_B: list[int]
    num_cols_B: list[int]
    coded_BRHC: EncodedTensor | None = None
    samples_B: Tensor | None = None
    block_samples: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None
    lengths_2B: Tensor | None = None

    def __post_init__(self) -> None:
        if self.lengths_2B is None:
            lengths = torch.tensor([self.num_rows_B, self.num_cols_B], device=self.rows_BR.device)
            object.__setattr__(self, "lengths_2B", lengths)

    @property
    def rows_B(self) -> Tensor:
        """`num_rows_B` as a tensor."""
        assert self.lengths_2B is not None
        return self.lengths_2B[0]

    @property
    def cols_B(self) -> Tensor:
        """`num_cols_B` as a tensor."""
        assert self.lengths_2B is not None
        return self.lengths_2B[1]

    @property
    def num_heads(self) -> int:
        """Heads of each layer."""
        return self.stored_BRHC.shape[2] // len(self.layers or (0,))

    def of_layer(self, layer: int) -> EncodedTensor:
        """The attention of one of `layers`, [B, R, Ht, C]."""
        if self.layers is None or len(self.layers) == 1:
            return self.stored_BRHC
        start = self.layers.index(layer) * self.num_heads
        return self.stored_BRHC.heads(slice(start, start + self.num_heads))

    @property
    def teacher_BHRC(self) -> Tensor:
        """The attention, decoded."""
        return self.stored_BRHC.decode().transpose(1, 2)

    @property
    def stored_BRHC(self) -> EncodedTensor:
        """`coded_BRHC`, which is not None when the losses are computed."""
        assert self.coded_BRHC is not None
        return self.coded_BRHC


@dataclass(frozen=True, kw_only=True)
class StemInputs:
    """What the teacher's stem needs of a batch with images, in addition to the student's inputs.

    Attributes:
        text: rows of the teacher's token embeddings.
        tqv_places: rows and columns of text-query-vision attention for the target `vision_top`; None if it is not
            needed, or `TrainBatch.attention` has the same pairs.
        vision_tokens_S: vision tokens of all images of each sample that has any, plain integers.
    """

    text: TextRows
    tqv_places: AttentionTargets | None
    vision_tokens_S: list[int]


@dataclass(frozen=True, kw_only=True)
class RaggedEntries:
    """Entries [E]; position n owns the entries `offsets[n]:offsets[n + 1]`.

    Attributes:
        ids_E: token ids, uint16 or uint32.
        values_E: the value of each id; its meaning depends on the kind of targets.
        offsets: int64 [N + 1].
        widest: K, the largest number of entries of a position; a plain integer, so that padding does not wait for the
            accelerator.
    """

    ids_E: Tensor
    values_E: Tensor
    offsets: Tensor
    widest: int

    def padded(self, positions: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
        """Ids int64, values float32 and a mask bool of some positions, [n, K]; 0 and False where padded."""
        start, stop, _ = positions.indices(len(self.offsets) - 1)
        place_nK, kept_nK = ragged_places(self.offsets[start : stop + 1], self.widest)
        ids_nK = _taken(self.ids_E, place_nK).long()
        values_nK = _taken(self.values_E, place_nK).float()
        padded_nK = ~kept_nK
        return ids_nK.masked_fill_(padded_nK, 0), values_nK.masked_fill_(padded_nK, 0.0), kept_nK


@dataclass(frozen=True, kw_only=True)
class TruncatedTargets:
    """`topk` and `nucleus`: `entries.values_E` are log-probabilities (float16 or float32), `tail_logmass_N` float32;
    None if the store does not know the tail."""

    entries: RaggedEntries
    tail_logmass_N: Tensor | None

    def distribution(self, positions: slice = slice(None)) -> TruncatedDistribution:
        """The distribution at some positions, padded, on the device of the targets."""
        ids_NK, logprobs_NK, kept_NK = self.entries.padded(positions)
        tail_N = None if self.tail_logmass_N is None else self.tail_logmass_N[positions]
        return TruncatedDistribution(ids_NK=ids_NK, logprobs_NK=logprobs_NK, kept_NK=kept_NK, tail_logmass_N=tail_N)


@dataclass(frozen=True, kw_only=True)
class SampledTargets:
    """`sampled`: `entries.values_E` counts how often each id was drawn (uint8 or uint16), `entropy_N` is float32."""

    entries: RaggedEntries
    entropy_N: Tensor
    num_draws: int

    def distribution(self, positions: slice = slice(None)) -> SampledDistribution:
        """The distribution at some positions, padded, on the device of the targets."""
        ids_NK, counts_NK, _ = self.entries.padded(positions)
        return SampledDistribution(
            ids_NK=ids_NK, weights_NK=counts_NK / self.num_draws, entropy_N=self.entropy_N[positions]
        )


@dataclass(frozen=True, kw_only=True)
class HiddenTargets:
    """`hidden`: the teacher's last hidden states [N, Dt], which its lm_head turns into logits."""

    states: EncodedTensor


@dataclass(frozen=True, kw_only=True)
class FullTargets:
    """`full`: the teacher's logits [N, V]."""

    logits: EncodedTensor


@dataclass(frozen=True, kw_only=True)
class CounterfactualTargets:
    """The teacher's two passes at the M supervised positions of the samples that have images and no rejected answer.

    Attributes:
        places_M: int64, which of the batch's N supervised positions they are.
        full, removed: the sample as it is, and the pass with vision tokens replaced; both have the same tokens.
        evidence_P: bool, the vision tokens of all images that were replaced; None: all were.
    """

    places_M: Tensor
    full: TruncatedTargets
    removed: TruncatedTargets
    evidence_P: Tensor | None


@dataclass(frozen=True, kw_only=True)
class PreferenceTargets:
    """The G pairs of a batch, and the teacher's log-probabilities of their answers.

    Attributes:
        places_M: int64, which of the batch's N supervised positions belong to them, answer by answer: the chosen and
            then the rejected one of each pair.
        answers_M: int64, the answer of each of them, from 0 to 2G - 1.
        reference_G2: float32, the teacher's log-probability of the chosen and of the rejected answer.
        chosen_G: int64, the sample with the chosen answer.
    """

    places_M: Tensor
    answers_M: Tensor
    reference_G2: Tensor
    chosen_G: Tensor


@dataclass(frozen=True, kw_only=True)
class AffinityTargets:
    """Cosines between text queries and vision tokens of the teacher, of the S samples with images.

    Attributes:
        coded_SQT: cosines of each text query with each of the teacher's T vision tokens, 0 where padded.
        queries_SQ: int64, the text queries in the student's flattened [B * L], 0 where padded.
        vision_SP: int64, the student's vision tokens in its flattened [B * L], 0 where padded.
        samples_S: int64, the sample of each row.
        lengths_3S: int64, text queries, vision tokens of the teacher and vision tokens of the student.
        num_queries_S, num_vision_S: text queries and vision tokens of the student, plain integers.
    """

    coded_SQT: EncodedTensor
    queries_SQ: Tensor
    vision_SP: Tensor
    samples_S: Tensor
    lengths_3S: Tensor
    num_queries_S: tuple[int, ...]
    num_vision_S: tuple[int, ...]


LogitTargets = FullTargets | TruncatedTargets | HiddenTargets | SampledTargets


def _taken(values_E: Tensor, place_nK: Tensor) -> Tensor:
    """`values_E[place_nK]`; torch can convert unsigned integers, but not index them."""
    signed = {torch.uint16: torch.int16, torch.uint32: torch.int32}.get(values_E.dtype)
    return values_E[place_nK] if signed is None else values_E.view(signed)[place_nK].view(values_E.dtype)
