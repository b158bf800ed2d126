"""What ``headrouter-pl benchmark`` prints and writes: a table, a page and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headrouter_pl.cli.tables import dump_figures, format_table
from headrouter_pl.results import write_text

_Row = Mapping[str, Any]

LEGEND = """\
Ratios are pruned / unpruned, of medians of alternating runs. *Ideal*: the ratio of the decoder layers' FLOPs, by
formula. *Overhead*: the time to lay out, probe, route and select, as a share of the unpruned prefill. *Hooks*: the time
per token of decoding with the hooks, over that on the same cache without them. *KV*: keys and values found in the
cache, and in brackets what the formula says of them."""
SCALING = (
    "A least-squares line of the overhead in seconds over the audio's length; `r2` is the share of variance explained."
)


def write_report(figures: Mapping[str, Any], path: Path) -> None:
    """Writes the figures as JSON, and beside it a page (``.md``) and the speed-up over the length (``.png``).

    Args:
        figures: What ``benchmark`` returns.
        path: Of the JSON file.
    """
    written = [path]
    write_text(path, dump_figures(figures))
    if figures["rows"]:
        written += [path.with_suffix(".md"), path.with_suffix(".png")]
        write_text(written[1], page(figures))
        draw(figures, written[2])
    print(f"Written: {', '.join(map(str, written))}")


def page(figures: Mapping[str, Any]) -> str:
    """All tables, as Markdown."""
    rows, routing = figures["rows"], figures["new_prompt_routing_s"]
    parts = [
        f"# Speed and memory, {rows[0]['shape']}\n\n`{figures['command']}`\n\n"
        f"{figures['device']}; torch {figures['torch']}, transformers {figures['transformers']}; "
        f"{rows[0]['num_layers']} decoder layers, {rows[0]['dtype']}; n = {rows[0]['runs']} runs of each. "
        f"A new prompt is routed in {1000 * routing:.2f} ms.\n\n{LEGEND}",
        format_rows(rows),
        "## Seconds\n\nMedian (lowest to highest).\n\n" + format_table([_times(row) for row in rows]),
    ]
    if figures["scaling"]:
        parts.append(f"## Overhead over length\n\n{SCALING}\n\n{format_table(figures['scaling'])}")
    return "\n\n".join(parts) + "\n"


def format_rows(rows: Sequence[_Row]) -> str:
    """The ratios, a line for each row."""
    return format_table([
        _setting(row) | {
            "prefill": _cell(row["prefill_ratio"]), "ideal": _cell(row["ideal_ratio"]),
            "overhead": f"{row['overhead_share']:.2%}", "first token": _cell(row["first_token_ratio"]),
            "decode": _cell(row["decode_ratio"]), "hooks": _cell(row["decode_hooks_ratio"]),
            "peak memory": _cell(row["peak_memory_ratio"]),
            "KV MiB": f"{row['kv_bytes'] / 2**20:.1f} ({row['kv_bytes_formula'] / 2**20:.1f})",
        }
        for row in rows
    ])  # fmt: skip


def _setting(row: _Row) -> dict[str, Any]:
    return {
        "audio": f"{row['batch']} x {row['length_s']:g} s", "attention": row["attention"], "K": row["layer"],
        "kept": f"{row['keep_ratio']:g}",
    }  # fmt: skip


def _times(row: _Row) -> dict[str, Any]:
    def spread(times: Sequence[float] | None) -> str:
        return "-" if times is None else f"{times[0]:.4g} ({times[1]:.4g} to {times[2]:.4g})"

    return _setting(row) | {
        "encoder": spread(row["encoder_s"]),
        **{
            f"{title}{suffix.replace('_', ', ')}": spread(row[f"{name}_s{suffix}"])
            for title, name in (("prefill", "prefill"), ("first token", "first_token"), ("decode a token", "decode"))
            for suffix in ("", "_unpruned")
        },
    }


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def draw(figures: Mapping[str, Any], path: Path) -> None:
    """Draws the speed-up of prefill over the length, a line for each ratio, with the ideal dashed; below, the overhead.

    The overhead is drawn as measured, with the fitted line where there is one.

    Args:
        figures: What ``benchmark`` returns, of at least one row.
        path: The PNG to write.
    """
    from headrouter_pl.cli.figures import drawing

    rows = figures["rows"]
    panels = list(dict.fromkeys((row["batch"], row["attention"], row["layer"]) for row in rows))
    ratios = list(dict.fromkeys(row["keep_ratio"] for row in rows))
    fits = {(fit["batch"], fit["attention"], fit["layer"], fit["keep_ratio"]): fit for fit in figures["scaling"]}
    size = (4.2 * len(panels) + 2, 7.2)
    with drawing(path, 2, len(panels), figsize=size, sharex=True) as (figure, axes):
        for axis, below, panel in zip(*axes, panels, strict=True):
            for number, ratio in enumerate(ratios):
                line = [row for row in rows if (row["batch"], row["attention"], row["layer"]) == panel]
                line = sorted((row for row in line if row["keep_ratio"] == ratio), key=lambda row: row["length_s"])
                across, colour = [row["length_s"] for row in line], f"C{number % 10}"
                axis.plot(
                    across, [1 / row["prefill_ratio"] for row in line], "o-", color=colour, label=f"{ratio:g} kept"
                )
                axis.plot(across, [1 / row["ideal_ratio"] for row in line], "x--", color=colour, linewidth=1)
                below.plot(across, [sum(row["overhead_parts_s"].values()) for row in line], "o", color=colour)
                if fit := fits.get((*panel, ratio)):
                    fitted = [fit["offset_s"] + fit["seconds_per_second"] * length for length in across]
                    below.plot(across, fitted, "-", color=colour, linewidth=1)
            axis.sharey(axes[0][0])  # the overhead below has a scale of its own: a scout pass takes far longer
            axis.set_title("batch {}, {}, K = {}".format(*panel), fontsize=10)
            below.set_xlabel("audio / s")
        axes[0][0].plot([], [], "x--", color="0.5", label="ideal, by FLOPs")
        axes[0][0].set_ylabel("speed-up of the decoder's prefill")
        axes[1][0].set_ylabel("probing, routing, selecting / s")
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
        figure.suptitle(f"{rows[0]['shape']}, {rows[0]['dtype']}, {figures['device']}", fontsize=11)
