"""Running steps on a GPU that is not there: torch's fake tensors know their device and have no numbers."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("cuda", 0)
aten = torch.ops.aten
PRODUCTS = {aten.mm.default, aten.mm.out, aten.addmm.default, aten.bmm.default, aten.convolution.default}


class Watch(TorchDispatchMode):
    """Refuses copies for which the host would wait, and products of two types; notes the types of products."""

    def __init__(self):
        super().__init__()
        self.types = set()

    def __torch_dispatch__(self, function, types, arguments=(), more=None):
        more = more or {}
        if function in PRODUCTS:
            (type_,) = {a.dtype for a in (*arguments, *more.values()) if isinstance(a, torch.Tensor)}
            self.types.add((function, type_))
        between, quick = (), False
        if function is aten._to_copy.default:
            between, quick = (arguments[0].device, more.get("device") or arguments[0].device), more.get("non_blocking")
        if function is aten.copy_.default:
            between, quick = (arguments[0].device, arguments[1].device), any(arguments[2:])
        assert len({torch.device(place).type for place in between}) < 2 or quick, f"a copy that waits: {between}"
        return function(*arguments, **more)


class NoCheck:
    """Stands in for the look at the last step's loss, which needs a number."""

    def __init__(self, *_):
        pass

    def check(self, loss, step):
        assert (loss.shape, loss.device.type != "cpu") == ((), True)

    def settle(self):
        pass


def keep_autocast_on(monkeypatch):
    """Else it switches itself off where there is no GPU."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
