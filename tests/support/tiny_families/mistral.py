"""Mistral Small 3.1 (Mistral3) and Ministral 3."""

from collections.abc import Callable
from typing import Any

from transformers import (
    Ministral3Config,
    Mistral3Config,
    MistralConfig,
    PixtralImageProcessor,
    PixtralProcessor,
    PixtralVisionConfig,
)

from tiny_families.builder import Family, Sizes
from tiny_families.tokenizers_of_families import Words

Ids = Callable[[str], int]

TEMPLATE = """
{%- set system = 'You are a helpful assistant.' -%}
{%- set turns = messages -%}
{%- if messages[0]['role'] == 'system' -%}
{%- set system = messages[0]['content'] if messages[0]['content'] is string else messages[0]['content'][0]['text'] -%}
{%- set turns = messages[1:] -%}
{%- endif -%}
{{- bos_token + '[SYSTEM_PROMPT]' + system + '[/SYSTEM_PROMPT]' -}}
{%- for message in turns -%}
{%- if message['role'] == 'user' -%}
{{- '[INST]' -}}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}{{- part['text'] -}}
{%- elif part['type'] in ['image', 'image_url'] -%}{{- '[IMG]' -}}
{%- else -%}{{- raise_exception('Only text and image blocks are supported in message content!') -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '[/INST]' -}}
{%- elif message['role'] == 'assistant' -%}
{{- (message['content'] if message['content'] is string else message['content'][0]['text']) + eos_token -}}
{%- else -%}{{- raise_exception('Only user, system and assistant roles are supported!') -}}
{%- endif -%}
{%- endfor -%}
"""
PATCH = 4
LONGEST = 56  # pixels: at most 7 x 7 tokens of 8 x 8 pixels
WORDS = Words(
    first=("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
    last=("[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    bos="<s>", eos="</s>", pad="<pad>",
)  # fmt: skip


def tower() -> PixtralVisionConfig:
    return PixtralVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=LONGEST,
        patch_size=PATCH,
    )


def special(ids: Ids) -> dict[str, int]:
    return {"bos_token_id": ids("<s>"), "eos_token_id": ids("</s>"), "pad_token_id": ids("<pad>")}


def _mistral3(sizes: Sizes, ids: Ids) -> Mistral3Config:
    text = MistralConfig(**sizes.text(sliding_window=None, head_dim=16, tie_word_embeddings=sizes.tie, **special(ids)))
    return Mistral3Config(
        vision_config=tower(),
        text_config=text,
        image_token_index=ids("[IMG]"),
        spatial_merge_size=2,
        tie_word_embeddings=sizes.tie,
    )


def processor(tokenizer: Any, template: str | None) -> PixtralProcessor:
    images = PixtralImageProcessor(size={"longest_edge": LONGEST}, patch_size={"height": PATCH, "width": PATCH})
    return PixtralProcessor(
        images, tokenizer, patch_size=PATCH, spatial_merge_size=2, chat_template=template, image_token="[IMG]"
    )


MISTRAL3 = Family(WORDS, TEMPLATE, _mistral3, processor, stops=("</s>",), rows=1)


def _ministral3(sizes: Sizes, ids: Ids) -> Mistral3Config:
    """Queries are scaled by their position, which begins to matter after 32 tokens."""
    rope = {
        "rope_type": "yarn",
        "type": "yarn",
        "rope_theta": 1e6,
        "factor": 16.0,
        "original_max_position_embeddings": 32,
        "max_position_embeddings": 512,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale_all_dim": 1.0,
        "mscale": 1.0,
        "llama_4_scaling_beta": 0.1,
    }
    arguments = sizes.text(head_dim=16, tie_word_embeddings=sizes.tie, rope_parameters=rope, **special(ids))
    return Mistral3Config(
        vision_config=tower(),
        text_config=Ministral3Config(**{**arguments, "max_position_embeddings": 512}),
        image_token_index=ids("[IMG]"),
        spatial_merge_size=2,
        tie_word_embeddings=sizes.tie,
    )


MINISTRAL3 = Family(WORDS, TEMPLATE, _ministral3, processor, stops=("</s>",), tie=True)
