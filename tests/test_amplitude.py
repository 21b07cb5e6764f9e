import numpy as np
import pytest

from sar_gen.amplitude import (
    MODEL_ENCODINGS,
    S1_VH,
    S1_VV,
    VIEWS,
    Scale,
    db_to_linear,
    from_model,
    linear_to_db,
    normalise,
    pooled_scale,
    quantise,
    to_model,
    view,
)
from sar_gen.errors import InputError


def test_peak_is_mean_plus_three_sigma():
    assert Scale(2.0, 0.5, "x").peak == 3.5
    assert pytest.approx(0.8205, abs=5e-5) == S1_VV.peak
    assert pytest.approx(250.5) == S1_VH.peak


def test_scale_survives_json():
    assert Scale.from_json(S1_VV.to_json()) == S1_VV


@pytest.mark.parametrize("data", [{}, {"mean": 1}, {"mean": "a", "std": 1}, {"mean": float("nan"), "std": 1}])
def test_unusable_scale_is_refused(data):
    with pytest.raises(InputError, match="scale"):
        Scale.from_json(data)


def test_pooled_scale_equals_moments_of_all_pixels():
    rng = np.random.default_rng(1)
    arrays = [rng.gamma(k, 3.0, (20 + k, 31)).astype(np.float32) for k in (1, 2, 9)]
    pixels = np.concatenate([a.ravel() for a in arrays]).astype(np.float64)
    scale = pooled_scale(arrays, "test")
    assert scale.mean == pytest.approx(pixels.mean(), rel=1e-12)
    assert scale.std == pytest.approx(pixels.std(), rel=1e-12)


def test_pooled_scale_takes_the_modulus_of_complex_signal():
    signal = np.array([[3 + 4j, -5j]], dtype=np.complex64)
    assert pooled_scale([signal], "slc") == Scale(5.0, 0.0, "slc")


def test_pooled_scale_refuses_nothing_and_zeros():
    with pytest.raises(InputError):
        pooled_scale([], "none")
    with pytest.raises(InputError):
        pooled_scale([np.zeros((4, 4))], "zeros")


def test_normalise_divides_and_clips():
    out = normalise(np.array([[0.0, 1.75, 3.5, 9.0, -1.0]]), Scale(2.0, 0.5, "x"))
    assert out.dtype == np.float32
    assert out.tolist() == [[0.0, 0.5, 1.0, 1.0, 0.0]]
    assert normalise(np.array([[3 + 4j]]), Scale(10.0, 0.0, "x"))[0, 0] == pytest.approx(0.5)


def test_decibels_of_power_and_back():
    assert db_to_linear(-20.0) == pytest.approx(0.1)  # amplitude, so power is 0.01
    assert linear_to_db(0.5) == pytest.approx(-6.0206, abs=1e-4)
    amplitude = np.linspace(0.02, 1, 50)
    np.testing.assert_allclose(db_to_linear(linear_to_db(amplitude)), amplitude)
    assert linear_to_db(0.0) == pytest.approx(-40.0)
    assert linear_to_db(0.0, floor_db=-25.0) == pytest.approx(-25.0)


def test_quantise_rounds_to_nearest_level():
    values = np.array([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 0.5, 1.0, 2.0])
    assert quantise(values).tolist() == [0, 0, 0, 1, 128, 255, 255]
    assert quantise(values, 16).dtype == np.uint16
    assert quantise([1.0], 16).tolist() == [65535]
    grey = np.arange(256)
    assert np.array_equal(quantise((grey / 255).astype(np.float32)), grey)


@pytest.mark.parametrize("remap", list(VIEWS))
def test_views_are_monotonic_8_bit(remap):
    amplitude = np.linspace(0, 1, 4096).reshape(64, 64)
    grey = view(amplitude, remap)
    assert grey.dtype == np.uint8
    assert grey.shape == (64, 64)
    steps = np.diff(grey.ravel().astype(int))
    assert steps.min() >= 0
    assert grey.max() - grey.min() > 80


def test_linear_and_db_views_have_known_levels():
    assert view([[0.0, 0.2, 1.0]]).tolist() == [[0, 51, 255]]
    assert view([[0.0, 0.1, 1.0]], "db").tolist() == [[0, 128, 255]]  # -20 dB is half way


def test_density_view_maps_the_mean_as_sarpy_does():
    # 0.8 of the mean is grey 30 and forty times that is 255.
    grey = view([[0.008, 0.32]], "density", data_mean=0.01)
    assert grey.tolist() == [[30, 255]]


def test_shared_mean_keeps_the_brightness_of_two_patches():
    dark, bright = np.full((4, 4), 0.1), np.full((4, 4), 0.4)
    assert view(dark, "density")[0, 0] == view(bright, "density")[0, 0]  # own mean: brightness is gone
    assert view(dark, "density", data_mean=0.2)[0, 0] < view(bright, "density", data_mean=0.2)[0, 0]


def test_unknown_view_is_refused():
    with pytest.raises(InputError, match="linear, db"):
        view(np.zeros((2, 2)), "nrl")


def test_black_patch_has_a_density_view():
    assert view(np.zeros((3, 3)), "density").max() == 0


def test_model_grey_is_the_closed_form():
    amplitude = np.array([0, 0.01, 10**-1.5, 0.1, 0.25, 0.5, 1], dtype=np.float32)
    assert np.array_equal(to_model(amplitude, "linear"), amplitude)
    np.testing.assert_allclose(to_model(amplitude, "root"), amplitude.astype(np.float64) ** 0.5, rtol=1e-6)
    decibels = [-30.0, -30.0, -30.0, -20.0, 20 * np.log10(0.25), 20 * np.log10(0.5), 0.0]
    np.testing.assert_allclose(to_model(amplitude, "db"), 1 + np.array(decibels) / 30, atol=1e-6)


@pytest.mark.parametrize("encoding", MODEL_ENCODINGS)
def test_amplitude_comes_back_from_the_model_grey(encoding):
    amplitude = np.linspace(0, 1, 70000, dtype=np.float32).reshape(7, -1)
    grey = to_model(amplitude, encoding)
    back = from_model(grey, encoding)
    assert grey.dtype == back.dtype == np.float32
    assert grey.shape == back.shape == amplitude.shape
    assert grey.min() >= 0
    assert grey.max() == 1
    assert np.all(np.diff(grey.ravel()) >= 0)
    floor = 10**-1.5 if encoding == "db" else 0.0  # grey 0 in decibels is -30 dB, not amplitude 0
    np.testing.assert_allclose(back, np.maximum(amplitude, floor), rtol=2e-6, atol=1e-7)
    assert from_model(np.float32([0]), encoding)[0] == pytest.approx(floor, rel=1e-6)
    assert from_model(np.float32([1]), encoding)[0] == 1


@pytest.mark.parametrize("encoding", MODEL_ENCODINGS)
def test_values_outside_the_unit_interval_are_clipped(encoding):
    outside, edges = np.array([-0.5, 1.5]), np.array([0.0, 1.0])
    for function in (to_model, from_model):
        assert np.array_equal(function(outside, encoding), function(edges, encoding))


@pytest.mark.parametrize("encoding", MODEL_ENCODINGS)
def test_tensors_give_the_same_numbers_and_keep_their_gradient(encoding):
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(0).uniform(0.05, 1, (3, 50)).astype(np.float32)
    tensor = torch.from_numpy(values).requires_grad_()
    for function in (to_model, from_model):
        result = function(tensor, encoding)
        assert result.dtype == torch.float32
        np.testing.assert_allclose(result.detach().numpy(), function(values, encoding), rtol=1e-6, atol=1e-7)
        (slope,) = torch.autograd.grad(result.sum(), tensor)
        assert bool((slope > 0).all())
        assert function(tensor.detach().double(), encoding).dtype == torch.float32


def test_unknown_model_encoding_is_one_sentence():
    for function in (to_model, from_model):
        with pytest.raises(InputError, match="'log' is unknown; choose one of linear, root, db"):
            function(np.zeros(3), "log")
