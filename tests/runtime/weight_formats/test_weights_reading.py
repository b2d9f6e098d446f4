"""Every known format gives back exactly the tensors that went in."""

import argparse
import pickle

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from polyscene.runtime.weight_formats.architectures import _BY_SKELETON, expected_shapes, find_architecture
from polyscene.runtime.weight_formats.detectron2 import to_detectron2_name, to_torchvision_name
from polyscene.runtime.weights import BackboneWeights, load_backbone, read_weights

DEPTHS = {"resnet18": ((2, 2, 2, 2), 2), "resnet50": ((3, 4, 6, 3), 3)}


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def assert_read(path, state, source, **options):
    weights = read_weights(path, **options)
    assert source in weights.source_format
    assert weights.path is not None
    assert weights.state.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(weights.state[key], value), key
    return weights


def detectron2_pairs(arch):
    """(torchvision name, detectron2 name) of every tensor but the counters, spelt out from the network's structure."""
    depths, convolutions = DEPTHS[arch]
    norms = ("weight", "bias", "running_mean", "running_var")
    yield "conv1.weight", "stem.conv1.weight"
    for part in norms:
        yield f"bn1.{part}", f"stem.conv1.norm.{part}"
    for stage, depth in enumerate(depths, start=1):
        for block in range(depth):
            ours, theirs = f"layer{stage}.{block}", f"res{stage + 1}.{block}"
            for number in range(1, convolutions + 1):
                yield f"{ours}.conv{number}.weight", f"{theirs}.conv{number}.weight"
                for part in norms:
                    yield f"{ours}.bn{number}.{part}", f"{theirs}.conv{number}.norm.{part}"
            if block == 0 and (stage > 1 or convolutions == 3):
                yield f"{ours}.downsample.0.weight", f"{theirs}.shortcut.weight"
                for part in norms:
                    yield f"{ours}.downsample.1.{part}", f"{theirs}.shortcut.norm.{part}"


@pytest.fixture
def swav_file(states, tmp_path):
    content = prefixed("module.", states["resnet50"])
    content["module.projection_head.0.weight"] = torch.zeros(4, 2048)
    content["module.projection_head.1.running_mean"] = torch.zeros(4)
    content["module.prototypes.prototypes0.weight"] = torch.zeros(9, 4)
    torch.save(content, tmp_path / "swav.pth.tar")
    return tmp_path / "swav.pth.tar"


class TestTorchvision:
    @pytest.mark.parametrize("legacy", [False, True])
    def test_state_dict_with_classifier(self, states, arch, tmp_path, legacy):
        content = {**states[arch], "fc.weight": torch.zeros(1000, 8), "fc.bias": torch.zeros(1000)}
        torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
        weights = assert_read(tmp_path / "w.pth", states[arch], "torchvision")
        assert weights.arch == arch
        assert weights.left_aside == {"fc": 2}
        assert weights.counters_set == 0

    @pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
    def test_wrapped_as_training_scripts_do(self, states, tmp_path, wrapper):
        args = argparse.Namespace(lr=0.1, nested=argparse.Namespace(name="x"))
        content = {
            wrapper: prefixed("module.", states["resnet18"]),
            "epoch": 90,
            "args": args,
            "metric": np.float64(0.5),
            "best": np.float32(1),
            "history": np.arange(3.0),
        }
        torch.save(content, tmp_path / "w.pth.tar")
        assert assert_read(tmp_path / "w.pth.tar", states["resnet18"], "timm").metadata == {"epochs": "90"}

    def test_safetensors_without_metadata(self, states, tmp_path):
        safetensors.torch.save_file(states["resnet18"], tmp_path / "w.safetensors")
        assert assert_read(tmp_path / "w.safetensors", states["resnet18"], "torchvision").arch == "resnet18"

    def test_half_precision_becomes_float32(self, states, tmp_path):
        half = {
            key: value.bfloat16() if value.is_floating_point() else value for key, value in states["resnet18"].items()
        }
        torch.save(half, tmp_path / "w.pth")
        weights = read_weights(tmp_path / "w.pth")
        assert weights.state["conv1.weight"].dtype == torch.float32
        assert weights.state["bn1.num_batches_tracked"].dtype == torch.int64
        assert torch.equal(weights.state["conv1.weight"], half["conv1.weight"].float())

    def test_old_file_without_counters(self, states, backbones, tmp_path):
        old = {key: value for key, value in states["resnet18"].items() if "num_batches" not in key}
        torch.save(old, tmp_path / "w.pth")
        weights = read_weights(tmp_path / "w.pth")
        assert weights.counters_set == 20
        report = load_backbone(timm.create_model("resnet18", num_classes=0), weights)
        assert report == "100/120 tensors matched, 20 num_batches_tracked counters, which the file lacks, set to 0"

    def test_recompressed_archive_is_read_right(self, states, tmp_path):
        import zipfile

        torch.save(states["resnet18"], tmp_path / "w.pth")
        with (
            zipfile.ZipFile(tmp_path / "w.pth") as old,
            zipfile.ZipFile(tmp_path / "deflated.pth", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
        ):
            for name in old.namelist():
                new.writestr(name, old.read(name))
        assert_read(tmp_path / "deflated.pth", states["resnet18"], "torchvision")


class TestMoco:
    @pytest.mark.parametrize("legacy", [False, True])
    def test_query_encoder_is_taken(self, states, arch, tmp_path, legacy):
        state = {
            **prefixed("module.encoder_q.", states[arch]),
            **prefixed("module.encoder_k.", {key: value * 0 for key, value in states[arch].items()}),
            "module.encoder_q.fc.0.weight": torch.ones(3, 2),
            "module.encoder_q.fc.2.weight": torch.ones(2, 3),
            "module.encoder_k.fc.0.weight": torch.zeros(3, 2),
            "module.encoder_k.fc.2.weight": torch.zeros(2, 3),
            "module.queue": torch.arange(10.0).reshape(2, 5),
            "module.queue_ptr": torch.tensor([3]),
            "module.queue_backbone": torch.arange(20.0).reshape(4, 5),
        }
        content = {"epoch": 800, "arch": arch, "state_dict": state, "optimizer": {"state": {}}}
        torch.save(content, tmp_path / "moco.pth.tar", _use_new_zipfile_serialization=not legacy)

        weights = assert_read(tmp_path / "moco.pth.tar", states[arch], "MoCo")
        assert (weights.arch, weights.metadata, weights.training) == (arch, {"epochs": "800"}, None)
        assert weights.left_aside == {
            "encoder_q.fc": 2,
            "encoder_k": len(states[arch]) + 2,
            "queue": 1,
            "queue_ptr": 1,
            "queue_backbone": 1,
        }

        training = read_weights(tmp_path / "moco.pth.tar", with_training=True).training
        assert training.embeddings.shape == (5, 2)
        assert training.embeddings[3].tolist() == [3, 8]  # column 3 of the file
        assert training.features[3].tolist() == [3, 8, 13, 18]
        assert training.pointer == 3
        assert set(training.query_head) == set(training.key_head) == {"0.weight", "2.weight"}
        assert float(training.key_head["0.weight"].sum()) == 0
        assert training.key_backbone.keys() == states[arch].keys()

    def test_plain_moco_has_no_feature_queue(self, states, tmp_path):
        state = {
            **prefixed("module.encoder_q.", states["resnet18"]),
            **prefixed("module.encoder_k.", states["resnet18"]),
            "module.queue": torch.zeros(2, 5),
        }
        torch.save({"state_dict": state}, tmp_path / "moco.pth")
        training = read_weights(tmp_path / "moco.pth", with_training=True).training
        assert training.features is None
        assert training.pointer == 0


class TestClusteringAndDino:
    def test_swav(self, swav_file, states):
        weights = assert_read(swav_file, states["resnet50"], "SwAV")
        assert weights.arch == "resnet50"
        assert weights.left_aside == {"projection_head": 2, "prototypes": 1}

    def test_dino_backbone_only(self, states, tmp_path):
        torch.save(states["resnet50"], tmp_path / "dino_resnet50_pretrain.pth")
        assert_read(tmp_path / "dino_resnet50_pretrain.pth", states["resnet50"], "torchvision")

    @pytest.mark.parametrize("wrapper", ["", "module."])
    def test_dino_teacher_is_taken(self, states, tmp_path, wrapper):
        state = states["resnet18"]
        heads = {f"{wrapper}head.mlp.0.weight": torch.zeros(2), f"{wrapper}head.last_layer.weight_g": torch.zeros(2)}
        zeros = {key: value * 0 for key, value in state.items()}
        content = {
            "student": {**prefixed("module.backbone.", zeros), "module.head.mlp.0.weight": torch.zeros(2)},
            "teacher": {**prefixed(f"{wrapper}backbone.", state), **heads},
            "optimizer": {},
            "epoch": 100,
            "args": argparse.Namespace(arch="resnet50"),
            "dino_loss": {"center": torch.zeros(1, 8)},
        }
        torch.save(content, tmp_path / "dino.pth")
        weights = assert_read(tmp_path / "dino.pth", state, "DINO")
        assert weights.left_aside == {"head": 2, "student": 121}
        assert weights.metadata == {"epochs": "100"}


class TestVissl:
    def test_golden_names(self, states, tmp_path):
        trunk = prefixed("_feature_blocks.", states["resnet50"])
        assert {"_feature_blocks.conv1.weight", "_feature_blocks.layer4.2.bn3.running_var"} <= trunk.keys()
        model = {"trunk": trunk, "heads": {"0.clf.0.weight": torch.zeros(2)}}
        content = {
            "phase_idx": 1,
            "iteration": np.int64(5),
            "classy_state_dict": {"base_model": {"model": model, "meta": {}}, "losses": [0.1], "meters": None},
        }
        torch.save(content, tmp_path / "model_final.torch")
        weights = assert_read(tmp_path / "model_final.torch", states["resnet50"], "VISSL")
        assert weights.left_aside == {"heads": 1}

    @pytest.mark.parametrize("prefix", ["_feature_blocks.", "base_model._feature_blocks.", "module._feature_blocks."])
    def test_trunk_alone(self, states, tmp_path, prefix):
        torch.save({"model_state_dict": prefixed(prefix, states["resnet18"])}, tmp_path / "trunk.torch")
        assert_read(tmp_path / "trunk.torch", states["resnet18"], "VISSL")


class TestDetectron2:
    @pytest.mark.parametrize(
        ("ours", "theirs"),
        [
            ("conv1.weight", "stem.conv1.weight"),
            ("bn1.running_var", "stem.conv1.norm.running_var"),
            ("layer1.0.conv1.weight", "res2.0.conv1.weight"),
            ("layer1.0.bn1.bias", "res2.0.conv1.norm.bias"),
            ("layer1.0.downsample.0.weight", "res2.0.shortcut.weight"),
            ("layer1.0.downsample.1.weight", "res2.0.shortcut.norm.weight"),
            ("layer3.22.conv3.weight", "res4.22.conv3.weight"),
            ("layer4.2.bn3.running_mean", "res5.2.conv3.norm.running_mean"),
        ],
    )
    def test_golden_names(self, ours, theirs):
        assert to_detectron2_name(ours) == theirs
        assert to_torchvision_name(theirs) == ours

    def test_counters_and_strange_tensors_have_no_name(self):
        assert to_detectron2_name("layer1.0.bn1.num_batches_tracked") is None
        with pytest.raises(KeyError, match=r"layer1\.0\.se\.fc1\.weight"):
            to_detectron2_name("layer1.0.se.fc1.weight")

    @pytest.mark.parametrize(
        ("arch", "protocol", "flat"),
        [("resnet18", 2, False), ("resnet18", 3, True), ("resnet18", 5, False), ("resnet50", 4, False)],
    )
    def test_pickle_of_arrays(self, states, arch, tmp_path, protocol, flat):
        arrays = {theirs: states[arch][ours].numpy() for ours, theirs in detectron2_pairs(arch)}
        content = arrays if flat else {"model": arrays, "__author__": "somebody", "matching_heuristics": True}
        (tmp_path / "R.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
        weights = read_weights(tmp_path / "R.pkl")
        assert weights.source_format == "detectron2 file"
        assert weights.arch == arch
        counters = sum("num_batches" in key for key in states[arch])
        assert weights.counters_set == counters
        assert len(weights.state) == len(states[arch])
        for key, value in states[arch].items():
            assert torch.equal(weights.state[key], torch.tensor(0) if "num_batches" in key else value)

    def test_names_of_both_numpy_generations(self, states, tmp_path):
        arrays = {theirs: states["resnet18"][ours].numpy() for ours, theirs in detectron2_pairs("resnet18")}
        data = pickle.dumps({"model": arrays}, protocol=3)
        for module in (b"numpy.core", b"numpy._core"):
            other = b"numpy._core" if module == b"numpy.core" else b"numpy.core"
            (tmp_path / "R.pkl").write_bytes(
                data.replace(b"c" + other + b".multiarray\n", b"c" + module + b".multiarray\n")
            )
            assert read_weights(tmp_path / "R.pkl").arch == "resnet18"

    def test_moco_converter_output_and_whole_detector(self, states, tmp_path):
        arrays = {theirs: states["resnet18"][ours].numpy() for ours, theirs in detectron2_pairs("resnet18")}
        # MoCo's converter keeps counters and sends the head to the stem.
        converted = {**arrays, "stem.conv1.norm.num_batches_tracked": np.array(7), "stem.fc.0.weight": np.zeros((2, 2))}
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": converted, "matching_heuristics": True}))
        weights = read_weights(tmp_path / "a.pkl")
        assert (weights.counters_set, weights.left_aside) == (19, {"stem.fc": 1})

        detector = {f"backbone.bottom_up.{name}": torch.from_numpy(array) for name, array in arrays.items()}
        detector |= {"backbone.fpn_lateral2.weight": torch.zeros(2), "roi_heads.box_head.fc1.weight": torch.zeros(2)}
        torch.save({"model": detector, "iteration": 9}, tmp_path / "b.pth")
        assert read_weights(tmp_path / "b.pth").left_aside == {"backbone.fpn": 1, "roi_heads": 1}


class TestOurs:
    def test_checkpoint(self, make_checkpoint, states, arch, tmp_path):
        content = make_checkpoint(arch)
        torch.save(content, tmp_path / "step.pt")
        weights = assert_read(tmp_path / "step.pt", states[arch], "PolyScene")
        assert weights.arch == arch
        assert weights.metadata == {"epochs": "2.5", "step": "1200", "dataset": "folder", "config_hash": "abc"}
        training = read_weights(tmp_path / "step.pt", with_training=True).training
        assert torch.equal(training.embeddings, content["model"]["queue.embeddings"])
        assert torch.equal(training.features, content["model"]["queue.features"])
        assert training.pointer == 4
        assert torch.equal(training.key_head["2.bias"], content["model"]["key.head.2.bias"])
        assert torch.equal(training.key_backbone["conv1.weight"], states[arch]["conv1.weight"] * 2)

    def test_weights_outlive_their_file(self, make_checkpoint, states, tmp_path):
        file = tmp_path / "step.pt"
        torch.save(make_checkpoint(), file)
        weights = read_weights(file, with_training=True)
        with file.open("r+b") as stream:  # in place: a mapped tensor would change with it
            stream.write(bytes(file.stat().st_size))
        assert torch.equal(weights.state["conv1.weight"], states["resnet18"]["conv1.weight"])
        assert float(weights.training.features.abs().sum()) > 0

    def test_run_directory_prefers_the_finished_backbone(self, make_run, states):
        other = {key: value + 1 for key, value in states["resnet18"].items()}
        run = make_run(finished=other)
        weights = assert_read(run, other, "torchvision")
        assert weights.metadata == {"epochs": "3", "dataset": "folder", "step": "1500"}
        assert weights.path.name == "backbone.safetensors"
        with_training = read_weights(run, with_training=True)
        assert with_training.path.name == "step-00001200.pt"
        assert with_training.training is not None

    @pytest.mark.parametrize(
        ("last", "taken"),
        [
            ("step-00000800.pt", "800"),
            (None, "1200"),
            ("step-00009999.pt", "1200"),
            ("../../etc/passwd", "1200"),
            ("", "1200"),
        ],
    )
    def test_newest_checkpoint_of_an_unfinished_run(self, make_run, last, taken):
        assert read_weights(make_run(last=last)).metadata["step"] == taken


class TestArchitecture:
    def test_every_known_network_is_recognised_by_its_shapes(self):
        names = [name for row in _BY_SKELETON.values() for name in row if timm.is_model(name)]
        shapes = {name: expected_shapes(name) for name in names}
        assert len({frozenset(value.items()) for value in shapes.values()}) == len(names)
        for row in _BY_SKELETON.values():
            name = next(name for name in reversed(row) if name in shapes)
            assert find_architecture(shapes[name], "file") == name

    def test_same_shapes_other_operations_are_up_to_the_user(self, states, tmp_path):
        torch.save(states["resnet50"], tmp_path / "w.pth")
        assert read_weights(tmp_path / "w.pth").arch == "resnet50"
        assert read_weights(tmp_path / "w.pth", arch="resnetblur50").arch == "resnetblur50"

    def test_name_in_the_file_decides_where_it_fits(self, states, tmp_path):
        torch.save({"state_dict": states["resnet50"], "arch": "resnetblur50"}, tmp_path / "a.pth")
        assert read_weights(tmp_path / "a.pth").arch == "resnetblur50"
        torch.save({"state_dict": states["resnet50"], "arch": "my_own_net"}, tmp_path / "b.pth")
        assert read_weights(tmp_path / "b.pth").arch == "resnet50"


class TestLoading:
    def test_report_and_identical_features(self, states, backbones, arch, tmp_path):
        torch.save(states[arch], tmp_path / "w.pth")
        model = timm.create_model(arch, num_classes=0).eval()
        assert (
            load_backbone(model, read_weights(tmp_path / "w.pth"))
            == f"{len(states[arch])}/{len(states[arch])} tensors matched"
        )
        images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            assert torch.equal(model(images), backbones[arch](images))

    def test_what_was_left_aside_is_said(self, swav_file):
        report = load_backbone(timm.create_model("resnet50", num_classes=0), read_weights(swav_file))
        assert report == "318/318 tensors matched; left aside: projection_head (2), prototypes (1)"

    def test_feature_pyramid_and_frozen_norms(self, states, tmp_path):
        torch.save(states["resnet18"], tmp_path / "w.pth")
        weights = read_weights(tmp_path / "w.pth")
        pyramid = timm.create_model("resnet18", features_only=True)
        assert load_backbone(pyramid, weights) == "120/120 tensors matched"
        frozen = timm.utils.model.freeze_batch_norm_2d(timm.create_model("resnet18", num_classes=0))
        assert load_backbone(frozen, weights) == "100/100 tensors matched"
        without = {key: value for key, value in weights.state.items() if "num_batches" not in key}
        assert load_backbone(frozen, BackboneWeights("resnet18", without)) == "100/100 tensors matched"
