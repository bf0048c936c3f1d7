"""LLaVA-1.5, LLaVA-NeXT (Mistral) and LLaVA-OneVision."""

from collections.abc import Callable
from typing import Any

from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaImageProcessor,
    LlavaNextConfig,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    MistralConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from tiny_families.builder import Family, Sizes
from tiny_families.tokenizers_of_families import Words

Ids = Callable[[str], int]

# Images of a message come first, whatever their place. No end token follows an answer.
LLAVA_TEMPLATE = """
{%- for message in messages -%}
{%- if message['role'] != 'system' -%}{{- message['role'] | upper + ': ' -}}{%- endif -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{- '<image>\\n' -}}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}
{%- if message['role'] == 'assistant' -%}{%- generation -%}{{- part['text'] + ' ' -}}{%- endgeneration -%}
{%- else -%}{{- part['text'] + ' ' -}}{%- endif -%}
{%- endfor -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""
NEXT_TEMPLATE = """
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{- '<<SYS>>\\n' + message['content'][0]['text'] + '\\n<</SYS>>\\n\\n' -}}
{%- elif message['role'] == 'user' -%}
{{- '[INST] ' -}}
{%- for part in message['content'] if part['type'] == 'image' -%}{{- '<image>\\n' -}}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}
{{- ' [/INST]' -}}
{%- elif message['role'] == 'assistant' -%}
{{- ' ' + message['content'][0]['text'] + '</s> ' -}}
{%- else -%}{{- raise_exception('Only user and assistant roles are supported!') -}}{%- endif -%}
{%- endfor -%}
"""
ONEVISION_TEMPLATE = """
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + ' ' -}}
{%- for part in message['content'] if part['type'] == 'image' -%}{{- '<image>' -}}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}
{%- if message['role'] == 'assistant' -%}{%- generation -%}{{- '\\n' + part['text'] -}}{%- endgeneration -%}
{%- else -%}{{- '\\n' + part['text'] -}}{%- endif -%}
{%- endfor -%}
{{- '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
PATCH = 7
SIDE = 35  # 5 x 5 patches
TILE = 28  # 4 x 4 patches
NEXT_GRIDS = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE], [3 * TILE, TILE], [TILE, 3 * TILE]]
ONEVISION_GRIDS = [[TILE * rows, TILE * columns] for rows in (1, 2, 3) for columns in (1, 2, 3)]


def _clip(side: int) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=side,
        patch_size=PATCH,
        projection_dim=32,
    )


def _llava(sizes: Sizes, ids: Ids) -> LlavaConfig:
    text = LlamaConfig(**sizes.text(bos_token_id=ids("<s>"), eos_token_id=ids("</s>"), pad_token_id=ids("<pad>")))
    return LlavaConfig(
        vision_config=_clip(SIDE),
        text_config=text,
        image_token_index=ids("<image>"),
        image_seq_length=(SIDE // PATCH) ** 2,
        tie_word_embeddings=sizes.tie,
    )


def _llava_processor(tokenizer: Any, template: str | None) -> LlavaProcessor:
    images = LlavaImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def _next(sizes: Sizes, ids: Ids) -> LlavaNextConfig:
    more = {"bos_token_id": ids("<s>"), "eos_token_id": ids("</s>"), "pad_token_id": ids("<pad>")}
    return LlavaNextConfig(
        vision_config=_clip(TILE),
        text_config=MistralConfig(**sizes.text(sliding_window=None, **more)),
        image_token_index=ids("<image>"),
        image_grid_pinpoints=NEXT_GRIDS,
        image_seq_length=(TILE // PATCH) ** 2,
        tie_word_embeddings=sizes.tie,
    )


def _next_processor(tokenizer: Any, template: str | None) -> LlavaNextProcessor:
    images = LlavaNextImageProcessor(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=NEXT_GRIDS,
    )
    return LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def _onevision(sizes: Sizes, ids: Ids) -> LlavaOnevisionConfig:
    tower = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=TILE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = Qwen2Config(**sizes.text(eos_token_id=ids("<|im_end|>"), pad_token_id=ids("<|endoftext|>")))
    return LlavaOnevisionConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=ids("<image>"),
        video_token_index=ids("<video>"),
        image_grid_pinpoints=ONEVISION_GRIDS,
        vision_aspect_ratio="anyres_max_4",
        tie_word_embeddings=sizes.tie,
    )


def _onevision_processor(tokenizer: Any, template: str | None) -> LlavaOnevisionProcessor:
    side = {"height": TILE, "width": TILE}
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=side, image_grid_pinpoints=ONEVISION_GRIDS),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=side),
        num_image_tokens=(TILE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_4",
        chat_template=template,
    )


_LLAMA_WORDS = Words(
    first=("<unk>", "<s>", "</s>"), last=("<image>", "<pad>"), bos="<s>", eos="</s>", pad="<pad>",
    named={"image_token": "<image>"},
)  # fmt: skip
LLAVA_15 = Family(_LLAMA_WORDS, LLAVA_TEMPLATE, _llava, _llava_processor, stops=("</s>",))
LLAVA_NEXT = Family(_LLAMA_WORDS, NEXT_TEMPLATE, _next, _next_processor, stops=("</s>",))
LLAVA_ONEVISION = Family(
    Words(
        first=(), last=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"),
        bos=None, eos="<|im_end|>", pad="<|endoftext|>", named={"image_token": "<image>", "video_token": "<video>"},
    ),
    ONEVISION_TEMPLATE,
    _onevision,
    _onevision_processor,
    stops=("<|im_end|>", "<|endoftext|>"),
    tie=True,
)  # fmt: skip
