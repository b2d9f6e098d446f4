"""Losses and neighbours that are found part by part against the formulas over whole matrices."""

import contextlib
import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from polyscene.ssl.moco.losses import contrastive_losses, info_nce, nearest_neighbour_loss
from polyscene.ssl.moco.nearest import largest, nearest_slots
from polyscene.ssl.moco.partition import log_partition
from polyscene.ssl.moco.queue import KeyQueue

T = 0.2


def unit(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=dtype), dim=-1)


def problem(batch=4, views=5, dim=8, width=6, slots=33, seed=0, dtype=torch.float64):
    """Arguments of the losses: queries with gradient, and constants."""
    return {
        "queries": unit(batch, views, dim, seed=seed, dtype=dtype).requires_grad_(),
        "anchors": unit(batch, dim, seed=seed + 1, dtype=dtype),
        "queue": unit(slots, dim, seed=seed + 2, dtype=dtype),
        "temperature": T,
        "features": unit(batch, views, width, seed=seed + 3, dtype=dtype),
        "feature_queue": unit(slots, width, seed=seed + 4, dtype=dtype),
    }


def straightforward(queries, anchors, queue, temperature, features, feature_queue, k, written=None):
    """Instance loss, neighbour loss, top-1 and neighbours from whole matrices, differentiated by autograd."""
    logits = queries @ queue.T / temperature
    positives = (queries * anchors.unsqueeze(1)).sum(-1) / temperature
    partition = logits.logsumexp(-1)
    instance = (torch.logaddexp(positives, partition) - positives).mean()
    top1 = (positives > logits.amax(-1)).to(logits.dtype).mean()
    similarity = F.normalize(features, dim=-1) @ feature_queue.T
    if written is not None:
        similarity = similarity.masked_fill(torch.arange(len(queue)) >= written, -torch.inf)
    values, slots = similarity.topk(k, dim=-1)
    weights = (values > -torch.inf).to(logits.dtype)
    terms = (partition.unsqueeze(-1) - logits.gather(-1, slots)) * weights
    neighbour = (terms.sum(-1) / weights.sum(-1).clamp(min=1)).mean()
    return instance, neighbour, top1, torch.where(weights > 0, slots, -1)


def gradient(loss, queries):
    return torch.autograd.grad(loss, queries, retain_graph=True)[0]


def near(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def sets(slots):
    return slots.sort(dim=-1).values


# Against the formulas


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 7),
    views=st.integers(1, 5),
    slots=st.integers(1, 150),
    k=st.integers(1, 9),
    share=st.none() | st.floats(0, 1),
    chunk_bytes=st.integers(1, 20_000),
    seed=st.integers(0, 1000),
)
def test_losses_and_each_gradient_for_any_chunk(batch, views, slots, k, share, chunk_bytes, seed):
    arguments = problem(batch, views, slots=slots, seed=seed) | {"k": min(k, slots)}
    written = None if share is None else torch.tensor(round(share * slots))
    instance, neighbour, top1, neighbours = straightforward(**arguments, written=written)
    found = contrastive_losses(**arguments, written=written, chunk_bytes=chunk_bytes)
    queries = arguments["queries"]
    near(found.instance, instance)
    near(found.neighbour, neighbour)
    near(gradient(found.instance, queries), gradient(instance, queries))
    near(gradient(found.neighbour, queries), gradient(neighbour, queries))
    near(
        gradient(found.instance + 0.4 * found.neighbour, queries),
        gradient(instance, queries) + 0.4 * gradient(neighbour, queries),
    )
    assert found.top1 == top1
    real = neighbours >= 0
    assert torch.equal(found.neighbours[real], neighbours[real])
    assert (found.neighbours[~real] >= (0 if written is None else written)).all()
    assert all(len(set(row)) == len(row) for row in found.neighbours.flatten(0, 1).tolist())


@pytest.mark.parametrize("chunk_bytes", [1, 50_000, 2**28])
def test_float32_rounds_no_worse_than_whole_matrices(chunk_bytes):
    """At a temperature that makes logits large, both are compared with double precision."""
    arguments = problem(6, 5, 64, 32, 2000, dtype=torch.float32) | {"temperature": 0.02, "k": 20}
    exact = {name: x.detach().double() if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    exact["queries"].requires_grad_()
    expected, plain = straightforward(**exact), straightforward(**arguments)
    found = contrastive_losses(**arguments, chunk_bytes=chunk_bytes)
    assert torch.equal(sets(found.neighbours), sets(plain[3]))
    for ours, theirs, truth in zip((found.instance, found.neighbour), plain, expected):
        assert ours.dtype == torch.float32
        near(ours, theirs, 1e-5)
        right = gradient(truth, exact["queries"])
        error = (gradient(ours, arguments["queries"]) - right).norm()
        assert error < 2 * (gradient(theirs, arguments["queries"]) - right).norm() + 1e-7 * right.norm()


@pytest.mark.parametrize("chunk_bytes", [1, 200, 2**28])
def test_gradients_against_finite_differences(chunk_bytes):
    arguments = problem(2, 3, 4, 5, 9) | {"chunk_bytes": chunk_bytes}
    queries = arguments.pop("queries")
    names = ("anchors", "queue", "temperature", "chunk_bytes")
    assert torch.autograd.gradcheck(lambda q: info_nce(q, **{name: arguments[name] for name in names}), queries)
    del arguments["anchors"]
    assert torch.autograd.gradcheck(lambda q: nearest_neighbour_loss(q, **arguments, k=3), queries)


def test_separate_losses_take_chunks_too():
    arguments = problem() | {"chunk_bytes": 1000}
    both = contrastive_losses(**arguments, k=4)
    names = ("queries", "anchors", "queue", "temperature", "chunk_bytes")
    assert torch.equal(info_nce(**{name: arguments[name] for name in names}), both.instance)
    del arguments["anchors"]
    assert torch.equal(nearest_neighbour_loss(**arguments, k=4), both.neighbour)


def test_nothing_written_means_no_neighbour_loss_and_no_gradient_of_it():
    arguments = problem(slots=100)
    found = contrastive_losses(**arguments, k=4, written=torch.tensor(0))
    assert found.neighbour == 0
    assert (gradient(found.neighbour, arguments["queries"]) == 0).all()
    assert (gradient(found.instance, arguments["queries"]) != 0).any()


def test_without_neighbours_the_feature_queue_is_not_looked_at():
    arguments = problem()
    expected = straightforward(**arguments, k=1)[0]
    nothing = torch.full_like(arguments["feature_queue"], torch.nan)
    for given_features in ({}, {"features": arguments["features"], "feature_queue": nothing}):
        rest = {name: arguments[name] for name in ("queries", "anchors", "queue", "temperature")}
        found = contrastive_losses(**rest, **given_features, k=0, chunk_bytes=500)
        near(found.instance, expected)
        assert (found.neighbour, found.neighbours) == (0, None)


def test_extreme_logits_stay_finite():
    arguments = problem(dtype=torch.float32) | {"temperature": 1e-3}
    found = contrastive_losses(**arguments, k=3, chunk_bytes=1000)
    expected = straightforward(**arguments, k=3)
    for ours, theirs in zip((found.instance, found.neighbour), expected):
        near(ours, theirs, 1e-5)
        near(gradient(ours, arguments["queries"]), gradient(theirs, arguments["queries"]), 1e-3)


@pytest.mark.parametrize("chunk_bytes", [1000, 2**28])
def test_bf16_inputs_and_autocast_leave_the_products_alone(chunk_bytes):
    arguments = problem(4, 5, 32, 64, 300, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = contrastive_losses(**arguments, k=10, chunk_bytes=chunk_bytes)
        slope = gradient(found.instance + found.neighbour, arguments["queries"])
    single = {name: x.detach().float() if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    single["queries"].requires_grad_()
    expected = straightforward(**single, k=10)
    near(found.instance, expected[0], 1e-5)
    near(found.neighbour, expected[1], 1e-5)
    assert torch.equal(sets(found.neighbours), sets(expected[3]))
    assert slope.dtype == torch.bfloat16
    near(slope.float(), gradient(expected[0] + expected[1], single["queries"]), 1e-2)


def test_equal_input_gives_equal_bits():
    arguments = problem(6, 5, 64, 32, 700, dtype=torch.float32) | {"k": 20, "chunk_bytes": 30_000}
    one, other = contrastive_losses(**arguments), contrastive_losses(**arguments)
    slopes = [gradient(x.instance + 0.4 * x.neighbour, arguments["queries"]) for x in (one, other)]
    assert torch.equal(*slopes)
    for name in ("instance", "neighbour", "top1", "neighbours"):
        assert torch.equal(getattr(one, name), getattr(other, name))


# The queue is a constant, read once


def test_keys_may_be_written_between_the_passes():
    queue = KeyQueue(40, 8, 6)
    arguments = problem(dtype=torch.float32) | {"queue": queue.embeddings, "feature_queue": queue.features}
    before = {name: x.detach().clone() if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    before["queries"].requires_grad_()
    expected = straightforward(**before, k=3)
    found = contrastive_losses(**arguments, k=3)
    queue.enqueue(unit(30, 8, seed=8), unit(30, 6, seed=9), step=0)
    assert not torch.equal(queue.embeddings, before["queue"])
    near(
        gradient(found.instance + found.neighbour, arguments["queries"]),
        gradient(expected[0] + expected[1], before["queries"]),
        1e-5,
    )


def test_a_queue_that_wants_a_gradient_is_refused():
    arguments = problem()
    arguments["queue"].requires_grad_()
    with pytest.raises(ValueError, match=r"the queue is a constant .* pass queue.detach\(\)"):
        contrastive_losses(**arguments, k=2)


def test_a_second_derivative_is_refused():
    arguments = problem()
    loss = contrastive_losses(**arguments, k=2).instance
    (slope,) = torch.autograd.grad(loss, arguments["queries"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_chunks_need_memory():
    with pytest.raises(ValueError, match="chunk_bytes must be > 0, got 0"):
        contrastive_losses(**problem(), k=2, chunk_bytes=0)


# What is executed


class Watch(TorchDispatchMode):
    """Refuses to read values on the host; notes what is called, the largest new tensor and the most that is alive.

    Tensors whose storage is among ``known`` are not new. Sizes are in bytes.
    """

    HOST = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal")

    def __init__(self, known=()):
        super().__init__()
        self.known = {x.untyped_storage().data_ptr() for x in known}
        self.alive: dict[int, int] = {}
        self.largest = self.peak = 0
        self.called: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in self.HOST, f"{name} waits for the device"
        self.called.append(name)
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self._note(x)
        return out

    def _note(self, x):
        storage = x.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if not size or address in self.known or address in self.alive:
            return
        self.alive[address] = size
        weakref.finalize(storage, self.alive.pop, address, None)
        self.largest = max(self.largest, size)
        self.peak = max(self.peak, sum(self.alive.values()))


@contextlib.contextmanager
def saved_bytes(found):
    """Bytes that are kept for the backward pass, by storage."""

    def note(x):
        found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        yield


def test_watch_sees_what_it_is_for():
    x = torch.randn(100)
    with Watch((x,)) as watch:
        y = x + 1
        for _ in range(3):
            y = y + 1
        x.view(10, 10).add_(1)
    assert (watch.largest, watch.peak, watch.called.count("add")) == (400, 800, 4)
    with Watch(), pytest.raises(AssertionError, match="_local_scalar_dense waits"):
        x.sum().item()


def test_no_value_is_read_on_the_host():
    arguments = problem(8, 5, 16, 8, 4096, dtype=torch.float32)
    for written in (None, torch.tensor(3000), torch.tensor(5)):
        with Watch() as watch:
            found = contrastive_losses(**arguments, k=20, written=written, chunk_bytes=60_000)
            (found.instance + found.neighbour).backward()
        assert watch.called.count("mm") > 10


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_never_waited_for():
    arguments = problem(8, 5, 16, 8, 4096, dtype=torch.float32)
    moved = {name: x.detach().cuda() if isinstance(x, torch.Tensor) else x for name, x in arguments.items()}
    moved["queries"].requires_grad_()
    written = torch.tensor(3000, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = contrastive_losses(**moved, k=20, written=written, chunk_bytes=60_000)
        (found.instance + found.neighbour).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = straightforward(**arguments, k=20, written=3000)
    near(found.instance.cpu(), expected[0], 1e-4)
    near(found.neighbour.cpu(), expected[1], 1e-4)


def test_nothing_is_as_large_as_all_similarities_or_a_queue():
    arguments = problem(64, 5, 16, 48, 8192, dtype=torch.float32)
    similarities, embeddings, features = 320 * 8192 * 4, 8192 * 16 * 4, 8192 * 48 * 4
    chunk_bytes = 2**18
    assert chunk_bytes < min(similarities, embeddings, features)
    constants = [x for x in arguments.values() if isinstance(x, torch.Tensor)]
    kept: dict[int, int] = {}
    with torch.autocast("cpu", torch.bfloat16), Watch(constants) as watch, saved_bytes(kept):
        found = contrastive_losses(**arguments, k=20, written=torch.tensor(8192), chunk_bytes=chunk_bytes)
        (found.instance + 0.4 * found.neighbour).backward()
    assert watch.largest <= chunk_bytes
    with Watch(constants) as plain:
        straightforward(**arguments, k=20)
    assert plain.largest == similarities
    # Queries, positions and slots of the neighbours come on top.
    assert watch.peak < 4 * chunk_bytes < (embeddings + features) / 1.5
    inputs = {x.untyped_storage().data_ptr() for x in constants}
    assert arguments["queue"].untyped_storage().data_ptr() not in kept
    assert sum(size for address, size in kept.items() if address not in inputs) < 8 * arguments["queries"].nbytes


def test_a_small_problem_is_one_chunk():
    arguments = problem(32, 5, 16, 8, 4096, dtype=torch.float32)
    with Watch() as watch:
        found = contrastive_losses(**arguments, k=20)
        (found.instance + found.neighbour).backward()
    # Two products with the embeddings, of which one is the gradient, and one with the features.
    assert watch.called.count("mm") == 3


def test_without_gradient_nothing_is_spent_on_it():
    arguments = problem(dtype=torch.float32)
    expected = contrastive_losses(**arguments, k=3)
    with torch.no_grad(), Watch() as watch:
        found = contrastive_losses(**arguments, k=3)
    assert watch.called.count("mm") == 2
    for name in ("instance", "neighbour", "top1", "neighbours"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert not found.instance.requires_grad


# The parts


@pytest.mark.parametrize("chunk_bytes", [1, 300, 2**20])
def test_log_partition_and_largest(chunk_bytes):
    queries, queue = (5 * unit(7, 4)).requires_grad_(), unit(11, 4, seed=1)
    partition, largest_ = log_partition(queries, queue, chunk_bytes)
    logits = queries @ queue.T
    near(partition, logits.logsumexp(1))
    near(largest_, logits.amax(1))
    assert not largest_.requires_grad
    weights = unit(7, seed=2)
    near(gradient(partition @ weights, queries), gradient(logits.logsumexp(1) @ weights, queries))


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(1, 4),
    width=st.sampled_from([1, 31, 32, 64, 96, 160, 256, 320, 1000, 1024, 2048]),
    k=st.integers(1, 20),
    share=st.none() | st.floats(0, 1),
    seed=st.integers(0, 10_000),
)
def test_selection_by_blocks_equals_topk(rows, width, k, share, seed):
    k = min(k, width)
    written = None if share is None else round(share * width)
    similarity = unit(rows, width, seed=seed)
    if written is not None:
        # The best of all lie in the block of which only a part was written.
        similarity[:, written : written + 40] += 2
    masked = similarity.clone()
    if written is not None:
        masked[:, written:] = -torch.inf
    expected = masked.topk(k, dim=1)
    for given_ in {written, None if written is None else torch.tensor(written)}:
        values, columns = largest(similarity.clone(), k, given_)
        assert torch.equal(values, expected.values)
        real = expected.values > -torch.inf
        assert torch.equal(columns[real], expected.indices[real])
        assert all(len(set(row)) == k for row in columns.tolist())


def test_selection_among_equal_values_gives_different_columns():
    similarity = torch.zeros(3, 2048)
    similarity[:, ::7] = 1
    for written in (None, 1999):
        values, columns = largest(similarity.clone(), 20, written)
        assert (values == 1).all()
        assert (columns % 7 == 0).all()
        assert all(len(set(row)) == 20 for row in columns.tolist())


@pytest.mark.parametrize("chunk_bytes", [1, 3000, 10_000, 2**20])
@pytest.mark.parametrize("written", [None, 2, 40, torch.tensor(97)])
def test_nearest_slots(chunk_bytes, written):
    features, queue = unit(5, 6), unit(100, 6, seed=1)
    similarity = features @ queue.T
    if written is not None:
        similarity[:, int(written) :] = -torch.inf
    expected = similarity.topk(4, dim=1)
    slots, real = nearest_slots(features, queue, 4, written, chunk_bytes)
    assert torch.equal(real, expected.values > -torch.inf)
    assert torch.equal(slots[real], expected.indices[real])
