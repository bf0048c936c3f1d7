"""PaliGemma: a prefix that sees itself whole, no chat template."""

from collections.abc import Callable
from typing import Any

from transformers import GemmaConfig, PaliGemmaConfig, PaliGemmaProcessor, SiglipImageProcessor

from tiny_families.builder import Family, Sizes
from tiny_families.gemma import PATCH, SIDE, siglip
from tiny_families.tokenizers_of_families import Words

WORDS = Words(
    first=("<pad>", "<eos>", "<bos>", "<unk>"),
    last=("<image>",), bos="<bos>", eos="<eos>", pad="<pad>", named={"image_token": "<image>"},
)  # fmt: skip


def _config(sizes: Sizes, ids: Callable[[str], int]) -> PaliGemmaConfig:
    text = GemmaConfig(
        **sizes.text(
            head_dim=16,
            bos_token_id=ids("<bos>"),
            eos_token_id=ids("<eos>"),
            pad_token_id=ids("<pad>"),
            tie_word_embeddings=sizes.tie,
        )
    )
    return PaliGemmaConfig(
        vision_config=siglip(),
        text_config=text,
        image_token_index=ids("<image>"),
        vocab_size=sizes.vocabulary,
        projection_dim=sizes.hidden,
        hidden_size=sizes.hidden,
        tie_word_embeddings=sizes.tie,
    )


def _processor(tokenizer: Any, template: str | None) -> PaliGemmaProcessor:
    images = SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    images.image_seq_length = (SIDE // PATCH) ** 2
    return PaliGemmaProcessor(images, tokenizer, chat_template=template)


PALIGEMMA = Family(WORDS, None, _config, _processor, stops=("<eos>",), tie=True)
