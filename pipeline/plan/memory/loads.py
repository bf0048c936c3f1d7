"""Everything that decides memory in addition to the model's shapes: batch sizes, lengths, settings."""

from dataclasses import dataclass, field

from alignkd.student_train.config import OptimizerName
from alignkd.student_train.engine.zero.config import sums_in_float32
from alignkd.student_train.objective.attention.match import COPIES_OF_FORM
from alignkd.student_train.trained.settings import TrainedConfig
from alignkd.vlm.hardware.devices import TORCH_DTYPES, Quantization
from alignkd.vlm.kernels.choice import Kernels

ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2}
# Bytes per logit in progress, by kind. Kept tokens: the product, float32 log-probabilities, sorted values and their
# int64 positions, masses. Draws: the product, float32 log-probabilities, running sums, and the entropy in float64.
# Without logits: the product, float32 logits and their exponentials, for the log-probability of the text.
LOGIT_BYTES = {"full": 30, "topk": 30, "nucleus": 30, "sampled": 40, "hidden": 12, "none": 12}


@dataclass(frozen=True, kw_only=True)
class StudentLoad:
    """What decides the memory of training in addition to the student's shapes.

    Attributes:
        dtype: dtype of weights and activations.
        micro_batch: samples per forward pass and device. With a token budget, this and the next four describe
            the largest micro-batch (`LargestMicroBatch`).
        length: embedded tokens of the longest sample; a batch is padded to this length.
        vision: vision tokens of the sample with the most; 0: one image.
        supervised: positions whose next token has a label, of the sample with the most.
        queries: text positions after the image, of the sample with the most, once per image where all have the same
            number of vision tokens; 0 without the attention loss.
        attention_layers: layers of the student whose attention is compared.
        teacher_heads, teacher_hidden: number of heads and hidden size of the store's teacher.
        hidden_logits: the store keeps hidden states, so the teacher's lm_head is on the device too.
        head_chunk_mib: the setting of `train.losses`.
        attention_chunk_bytes: largest size of one float32 copy of the attention rows in progress.
        attention_copies: how many the form of the loss holds, over all keys and over the selected columns.
        devices: number of devices; ZeRO-2 divides gradients and optimiser state among them.
        optimizer: the setting of `train`.
        gradient_checkpointing: only layer inputs are kept for the backward pass.
        kernels: what computes the decoder's layers.
        accumulates: an optimiser step has more than one micro-batch.
        stem_weights: bytes of the teacher's stem on the device.
        stem_pass: bytes of activations while whole layers of the stem run, before the student's decoder.
        float32_gradients: the setting of `train`.
        data_workers: number of processes per device that prepare batches.
        batch_bytes: bytes of a prepared micro-batch.
        num_samples: samples of the training, which are kept in memory if they are small; 0: none is kept.
        trained: what is trained of the student.
        attn_adapter, proj_adapter: whether this adapter is trained.
        token_budget: the setting of `train`; 0: `micro_batch` is given.
        state_adapter: whether the adapter of hidden states is trained.
        head_positions: vision tokens of a sample whose logits are compared too, in a pass of its own over the head.
        relations: whether relations of vision tokens are compared.
        passes: forward passes whose activations are kept at the same time: 2 with a counterfactual loss.
    """

    dtype: str
    micro_batch: int
    length: int
    supervised: int
    queries: int
    teacher_heads: int
    teacher_hidden: int
    hidden_logits: bool
    head_chunk_mib: int
    attention_chunk_bytes: int
    attention_copies: tuple[int, int] = COPIES_OF_FORM["mse"]
    attention_layers: int = 1
    devices: int = 1
    optimizer: OptimizerName = "adamw"
    gradient_checkpointing: bool = False
    kernels: Kernels = "torch"
    accumulates: bool = False
    stem_weights: int = 0
    stem_pass: int = 0
    float32_gradients: bool = True
    data_workers: int = 0
    batch_bytes: int = 0
    num_samples: int = 0
    vision: int = 0
    trained: TrainedConfig = field(default_factory=TrainedConfig)
    attn_adapter: bool = True
    proj_adapter: bool = True
    token_budget: int = 0
    passes: int = 1
    state_adapter: bool = False
    head_positions: int = 0
    relations: bool = False

    @property
    def element(self) -> int:
        """Bytes of a weight."""
        return ELEMENT[self.dtype]

    @property
    def offload(self) -> bool:
        """Whether gradients, master weights and moments are in host memory."""
        return self.optimizer == "adamw_offload"

    @property
    def in_plain_torch(self) -> bool:
        """Whether the run uses the engine for one device, not DeepSpeed."""
        return self.devices == 1 and not self.offload

    @property
    def sums_in_float32(self) -> bool:
        """Whether gradients are added up in float32 buffers on the device."""
        if self.in_plain_torch:
            return self.float32_gradients and self.accumulates and self.element == 2
        return sums_in_float32(self.float32_gradients, TORCH_DTYPES[self.dtype], self.offload, self.accumulates)


@dataclass(frozen=True, kw_only=True)
class TeacherLoad:
    """What decides the memory of the teacher pass in addition to the teacher's shapes.

    Attributes:
        dtype: dtype of the weights.
        quantization: quantisation of the decoder.
        tokens: padded tokens of a forward pass: the token budget, or one sample that is longer.
        longest: embedded tokens of the longest sample.
        images: images of the samples of a forward pass, and images kept for other samples of the window.
        vision: vision tokens of these images; 0: `images` times the tokens of an image.
        largest: vision tokens of the sample with the most; 0: one image.
        supervised: positions whose next token has a label, over all samples of a forward pass.
        queries: rows of attention over all samples of a forward pass; 0 if none is computed.
        stored: bytes of the targets of a forward pass in the store.
        logit_bytes: bytes per logit in progress, see `LOGIT_BYTES`.
        watched: decoder layers whose queries and keys are recorded.
        vision_states: whether hidden states at vision positions are kept.
        recorded: decoder layers whose output is recorded.
    """

    dtype: str
    quantization: Quantization
    tokens: int
    longest: int
    images: int
    supervised: int
    queries: int
    stored: int
    logit_bytes: int
    vision: int = 0
    largest: int = 0
    watched: int = 1
    vision_states: bool = False
    recorded: int = 0
