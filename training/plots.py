"""The curves a training leaves behind."""

from pathlib import Path


def plot_losses(log_history: list[dict], path: Path) -> None:
    """Draws every logged loss and the gradient norm against the step into a PNG."""
    from matplotlib.figure import Figure

    curves: dict[str, list[tuple[int, float]]] = {}
    for row in log_history:
        for name, value in row.items():
            if name == "grad_norm" or name.startswith("loss"):
                curves.setdefault(name, []).append((row["step"], value))
    if not curves:
        return
    columns = 2
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(9, 2.4 * rows), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(rows, columns, squeeze=False).flat, curves.items(), strict=False):
        axes.plot(*zip(*points, strict=True))
        axes.set_title(name, fontsize=9)
        if min(value for _, value in points) > 0:
            axes.set_yscale("log")
    figure.savefig(path, dpi=80)
