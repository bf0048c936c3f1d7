"""InternVL3 in the layout of transformers."""

from collections.abc import Callable
from typing import Any

from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    Qwen2Config,
)

from tiny_families.builder import Family, Sizes
from tiny_families.tokenizers_of_families import Words

TEMPLATE = """
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<IMG_CONTEXT>\\n' -}}
{%- elif part['type'] == 'video' -%}{{- '<video>\\n' -}}
{%- elif part['type'] == 'text' -%}{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
PATCH, TILE = 8, 48  # 6 x 6 patches, 3 x 3 tokens a tile
TOKENS = (TILE // PATCH // 2) ** 2
WORDS = Words(
    first=(),
    last=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
    bos=None, eos="<|im_end|>", pad="<|endoftext|>",
    named={
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
)  # fmt: skip


def _config(sizes: Sizes, ids: Callable[[str], int]) -> InternVLConfig:
    tower = InternVLVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=[TILE, TILE],
        patch_size=[PATCH, PATCH],
    )
    text = Qwen2Config(
        **sizes.text(eos_token_id=ids("<|im_end|>"), pad_token_id=ids("<|endoftext|>"), tie_word_embeddings=sizes.tie)
    )
    return InternVLConfig(
        vision_config=tower,
        text_config=text,
        image_token_id=ids("<IMG_CONTEXT>"),
        image_seq_length=TOKENS,
        downsample_ratio=0.5,
        tie_word_embeddings=sizes.tie,
    )


def _processor(tokenizer: Any, template: str | None) -> InternVLProcessor:
    images = GotOcr2ImageProcessor(
        size={"height": TILE, "width": TILE}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    videos = InternVLVideoProcessor(size={"height": TILE, "width": TILE})
    return InternVLProcessor(images, tokenizer, videos, image_seq_length=TOKENS, chat_template=template)


INTERNVL = Family(WORDS, TEMPLATE, _config, _processor, stops=("<|im_end|>", "<|endoftext|>"), rows=1)
