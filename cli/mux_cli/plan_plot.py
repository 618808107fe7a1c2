"""Pictures of a plan: who is on which GPU, and who gets what."""

from pathlib import Path
from typing import Any

from mux_core.errors import SpecError


def plot_plan(document: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Writes `placement.png` and `service.png` into `folder`; their paths."""
    import matplotlib

    matplotlib.use("Agg")
    make_folder(folder)
    placement, service = folder / "placement.png", folder / "service.png"
    _placement(document, placement)
    _service(document, service)
    return placement, service


def make_folder(folder: Path) -> None:
    """Raises SpecError where the folder of `--plot` cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"--plot {folder}: cannot be made ({error.strerror}); choose another "
                        "folder") from error  # fmt: skip


def _colours(document: dict[str, Any]) -> dict[str, Any]:
    from matplotlib import colormaps

    palette = colormaps["tab20"]
    return {name: palette(index % 20) for index, name in enumerate(document["models"])}


def _placement(document: dict[str, Any], path: Path) -> None:
    """One column per GPU; a member's height is its decode share."""
    import matplotlib.pyplot as plt

    colours = _colours(document)
    columns = sorted({(unit["node"], gpu) for unit in document["units"] for gpu in unit["gpus"]})
    where = {column: index for index, column in enumerate(columns)}
    figure, axes = plt.subplots(figsize=(max(6.0, 0.45 * len(columns)), 4.5))
    for unit in document["units"]:
        for gpu in unit["gpus"]:
            bottom = 0.0
            for member in unit["members"]:
                share = member["decode_percent"]
                axes.bar(where[unit["node"], gpu], share, bottom=bottom, width=0.92,
                         color=colours[member["model"]], edgecolor="white")  # fmt: skip
                if share >= 8:
                    axes.text(where[unit["node"], gpu], bottom + share / 2, member["model"],
                              ha="center", va="center", rotation=90, fontsize=6)  # fmt: skip
                bottom += share
    axes.set_xticks(range(len(columns)), [f"{node}/{gpu}" for node, gpu in columns], rotation=90,
                    fontsize=6)  # fmt: skip
    axes.set_ylabel("decode share of each GPU, %")
    axes.set_title(
        f"{document['strategy']}: {document['gpus_used']} of {document['gpus_total']} GPUs"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=140)
    plt.close(figure)


def _service(document: dict[str, Any], path: Path) -> None:
    """Offered and served rate of every model."""
    import matplotlib.pyplot as plt

    names = list(document["models"])
    offered = [document["models"][name]["offered"] for name in names]
    served = [min(document["models"][n]["served"], document["models"][n]["offered"]) for n in names]
    figure, axes = plt.subplots(figsize=(max(6.0, 0.4 * len(names)), 4.0))
    axes.bar(range(len(names)), offered, width=0.85, color="#dddddd", label="offered")
    axes.bar(range(len(names)), served, width=0.55, color="#3366aa", label="served")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_ylabel("requests/s")
    axes.set_yscale("log")
    axes.legend()
    axes.set_title(f"goodput {document['goodput']:.1f}/s, worst ratio "
                   f"{document['worst_ratio']:.2f}")  # fmt: skip
    figure.tight_layout()
    figure.savefig(path, dpi=140)
    plt.close(figure)
