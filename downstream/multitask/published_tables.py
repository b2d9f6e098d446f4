"""Tables of papers: scores of multi-task models, and the choices that they depend on."""

from __future__ import annotations

from typing import Any, NamedTuple

Columns = dict[str, tuple[str, dict[str, Any]]]


class Table(NamedTuple):
    """A table of a paper, or the rows of it that share a backbone.

    Attributes:
        source: paper and table.
        dataset: kind of the data set.
        arch: backbone.
        columns: task -> (metric, the choices its score depends on).
        rows: model, then the numbers of the columns as printed (None: not in the table), those of ``more`` as in
            results.json, then the printed mean change against single-task models in percent, or None.
        more: further columns, keys of results.json.
        multi_scale: whether the backbone has four scales: an HRNet, or a ResNet with a feature pyramid.
        gains: whether the printed mean change is above 0 where the model is better; RCM prints drops.
    """

    source: str
    dataset: str
    arch: str
    columns: Columns
    rows: tuple[tuple[Any, ...], ...]
    more: tuple[str, ...] = ()
    multi_scale: bool = False
    gains: bool = True


_RCM_NYUD: Columns = {
    "edges": ("odsf", {"max_distance": 0.011}),
    "segmentation": ("miou", {}),
    "normals": ("mean", {}),
    "depth": ("rmse", {"depth": "rcm"}),
}
_RCM_PASCAL: Columns = {
    "edges": ("odsf", {"max_distance": 0.0075}),
    "segmentation": ("miou", {"classes": 21}),
    "parts": ("miou", {"classes": 7}),
    "normals": ("mean", {}),
    "saliency": ("iou", {"saliency": "rcm"}),
}
_NYUD: Columns = {"segmentation": ("miou", {"classes": 40}), "depth": ("rmse", {"depth": "survey"})}
_PASCAL: Columns = {
    "segmentation": ("miou", {"classes": 21}),
    "parts": ("miou", {"classes": 7}),
    "saliency": ("iou", {"saliency": "survey"}),
    "edges": ("odsf", {"max_distance": 0.0075}),
    "normals": ("mean", {}),
}
# The columns of table 6.2c are in another order.
_PASCAL_BALANCING: Columns = {task: _PASCAL[task] for task in ("segmentation", "parts", "normals", "saliency", "edges")}

_RCM = (
    Table(
        "RCM (ECCV 2020), table 4",
        "nyud",
        "resnet18",
        _RCM_NYUD,
        (
            ("single-task", 68.83, 35.45, 22.20, 0.56, None),
            ("Series RA", 67.56, 31.87, 23.35, 0.60, 5.88),
            ("Parallel RA", 68.02, 32.13, 23.20, 0.59, 5.02),
            ("RCM", 68.44, 34.20, 22.41, 0.57, 1.48),
        ),
        gains=False,
    ),
    Table(
        "RCM (ECCV 2020), tables 1-3",
        "pascal",
        "resnet18",
        _RCM_PASCAL,
        (
            ("single-task", 71.88, 66.22, 59.69, 13.64, 66.62, None),
            ("multi-task", 70.74, 62.43, 57.89, 14.43, 66.31, 3.32),
            ("frozen encoder", 67.32, 60.37, 47.86, 17.40, 58.39, 14.98),
            ("task-specific BNs", 69.80, 63.93, 53.22, 14.78, 64.44, 5.76),
            ("task-specific convolutions", 71.72, 66.00, 59.05, 13.78, 66.31, 0.62),
            ("Series RA", 70.62, 65.99, 55.32, 14.27, 66.08, 2.97),
            ("Parallel RA", 70.84, 66.51, 56.56, 14.16, 66.36, 2.09),
            ("RC", 71.10, 64.56, 56.87, 13.91, 66.37, 2.13),
            ("RC + NFF", 71.12, 64.71, 56.91, 13.90, 66.33, 2.07),
            ("RC + RI", 71.36, 65.58, 57.99, 13.70, 66.21, 1.12),
            ("RCM", 71.34, 65.70, 58.12, 13.70, 66.38, 0.99),
        ),
        gains=False,
    ),
)

# The thesis calls HRNet-W18-small-v2 "HRNet-18". N and E: normals and edges as auxiliary tasks. Rows of tables 5.2 to
# 5.6 that repeat those of table 5.1 are left out.
_MTI_NET_NYUD = (
    Table(
        "thesis table 5.1a",
        "nyud",
        "hrnet_w18_small_v2",
        _NYUD,
        (
            ("single-task", 33.18, 0.667, None),
            ("MTL", 32.09, 0.668, -1.71),
            ("PAD-Net", 32.80, 0.660, -0.02),
            ("PAD-Net (N)", 33.85, 0.658, 1.65),
            ("PAD-Net (N+E)", 32.92, 0.655, 0.52),
            ("MTI-Net w/o FPM", 34.38, 0.640, 3.85),
            ("MTI-Net w/o FPM (N)", 34.49, 0.642, 3.84),
            ("MTI-Net w/o FPM (N+E)", 34.68, 0.637, 4.48),
            ("MTI-Net", 35.12, 0.620, 6.40),
            ("MTI-Net (N)", 36.22, 0.600, 9.57),
            ("MTI-Net (N+E)", 37.49, 0.607, 10.91),
        ),
        multi_scale=True,
    ),
    Table(
        "thesis table 5.2",
        "nyud",
        "hrnet_w18_small_v2",
        _NYUD,
        (
            ("MTI-Net, 1/4, 1/8", 34.88, 0.650, 3.80),
            ("MTI-Net, 1/4, 1/8, 1/16", 35.01, 0.630, 5.53),
        ),
        multi_scale=True,
    ),
    Table(
        "thesis table 5.3",
        "nyud",
        "hrnet_w18_small_v2",
        _NYUD,
        (("MTI-Net, final output", 35.12, 0.620, 0.3202, 0.670, 0.3302, 0.660, 0.3367, 0.640, 0.3405, 0.633, 6.40),),
        more=tuple(
            f"front_end_{stride}_{key}" for stride in (32, 16, 8, 4) for key in ("segmentation_miou", "depth_rmse")
        ),
        multi_scale=True,
    ),
    Table(
        "thesis table 5.5",
        "nyud",
        "hrnet_w48",
        _NYUD,
        (
            ("single-task", 45.7, 0.547, 0.734, 0.138, 0.828, 0.966, 0.993, None),
            ("MTI-Net", 49.0, 0.529, 0.753, 0.138, 0.830, 0.969, 0.993, None),
        ),
        more=("segmentation_pixel_accuracy", "depth_abs_rel", "depth_delta1", "depth_delta2", "depth_delta3"),
        multi_scale=True,
    ),
)

# (s): segmentation, parts and saliency alone; then auxiliary tasks.
_MTI_NET_PASCAL = (
    Table(
        "thesis table 5.1b",
        "pascal",
        "hrnet_w18_small_v2",
        _PASCAL,
        (
            ("single-task", 60.07, 60.74, 67.18, 69.70, 14.59, None),
            ("MTL (s)", 54.53, 59.54, 65.60, None, None, -4.26),
            ("MTL", 53.60, 58.45, 65.13, 70.60, 15.08, -3.70),
            ("MTI-Net (s)", 64.06, 62.39, 68.09, None, None, 3.35),
            ("MTI-Net (s)(E)", 64.98, 62.90, 67.84, None, None, 3.98),
            ("MTI-Net (s)(N)", 63.74, 61.75, 67.90, None, None, 2.69),
            ("MTI-Net (s)(E+N)", 64.33, 62.33, 68.00, None, None, 3.36),
            ("MTI-Net", 64.27, 62.06, 68.00, 73.40, 14.75, 2.74),
        ),
        multi_scale=True,
    ),
    Table(
        "thesis table 5.4",
        "pascal",
        "hrnet_w18_small_v2",
        _PASCAL,
        (
            ("PAD-Net", 53.6, 59.6, 65.8, 72.5, 15.3, -5.58),  # as printed; its scores give -3.11
            # Table 5.1b has the same model with normals of 14.75 and +2.74%.
            ("MTI-Net", 64.3, 62.1, 68.0, 73.4, 14.6, 3.15),
        ),
        multi_scale=True,
    ),
    Table(
        "thesis table 5.4",
        "pascal",
        "resnet18",
        _PASCAL,
        (
            ("single-task, FPN", 64.5, 57.4, 66.4, 68.2, 14.8, None),
            ("MTI-Net, FPN", 65.7, 61.1, 66.8, 73.9, 14.6, 3.41),
        ),
        multi_scale=True,
    ),
    Table(
        "thesis table 5.4",
        "pascal",
        "resnet50",
        _PASCAL,
        (
            ("single-task, FPN", 67.7, 61.8, 67.2, 71.1, 14.8, None),
            ("ASTMT, FPN", 66.8, 61.1, 66.1, 70.9, 14.7, -0.74),
            ("MTI-Net, FPN", 66.6, 63.3, 66.6, 74.9, 14.6, 1.32),
        ),
        multi_scale=True,
    ),
    Table(
        "thesis table 5.6b",
        "pascal",
        "resnet50",
        _PASCAL,
        (("MTL, FPN", None, None, None, None, None, -4.55),),
        multi_scale=True,
    ),
)

_BALANCING = (
    Table(
        "thesis table 6.2b",
        "nyud",
        "resnet50",
        _NYUD,
        (
            ("single-task", 43.9, 0.585, None),
            ("fixed weights", 44.4, 0.587, 0.41),
            ("uncertainty weighting", 44.0, 0.590, -0.23),
            ("DWA", 44.1, 0.591, -0.28),
            ("GradNorm", 44.2, 0.581, 1.45),  # as printed; its scores give +0.68
            ("MGDA", 43.2, 0.576, 0.02),
        ),
    ),
    Table(
        "thesis table 6.2c",
        "pascal",
        "resnet18",
        _PASCAL_BALANCING,
        (
            ("single-task", 66.2, 59.9, 13.9, 66.3, 68.8, None),
            ("fixed weights", 63.8, 58.6, 14.9, 65.1, 69.2, -2.86),
            ("uncertainty weighting", 65.4, 59.2, 16.5, 65.6, 68.6, -4.60),
            ("DWA", 63.4, 58.9, 14.9, 65.1, 69.1, -2.94),
            ("GradNorm", 64.7, 59.0, 15.4, 64.5, 67.0, -3.97),
            ("MGDA", 64.9, 57.9, 15.6, 62.5, 61.4, -6.81),
        ),
    ),
)

_SELF_SUPERVISED = (
    Table(
        "thesis table 7.10",
        "nyud",
        "resnet50",
        _NYUD,
        (
            ("single-task, supervised", 43.6, 0.599, None),
            ("single-task, MoCo", 44.7, 0.590, None),
            ("multi-task, supervised", 43.7, 0.593, None),
            ("multi-task, MoCo", 45.2, 0.581, None),
        ),
    ),
)

TABLES = (*_RCM, *_MTI_NET_NYUD, *_MTI_NET_PASCAL, *_BALANCING, *_SELF_SUPERVISED)
