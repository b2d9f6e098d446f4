"""Tasks, one file each; each defines ``task(...) -> TaskSpec``.

A task of your own is one file too. It says how the task's labels are read, trained on, judged and drawn; every model,
loss, transform and picture asks the `TaskSpec` and nothing else. For example ``sky.py``, which learns to find the sky
from PNG masks in a folder ``sky`` of any data set:

    import numpy as np
    import torch
    from PIL import Image

    from polyscene.downstream.multitask.losses import balanced_bce
    from polyscene.downstream.multitask.tasks import Target, TargetGeometry, TaskSpec, grey, probability


    class Accuracy:
        def __init__(self):
            self.right = self.seen = 0

        def update(self, prediction, values, valid):
            self.right += int(((prediction >= 0.5) == (values[0] >= 0.5))[valid].sum())
            self.seen += int(valid.sum())

        def merge(self, other):
            self.right, self.seen = self.right + other.right, self.seen + other.seen

        def compute(self):
            return {"accuracy": self.right / max(self.seen, 1)}

        def state(self):
            return {"counts": torch.tensor([self.right, self.seen])}

        def load_state(self, state):
            self.right, self.seen = state["counts"].tolist()


    def read(root, name):
        mask = np.array(Image.open(root / "sky" / f"{name}.png").convert("L"))
        return Target(torch.from_numpy(mask > 127).float()[None], torch.ones(mask.shape, dtype=torch.bool))


    def task():
        return TaskSpec(
            name="sky",
            title="Sky",
            channels=1,
            loss=balanced_bce,
            make_metric=Accuracy,
            metric="accuracy",
            higher_is_better=True,
            unit="%",
            geometry=TargetGeometry("nearest"),
            activate=probability,
            colour=grey,
            read=read,
        )

Use it by its path: ``load_task("sky.py")``. Tasks of one label an image are shorter: see `image_class`.
"""

from . import image_class
from .loading import BUILT_IN, load_task
from .spec import Target, TargetGeometry, TaskSpec, class_map, grey, probability

__all__ = [
    "BUILT_IN",
    "Target",
    "TargetGeometry",
    "TaskSpec",
    "class_map",
    "grey",
    "image_class",
    "load_task",
    "probability",
]
