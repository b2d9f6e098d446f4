"""Small images and ResNets whose BatchNorms are not trivial, for all tests of models."""

import pytest
import timm
import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from polyscene.downstream.backbones import feature_maps
from polyscene.downstream.multitask.rcm.moments import response_moments
from polyscene.runtime.weights import BackboneWeights


@pytest.fixture(scope="session")
def images():
    """(3, 3, 64, 64), smooth enough for responses to be correlated, with a mean that is not zero."""
    noise = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    fine = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(noise, size=(64, 64), mode="bilinear") + 0.3 * fine + 0.5


@pytest.fixture(scope="session")
def weights(images):
    """Architecture -> weights like those of a trained network: features of order 1, BatchNorms all different."""
    made = {}

    @torch.no_grad()
    def get(arch):
        if arch not in made:
            generator = torch.Generator().manual_seed(2)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = timm.create_model(arch, num_classes=0)
            norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
            for norm in norms:
                norm.weight.uniform_(0.4, 1.2, generator=generator)
                norm.bias.normal_(0, 0.3, generator=generator)
                norm.momentum = None
            for block in model.modules():
                if isinstance(block, (BasicBlock, Bottleneck)):
                    # As in trained networks the branches are weaker than the shortcut. Otherwise random layers blow
                    # rounding up: float32 is then 4e-4 away from float64 in the plain resnet50 already.
                    (block.bn3 if isinstance(block, Bottleneck) else block.bn2).weight.mul_(0.4)
            model.train()(images)
            for norm in norms:
                norm.running_mean += 0.2 * norm.running_var.sqrt() * torch.randn(norm.num_features, generator=generator)
                norm.running_var *= torch.empty(norm.num_features).uniform_(0.7, 1.4, generator=generator)
            made[arch] = BackboneWeights(arch, model.state_dict(), source_format="test")
        return made[arch]

    return get


@pytest.fixture(scope="session")
def plain(weights):
    """Architecture -> a fresh timm ResNet in evaluation mode."""

    def get(arch):
        model = timm.create_model(arch, num_classes=0).eval()
        model.load_state_dict(weights(arch).state)
        return model

    return get


@pytest.fixture(scope="session")
def pretrained_maps(weights, images):
    """Architecture and stages -> the maps of two images in the plain network at output stride 16."""
    made = {}

    @torch.no_grad()
    def get(arch, layers):
        if (arch, layers) not in made:
            made[arch, layers] = feature_maps(weights(arch), layers=layers, output_stride=16)(images[:2])
        return made[arch, layers]

    return get


@pytest.fixture(scope="session")
def moments(plain, images):
    """Architecture and names -> response moments over `images`."""
    made = {}

    def get(arch, names=None):
        key = (arch, None if names is None else tuple(names))
        if key not in made:
            made[key] = response_moments(plain(arch), [images], names=names)
        return made[key]

    return get


@pytest.fixture
def perturb():
    """A function that changes a task's parameters and statistics, as training would."""

    @torch.no_grad()
    def change(encoder, task, seed=3):
        generator = torch.Generator().manual_seed(seed)
        for parameter in encoder.task_parameters(task):
            spread = parameter.std() if parameter.numel() > 1 and parameter.std() > 0 else 0.1
            parameter += 0.2 * spread * torch.randn(parameter.shape, generator=generator)
        for name, buffer in encoder.named_buffers():
            if f"tasks.{task}." in name and name.endswith("running_mean"):
                buffer += 0.1 * torch.randn(buffer.shape, generator=generator)
            elif f"tasks.{task}." in name and name.endswith("running_var"):
                buffer *= 1.3

    return change


@pytest.fixture(scope="session")
def disturb():
    """A function that changes all parameters and statistics of a task, in encoder and head, as training would."""

    @torch.no_grad()
    def change(model, task, seed=3):
        generator = torch.Generator().manual_seed(seed)

        def noise(like):
            return torch.randn(like.shape, generator=generator)

        for parameter in model.task_parameters(task):
            spread = parameter.std() if parameter.numel() > 1 and parameter.std() > 0 else torch.tensor(0.1)
            parameter += 0.2 * spread * noise(parameter)
        for name, buffer in model.named_buffers():
            if f"tasks.{task}." in name and name.endswith("running_mean"):
                buffer += 0.1 * noise(buffer)
            elif f"tasks.{task}." in name and name.endswith("running_var"):
                buffer *= 1 + 0.5 * torch.rand(buffer.shape, generator=generator)
        head = model.heads.tasks[task]
        head.prediction.weight.mul_(8)  # outputs of order 1
        head.prediction.bias.add_(0.5 * noise(head.prediction.bias))

    return change
