"""The published benchmarks through lmms-eval: every benchmark at every budget, each result kept.

A measurement's file name depends on everything that shaped it, so none is mistaken for another. An
interrupted measurement keeps its replies and continues after them.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from sttm_cli import __version__
from sttm_cli.base.errors import SttmError
from sttm_cli.base.types import Json
from sttm_cli.eval.environment import VERSION, lmms_python
from sttm_cli.eval.published import Amount, Benchmark, at
from sttm_cli.eval.served import Served, ended, serving
from sttm_cli.eval.vnbench_items import write_items
from sttm_cli.runtime.model_plan import ModelPlan
from sttm_cli.settings.fields import Thresholds
from sttm_cli.settings.settings import Settings

TASKS = Path(__file__).parent / "tasks"
_HARNESS = Path(__file__).parent / "harness.py"
_TASK_FILES = (".yaml", ".yml", ".py", ".json", ".jsonl", ".csv", ".parquet")
_LOOK_S = 0.2
_MOST_NAMED = 3


@dataclass(frozen=True)
class Paper:
    """The measurements to make. `data` has the benchmarks' data in lmms-eval's layout, `kept` the
    results; `include` and `allow` are folders of tasks and of videos."""

    settings: Settings
    model: ModelPlan
    benchmarks: tuple[Benchmark, ...]
    budgets: tuple[Amount, ...]
    data: Path
    kept: Path
    limit: int | None = None
    include: tuple[Path, ...] = ()
    allow: tuple[Path, ...] = ()

    def facts(self, benchmark: Benchmark, budget: Amount) -> Json:
        """All that shapes a measurement."""
        s = self.settings
        return {
            "sttm": __version__,
            "lmms_eval": VERSION,
            "model": self.model.identity,
            "method": [s.method, self.model.method.version],
            "merging": [self.model.merge_layer, self.model.positions, list(self.model.options)],
            "attention_sizes": self.model.attention_sizes,
            "system": self.model.system,
            "reading": [s.fps, benchmark.frames, s.decoder, s.kv_dtype],
            "task": benchmark.task,
            "tasks": [_stand(folder) for folder in self.include],
            "data": str(self.data),
            "budget": asdict(budget) if isinstance(budget, Thresholds) else budget,
            "limit": self.limit,
        }

    def place(self, benchmark: Benchmark, budget: Amount) -> Path:
        """The file of a measurement; its journal and its log lie beside it."""
        text = json.dumps(self.facts(benchmark, budget), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        amount = f"{budget:g}".replace("/", "_")
        return self.kept / f"{benchmark.task}-{amount}-{digest}.json"

    def done(self, benchmark: Benchmark, budget: Amount) -> Json | None:
        """A measurement that is kept, None if there is none that can be read."""
        try:
            kept = json.loads(self.place(benchmark, budget).read_text(encoding="utf-8"))
            return kept if isinstance(kept["items"], list) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def forget(self) -> None:
        """Remove the kept results of these measurements."""
        for budget in self.budgets:
            for benchmark in self.benchmarks:
                for suffix in (".json", ".journal", ".log"):
                    self.place(benchmark, budget).with_suffix(suffix).unlink(missing_ok=True)


@dataclass(frozen=True)
class Measured:
    """A benchmark at a budget: lmms-eval's result, or the error; `kept`: from an earlier run."""

    benchmark: Benchmark
    budget: Amount
    result: Json | None
    error: str = ""
    kept: bool = False


def measure(
    paper: Paper, *, say: Callable[[str], None], progress: Callable[[str, int, int], None]
) -> Iterator[Measured]:
    """Yield every benchmark at every budget, kept or measured; the model is served once for each
    budget with anything left to measure. A failure ends one measurement only.

    Raises SttmError if lmms-eval's environment cannot be created.
    """
    paper.kept.mkdir(parents=True, exist_ok=True, mode=0o700)
    for budget in paper.budgets:
        with ExitStack() as stack:
            served: Served | None = None
            for benchmark in paper.benchmarks:
                if (kept := paper.done(benchmark, budget)) is not None:
                    yield Measured(benchmark, budget, kept, kept=True)
                    continue
                python = lmms_python(say)
                try:
                    _prepare(paper, benchmark)
                    if served is None:
                        served = stack.enter_context(_server(paper, budget, say, progress))
                    yield _measured(paper, benchmark, budget, python, served, progress)
                except SttmError as error:
                    yield Measured(benchmark, budget, None, str(error))


@contextmanager
def _server(
    paper: Paper,
    budget: Amount,
    say: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> Iterator[Served]:
    kind = "thresholds" if isinstance(budget, Thresholds) else "budget"
    say(f"serving {paper.settings.model} at {kind} {budget:g}")
    with serving(
        at(paper.settings, budget),
        allow=(paper.data, *paper.allow),
        wait=lambda: progress("load", 0, 0),
    ) as served:
        yield served


def _prepare(paper: Paper, benchmark: Benchmark) -> None:
    paper.data.mkdir(parents=True, exist_ok=True)
    if benchmark.task == "vnbench":
        write_items(paper.data / "VNBench")


def _measured(
    paper: Paper,
    benchmark: Benchmark,
    budget: Amount,
    python: Path,
    served: Served,
    progress: Callable[[str, int, int], None],
) -> Measured:
    """Measure one benchmark at one budget; the result is kept if every question was answered."""
    place = paper.place(benchmark, budget)
    with tempfile.TemporaryDirectory(prefix="sttm-") as folder:
        job, out = Path(folder) / "job.json", Path(folder) / "result.json"
        job.write_text(json.dumps(_job(paper, benchmark, served, place, out)), encoding="utf-8")
        label = f"{benchmark.name} at {budget:g}"
        _run(paper, [str(python), "-P", str(_HARNESS), str(job)], served, place, label, progress)
        if not out.exists():
            raise _failure(benchmark, place.with_suffix(".log"))
        result: Json = json.loads(out.read_text(encoding="utf-8"))
    failed = sum(item["failed"] for item in result["items"])
    if failed:
        first = result["errors"][0] if result["errors"] else "no answer"
        about = dict.fromkeys(
            Path(str(item["video"])).name for item in result["items"] if item["failed"]
        )
        text = (
            f"{failed} of {len(result['items'])} questions were not answered, about "
            f"{', '.join([*about][:_MOST_NAMED])}: {first[:300]}"
        )
        return Measured(benchmark, budget, result, text)
    part = place.with_suffix(".part")
    part.write_text(json.dumps(result), encoding="utf-8")
    part.replace(place)
    for suffix in (".journal", ".log"):
        place.with_suffix(suffix).unlink(missing_ok=True)
    return Measured(benchmark, budget, result)


def _job(paper: Paper, benchmark: Benchmark, served: Served, place: Path, out: Path) -> Json:
    return {
        "task": benchmark.task,
        "include": [str(folder) for folder in (TASKS, *paper.include)],
        "limit": paper.limit,
        "frames": benchmark.frames,
        "base_url": f"{served.url}/v1",
        "model": served.model,
        "journal": str(place.with_suffix(".journal")),
        "out": str(out),
    }


def _run(
    paper: Paper,
    command: Sequence[str],
    served: Served,
    place: Path,
    label: str,
    progress: Callable[[str, int, int], None],
) -> None:
    """Run lmms-eval to its end; its output goes to the log."""
    with place.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            # A local folder with the name of a data set on the hub takes precedence over the hub.
            cwd=paper.data,
            env=_environment(paper, served),
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                progress(label, _answered(place.with_suffix(".journal")), paper.limit or 0)
                time.sleep(_LOOK_S)
        finally:
            ended(process)


def _environment(paper: Paper, served: Served) -> dict[str, str]:
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "OPENAI_API_BASE", "LMMS_EVAL_PLUGINS")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    # The model runs in the server: lmms-eval needs no accelerator.
    return env | {
        "HF_HOME": str(paper.data),
        "OPENAI_API_KEY": served.key,
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _answered(journal: Path) -> int:
    with suppress(OSError):
        return sum(line.startswith(b"{") for line in journal.read_bytes().split(b"\n"))
    return 0


def _failure(benchmark: Benchmark, log: Path) -> SttmError:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    reason = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
    return SttmError(
        f"lmms-eval ended without a result for {benchmark.task}: {reason.strip()[:300]}",
        f"{log} has its full output",
    )


def data_folder() -> Path:
    """Return HF_HOME, where lmms-eval keeps the benchmarks' data."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME).expanduser().absolute()


def _stand(folder: Path) -> list[object]:
    """Return the current state of the files in a folder of tasks."""
    files = sorted(p for p in folder.rglob("*") if p.suffix in _TASK_FILES)
    stats = [(str(p.relative_to(folder)), p.stat()) for p in files]
    return [str(folder), [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]]
