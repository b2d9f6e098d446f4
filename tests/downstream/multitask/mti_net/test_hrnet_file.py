"""An HRNet from its file to its four maps."""

import pytest
import timm
import torch

from polyscene.downstream.multitask.mti_net.backbones import multi_scale_maps
from polyscene.runtime.weights import read_weights

ARCH = "hrnet_w18_small_v2"


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return timm.create_model(ARCH).eval()


@pytest.mark.parametrize("without", [(), ("classifier.", "incre_modules.", "downsamp_modules.", "final_layer.")])
def test_files_with_and_without_the_classifier_give_the_branches_of_the_last_stage(tmp_path, backbone, photos, without):
    state = {key: value for key, value in backbone.state_dict().items() if not key.startswith(without)}
    torch.save(state, tmp_path / "hrnet.pth")
    weights = read_weights(tmp_path / "hrnet.pth")
    branches = []
    backbone.stage4.register_forward_hook(lambda *call: branches.append(call[-1]))
    with torch.no_grad():
        backbone(photos)
        maps = multi_scale_maps(weights)(photos)
    assert [tuple(found.shape[1:]) for found in maps] == [(18, 16, 24), (36, 8, 12), (72, 4, 6), (144, 2, 3)]
    assert all(torch.equal(*pair) for pair in zip(maps, branches[-1], strict=True))
