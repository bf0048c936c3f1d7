"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5Config,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from tiny_families.builder import Family, Sizes
from tiny_families.tokenizers_of_families import Words

Ids = Callable[[str], int]

_BODY = """
{%- for message in messages -%}
BEGIN
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'video' -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
_DEFAULT_SYSTEM = """{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}"""
QWEN2_5_TEMPLATE = _BODY.replace("BEGIN", _DEFAULT_SYSTEM)
QWEN3_TEMPLATE = _BODY.replace("BEGIN\n", "")
# Every answer after the last question begins with an empty block of thoughts.
QWEN3_5_TEMPLATE = """
{%- set last = namespace(question=-1) -%}
{%- for message in messages if message['role'] == 'user' -%}
{%- set last.question = messages.index(message) -%}
{%- endfor -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- set content = namespace(text='') -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{%- set content.text = content.text + '<|vision_start|><|image_pad|><|vision_end|>' -%}
{%- elif 'text' in part -%}{%- set content.text = content.text + part['text'] -%}
{%- endif -%}
{%- endfor -%}
{%- set text = content.text | trim -%}
{%- if message['role'] == 'assistant' -%}
{%- set thoughts = '' -%}
{%- if '</think>' in text -%}
{%- set thoughts = text.split('</think>')[0].split('<think>')[-1] | trim -%}
{%- set text = text.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{%- if loop.index0 > last.question -%}{{- '<think>\\n' + thoughts + '\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}
{{- text + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n<think>\\n' -}}{%- endif -%}
"""
PATCH = 4
LEAST, MOST = 256, 4096  # pixels of an image: 4 to 64 vision tokens of 8 x 8 pixels

WORDS = Words(
    first=(),
    last=(
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
        "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>",
    ),
    bos=None, eos="<|im_end|>", pad="<|endoftext|>", plain=("<tool_call>", "</tool_call>"),
)  # fmt: skip


def tokens(ids: Ids) -> dict[str, int]:
    """The configuration's keys of image and video tokens."""
    return {
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }


def text(sizes: Sizes, ids: Ids, **more: Any) -> dict[str, Any]:
    end = ids("<|endoftext|>")
    return sizes.text(bos_token_id=end, eos_token_id=ids("<|im_end|>"), pad_token_id=end, **more)


def sections(head_dim: int) -> list[int]:
    """How the frequencies of a head are shared among time, height and width."""
    side = 3 * (head_dim // 2) // 8
    return [head_dim // 2 - 2 * side, side, side]


def _qwen2_5(sizes: Sizes, ids: Ids) -> Qwen2_5_VLConfig:
    rope = {"rope_type": "default", "type": "default", "mrope_section": sections(sizes.head_dim), "rope_theta": 1e6}
    tower = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": PATCH,
        "window_size": 4 * PATCH,
        "fullatt_block_indexes": [1],
        "out_hidden_size": sizes.hidden,
    }
    return Qwen2_5_VLConfig(
        text_config=text(sizes, ids, rope_parameters=rope, tie_word_embeddings=sizes.tie),
        vision_config=tower,
        tie_word_embeddings=sizes.tie,
        **tokens(ids),
    )


def _qwen3(sizes: Sizes, ids: Ids) -> Qwen3VLConfig:
    rope = {"rope_type": "default", "mrope_section": sections(16), "mrope_interleaved": True, "rope_theta": 5e6}
    tower = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": PATCH,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0, 1],
        "out_hidden_size": sizes.hidden,
    }
    return Qwen3VLConfig(
        text_config=text(sizes, ids, rope_parameters=rope, head_dim=16, tie_word_embeddings=sizes.tie),
        vision_config=tower,
        tie_word_embeddings=sizes.tie,
        **tokens(ids),
    )


def _qwen2(sizes: Sizes, ids: Ids) -> Qwen2VLConfig:
    rope = {"rope_type": "default", "type": "default", "mrope_section": sections(sizes.head_dim), "rope_theta": 1e6}
    tower = {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": sizes.hidden,
        "mlp_ratio": 2,
        "num_heads": 2,
        "patch_size": PATCH,
    }
    return Qwen2VLConfig(
        text_config=text(sizes, ids, rope_parameters=rope, tie_word_embeddings=sizes.tie),
        vision_config=tower,
        tie_word_embeddings=sizes.tie,
        **tokens(ids),
    )


def _qwen3_5(sizes: Sizes, ids: Ids) -> Qwen3_5Config:
    """Three layers of linear attention before the first with a softmax."""
    rope = {
        "rope_type": "default",
        "mrope_section": sections(8),
        "mrope_interleaved": True,
        "rope_theta": 1e6,
        "partial_rotary_factor": 0.5,
    }
    linear = {
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    }
    tower = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": PATCH,
        "num_position_embeddings": 36,
        "out_hidden_size": sizes.hidden,
    }
    decoder = text(sizes, ids, rope_parameters=rope, head_dim=16, tie_word_embeddings=sizes.tie, **linear)
    return Qwen3_5Config(text_config=decoder, vision_config=tower, tie_word_embeddings=sizes.tie, **tokens(ids))


def image_processor() -> Qwen2VLImageProcessor:
    return Qwen2VLImageProcessor(size={"shortest_edge": LEAST, "longest_edge": MOST}, patch_size=PATCH)


def _qwen2_5_processor(tokenizer: Any, template: str | None) -> Qwen2_5_VLProcessor:
    return Qwen2_5_VLProcessor(image_processor(), tokenizer, Qwen2VLVideoProcessor(), chat_template=template)


def _qwen3_processor(tokenizer: Any, template: str | None) -> Qwen3VLProcessor:
    return Qwen3VLProcessor(image_processor(), tokenizer, Qwen3VLVideoProcessor(), chat_template=template)


def _qwen2_processor(tokenizer: Any, template: str | None) -> Qwen2VLProcessor:
    return Qwen2VLProcessor(image_processor(), tokenizer, Qwen2VLVideoProcessor(), chat_template=template)


STOPS = ("<|im_end|>", "<|endoftext|>")
QWEN2_5_VL = Family(WORDS, QWEN2_5_TEMPLATE, _qwen2_5, _qwen2_5_processor, STOPS)
QWEN3_VL = Family(WORDS, QWEN3_TEMPLATE, _qwen3, _qwen3_processor, STOPS, tie=True)
QWEN2_VL = Family(WORDS, QWEN2_5_TEMPLATE, _qwen2, _qwen2_processor, STOPS)
QWEN3_5 = Family(
    replace(WORDS, last=(*WORDS.last, "<think>", "</think>"), plain=(*WORDS.plain, "<think>", "</think>")),
    QWEN3_5_TEMPLATE,
    _qwen3_5,
    _qwen3_processor,
    STOPS,
    layers=4,
)
