"""LFM2-VL: a hybrid whose first layers are convolutions."""

from collections.abc import Callable
from typing import Any

from transformers import Lfm2Config, Lfm2VlConfig, Lfm2VlImageProcessor, Lfm2VlProcessor, Siglip2VisionConfig

from tiny_families.builder import Family, Sizes
from tiny_families.tokenizers_of_families import Words

TEMPLATE = """
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<image>' -}}{%- elif part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
PATCH, TILE = 4, 32  # 8 x 8 patches, 4 x 4 tokens a tile
WORDS = Words(
    first=("<|pad|>", "<|startoftext|>", "<|endoftext|>"),
    last=(
        "<|im_start|>", "<|im_end|>", "<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>",
        *(f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)),
    ),
    bos="<|startoftext|>", eos="<|im_end|>", pad="<|pad|>",
    named={
        "image_token": "<image>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>",
        "image_thumbnail": "<|img_thumbnail|>",
    },
)  # fmt: skip


def _config(sizes: Sizes, ids: Callable[[str], int]) -> Lfm2VlConfig:
    tower = Siglip2VisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_patches=(TILE // PATCH) ** 2,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = Lfm2Config(
        **sizes.text(
            layer_types=["full_attention" if layer % 3 == 2 else "conv" for layer in range(sizes.layers)],
            block_multiple_of=16,
            bos_token_id=ids("<|startoftext|>"),
            eos_token_id=ids("<|im_end|>"),
            pad_token_id=ids("<|pad|>"),
            tie_word_embeddings=sizes.tie,
        )
    )
    return Lfm2VlConfig(
        vision_config=tower,
        text_config=text,
        image_token_id=ids("<image>"),
        projector_hidden_size=48,
        downsample_factor=2,
        tie_word_embeddings=sizes.tie,
    )


def _processor(tokenizer: Any, template: str | None) -> Lfm2VlProcessor:
    images = Lfm2VlImageProcessor(
        tile_size=TILE,
        size={"height": TILE, "width": TILE},
        encoder_patch_size=PATCH,
        downsample_factor=2,
        min_image_tokens=4,
        max_image_tokens=16,
        min_tiles=2,
        max_tiles=4,
    )
    return Lfm2VlProcessor(images, tokenizer, chat_template=template)


LFM2_VL = Family(WORDS, TEMPLATE, _config, _processor, stops=("<|im_end|>",), tie=True, layers=3)
