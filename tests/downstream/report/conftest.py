"""Run directories as the commands leave them, written in milliseconds."""

import json
import math

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import save_file

from polyscene.runtime.results import Evaluation, Metric, Picture, Published, write_results

MIOU = Metric("miou_all", "mIoU, 3 classes")
ERROR = Metric("rmse", "RMSE", unit="m", better="lower")

CONFIG = {
    "out": "runs/a",
    "seed": 0,
    "precision": "fp32",
    "epochs": 40,
    "max_steps": None,
    "batch_size": 16,
    "data": {"kind": "folder", "root": "photos/train"},
    "views": {
        "large": {"count": 2, "size": 32, "scale": [0.3, 1.0]},
        "small": {"count": 0, "size": 24, "scale": [0.05, 0.14]},
        "constraint": "overlap",
        "augmentation": "mix",
    },
    "model": {"backbone": "resnet10t", "dim": 128, "queue": 256, "momentum": 0.996, "temperature": 0.2},
    "neighbours": {"k": 5, "weight": 0.4, "start_epoch": 20},
    "optim": {"lr": 0.06, "weight_decay": 0.0001, "warmup_epochs": 1},
}


def save_picture(path, size=(64, 48), seed=0):
    """Noise: what no format can shrink."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def picture():
    """``picture(path, size, seed)``: write a noisy picture."""
    return save_picture


@pytest.fixture
def pretrain_run():
    """``pretrain_run(folder, steps, finished, **config)``: a pretraining of 10 steps an epoch, logged every 10."""

    def make(folder, steps=400, finished=True, **config):
        folder.mkdir(parents=True)
        text = "# python: 3.11.7\n# polyscene: 0.1.0\n# commit: abc1234\n"
        (folder / "config.yaml").write_text(text + yaml.safe_dump({**CONFIG, **config}, sort_keys=False))
        lines = []
        for step in range(10, steps + 1, 10):
            values = {
                "loss": 5 * math.exp(-step / 200) + 1,
                "loss_instance": 4 * math.exp(-step / 200) + 1,
                "loss_neighbour": 0.0,
                "top1": 0.6 * step / 400,
                "embedding_std": 0.9,
                "feature_rank": 20 + step / 40,
                "learning_rate": 0.06 * (1 - step / 400),
                "epoch": step / 10,
                "images_per_second": 100.0,
            }
            lines.append(json.dumps({"step": step, **values}))
            if step % 100 == 0:
                lines.append(json.dumps({"step": step, "knn_accuracy": step / 1000}))
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        log = ["2026-01-02 10:00:00 480 images", "2026-01-02 10:05:30 warning: model.queue is large"]
        (folder / "log.txt").write_text("\n".join(log) + "\n")
        save_picture(folder / "pictures" / "views.png", seed=len(folder.name))
        if finished:
            metadata = {"step": str(steps), "method": "kNN-MoCo", "dataset": "folder:480", "arch": "resnet10t"}
            save_file({"w": np.zeros(2, np.float32)}, str(folder / "backbone.safetensors"), metadata)
        return folder

    return make


@pytest.fixture
def evaluation_run():
    """``evaluation_run(folder, miou, protocol=..., **fields)``: a finished retrieval, random at 11.0% mIoU."""

    def make(folder, miou=0.418, protocol=None, **fields):
        folder.mkdir(parents=True)
        own = {
            "weights": f"runs/{folder.name}",
            "out": str(folder),
            "protocol": "kmeans",
            "clusters": 15,
            "seed": 0,
            "arch": "resnet18",
            "data": {"images": "/data/photos"},
            "bank_regions": {"weights": 100, "random": 90},
        }
        given = {
            "command": "retrieve",
            "title": "segment retrieval (kmeans): 10 images from 50",
            "subject": f"runs/{folder.name}",
            "metrics": [MIOU, ERROR],
            "values": {"miou_all": miou, "rmse": 0.5},
            "baseline": {"random": {"miou_all": 0.11, "rmse": 1.25}},
            "chance": {"miou_all": 0.05},
            "per_class": {
                "miou_all": {"weights": {"bus": 0.5, "cat": None}, "random": {"bus": 0.1, "cat": 0.12}},
            },
            "published": [Published("MoCo", "thesis table 7.6", {"miou_all": 0.281})],
            "pictures": [Picture("pictures/regions.png", "retrieved regions")],
            "protocol": {**own, **(protocol or {})},
            **fields,
        }
        (folder / "config.yaml").write_text(yaml.safe_dump({"weights": own["weights"], "out": str(folder)}))
        for picture in given["pictures"]:
            save_picture(folder / picture.file, seed=len(folder.name))
        write_results(folder, Evaluation(**given))
        return folder

    return make
