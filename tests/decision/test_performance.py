"""How well each level answers."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaler.performance import RECENT, AnswerSample, LevelPerformance, Performance


def test_a_level_that_has_not_answered_is_not_known() -> None:
    """None is honest; 0 tokens a second is not."""
    performance = Performance()
    assert performance.levels() == {}
    performance.add(AnswerSample("small", 5.0, 0, failed=True))
    assert performance.levels() == {"small": LevelPerformance(failures=1)}


def test_the_first_answer_is_taken_as_it_is_and_later_ones_by_their_weight() -> None:
    """A moving average that starts at the first figure, not at zero."""
    performance = Performance()
    performance.add(AnswerSample("small", 3.0, 101, first_token_s=1.0))
    assert performance.levels()["small"] == LevelPerformance(1, 0, 101, 1.0, 3.0, 50.0)
    performance.add(AnswerSample("small", 2.0, 101, first_token_s=1.0))
    level = performance.levels()["small"]
    assert (level.answers, level.tokens, level.first_token_s) == (2, 202, 1.0)
    assert level.total_s == pytest.approx(3.0 - RECENT)
    assert level.tokens_per_s == pytest.approx(50 + RECENT * 50)


def test_a_failed_answer_counts_as_a_failure_and_leaves_the_averages() -> None:
    """A refusal after a millisecond does not make a level quick."""
    performance = Performance()
    performance.add(AnswerSample("small", 3.0, 101, first_token_s=1.0))
    before = performance.levels()["small"]
    performance.add(AnswerSample("small", 0.001, 0, failed=True))
    after = performance.levels()["small"]
    assert (after.answers, after.failures) == (1, 1)
    assert (after.first_token_s, after.total_s, after.tokens_per_s) == (
        before.first_token_s,
        before.total_s,
        before.tokens_per_s,
    )


@pytest.mark.parametrize(
    "sample",
    [
        AnswerSample("small", 1.0, 0),
        AnswerSample("small", 1.0, 1, first_token_s=1.0),
        AnswerSample("small", 1.0, 5, first_token_s=1.0),
    ],
)
def test_an_answer_too_short_to_have_a_rate_has_none(sample: AnswerSample) -> None:
    """One token, or all of them at once, tell nothing of tokens a second."""
    performance = Performance()
    performance.add(sample)
    assert performance.levels()["small"].tokens_per_s is None


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.floats(0.01, 100), st.integers(0, 1000), st.booleans(), st.booleans()),
        max_size=60,
    )
)
def test_averages_lie_between_the_extremes_and_counts_add_up(
    answers: list[tuple[str, float, int, bool, bool]],
) -> None:
    """Levels do not mix."""
    performance = Performance()
    for level, total_s, tokens, failed, timed in answers:
        performance.add(AnswerSample(level, total_s, tokens, total_s / 2 if timed else None, failed))
    levels = performance.levels()
    assert set(levels) == {level for level, *_ in answers}
    for name, known in levels.items():
        good = [
            (total_s, tokens, timed)
            for level, total_s, tokens, failed, timed in answers
            if level == name and not failed
        ]
        assert known.answers == len(good)
        assert known.answers + known.failures == sum(level == name for level, *_ in answers)
        assert known.tokens == sum(tokens for _, tokens, _ in good)
        totals = [total_s for total_s, *_ in good]
        firsts = [total_s / 2 for total_s, _, timed in good if timed]
        for average, figures in ((known.total_s, totals), (known.first_token_s, firsts)):
            if average is None:
                assert not figures
            else:
                assert min(figures) - 1e-9 <= average <= max(figures) + 1e-9


def test_answers_of_many_threads_are_all_counted() -> None:
    """Several requests end at the same time."""
    performance = Performance()
    threads = [
        threading.Thread(target=lambda: [performance.add(AnswerSample("small", 1.0, 2)) for _ in range(2000)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert performance.levels()["small"].answers == 8000


def test_what_is_handed_out_is_a_copy() -> None:
    """A page that is being drawn does not change under the pen."""
    performance = Performance()
    performance.add(AnswerSample("small", 1.0, 2))
    copy = performance.levels()
    performance.add(AnswerSample("large", 1.0, 2))
    assert set(copy) == {"small"}
