"""The tables of `sttm eval`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from sttm_cli.base.types import Json
from sttm_cli.cli.output import print_text
from sttm_cli.cli.tables import columns
from sttm_cli.eval.published import Amount, in_words

_PAPER_HEAD = (
    "benchmark", "budget", "questions", "videos", "accuracy", "published", "difference",
    "against 1", "tokens kept", "computed", "from cache",
)  # fmt: skip
_MOST_CHANGED = 20
"""Number of changed answers on a terminal; --json has all of them."""


def paper_table(report: Json) -> None:
    """Every benchmark at every budget, beside what is published."""
    beside = f"and what is published of it ({report['source']})"
    if not report["published"]:
        beside = f"of which no rows are published ({report['source']})"
    print_text(f"{report['model']} by {report['method']}, {beside}")
    print_text(
        "accuracy in %, differences in points, [95 % interval]; first token: seconds, median"
    )
    print_text(columns(_PAPER_HEAD, [_paper_row(row) for row in report["rows"]]))
    for average in report["averages"]:
        known = average["published"]
        beside = "" if known is None else f", published {known:.1f}"
        print_text(f"average at {in_words(average)}: {average['accuracy']:.1f}{beside}")
    notes = {row["benchmark"]: row["note"] for row in report["rows"] if row["note"]}
    for line in _costs(report["rows"]):
        print_text(line)
    for row in report["rows"]:
        if row.get("failed"):
            print_text(
                f"{row['benchmark']} at {in_words(row)}: without {row['failed']:,} questions that "
                "were not answered"
            )
    for benchmark, note in notes.items():
        print_text(f"{benchmark}: {note}")
    rows = report["rows"]
    if kept := sum(row["kept"] for row in rows):
        print_text(f"{kept} of {len(rows)} measurements kept from before")
    uses = [row["cache"] for row in rows if "cache" in row and not row["kept"]]
    if uses:
        hits, asked = (sum(use[name] for use in uses) for name in ("hits", "questions"))
        saved = sum(use["saved_s"] for use in uses)
        print_text(
            f"cache: {hits:,} of {asked:,} questions began with a video that was already prepared, "
            f"which saved {saved:,.1f} s"
        )


def _costs(rows: Sequence[Json]) -> Iterator[str]:
    """Yield a line for each budget of which tokens and seconds are published."""
    for words in dict.fromkeys(in_words(row) for row in rows):
        of = [row for row in rows if in_words(row) == words and row["published_tokens"]]
        tokens = [row["tokens"]["kept"] for row in of if row.get("tokens", {}).get("kept")]
        seconds = [row["prefill_s"] for row in of if row.get("prefill_s") is not None]
        if tokens:
            line = f"cost at {words}: {fmean(tokens):,.0f} tokens, published "
            line += f"{of[0]['published_tokens']:,}"
            if seconds:
                line += f"; {fmean(seconds):.3g} s of the decoder's pass, published "
                line += f"{of[0]['published_first_token_s']:.3g}"
            yield line


def _paper_row(row: Json) -> tuple[str, ...]:
    first = (row["benchmark"], in_words(row))
    if "items" not in row:
        return (*first, "failed", *("",) * (len(_PAPER_HEAD) - 3))
    seconds, tokens = row["first_token_s"], row["tokens"]
    return (
        *first,
        f"{row['items']:,}",
        f"{row['videos']:,}",
        _interval(row["accuracy"]) or f"{row['lmms_eval']['score']:.3g}",
        "" if row["published"] is None else f"{row['published']:.1f}",
        _interval(row["difference"], "+"),
        _interval(row["against_full"], "+"),
        "" if tokens["kept"] is None else f"{tokens['kept']:,.0f} of {tokens['full']:,.0f}",
        *("" if s is None else f"{s:.2f}" for s in (seconds["computed"], seconds["cached"])),
    )


def _interval(estimate: Json | None, sign: str = "") -> str:
    if estimate is None:
        return ""
    value = f"{estimate['value']:{sign}.1f}"
    if estimate["low"] is None:
        return value
    low, high = (estimate[name] for name in ("low", "high"))
    return f"{value} [{low:{sign}.1f}, {high:{sign}.1f}]"


def own_table(report: Json, budgets: Sequence[Amount]) -> None:
    """Accuracy by category and budget, and the answers that changed."""
    print_text(
        f"{report['model']} by {report['method']}: {report['answered']} of {report['items']} "
        "questions answered at every budget"
    )
    print_text("% right, difference to the first budget in points, [95 % interval]")
    rows = [
        (
            row["category"],
            in_words(row),
            str(row["items"]),
            str(row["videos"]),
            _interval(row["accuracy"]),
            _interval(row["difference"], "+"),
            f"{row['tokens']['kept']:,.0f} of {row['tokens']['full']:,.0f}",
        )
        for row in report["rows"]
    ]
    head = ("category", "budget", "questions", "videos", "right", "difference", "tokens kept")
    print_text(columns(head, rows))
    _own_changes(report["changed"], budgets)
    use = report["cache"]
    print_text(
        f"{use['asked']} asked now, {use['kept_answers']} kept from before; the cache gave "
        f"{use['hits']} of them their video and saved {use['saved_s']:.1f} s"
    )


def _own_changes(changed: Sequence[Json], budgets: Sequence[Amount]) -> None:
    for place, budget in enumerate(budgets[1:], 1):
        pairs = [(item["answers"][0]["right"], item["answers"][place]["right"]) for item in changed]
        lost, gained = pairs.count((True, False)), pairs.count((False, True))
        print_text(f"from {budgets[0]:g} to {budget:g}: {lost} lost, {gained} gained")
    for item in changed[:_MOST_CHANGED]:
        answers = "; ".join(
            f"{in_words(a)}: {a['answer']!r}{'' if a['right'] else ' (wrong)'}"
            for a in item["answers"]
        )
        print_text(f"line {item['line']}, {item['video']}: {item['question']} -> {answers}")
    if len(changed) > _MOST_CHANGED:
        print_text(f"and {len(changed) - _MOST_CHANGED} more answers that changed: see --json")
