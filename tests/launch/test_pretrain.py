"""What one pretraining leaves behind, and how it fails."""

import json

import torch
import yaml
from PIL import Image

from polyscene.launch.pretrain import queue_warnings
from polyscene.launch.pretrain_config import PretrainConfig
from polyscene.runtime.checkpoint import list_checkpoints, read_checkpoint
from polyscene.runtime.config import load_config
from polyscene.runtime.weights import load_backbone, read_weights
from polyscene.ssl.moco.encoder import create_backbone


def test_a_run_directory_keeps_its_contract(tmp_path, words, polyscene, photos):
    out = tmp_path / "run"
    code, _, err = polyscene(
        *words(
            out,
            "log.pictures=true",
            "log.tensorboard=true",
            "online_knn.every_epochs=1",
            f"online_knn.held_out={photos / 'val'}",
            "checkpoint.keep_every_epochs=1",
        )
    )
    assert code == 0, err
    assert yaml.safe_load((out / "config.yaml").read_text())["batch_size"] == 8
    assert "finished after 9 steps" in (out / "log.txt").read_text()
    assert Image.open(out / "pictures" / "views.png").size[0] > 400
    assert list((out / "tensorboard").iterdir())
    assert (out / "checkpoints" / "last").read_text().strip() == "step-00000009.pt"
    # last 2, and the end of every epoch
    assert [p.name for p in list_checkpoints(out / "checkpoints")] == [f"step-{s:08d}.pt" for s in (3, 6, 8, 9)]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len([line for line in lines if "knn_accuracy" in line]) == 3
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 10))
    expected = {"loss", "loss_instance", "loss_neighbour", "top1", "embedding_std", "feature_rank", "queue_age"}
    expected |= {"learning_rate", "images_per_second", "data_wait_percent"}
    assert expected <= steps[-1].keys()
    assert "neighbour_label_share" in steps[-1]
    assert steps[0]["loss_neighbour"] == 0
    assert steps[-1]["loss_neighbour"] > 0
    weights = read_weights(out)
    assert weights.arch == "resnet18"
    assert {"epochs", "dataset", "config_hash", "step"} <= weights.metadata.keys()
    assert load_backbone(create_backbone("resnet18"), weights).startswith("120/120")


def test_the_backbone_is_the_query_encoder_of_the_last_step(tmp_path, words, polyscene):
    out = tmp_path / "run"
    assert polyscene(*words(out, "max_steps=2"))[0] == 0
    model = read_checkpoint(list_checkpoints(out / "checkpoints")[-1])["model"]
    for key, value in read_weights(out).state.items():
        assert torch.equal(value, model[f"query.backbone.{key}"]), key


def test_unreadable_images_are_replaced_listed_and_end_the_run_past_their_share(tmp_path, words, polyscene, draw):
    for i in range(24):
        draw(tmp_path / "data" / f"{i:02d}.jpg", i)
    (tmp_path / "data" / "05.jpg").write_bytes(b"")
    (tmp_path / "data" / "17.jpg").write_bytes((tmp_path / "data" / "16.jpg").read_bytes()[:300])
    data = f"data.root={tmp_path / 'data'}"
    code, _, err = polyscene(*words(tmp_path / "run", data, "data.max_unreadable=0.1"))
    assert code == 0, err
    listed = (tmp_path / "run" / "unreadable_images.txt").read_text().splitlines()
    assert sorted(line.split("\t")[0] for line in listed) == ["05.jpg", "17.jpg"]
    name, reason = listed[0].split("\t")
    assert err.count("cannot be decoded") == 1, "said at the first one only"
    assert f"warning: '{name}' cannot be decoded ({reason}): another image takes its place" in err
    assert f"warning: 2 of 24 images could not be decoded; see '{tmp_path / 'run' / 'unreadable_images.txt'}'" in err
    code, _, err = polyscene(*words(tmp_path / "strict", data))
    assert code == 2
    assert "of 24 images" in err
    assert "data.max_unreadable" in err
    assert len(err.strip().splitlines()[-1]) == len(err.strip().splitlines()[-1].strip())


def test_a_queue_that_holds_keys_of_the_last_epoch_is_doubted():
    config = load_config(PretrainConfig, "pretrain/quickstart")
    assert queue_warnings(config, 480) == [], "the demo warns of itself"
    assert queue_warnings(config, 2 * config.model.queue) == []
    (warning,) = queue_warnings(config, 2 * config.model.queue - 1)
    assert warning.endswith("model.queue=160 would fit"), "the next multiple of 32 images"


def test_a_loss_that_explodes_stops_the_run_and_leaves_a_reproducing_batch(tmp_path, words, polyscene):
    out = tmp_path / "run"
    code, _, err = polyscene(*words(out, "optim.lr=1e30", "optim.warmup_epochs=0"))
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: the loss is nan at step")
    assert "Traceback" not in err
    (path,) = out.glob("nonfinite-step-*.pt")
    assert str(path) in last
    saved = torch.load(path, weights_only=True)
    assert str(saved["step"]) in path.name
    assert saved["views"][0].shape == (8, 2, 3, 32, 32)
    assert saved["model_is_from_before_the_step"]
    assert {"indices", "learning_rate", "model"} <= saved.keys()
    for checkpoint in list_checkpoints(out / "checkpoints"):
        assert checkpoint.stem < f"step-{saved['step'] + 1:08d}"


def test_two_crop_training_and_odd_numbers_of_crops(tmp_path, words, polyscene):
    for name, crops in {
        "two": ["views.small.count=0", "views.augmentation=standard", "neighbours.k=0"],
        "odd": ["views.large.count=3", "views.small.count=5", "views.constraint=inside", "views.max_iou=0.5"],
        "auto": ["views.augmentation=autoaugment", "model.norm.kind=sync", "optim.accumulate=2", "precision=bf16"],
    }.items():
        code, _, err = polyscene(*words(tmp_path / name, "max_steps=2", *crops))
        assert code == 0, err
