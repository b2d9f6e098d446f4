"""Features on disk: found again, never confused, never trusted when damaged."""

from dataclasses import replace

import pytest
import torch

from polyscene.downstream.frozen import feature_cache
from polyscene.downstream.frozen.feature_cache import FeatureKey, cached_features, open_cache
from polyscene.runtime.errors import UserError

KEY = FeatureKey("resnet18", "aaaa", "bbbb", 256, 224, "fp32")


class Backbone:
    """Counts how often features are computed."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return torch.arange(12.0).view(4, 3) / 7


@pytest.fixture
def ask(tmp_path):
    """``ask(key)``: the features through the cache, and the log."""
    compute, lines = Backbone(), []

    def run(key=KEY, folder=tmp_path):
        lines.clear()
        return cached_features(folder, key, 4, compute, lines.append), compute.calls, " | ".join(lines)

    return run


def test_computed_once_and_bit_equal(ask):
    first, calls, log = ask()
    assert (calls, log) == (1, "")
    again, calls, log = ask()
    assert torch.equal(first, again)
    assert calls == 1
    assert "4 images from the cache" in log


@pytest.mark.parametrize(
    "change",
    [{"arch": "x"}, {"weights": "x"}, {"data": "x"}, {"resize": 1}, {"crop": 1}, {"precision": "bf16"}],
    ids=lambda c: next(iter(c)),
)
def test_anything_that_decides_the_features_makes_another_file(ask, change):
    ask()
    assert ask(replace(KEY, **change))[1] == 2


def test_a_new_meaning_of_the_numbers_makes_old_files_useless(ask, monkeypatch):
    ask()
    monkeypatch.setattr(feature_cache, "_VERSION", 2)
    assert ask()[1] == 2


def damage_bit(file):
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)


def damage_foreign(file):
    cached_features(file.parent, replace(KEY, data="other"), 4, Backbone(), print)
    file.write_bytes(replace(KEY, data="other").file(file.parent).read_bytes())


@pytest.mark.parametrize(
    "damage",
    [
        damage_bit,
        damage_foreign,
        lambda file: file.write_bytes(file.read_bytes()[:-5]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"\xff" * 64),
    ],
    ids=["one bit", "another's features", "truncated", "empty", "rubbish"],
)
def test_a_damaged_file_is_computed_again(ask, tmp_path, damage):
    good = ask()[0]
    damage(KEY.file(tmp_path))
    features, calls, log = ask()
    assert calls == 2
    assert torch.equal(features, good)
    assert "damaged" in log
    assert "computing them again" in log
    assert "from the cache" in ask()[2]


def test_another_number_of_rows_is_not_used(tmp_path):
    lines = []
    cached_features(tmp_path, KEY, 4, lambda: torch.zeros(3, 2), lines.append)
    assert len(cached_features(tmp_path, KEY, 4, lambda: torch.ones(4, 2), lines.append)) == 4
    assert "not a row for each of 4 images" in lines[-1]


def test_without_a_folder_nothing_is_kept(ask):
    assert ask(folder=None)[1] == 1
    assert ask(folder=None)[1] == 2


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path):
    lines = []
    features = cached_features(tmp_path / "gone", KEY, 4, Backbone(), lines.append)
    assert features.shape == (4, 3)
    assert "not cached" in lines[0]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cache=null"):
        open_cache(str(tmp_path / "file" / "sub"))
    assert open_cache(None) is None
