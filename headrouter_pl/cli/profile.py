"""``headrouter-pl profile``: what a head-weight profile holds."""

from __future__ import annotations

from pathlib import Path

from headrouter_pl.errors import ConfigurationError, HeadRouterError
from headrouter_pl.profiles import HeadProfile
from headrouter_pl.results import check_output


def show(file: str, top: int = 20, output: str | None = None) -> None:
    """Shows which heads a profile weighs, and how strongly.

    Args:
        file: The profile: a file, or the name of one that needs none.
        top: Heads to list, the strongest first.
        output: Where to draw all heads as a PNG, if anywhere.
    """
    if top < 1:
        raise ConfigurationError(f"top must be at least 1, got {top}.")
    if output is not None:
        if Path(output).suffix != ".png":
            raise ConfigurationError(f"{output}: the heads are drawn as a PNG; name a file that ends in .png.")
        check_output(output)
    profile = HeadProfile.load(file)
    print(format_profile(profile, top))
    if output is not None:
        draw_profile(profile, Path(output))
        print(f"Written: {output}")


def format_profile(profile: HeadProfile, top: int = 20) -> str:
    """A profile as text: what it is, and a table of its strongest heads.

    Args:
        profile: The profile.
        top: Heads to list, by the largest absolute weight of any type.
    """
    from headrouter_pl.cli.tables import format_table

    lines = [f"Profile {profile.name}: weights on {profile.features}, layers {_layers(profile)}"]
    lines += [f"  {name}: {value}" for name, value in sorted(profile.metadata.items())]
    if profile.weights is None:
        by = "each head by its selectivity on the sample" if profile.weighting == "selectivity" else "all heads alike"
        return "\n".join([*lines, f"It weighs {by}."])
    heads = profile.weights.shape[1] // _rows(profile)
    effective = profile.weights.abs().sum(1).square() / profile.weights.square().sum(1)
    listed = ", ".join(f"{kind} {count:.1f}" for kind, count in zip(profile.types, effective.tolist(), strict=True))
    lines.append(f"Heads that count, of {profile.weights.shape[1]} (1 / sum of squared weights): {listed}.")
    if profile.centroids is not None:
        lines.append(f"Bandwidth of the gates: {profile.bandwidth:.4f}.")
    order = profile.weights.abs().amax(0).argsort(descending=True, stable=True).tolist()
    table = []
    for index in order[:top]:
        layer = index // heads
        row: dict[str, object] = {"layer": layer if profile.layers is None else profile.layers[layer]}
        row["head"] = index % heads
        for kind, weights in zip(profile.types, profile.weights, strict=True):
            row[kind] = f"{float(weights[index]):+.3f}" if profile.features == "log" else f"{float(weights[index]):.3f}"
        if profile.centroids is not None:
            for kind, centroids in zip(profile.types, profile.centroids, strict=True):
                row[f"selectivity, {kind}"] = f"{float(centroids[index]):.3f}"
        table.append(row)
    more = f"\n... and {len(order) - top} more heads" if len(order) > top else ""
    return "\n".join(lines) + f"\n\n{format_table(table)}{more}"


def draw_profile(profile: HeadProfile, path: Path) -> None:
    """Draws the weights as a heatmap: a panel for each type, a row for each layer, a column for each head.

    Args:
        profile: One with weights.
        path: The PNG to write.
    """
    if profile.weights is None:
        raise HeadRouterError(f"Profile {profile.name!r} has no weights to draw: its heads are not fixed beforehand.")
    from headrouter_pl.cli.figures import drawing

    count = _rows(profile)
    grids = profile.weights.unflatten(1, (count, -1))
    limit = float(grids.abs().max())
    signed = profile.features == "log"
    size = (2 + 0.45 * grids.shape[2], len(grids) * (1 + 0.4 * count))
    with drawing(path, len(grids), 1, dpi=120, figsize=size) as (figure, axes):
        for axis, kind, grid in zip(axes[:, 0], profile.types, grids, strict=True):
            image = axis.imshow(
                grid.numpy(), aspect="auto", cmap="RdBu_r" if signed else "viridis", vmin=-limit if signed else 0.0,
                vmax=limit,
            )  # fmt: skip
            axis.set(title=kind, xlabel="head", ylabel="layer", xticks=range(grid.shape[1]), yticks=range(count))
            axis.set_yticklabels(range(count) if profile.layers is None else profile.layers)
        figure.colorbar(image, ax=axes[:, 0].tolist(), label=f"weight on {profile.features}")


def _rows(profile: HeadProfile) -> int:
    if profile.layers is not None:
        return len(profile.layers)
    return 1  # the layer below the prune layer


def _layers(profile: HeadProfile) -> str:
    return "right below the prune layer" if profile.layers is None else ", ".join(map(str, profile.layers))


profile = {"_help": "Head-weight profiles.", "show": show}
