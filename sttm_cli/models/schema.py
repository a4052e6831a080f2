"""pydantic models of the fields of a checkpoint's JSON files that this package reads.

They reject values of the wrong type and implausible sizes before anything is built from them;
other fields are left to transformers. Imported only when a checkpoint is read, since pydantic
takes tens of milliseconds.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from sttm_cli.base.types import Json


def _beside(name: str) -> str:
    if name in ("", ".", "..") or set("/\\:") & set(name) or not name.isprintable():
        raise ValueError("must be the name of a file in the same folder")
    return name


def _sides(size: dict[str, int | None]) -> dict[str, int | None]:
    wrong = [name for name in ("height", "width") if (size.get(name) or 0) > MOST]
    if wrong:
        raise ValueError(f"{wrong[0]} must be less than or equal to {MOST}")
    return size


MOST = 1 << 20
# Far above any model, but small enough to build before the weights are compared with it.
Layers = Annotated[int, Field(ge=1, le=1000)]
Size = Annotated[int, Field(ge=1, le=MOST)]
Length = Annotated[int, Field(ge=1, le=1 << 40)]
Area = Annotated[int, Field(ge=1, le=1 << 30)]
Id = Annotated[int, Field(ge=0, le=1 << 40)]
Kernel = Annotated[int, Field(ge=1, le=64)]
Pixels = Annotated[int, Field(ge=1, le=8192)]
Side = Pixels | Annotated[list[Pixels], Field(min_length=1, max_length=3)]
Beside = Annotated[str, AfterValidator(_beside)]


class Part(BaseModel):
    """An object in a checkpoint's file: values are not converted, other fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Layer(Part):
    """What a decoder layer has for itself."""

    num_key_value_heads: Size | None = None
    head_dim: Size | None = None


class Text(Part):
    """The decoder's dimensions."""

    num_hidden_layers: Layers | None = None
    num_attention_heads: Size | None = None
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    hidden_size: Size | None = None
    intermediate_size: Size | None = None
    vocab_size: Annotated[int, Field(ge=1, le=1 << 24)] | None = None
    max_position_embeddings: Length | None = None
    num_experts: Size | None = None
    layer_types: Annotated[list[str], Field(max_length=1000)] | None = None
    full_attention_interval: Layers | None = None
    linear_conv_kernel_dim: Annotated[int, Field(ge=1, le=64)] | None = None
    linear_num_key_heads: Size | None = None
    linear_num_value_heads: Size | None = None
    linear_key_head_dim: Size | None = None
    linear_value_head_dim: Size | None = None
    sliding_window: Size | None = None
    num_kv_shared_layers: Annotated[int, Field(ge=0, le=1000)] | None = None
    hidden_size_per_layer_input: Annotated[int, Field(ge=0, le=MOST)] | None = None
    vocab_size_per_layer_input: Annotated[int, Field(ge=1, le=1 << 24)] | None = None
    global_head_dim: Size | None = None
    num_global_key_value_heads: Size | None = None
    per_layer_config: dict[str, Layer] | None = None
    eos_token_id: Id | list[Id] | None = None


class Vision(Part):
    """The tower's dimensions."""

    num_hidden_layers: Layers | None = None
    depth: Layers | None = None
    num_attention_heads: Size | None = None
    num_heads: Size | None = None
    hidden_size: Size | None = None
    embed_dim: Size | None = None
    intermediate_size: Size | None = None
    image_size: Side | None = None
    patch_size: Side | None = None
    num_channels: Annotated[int, Field(ge=1, le=16)] | None = None
    temporal_patch_size: Size | None = None
    spatial_merge_size: Size | None = None
    num_position_embeddings: Size | None = None
    position_embedding_size: Size | None = None
    pooling_kernel_size: Kernel | None = None


class Own(Part):
    """The defaults that a checkpoint states under "sttm"."""

    frames: Size | None = None
    merge_layer: Annotated[int, Field(ge=0, le=1000)] | None = None
    positions: Annotated[str, Field(pattern="^(survivors|reassigned)$")] | None = None


class Config(Text):
    """config.json; in the original LLaVA layout the decoder's fields are at the top level."""

    model_type: str = ""
    text_config: Text | None = None
    vision_config: Vision | None = None
    sttm: Own | None = None
    scale_factor: Size | None = None
    image_seq_length: Size | None = None
    mm_vision_tower: str | None = None
    mm_projector_type: str | None = None
    mm_spatial_pool_mode: str | None = None
    transformers_weights: None = None
    configuration_files: list[Beside] | None = None


class Index(Part):
    """model.safetensors.index.json; its file names are checked by `weight_files`."""

    weight_map: dict[str, str]
    metadata: dict[str, Any] | None = None


class Generation(Part):
    """generation_config.json."""

    eos_token_id: Id | list[Id] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=1e6)] | None = None


class Frames(Part):
    """A video processor's sizes; its longest edge may mean the pixels of a whole video."""

    size: Annotated[dict[str, Area | None], AfterValidator(_sides)] | int | list[Size] | None = None
    patch_size: Side | None = None
    temporal_patch_size: Size | None = None
    merge_size: Size | None = None
    max_soft_tokens: Size | None = None
    pooling_kernel_size: Kernel | None = None
    max_pixels: Size | Length | None = None
    min_pixels: Size | Length | None = None


class Processor(Frames):
    """processor_config.json and the older files with the same fields."""

    video_processor: Frames | None = None
    image_processor: Frames | None = None
    audio_tokenizer: None = None


class Tokenizer(Part):
    """tokenizer_config.json. transformers reads what it names instead of the folder's own files."""

    gguf_file: None = None
    merges_file: Beside | None = None
    vocab: dict[str, Any] | list[Any] | None = None
    merges: list[Any] | None = None
    fast_tokenizer_files: list[Beside] | None = None
    model_max_length: Annotated[float, Field(ge=1)] | None = None


_FILES: dict[str, type[Part]] = {
    "config.json": Config,
    "model.safetensors.index.json": Index,
    "generation_config.json": Generation,
    "processor_config.json": Processor,
    "preprocessor_config.json": Processor,
    "video_preprocessor_config.json": Processor,
    "tokenizer_config.json": Tokenizer,
}


def problem(file: str, value: Json) -> str | None:
    """Describe the first field of `value` that violates the schema of `file`, if any."""
    try:
        _FILES[file].model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        text = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
        field = ".".join(str(part) for part in first["loc"] if str(part).isprintable())[:80]
        return f"{field} {text.replace('Input should be', 'must be')}"
    return None
