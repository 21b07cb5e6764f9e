import numpy as np
import pytest

from sar_gen.windows import grid, margins, mean_count


@pytest.mark.parametrize(("height", "width", "native"), [(8, 8, 8), (9, 30, 8), (64, 100, 32), (20, 6, 8), (10, 9, 8)])
@pytest.mark.parametrize("step", range(6))
def test_windows_cover_the_scene_and_stay_within_its_margins(height: int, width: int, native: int, step: int) -> None:
    over = margins(height, width, native)
    covered = np.zeros((height + 2 * over[0], width + 2 * over[1]))
    for window in grid(height, width, native, np.random.default_rng([3, step])):
        assert window.top >= 0
        assert window.left >= 0
        assert window.top + window.height <= covered.shape[0]
        assert window.left + window.width <= covered.shape[1]
        assert (window.height, window.width) == (min(height, native), min(width, native))
        covered[window.slices] += 1
    assert covered[over[0] : over[0] + height, over[1] : over[1] + width].min() >= 1


def test_the_grid_moves_from_step_to_step_and_not_from_run_to_run() -> None:
    grids = [grid(64, 64, 32, np.random.default_rng([7, step])) for step in range(10)]
    assert len({windows[0] for windows in grids}) > 5
    assert grids == [grid(64, 64, 32, np.random.default_rng([7, step])) for step in range(10)]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 64), (128, 128)])
def test_the_mean_count_is_that_of_many_steps(height: int, width: int) -> None:
    counts = [len(grid(height, width, 32, np.random.default_rng([5, step]))) for step in range(300)]
    assert mean_count(height, width, 32) == pytest.approx(np.mean(counts), rel=0.05, abs=0.75)


def test_one_window_is_enough_for_what_it_covers() -> None:
    assert mean_count(20, 32, 32) == 1
