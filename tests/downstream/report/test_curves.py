"""metrics.jsonl: damaged lines, rewritten steps, thinning."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from polyscene.downstream.report.curves import read_curves, thin_out


def test_good_lines_are_read_and_damaged_ones_counted(tmp_path):
    file = tmp_path / "metrics.jsonl"
    good = ['{"step": 10, "loss": 2.0, "epoch": 0.5}', "", '{"step": 20, "loss": 1.5, "note": "text", "flag": true}']
    bad = ["[1, 2]", '{"loss": 1}', '{"step": "x", "loss": 1}', '{"step": true}', "\x00", '{"step": 30, "lo']
    file.write_text("\n".join(good + bad))
    curves = read_curves(file)
    assert curves.series == {"loss": ((10, 2.0), (20, 1.5)), "epoch": ((10, 0.5),)}
    assert curves.skipped == len(bad)
    assert curves.last_step == 20
    assert curves.steps_per_epoch == 20


def test_bytes_that_are_no_text_and_a_missing_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 3}\n\xff\xfe\x00\n')
    assert read_curves(tmp_path / "metrics.jsonl").series == {"loss": ((1, 3.0),)}
    assert read_curves(tmp_path / "absent.jsonl").series == {}


def test_a_repeated_step_counts_once_with_its_later_value_and_steps_are_sorted(tmp_path):
    file = tmp_path / "metrics.jsonl"
    entries = [(10, 1.0), (30, 3.0), (20, 2.0), (30, 4.0)]
    file.write_text("\n".join(json.dumps({"step": s, "loss": v}) for s, v in entries))
    assert read_curves(file).series["loss"] == ((10, 1.0), (20, 2.0), (30, 4.0))


def test_values_that_are_not_finite_leave_a_gap(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": Infinity}\n{"step": 3, "loss": 1}\n')
    curves = read_curves(file)
    assert curves.series["loss"] == ((3, 1.0),)
    assert curves.skipped == 0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=301, max_size=3000))
def test_thinning_keeps_both_ends_and_the_extremes(values):
    points = [(float(i), value) for i, value in enumerate(values)]
    thin = thin_out(points, 100)
    assert len(thin) <= 100
    assert thin[0] == points[0]
    assert thin[-1] == points[-1]
    assert max(y for _, y in thin) == max(values)
    assert min(y for _, y in thin) == min(values)
    assert [x for x, _ in thin] == sorted(x for x, _ in thin)
    assert set(thin) <= set(points)
