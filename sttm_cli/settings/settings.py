"""The settings of one run: a table of fields, each declared once and checked when it is made."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from sttm_cli.base.errors import UsageError
from sttm_cli.base.names import did_you_mean, path_or_address
from sttm_cli.base.types import Sampling
from sttm_cli.settings.fields import (
    NO_TIER,
    Group,
    Parse,
    Scope,
    Setting,
    check_thresholds_alone,
    declare,
    parse_budget,
    parse_bytes,
    parse_duration,
    parse_fps,
    parse_method,
    parse_names,
    parse_place,
    parse_real,
    parse_seconds,
    parse_switch,
    parse_text,
    parse_tier,
    parse_whole,
    setting,
    whole_number,
)

Decoder = Literal["auto", "decord", "av"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
KVDType = Literal["auto", "float16", "bfloat16", "int8"]
Positions = Literal["auto", "reassigned", "survivors"]
Sizes = Literal["auto", "off", "on"]

STDIN = "-"
DEFAULT_MODEL = "tiny"
PAPER_METHOD = "sttm"
DEFAULT_METHOD = PAPER_METHOD


def _drawing(name: str, parse: Parse) -> Parse:
    """Parsing of a field of Sampling, which knows its own range."""
    return lambda flag, value: getattr(Sampling(**{name: parse(flag, value)}), name)


@dataclass(frozen=True)
class Settings:
    """Everything that shapes an answer, but the video and the question.

    `budget` is a share of the video's tokens in (0, 1], or a whole number of tokens >= 16;
    `start` and `end` are seconds from the video's first frame; None leaves the choice to the
    model's defaults. Every value may be given as it is typed, such as "1:30" and "2G"; equal
    settings are equal however they were given. Raises UsageError, naming the flag, the value and
    what is allowed.

    A field's declaration here is all there is to it: its flag, its key in the config file, what a
    server does with it, its help and its line in docs/cli.md come from it.
    """

    # fmt: off
    model: str = setting(
        DEFAULT_MODEL, "-m", "--model", parse=parse_text, group=Group.MODEL, scope=Scope.MODEL,
        metavar="NAME", env="STTM_MODEL",
        help="A short name ('sttm models' lists them), an id on the Hugging Face hub, or a folder.",
    )
    revision: str | None = setting(
        None, "--revision", parse=parse_text, group=Group.MODEL, scope=Scope.MODEL,
        metavar="NAME", help="Branch, tag or commit of a model on the hub.",
    )
    budget: float | int = setting(
        "0.5", "-b", "--budget", parse=parse_budget, group=Group.MODEL,
        metavar="BUDGET", env="STTM_BUDGET",
        help="Keep at most this many of the video's tokens: a share such as 0.3 or 30%, or "
        "a number from 16 on for the whole video.",
    )
    method: str = setting(
        DEFAULT_METHOD, "--method", parse=parse_method, group=Group.MODEL, metavar="NAME",
        env="STTM_METHOD",
        help="How tokens are merged: sttm, or another such as anchors or tome. sttm:0.8/0.6 sets "
        "thresholds by hand, with --budget 1.",
    )
    merge_layer: int | None = setting(
        None, "--merge-layer", parse=whole_number(0), group=Group.MODEL, metavar="LAYER",
        help="Decoder layer before which tokens are merged. (default: the model's)",
    )
    attention_sizes: Sizes = setting(
        "auto", "--attention-sizes", choices=get_args(Sizes), group=Group.MODEL, metavar="WORD",
        help="Whether a merged token counts in attention as often as the cells behind it: on, off, "
        "or as the method needs it (auto).",
    )
    positions: Positions = setting(
        "auto", "--positions", choices=get_args(Positions), group=Group.MODEL, metavar="WORD",
        help="Rotary positions after merging: counted anew (reassigned), kept (survivors), or as "
        "suits the model (auto).",
    )
    options: tuple[str, ...] = setting(
        "", "--options", parse=parse_names, group=Group.MODEL, scope=Scope.MODEL,
        metavar="NAME,...",
        help="Options that the model's family has, such as newlines for llava-video.",
    )
    system: str | None = setting(
        None, "--system", parse=parse_text, group=Group.MODEL, metavar="TEXT",
        help="Instructions for the model, before the video: a system prompt.",
    )
    fps: float | None = setting(
        None, "--fps", parse=parse_fps, group=Group.FRAMES, metavar="RATE",
        help="Frames sampled per second; of a folder, images per second. (default: 1)",
    )
    frames: int | None = setting(
        None, "--frames", parse=whole_number(1), group=Group.FRAMES, metavar="N",
        help="At most this many frames. (default: the model's)",
    )
    start: float | None = setting(
        None, "--start", parse=parse_seconds, group=Group.FRAMES, in_config=False, metavar="TIME",
        help="Begin here: seconds or [HH:]MM:SS.",
    )
    end: float | None = setting(
        None, "--end", parse=parse_seconds, group=Group.FRAMES, in_config=False, metavar="TIME",
        help="End here: seconds or [HH:]MM:SS.",
    )
    decoder: Decoder = setting(
        "auto", "--decoder", choices=get_args(Decoder), group=Group.FRAMES, metavar="WORD",
        help="Reader of the video: auto, av (FFmpeg) or decord.",
    )
    # `cuda:N` is a device as well; which there are, the machine knows.
    device: str = setting(
        "auto", "--device", parse=parse_text, choices=("auto", "cpu", "cuda", "mps"),
        group=Group.MODEL, scope=Scope.MODEL, metavar="DEVICE",
        help="Where to compute: auto, cpu, cuda, cuda:N or mps.",
    )
    dtype: DType = setting(
        "auto", "--dtype", choices=get_args(DType), group=Group.MODEL, scope=Scope.MODEL,
        metavar="WORD", help="Number format: auto, float32, bfloat16 or float16.",
    )
    kv_dtype: KVDType = setting(
        "auto", "--kv-dtype", choices=get_args(KVDType), group=Group.CACHE, metavar="WORD",
        help="Number format of what is stored: auto (as computed), bfloat16, float16 or int8. New "
        "videos are answered from it as well.",
    )
    cache_dir: str | Path | None = setting(
        None, "--cache-dir", parse=parse_place, group=Group.STORE, scope=Scope.SERVER,
        metavar="PATH", env="STTM_CACHE_DIR",
        help="Folder of the cache, or a bucket: s3://, gs:// or az://BUCKET/PREFIX. (default: the "
        "user's cache folder)",
    )
    cache_tier: str | Path | None = setting(
        None, "--cache-tier", parse=parse_tier, group=Group.STORE, scope=Scope.SERVER,
        metavar="FOLDER", env="STTM_CACHE_TIER",
        help="Folder of local copies of what is in a bucket; none for no copies. (default: beside "
        "the user's cache folder)",
    )
    no_cache: bool = setting(
        False, "--no-cache", parse=parse_switch, group=Group.CACHE, scope=Scope.PROCESS,
        in_config=False, help="Neither read nor write the cache.",
    )
    refresh: bool = setting(
        False, "--refresh", parse=parse_switch, group=Group.CACHE, scope=Scope.PROCESS,
        in_config=False, help="Compute anew and replace what is stored.",
    )
    max_bytes: int | None = setting(
        None, "--max-bytes", parse=parse_bytes, group=Group.STORE, scope=Scope.SERVER,
        metavar="SIZE", help="Bound of the cache, such as 20G; the least recently used entries go "
        "first. (default: 20G or a tenth of the disk)",
    )
    max_new_tokens: int = setting(
        "256", "--max-new-tokens", parse=whole_number(1), group=Group.ANSWER, metavar="N",
        help="Longest answer, in tokens.",
    )
    temperature: float = setting(
        "0.0", "--temperature", parse=_drawing("temperature", parse_real), group=Group.ANSWER,
        metavar="NUMBER",
        help="Draw the answer's tokens at this temperature; 0 takes the likeliest each time.",
    )
    # A seed and a top-p belong to one call.
    seed: int | None = setting(
        None, "--seed", parse=_drawing("seed", parse_whole), group=Group.ANSWER, in_config=False,
        metavar="N", help="Draw the same answer again. (default: another one each time)",
    )
    top_p: float | None = setting(
        None, "--top-p", parse=_drawing("top_p", parse_real), group=Group.ANSWER, in_config=False,
        metavar="SHARE", help="Draw from the likeliest tokens that make up this share of the "
        "probability. (default: the model's)",
    )
    max_download: int = setting(
        "4G", "--max-download", parse=parse_bytes, group=Group.SOURCE, metavar="SIZE",
        help="Largest video taken from an address or stdin.",
    )
    # fmt: on

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not field.default:
                # Read here, where they are made; from then on they are frozen.
                object.__setattr__(self, field.name, SETTINGS[field.name].read(value))
        self._check_combinations()

    @property
    def sampling(self) -> Sampling:
        """How answers are drawn."""
        return Sampling(self.temperature, self.seed, self.top_p)

    def _check_combinations(self) -> None:
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise UsageError(f"--end {self.end:g} is not after --start {self.start:g}")
        check_thresholds_alone(self.method, self.budget)
        if self.no_cache and self.refresh:
            raise UsageError(
                "--no-cache and --refresh cannot be combined",
                "--refresh makes a stored entry anew, --no-cache stores none: choose one",
            )
        for flag, value in (("--seed", self.seed), ("--top-p", self.top_p)):
            if value is not None and self.temperature == 0:
                raise UsageError(
                    f"{flag} {value} cannot be combined with --temperature 0, which draws nothing",
                    f"give a --temperature above 0, or leave {flag} out",
                )


SETTINGS: dict[str, Setting] = {f.name: f.metadata["setting"] for f in fields(Settings)}
"""Every field of Settings, by its name."""

KEEP_ALIVE = declare(
    None, "--keep-alive", parse=parse_duration, group=Group.SERVER, metavar="TIME",
    help="Leave a server behind that keeps the model loaded for the next questions, until none "
    "came for so long, such as 10m.",
)  # fmt: skip
"""A setting of the commands that ask, which shapes no answer."""

NO_LOG = declare(
    False, "--no-log", parse=parse_switch, group=Group.SERVER,
    help="Keep no record of the questions and answers; 'sttm log' shows those that are kept.",
)  # fmt: skip
"""Another one of them."""


def in_scope(*scopes: Scope) -> tuple[str, ...]:
    """The names of the fields that a server treats in one of these ways."""
    return tuple(name for name, declared in SETTINGS.items() if declared.scope in scopes)


def cache_dir(given: str | Path | None = None) -> str | Path:
    """Where the cache is, a folder or the text of an address: as given, else STTM_CACHE_DIR, else
    the user's cache folder."""
    if given is not None:
        return path_or_address(given)
    declared = SETTINGS["cache_dir"]
    if typed := os.environ.get(declared.env or ""):
        place: str | Path = declared.read(typed)
        return place
    from platformdirs import user_cache_path

    return user_cache_path("sttm")


def cache_tier(given: str | Path | None = None) -> Path | None:
    """Where copies of a bucket's entries are: as given, else STTM_CACHE_TIER, else beside the
    user's cache folder; None for no copies."""
    declared = SETTINGS["cache_tier"]
    place = given if given is not None else os.environ.get(declared.env or "") or None
    if place is None:
        from platformdirs import user_cache_path

        return user_cache_path("sttm-tier")
    read = declared.read(place)
    return None if read == NO_TIER else Path(read)


def cache_folder(given: str | Path | None = None) -> Path:
    """As `cache_dir`; raises UsageError for an address, which is not a folder."""
    where = cache_dir(given)
    if isinstance(where, Path):
        return where
    raise UsageError(f"--cache-dir {where} is not a local folder", "give a folder to measure in")


# The config file: defaults of flags, in TOML.


CONFIG_KEYS: dict[str, Setting] = {
    declared.name: declared
    for declared in (*SETTINGS.values(), KEEP_ALIVE, NO_LOG)
    if declared.in_config
}
"""The settings that the config file may hold, by their keys."""


def config_path() -> Path:
    """The config file: STTM_CONFIG, else config.toml in the user's config folder."""
    if os.environ.get("STTM_CONFIG"):
        return Path(os.environ["STTM_CONFIG"])
    from platformdirs import user_config_path

    return user_config_path("sttm") / "config.toml"


def read_config() -> dict[str, str]:
    """The values in the config file, as they would be typed; `{}` where there is no file.

    Keys are flags without their dashes (`budget = 0.3`). Raises UsageError for a file that
    cannot be read or holds an unknown key or a value that its flag would not take.
    """
    path = config_path()
    if not path.exists():
        return {}
    import tomllib

    try:
        loaded = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"config file {path}: {error}") from error
    given = {key.replace("-", "_"): str(value) for key, value in loaded.items()}
    for key in sorted(set(given) - set(CONFIG_KEYS)):
        meant = did_you_mean(key, CONFIG_KEYS)
        raise UsageError(
            f"config file {path}: unknown key {key!r}", meant or f"known: {', '.join(CONFIG_KEYS)}"
        )
    for key, text in given.items():
        try:
            read = CONFIG_KEYS[key].read(text)
            if CONFIG_KEYS[key].choices:
                # `true` is `on`, where that is meant.
                given[key] = str(read)
        except UsageError as error:
            raise UsageError(f"config file {path}: {error.message}", error.hint) from error
    return given
