"""Gemma 3."""

from collections.abc import Callable
from typing import Any

from transformers import (
    Gemma3Config,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma3TextConfig,
    SiglipVisionConfig,
)

from tiny_families.builder import Family, Sizes
from tiny_families.tokenizers_of_families import Words

# The answer is trimmed, and the system message becomes the beginning of the first question.
GEMMA3_TEMPLATE = """
{{- bos_token -}}
{%- set first = '' -%}
{%- set turns = messages -%}
{%- if messages[0]['role'] == 'system' -%}
{%- set first = messages[0]['content'][0]['text'] + '\\n\\n' -%}
{%- set turns = messages[1:] -%}
{%- endif -%}
{%- for message in turns -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
{%- endif -%}
{{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' -}}
{{- first if loop.first else '' -}}
{%- if message['content'] is string -%}{{- message['content'] | trim -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<start_of_image>' -}}
{%- elif part['type'] == 'text' -%}{{- part['text'] | trim -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""
PATCH, SIDE = 4, 40  # 10 x 10 patches, 5 x 5 tokens
TOKENS = 25
WINDOW = 48  # later rows do not see the first image

WORDS = Words(
    first=("<pad>", "<eos>", "<bos>", "<unk>"),
    last=("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"),
    bos="<bos>", eos="<eos>", pad="<pad>",
    named={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
)  # fmt: skip


def siglip() -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )


def _gemma3(sizes: Sizes, ids: Callable[[str], int]) -> Gemma3Config:
    text = Gemma3TextConfig(
        **sizes.text(
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=WINDOW,
            layer_types=["full_attention" if layer % 2 else "sliding_attention" for layer in range(sizes.layers)],
            bos_token_id=ids("<bos>"),
            eos_token_id=ids("<eos>"),
            pad_token_id=ids("<pad>"),
            tie_word_embeddings=sizes.tie,
        )
    )
    return Gemma3Config(
        text_config=text,
        vision_config=siglip(),
        mm_tokens_per_image=TOKENS,
        boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"),
        image_token_index=ids("<image_soft_token>"),
        tie_word_embeddings=sizes.tie,
    )


def _gemma3_processor(tokenizer: Any, template: str | None) -> Gemma3Processor:
    images = Gemma3ImageProcessor(size={"height": SIDE, "width": SIDE})
    return Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=TOKENS)


GEMMA3 = Family(WORDS, GEMMA3_TEMPLATE, _gemma3, _gemma3_processor, stops=("<eos>", "<end_of_turn>"), tie=True)
