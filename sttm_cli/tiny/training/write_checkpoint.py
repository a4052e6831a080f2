"""The parts of the checkpoint folder: word-level tokenizer, processor files, untrained model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    GenerationConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from sttm_cli.tiny.questions import CORNERS, NUMBERS, TEMPLATES
from sttm_cli.tiny.scenes import COLOURS, DIRECTIONS, SHAPES, SIDE

FOLDER = Path(__file__).parents[1] / "checkpoint"
PATCH = 8
GRID = SIDE // PATCH // 2
WIDTH = 192
# Defaults under "sttm" in config.json: the number of frames in training, and merging.
SETTINGS = {"frames": 8, "merge_layer": 1, "positions": "survivors"}
SPECIAL = ("<unk>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
# The layout of the llava-hf checkpoints: the video, then the question on a separate line.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% if message['content'] is string %}{{ '\n' + message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'video' %}<video>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ '\n' + part['text'] }}{% endfor %}"
    "{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vocabulary() -> list[str]:
    """List the special tokens, then every word of the questions and answers, in a fixed order."""
    texts = [t for templates in TEMPLATES.values() for t in templates]
    texts += [*COLOURS, *SHAPES, *DIRECTIONS, *CORNERS, *NUMBERS]
    texts += [
        "user assistant system color an yes no unknown left right center middle",
        *"0123456789",
    ]
    words = {w for text in texts for w in re.findall(r"[a-z0-9]+", re.sub(r"{.}", " ", text))}
    return [*SPECIAL, *sorted(words)]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token per word, ignoring case and punctuation."""
    vocab = {word: index for index, word in enumerate(vocabulary())}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"['’]s\b"), " is"),
            normalizers.Replace(Regex(r"[^\w\s]+"), " "),
        ]
    )
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>", "<image>", "<video>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
    )


def make_processor() -> LlavaOnevisionProcessor:
    """Make a processor for frames of 112 x 112 with values in -1..1, and the chat template."""
    half: dict[str, Any] = {
        "size": {"height": SIDE, "width": SIDE},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(image_grid_pinpoints=[[SIDE, SIDE]], **half),
        tokenizer=make_tokenizer(),
        video_processor=LlavaOnevisionVideoProcessor(do_sample_frames=False, **half),
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )


def make_model() -> LlavaOnevisionForConditionalGeneration:
    """Make the untrained model: SigLIP tower, projector, Qwen2 decoder."""
    words = vocabulary()
    vision = SiglipVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=-(-len(words) // 32) * 32,
        hidden_size=WIDTH,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=words.index("<|im_end|>"),
        pad_token_id=words.index("<|im_end|>"),
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=words.index("<image>"),
        video_token_index=words.index("<video>"),
        image_grid_pinpoints=[[SIDE, SIDE]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
        sttm=SETTINGS,
    )
    return LlavaOnevisionForConditionalGeneration(config)


def write_checkpoint(model: LlavaOnevisionForConditionalGeneration, folder: Path) -> None:
    end = vocabulary().index("<|im_end|>")
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=8, eos_token_id=end, pad_token_id=end
    )
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
