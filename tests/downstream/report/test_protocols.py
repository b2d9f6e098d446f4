"""Which values of a protocol keep runs apart in the report."""

from polyscene.downstream.report import protocols


def multitask(kind, lr, **more):
    """The parts of a protocol that `polyscene multitask` writes."""
    return {
        "dataset": "nyud",
        "split": "val",
        "arch": "resnet18",
        "model_kind": kind,
        "config": {"out": f"runs/{kind}", "weights": "runs/a", "model": {"kind": kind}, "optim": {"lr": lr}, "seed": 0},
        "resources": {"parameters": len(kind)},
        "model_metadata": {"steps": str(lr)},
        "single": {"depth": lr},
        **more,
    }


def test_models_are_compared_however_they_were_trained():
    one, other = multitask("rcm", 0.1), multitask("single", 0.2)
    assert protocols.decisive(one) == protocols.decisive(other) == {"dataset": "nyud", "split": "val"}
    told = protocols.differing_keys([protocols.incidental(one), protocols.incidental(other)])
    assert told == [("config.model.kind", ["rcm", "single"]), ("config.optim.lr", ["0.1", "0.2"])]


def test_another_split_is_another_protocol():
    one, other = multitask("rcm", 0.1), multitask("rcm", 0.1, split="train", stretch=[48, 64])
    told = protocols.differing_keys([protocols.decisive(one), protocols.decisive(other)])
    assert told == [("split", ["val", "train"]), ("stretch", ["(absent)", "[48, 64]"])]
