"""Gemma 3 and Gemma 4."""

from collections.abc import Callable
from typing import Any

from transformers import (
    Gemma3Config,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma3TextConfig,
    Gemma4AudioFeatureExtractor,
    Gemma4Config,
    Gemma4ImageProcessor,
    Gemma4Processor,
    Gemma4TextConfig,
    Gemma4VideoProcessor,
    Gemma4VisionConfig,
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

GEMMA4_TEMPLATE = """
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' -}}
{%- if message['content'] is string -%}{{- message['content'] | trim -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<|image|>' -}}
{%- elif part['type'] == 'text' -%}{{- part['text'] | trim -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<turn|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|turn>model\n' -}}{%- endif -%}
"""
GEMMA4_TOKENS = 70  # the least that the image processor allows
GEMMA4_WORDS = Words(
    first=("<pad>", "<eos>", "<bos>", "<unk>"),
    last=(
        "<|turn>", "<turn|>", "<|image>", "<|image|>", "<image|>", "<|audio>", "<|audio|>", "<audio|>", "<|video|>",
    ),
    bos="<bos>", eos="<eos>", pad="<pad>",
    named={
        "boi_token": "<|image>", "image_token": "<|image|>", "eoi_token": "<image|>",
        "boa_token": "<|audio>", "audio_token": "<|audio|>", "eoa_token": "<audio|>",
    },
)  # fmt: skip


def _gemma4(sizes: Sizes, ids: Callable[[str], int]) -> Gemma4Config:
    text = Gemma4TextConfig(
        **sizes.text(
            head_dim=16,
            global_head_dim=16,
            sliding_window=WINDOW,
            layer_types=["full_attention" if layer % 2 else "sliding_attention" for layer in range(sizes.layers)],
            final_logit_softcapping=30.0,
            use_bidirectional_attention="vision",
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=sizes.vocabulary,
            bos_token_id=ids("<bos>"),
            eos_token_id=ids("<eos>"),
            pad_token_id=ids("<pad>"),
            tie_word_embeddings=sizes.tie,
        )
    )
    tower = Gemma4VisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        patch_size=PATCH,
        position_embedding_size=256,
    )
    return Gemma4Config(
        text_config=text,
        vision_config=tower,
        audio_config=None,
        boi_token_id=ids("<|image>"),
        eoi_token_id=ids("<image|>"),
        image_token_id=ids("<|image|>"),
        video_token_id=ids("<|video|>"),
        boa_token_id=ids("<|audio>"),
        eoa_token_index=ids("<audio|>"),
        audio_token_id=ids("<|audio|>"),
        tie_word_embeddings=sizes.tie,
    )


def _gemma4_processor(tokenizer: Any, template: str | None) -> Gemma4Processor:
    return Gemma4Processor(
        Gemma4AudioFeatureExtractor(),
        Gemma4ImageProcessor(patch_size=PATCH, max_soft_tokens=GEMMA4_TOKENS),
        tokenizer,
        Gemma4VideoProcessor(),
        chat_template=template,
        image_seq_length=GEMMA4_TOKENS,
    )


GEMMA4 = Family(
    GEMMA4_WORDS, GEMMA4_TEMPLATE, _gemma4, _gemma4_processor, stops=("<eos>", "<turn|>"), tie=True, norms=-0.5
)
