"""GLM-4.1V."""

from collections.abc import Callable
from typing import Any

from transformers import Glm4vConfig, Glm4vImageProcessor, Glm4vProcessor, Glm4vVideoProcessor

from tiny_families.builder import Family, Sizes
from tiny_families.qwen import sections
from tiny_families.tokenizers_of_families import Words

# No end token follows an answer: the next turn's `<|user|>` ends it.
TEMPLATE = """
{{- '[gMASK]<sop>' -}}
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>\\n' -}}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<|begin_of_image|><|image|><|end_of_image|>' -}}
{%- elif part['type'] == 'text' -%}{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""
PATCH = 4
WORDS = Words(
    first=(),
    last=(
        "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
        "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
        "<|image|>", "<|video|>",
    ),
    bos=None, eos="<|endoftext|>", pad="<|endoftext|>",
    named={"image_token": "<|image|>", "video_token": "<|video|>"},
)  # fmt: skip


def _config(sizes: Sizes, ids: Callable[[str], int]) -> Glm4vConfig:
    rope = {
        "rope_type": "default",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
        "mrope_section": sections(sizes.head_dim // 2),
    }
    end = ids("<|endoftext|>")
    text = sizes.text(rope_parameters=rope, eos_token_id=end, pad_token_id=end, tie_word_embeddings=sizes.tie)
    tower = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "image_size": 6 * PATCH,
        "patch_size": PATCH,
        "out_hidden_size": sizes.hidden,
    }
    return Glm4vConfig(
        text_config=text,
        vision_config=tower,
        image_token_id=ids("<|image|>"),
        video_token_id=ids("<|video|>"),
        image_start_token_id=ids("<|begin_of_image|>"),
        image_end_token_id=ids("<|end_of_image|>"),
        video_start_token_id=ids("<|begin_of_video|>"),
        video_end_token_id=ids("<|end_of_video|>"),
        tie_word_embeddings=sizes.tie,
    )


def _processor(tokenizer: Any, template: str | None) -> Glm4vProcessor:
    images = Glm4vImageProcessor(size={"shortest_edge": 512, "longest_edge": 8192}, patch_size=PATCH)
    return Glm4vProcessor(images, tokenizer, Glm4vVideoProcessor(), chat_template=template)


GLM_4V = Family(WORDS, TEMPLATE, _config, _processor, stops=("<|endoftext|>", "<|user|>", "<|observation|>"))
