"""kNN-MoCo in one screen: PolyScene as a library, without config files or run directories.

python examples/pretrain_minimal.py FOLDER_OF_IMAGES backbone.safetensors [epochs]
"""

import sys
from functools import partial

import torch

from polyscene.runtime.distributed import World, choose_device
from polyscene.runtime.sampling import steps_per_epoch
from polyscene.runtime.weights import BackboneWeights, write_weights
from polyscene.ssl.loading import image_loader
from polyscene.ssl.moco.encoder import Encoder, create_backbone
from polyscene.ssl.moco.model import MoCo
from polyscene.ssl.moco.normalization import plan_normalization
from polyscene.ssl.moco.queue import KeyQueue
from polyscene.ssl.schedule import cosine_schedule
from polyscene.ssl.sources import open_source
from polyscene.ssl.step import LossSettings, StepRunner
from polyscene.ssl.views.crops import CropGroup
from polyscene.ssl.views.render import render_views
from polyscene.ssl.views.sampling import sample_views
from polyscene.ssl.views.spec import ViewSpec

folder, out, epochs = sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 10
batch, seed, device = 32, 0, choose_device("auto")
torch.manual_seed(seed)

# Which images, and what is seen of each: two large crops (the second is the anchor) and two small ones.
images = open_source("folder", folder)
views = ViewSpec(large=CropGroup(2, 64, (0.2, 1.0)), small=CropGroup(2, 32, (0.05, 0.14)), augmentation="mix")

# The query encoder, its momentum twin, and the queue of past keys.
encoder = Encoder(create_backbone("resnet18"), dim=128)
model = MoCo(encoder, KeyQueue(256, dim=128, feature_dim=encoder.feature_dim), momentum=0.99).to(device)
optimizer = torch.optim.SGD(model.query.parameters(), lr=0.06, momentum=0.9, weight_decay=1e-4)

steps = epochs * steps_per_epoch(len(images), batch)
runner = StepRunner(
    model,
    optimizer,
    LossSettings(temperature=0.2, k=5, neighbour_weight=0.4, neighbour_start=steps // 10),
    plan_normalization("auto", group=128, batch=batch, processes=1),
    World(rank=0, size=1, device=device),
    seed=seed,
)


def sample(epoch, indices, sizes):
    """Draw boxes, flips and colours: a function of (seed, epoch, image index) and nothing else."""
    return sample_views(seed, epoch, indices, sizes, views)


if __name__ == "__main__":
    loader = image_loader(
        images,
        batch_size=batch,
        rank=0,
        world_size=1,
        seed=seed,
        start_step=0,
        end_step=steps,
        workers=1,
        sample_views=sample,
    )
    rate = partial(cosine_schedule, base=0.06, total_steps=steps)
    for raw in loader:
        rendered = render_views(raw.to(device).images(), raw.params, views, device)
        output = runner.step(rendered, step=raw.step, learning_rate=rate(raw.step))
        if raw.step % 10 == 0 or raw.step == steps - 1:
            loss, _, _, top1 = output.means.tolist()
            print(f"step {raw.step + 1}/{steps}  loss {loss:.3f}  top-1 {100 * top1:.0f}%")
    state = {key: value.cpu() for key, value in model.query.backbone.state_dict().items()}
    write_weights(BackboneWeights("resnet18", state), out)
