"""SmolVLM and Idefics3."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from transformers import (
    Idefics3Config,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from tiny_families.builder import Family, Sizes
from tiny_families.tokenizers_of_families import Words

Ids = Callable[[str], int]

SMOLVLM_TEMPLATE = """
{{- '<|im_start|>' -}}
{%- for message in messages -%}
{{- message['role'] | capitalize -}}
{%- if message['content'][0]['type'] == 'image' -%}{{- ':' -}}{%- else -%}{{- ': ' -}}{%- endif -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}{{- part['text'] -}}{%- elif part['type'] == 'image' -%}{{- '<image>' -}}{%- endif -%}
{%- endfor -%}
{{- '<end_of_utterance>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}
"""
IDEFICS3_TEMPLATE = SMOLVLM_TEMPLATE.replace("<|im_start|>", "<|begin_of_text|>")
PATCH, TILE = 8, 48  # 6 x 6 patches, 3 x 3 tokens a tile
TOKENS = (TILE // PATCH // 2) ** 2
WORDS = Words(
    first=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    last=(
        "<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>",
        *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
    ),
    bos=None, eos="<end_of_utterance>", pad="<|im_end|>",
    named={
        "fake_image_token": "<fake_token_around_image>", "image_token": "<image>",
        "global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>",
    },
)  # fmt: skip


def tower() -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": TILE,
        "patch_size": PATCH,
    }


def text(sizes: Sizes, ids: Ids, words: Words) -> LlamaConfig:
    return LlamaConfig(
        **sizes.text(
            bos_token_id=ids(words.first[1]),
            eos_token_id=ids(words.eos),
            pad_token_id=ids(words.pad),
            tie_word_embeddings=sizes.tie,
        )
    )


def _smolvlm(sizes: Sizes, ids: Ids) -> SmolVLMConfig:
    return SmolVLMConfig(
        text_config=text(sizes, ids, WORDS),
        vision_config=tower(),
        image_token_id=ids("<image>"),
        pad_token_id=ids("<|im_end|>"),
        scale_factor=2,
        tie_word_embeddings=sizes.tie,
    )


def _smolvlm_processor(tokenizer: Any, template: str | None) -> SmolVLMProcessor:
    images = SmolVLMImageProcessor(size={"longest_edge": 2 * TILE}, max_image_size={"longest_edge": TILE})
    videos = SmolVLMVideoProcessor(
        size={"longest_edge": TILE}, max_image_size={"longest_edge": TILE}, video_sampling={"max_frames": 4, "fps": 1}
    )
    return SmolVLMProcessor(images, tokenizer, videos, image_seq_len=TOKENS, chat_template=template)


SMOLVLM = Family(WORDS, SMOLVLM_TEMPLATE, _smolvlm, _smolvlm_processor, stops=("<end_of_utterance>",))
IDEFICS3_WORDS = replace(
    WORDS,
    first=("<|end_of_text|>", "<|begin_of_text|>", "<|finetune_right_pad_id|>"),
    bos="<|begin_of_text|>",
    pad="<|finetune_right_pad_id|>",
    named={},
)


def _idefics3(sizes: Sizes, ids: Ids) -> Idefics3Config:
    return Idefics3Config(
        text_config=text(sizes, ids, IDEFICS3_WORDS),
        vision_config=tower(),
        image_token_id=ids("<image>"),
        pad_token_id=ids(IDEFICS3_WORDS.pad),
        scale_factor=2,
        tie_word_embeddings=sizes.tie,
    )


def _idefics3_processor(tokenizer: Any, template: str | None) -> Idefics3Processor:
    images = Idefics3ImageProcessor(size={"longest_edge": 2 * TILE}, max_image_size={"longest_edge": TILE})
    return Idefics3Processor(images, tokenizer, image_seq_len=TOKENS, chat_template=template)


IDEFICS3 = Family(
    IDEFICS3_WORDS,
    IDEFICS3_TEMPLATE,
    _idefics3,
    _idefics3_processor,
    stops=("<|end_of_text|>", "<end_of_utterance>"),
)
