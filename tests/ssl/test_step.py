"""The training step against a word-by-word transcription of algorithm 3, and its distributed equivalences."""

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import alone, labels, make_model, make_runner, make_views

from polyscene.ssl import step as step_module
from polyscene.ssl.moco.normalization import key_permutation

WORKERS = Path(__file__).parent / "workers"


def transcription(steps, group=4, seed=5, accumulate=1):
    """Algorithm 3 with the order of the specification, written with loops and plain cross-entropies."""
    model = make_model()
    query, key, queue = model.query, model.key, model.queue
    optimizer = torch.optim.SGD(query.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    embeddings, features = queue.embeddings.clone(), queue.features.clone()
    pointer = written = 0
    losses = []
    for step in range(steps):
        large, small = make_views(step)
        batch = large.shape[0]
        with torch.no_grad():
            for ours, theirs in zip(key.parameters(), query.parameters()):
                ours.mul_(0.9).add_(theirs, alpha=0.1)
        q_features, q_embeddings = [], []
        for start in range(0, batch, group):  # BatchNorm groups
            f_large, e_large = query(large[start : start + group, 0])
            f_small, e_small = query(small[start : start + group].reshape(-1, 3, 8, 8))
            q_features.append(torch.cat([f_large[:, None], f_small.view(group, 3, -1)], 1))
            q_embeddings.append(torch.cat([e_large[:, None], e_small.view(group, 3, -1)], 1))
        q_features, q_embeddings = torch.cat(q_features), torch.cat(q_embeddings)
        with torch.no_grad():
            order = key_permutation(batch, seed, step)
            k_features, k_embeddings = torch.empty(batch, 12), torch.empty(batch, 6)
            for start in range(0, batch, group):
                chosen = order[start : start + group]
                k_features[chosen], k_embeddings[chosen] = key(large[chosen, 1])
        l_pos = torch.einsum("bvd,bd->bv", q_embeddings, k_embeddings)
        l_neg = q_embeddings @ embeddings.T
        logits = torch.cat([l_pos[..., None], l_neg], -1).flatten(0, 1) / 0.2
        instance = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64))
        loss = instance
        if step >= 1:
            similarity = q_features @ features.T
            similarity[..., written:] = -9
            count = min(3, written)
            nearest = similarity.topk(count, -1).indices
            target = torch.zeros_like(l_neg).scatter_(-1, nearest, 1 / count)
            loss = instance + 0.4 * F.cross_entropy((l_neg / 0.2).flatten(0, 1), target.flatten(0, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        for i in range(batch):
            embeddings[(pointer + i) % 24], features[(pointer + i) % 24] = k_embeddings[i], k_features[i]
        pointer, written = (pointer + batch) % 24, min(24, written + batch)
    return losses, query, key, embeddings, features


def run_steps(count, **settings):
    model = make_model()
    runner = make_runner(model, alone(), batch=8, kind="split", group=4, **settings)
    losses = [
        runner.step(make_views(step), step=step, learning_rate=0.1, labels=labels(step)).means[0].item()
        for step in range(count)
    ]
    return losses, model


def close(a, b, tolerance=1e-5):
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values()):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("groups", ["together", "one after another"])
def test_six_steps_equal_the_transcription(groups, monkeypatch):
    if groups == "one after another":  # as on a GPU
        monkeypatch.setattr(step_module, "group_norms", lambda model: None)
    expected, query, key, embeddings, features = transcription(6)
    losses, model = run_steps(6)
    assert losses == pytest.approx(expected, rel=1e-5)
    close(model.query, query)
    close(model.key, key)
    torch.testing.assert_close(model.queue.embeddings, embeddings, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.queue.features, features, rtol=1e-5, atol=1e-5)


def test_accumulation_changes_nothing_but_memory():
    """Two passes of four images with BatchNorm over four: the same queries, keys grouped within their pass."""
    model = make_model()
    runner = make_runner(model, alone(), batch=8, kind="sync", accumulate=2, k=0)
    output = runner.step(make_views(0), step=0, learning_rate=0.1)
    twin = make_model()
    halves = [[v[:4] for v in make_views(0)], [v[4:] for v in make_views(0)]]
    total = 0.0
    for large, small in halves:
        _, q = twin.query(large[:, 0])
        _, s = twin.query(small.flatten(0, 1))
        queries = torch.cat([q[:, None], s.view(4, 3, -1)], 1)
        _, keys = twin.key(large[:, 1])
        logits = torch.cat(
            [(queries * keys.detach()[:, None]).sum(-1, keepdim=True), queries @ twin.queue.embeddings.T], -1
        )
        total = total + F.cross_entropy(logits.flatten(0, 1) / 0.2, torch.zeros(16, dtype=torch.int64)) / 2
    assert output.means[0].item() == pytest.approx(total.item(), rel=1e-5)
    total.backward()
    for p in twin.query.parameters():
        p.data.add_(p.grad + 1e-4 * p.data, alpha=-0.1)
    for ours, theirs in zip(model.query.parameters(), twin.query.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert int(model.queue.written) == 8


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_equals_eager_and_keeps_its_names():
    eager_losses, eager = run_steps(2)
    losses, model = run_steps(2, compile=True)
    assert losses == pytest.approx(eager_losses, rel=1e-4)
    assert model.state_dict().keys() == eager.state_dict().keys()
    close(model.query, eager.query, 1e-3)


def test_the_key_encoder_follows_the_weights_from_before_the_step():
    model = make_model()
    runner = make_runner(model, alone(), batch=8, kind="split", group=4)
    for step in range(3):
        before_query = [p.clone() for p in model.query.parameters()]
        before_key = [p.clone() for p in model.key.parameters()]
        runner.step(make_views(step), step=step, learning_rate=0.5)
        for key, old, query in zip(model.key.parameters(), before_key, before_query):
            torch.testing.assert_close(key, 0.9 * old + 0.1 * query)
            assert not key.requires_grad
            assert key.grad is None


def test_key_encoder_keeps_its_own_batchnorm_statistics():
    _, model = run_steps(3)
    query, key = model.query.backbone.norm, model.key.backbone.norm
    assert not torch.allclose(query.running_mean, key.running_mean)
    assert int(key.num_batches_tracked) == 3 * 2  # two groups of anchors a step
    assert int(query.num_batches_tracked) == 3 * 2 * 2  # two groups, two crop sizes


def test_a_key_is_normalised_among_its_group_only():
    model = make_model()
    runner = make_runner(model, alone(), batch=8, kind="split", group=4)
    anchors = make_views(0)[0][:, 1]
    arguments = {"plan": runner.norm, "world": alone(), "seed": 5, "step": 7}
    _, reference = model.embed_keys(anchors, **arguments)
    order = key_permutation(8, 5, 7)
    changed = anchors.clone()
    changed[order[0]] += 1.0
    _, after = model.embed_keys(changed, **arguments)
    moved = (reference != after).any(dim=1).nonzero().flatten().tolist()
    assert set(moved) == set(order[:4].tolist())


def test_queries_and_keys_meet_different_companions():
    """Over many steps a key shares its group with its own query's companions no more often than chance."""
    together = sum(len({*range(4)} & set(key_permutation(8, 5, s)[:4].tolist())) for s in range(500)) / (500 * 4)
    assert together == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("large", "small", "views"), [(2, 0, 1), (2, 3, 4), (4, 1, 4), (3, 0, 2)])
def test_any_number_of_crops(large, small, views):
    model = make_model()
    runner = make_runner(model, alone(), batch=8, kind="split", group=2, start=0)
    for step in range(2):
        output = runner.step(make_views(step, large=large, small=small), step=step, learning_rate=0.1)
    assert output.neighbours.shape == (8, views, 3)
    assert torch.isfinite(output.means).all()
    assert output.embeddings.shape == (8, 6)


def test_nonfinite_loss_is_reported_before_the_weights_move():
    model = make_model()
    runner = make_runner(model, alone(), batch=8, kind="split", group=4)
    views = make_views(0)
    views[0][3] = torch.nan
    before = [p.clone() for p in model.query.parameters()]
    with pytest.raises(FloatingPointError, match="loss is nan at step 0"):
        runner.step(views, step=0, learning_rate=0.1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.query.parameters()))
    assert int(model.queue.written) == 0


def test_labels_of_neighbours_are_those_that_the_queue_had_when_they_were_found():
    model = make_model()
    runner = make_runner(model, alone(), batch=8, kind="split", group=4)
    for step in range(5):  # three batches fill the queue
        before = model.queue.labels.clone()
        output = runner.step(make_views(step), step=step, learning_rate=0.1, labels=10 * labels(step))
        if step >= 1:
            assert torch.equal(output.neighbour_labels, before[output.neighbours])
    assert not torch.equal(output.neighbour_labels, model.queue.labels[output.neighbours])


def test_labels_of_neighbours_are_absent_where_there_are_none():
    model = make_model()
    model.queue.labels = None
    runner = make_runner(model, alone(), batch=8, kind="split", group=4, start=1)
    outputs = [runner.step(make_views(step), step=step, learning_rate=0.1) for step in range(2)]
    assert [o.neighbour_labels for o in outputs] == [None, None]
    assert [o.neighbours is None for o in outputs] == [True, False]


def test_neighbour_loss_sets_in_at_its_step():
    model = make_model()
    runner = make_runner(model, alone(), batch=8, kind="split", group=4, start=2)
    outputs = [runner.step(make_views(s), step=s, learning_rate=0.1) for s in range(3)]
    assert [o.neighbours is None for o in outputs] == [True, True, False]
    assert outputs[1].means[2] == 0
    assert outputs[2].means[2] > 0


@pytest.mark.parametrize("kind", ["shuffle", "sync"])
def test_two_processes_equal_one(kind, tmp_path, torchrun):
    torchrun(2, WORKERS / "two_process_steps.py", tmp_path / "rank", kind)
    ranks = [torch.load(tmp_path / f"rank-{r}.pt", weights_only=True) for r in range(2)]
    model = make_model()
    runner = make_runner(model, alone(), batch=8, kind="split" if kind == "shuffle" else "sync", group=4)
    losses = [
        runner.step(make_views(step), step=step, learning_rate=0.1, labels=labels(step)).means.tolist()
        for step in range(6)
    ]
    for name, value in ranks[0]["queue"].items():
        assert torch.equal(value, ranks[1]["queue"][name]), f"queues differ in {name}"
        torch.testing.assert_close(value, model.queue.state_dict()[name], rtol=1e-4, atol=1e-5)
    for ours, rank in zip(losses, ranks[0]["losses"]):
        assert ours == pytest.approx(rank, abs=1e-5)
    for name, value in ranks[0]["query"].items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(value, ranks[1]["query"][name])
            torch.testing.assert_close(value, model.query.state_dict()[name], rtol=1e-4, atol=1e-5)
