"""The curves of a run that overfitted: the best step and the stop are marked."""

from __future__ import annotations

import math
import re

from fulltune.records.run import GuardEvent, Step
from fulltune.report.curves import curves

STEPS = [
    Step(step=0, epoch=0, eval_loss=2.0),
    Step(step=5, epoch=1, loss=1.5),
    Step(step=10, epoch=2, loss=1.0),
    Step(step=10, epoch=2, eval_loss=1.5),
    Step(step=15, epoch=3, loss=math.nan),
    Step(step=20, epoch=4, loss=0.2),
    Step(step=20, epoch=4, eval_loss=2.2),
]
KEPT = GuardEvent(guard="overfitting", step=10, verdict="continue", message="Step 10 is <kept>.")
STOP = GuardEvent(guard="overfitting", step=20, verdict="stop", message="Stopped.")
BACK = GuardEvent(guard="divergence", step=15, verdict="roll back", message="Back to step 10.")
OTHER = GuardEvent(guard="divergence", step=12, verdict="continue", message="A spike that recovered.")
VALIDATION = {"validation": {"metric": "macro_f1", "points": [[0, 0.1], [10, 0.7], [20, "NaN"]]}}


def marked(picture: str) -> list[str]:
    return re.findall(r'class="tick halo"[^>]*>([^<]+)<', picture)


def test_training_and_evaluation_loss_have_no_gap_between_them() -> None:
    """The training loss of an interval is a mean over models that no longer exist, so no gap can be drawn from it."""
    [chart] = curves(STEPS, [], {})
    assert "gap" not in chart.note.lower()
    assert [name for _, name in chart.keys] == ["training loss", "evaluation loss"]
    assert 'class="gap"' not in chart.svg


def test_the_highest_learning_rate_is_named() -> None:
    rates = {1: 0.0, 100: 1e-3, 363: 8.5e-9}
    [warm] = curves([Step(step=step, epoch=1, learning_rate=rate) for step, rate in rates.items()], [], {})
    assert warm.note == "0 at step 1 → 8.5e-9 at step 363, highest 0.001 at step 100"
    [falling] = curves([Step(step=step, epoch=1, learning_rate=1 / step) for step in (1, 2)], [], {})
    assert "highest" not in falling.note


def test_best_step_stop_and_rollback_are_marked_in_both_charts() -> None:
    charts = curves(STEPS, [STOP, KEPT, BACK, OTHER], VALIDATION)
    assert [chart.title for chart in charts] == ["Loss", "Validation Macro-F1"]
    for chart in charts:
        assert marked(chart.svg) == ["best", "roll back", "stop"]
        assert "step 10: Step 10 is &lt;kept&gt;." in chart.svg
    assert "not finite (×) at 1 logged step" in charts[1].note


def test_marks_at_one_position_have_separate_labels() -> None:
    [chart] = curves(STEPS, [KEPT, KEPT.model_copy(update={"verdict": "stop"})], {})
    heights = re.findall(r'class="tick halo"[^>]* y="(\d+)"', chart.svg)
    assert len(set(heights)) == 2


def test_a_loss_used_for_selection_has_no_second_chart() -> None:
    assert len(curves(STEPS, [], {"validation": {"metric": "loss", "points": [[0, 1.0]]}})) == 1
