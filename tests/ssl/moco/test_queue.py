"""The queue against a plain Python list, step by step."""

import pytest
import torch
import torch.nn.functional as F

from polyscene.ssl.moco.queue import KeyQueue


def keys(count, dim, value):
    return F.normalize(torch.full((count, dim), float(value)) + torch.arange(count * dim).view(count, dim), dim=1)


@pytest.mark.parametrize(("size", "batch"), [(8, 4), (8, 3), (7, 5), (5, 5), (5, 8), (3, 10), (1, 2)])
def test_contents_after_every_step(size, batch):
    queue = KeyQueue(size, 3, 4, labels=True)
    embeddings, features = list(queue.embeddings.clone()), list(queue.features.clone())
    stamps, labels, pointer, written = [-1] * size, [-1] * size, 0, 0
    for step in range(7):
        new, new_features = keys(batch, 3, step), keys(batch, 4, step + 0.5)
        new_labels = torch.arange(batch) + 100 * step
        queue.enqueue(new, new_features, step=step, labels=new_labels)
        for i in range(batch):
            slot = (pointer + i) % size
            embeddings[slot], features[slot], stamps[slot] = new[i], new_features[i], step
            labels[slot] = int(new_labels[i])
        pointer, written = (pointer + batch) % size, min(size, written + batch)
        assert torch.equal(queue.embeddings, torch.stack(embeddings))
        assert torch.equal(queue.features, torch.stack(features))
        assert queue.stamps.tolist() == stamps
        assert queue.labels.tolist() == labels
        assert (int(queue.pointer), int(queue.written)) == (pointer, written)


def test_starts_with_random_unit_vectors_and_nothing_written():
    queue = KeyQueue(50, 8, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(queue.embeddings.norm(dim=1), torch.ones(50))
    torch.testing.assert_close(queue.features.norm(dim=1), torch.ones(50))
    assert (queue.stamps == -1).all()
    assert int(queue.written) == 0
    assert float(queue.mean_age(10)) == 0
    again = KeyQueue(50, 8, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(queue.embeddings, again.embeddings)


def test_initial_vectors_are_those_of_the_generator():
    queue = KeyQueue(50, 8, 16, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    for vectors, width in ((queue.embeddings, 8), (queue.features, 16)):
        assert torch.equal(vectors, F.normalize(torch.randn(50, width, generator=generator), dim=1))


def test_labels_of_slots_are_those_of_now():
    queue = KeyQueue(5, 3, 4, labels=True)
    queue.enqueue(keys(3, 3, 0), keys(3, 4, 0), step=0, labels=torch.tensor([7, 8, 9]))
    slots = torch.tensor([[[0, 4], [2, 1]]])
    found = queue.labels_of(slots)
    queue.enqueue(keys(4, 3, 1), keys(4, 4, 1), step=1, labels=torch.tensor([1, 2, 3, 4]))
    assert found.tolist() == [[[7, -1], [9, 8]]]
    assert queue.labels_of(slots).tolist() == [[[3, 2], [9, 4]]]
    assert KeyQueue(5, 3, 4).labels_of(slots) is None


def test_mean_age_counts_written_slots_only():
    queue = KeyQueue(6, 3, 4)
    queue.enqueue(keys(2, 3, 0), keys(2, 4, 0), step=0)
    queue.enqueue(keys(2, 3, 1), keys(2, 4, 1), step=3)
    assert float(queue.mean_age(4)) == pytest.approx((4 + 4 + 1 + 1) / 4)


def test_state_survives_a_round_trip():
    queue = KeyQueue(5, 3, 4)
    queue.enqueue(keys(3, 3, 0), keys(3, 4, 0), step=0)
    other = KeyQueue(5, 3, 4)
    other.load_state_dict(queue.state_dict())
    for q in (queue, other):
        q.enqueue(keys(3, 3, 1), keys(3, 4, 1), step=1)
    assert all(torch.equal(a, b) for a, b in zip(queue.buffers(), other.buffers()))


def test_misaligned_keys_and_empty_queues_are_refused():
    with pytest.raises(ValueError, match="2 embeddings but 3 features"):
        KeyQueue(5, 3, 4).enqueue(keys(2, 3, 0), keys(3, 4, 0), step=0)
    with pytest.raises(ValueError, match="at least one slot"):
        KeyQueue(0, 3, 4)
