"""Rows of the thesis under the protocols of the frozen probes."""

from __future__ import annotations

from polyscene.runtime.results import Published

_TABLE_7_4 = "thesis table 7.4"

# Model, VOC mAP, ImageNet and Places accuracy after 200 epochs on COCO.
_ABLATION = (
    ("MoCo", 0.761, 0.493, 0.451),
    ("MoCo + MC", 0.813, 0.534, 0.477),
    ("MoCo + CC", 0.821, 0.540, 0.479),
    ("MoCo + CC, lower momentum", 0.828, 0.548, 0.481),
    ("MoCo + CC + A+", 0.837, 0.555, 0.482),
    ("MoCo + CC + A+ + kNN", 0.851, 0.559, 0.485),
)


def published_svm(key: str) -> tuple[Published, ...]:
    """VOC 2007 rows, as values of the metric ``key``."""
    rows = [Published(name, _TABLE_7_4, {key: voc}) for name, voc, _, _ in _ABLATION]
    return (*rows, Published("MoCo + CC + A+ + kNN, 800 epochs", "thesis table 7.9", {key: 0.859}))


def published_linear(kind: str, key: str) -> tuple[Published, ...]:
    """ImageNet or Places365 rows (SGD on augmented crops), as values of the metric ``key``; none for other sets."""
    if kind == "imagenet":
        return tuple(Published(name, _TABLE_7_4, {key: imagenet}) for name, _, imagenet, _ in _ABLATION)
    if kind == "places365":
        return tuple(Published(name, _TABLE_7_4, {key: places}) for name, _, _, places in _ABLATION)
    return ()
