"""Laws of SAR amplitude: fitted to a patch, compared in the amplitude domain, drawn over its histogram.

Rayleigh, Nakagami (the amplitude of Gamma intensity), log-normal and Weibull are fitted by maximum likelihood. K
(Jakeman, Pusey 1976, IEEE Trans. AP 24(6), 806-814: Gamma speckle times Gamma texture) and G0 (Frery, Müller, Yanasse,
Sant'Anna 1997, IEEE TGRS 35(3), 648-659: Gamma speckle times inverse Gamma texture; as an intensity a scaled
beta-prime, the Fisher law of Tison et al.) are fitted by the method of log-cumulants (Nicolas 2002, Traitement du
Signal 19(3), 139-167; Tison, Nicolas, Tupin, Maître 2004, IEEE TGRS 42(10), 2046-2057).

Clipping is part of the model: pixels at 1, and a pile-up at the lowest value (the floor of a decibel stretch), enter
as "at least" and "at most": in the likelihood by the probability of the tail, in the log-cumulants by those of the
clipped law. Pixels at 0 say nothing (no data, or less than half a grey level) and are left out. Parameters are
therefore those of the ground before clipping.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sar_gen.errors import InputError

SAMPLE = 65_536
"""Most pixels that a fit looks at. Standard errors are then under 0.5 % for the laws of maximum likelihood; for four
looks 2 % of G0's looks and alpha (-3), and 8 % and 2.5 % of K's looks and texture (1.5), which are hard to tell apart
(with given looks 1 %). Clipping 8 % of the pixels makes that half as much again. All six laws take about 0.3 s."""
MIN_PIXELS = 256
MIN_VALUES = 8
"""Fewer unclipped pixels, or fewer different values among them, tell no law from another."""
PILE_UP = 0.001
"""Share of pixels on the lowest value from which it is taken for a floor and not for the darkest pixel."""
LEAST_SHARE = 0.001
"""Least share of the log-variance that K and G0 give to looks or texture: below it the other one alone explains the
pixels, and its counterpart (a shape in the thousands) stands for "none"."""

Parameters = dict[str, float]
Values = NDArray[np.float64]


@dataclass(frozen=True)
class LawFit:
    """One law fitted to the pixels of a patch.

    Attributes:
        name: ``rayleigh``, ``nakagami``, ``lognormal``, ``weibull``, ``k`` or ``g0``.
        parameters: of the law of amplitude ``a`` before clipping. Rayleigh ``sigma``; Nakagami ``looks`` and ``power``
            (mean of a²); log-normal ``mu`` and ``sigma`` of ln a; Weibull ``shape`` and ``scale``; K ``looks``,
            ``texture`` (shape of the Gamma texture) and ``power``; G0 ``looks``, ``alpha`` (negative) and ``gamma`` of
            intensity a².
        log_likelihood: sum over the pixels looked at, in nats, of the density of **amplitude** (of the tail's
            probability for clipped ones), so that laws can be compared with each other.
        bic: Bayesian information criterion, k ln n - 2 log-likelihood; the least is best. It presumes independent
            pixels: correlated speckle exaggerates differences of BIC but leaves their order.
        ks: largest gap between the cumulative distributions of law and pixels, over the unclipped range. Pixels of one
            value count half on either side, so that grey levels are not taken for misfit. There is no p-value:
            speckle is correlated.
        looks: number of looks that the law says; ``None`` where the law has none. It is that of the whole patch: under
            Nakagami texture counts as fewer looks.
        texture: K's shape of texture (large: homogeneous) or G0's alpha (towards 0: extremely heterogeneous, below -15
            or so: homogeneous); ``None`` for the other laws.
        pixels: number of pixels the fit looked at, clipped ones included.
        zero_share: share of all pixels at 0, left out.
        floor_share: share of all pixels on a pile-up at the lowest value.
        clipped_share: share of all pixels at 1.
    """

    name: str
    parameters: Parameters
    log_likelihood: float
    bic: float
    ks: float
    looks: float | None
    texture: float | None
    pixels: int
    zero_share: float
    floor_share: float
    clipped_share: float

    @property
    def title(self) -> str:
        """Return the name of the law as it is written."""
        return _LAWS[self.name].title

    @property
    def censored_share(self) -> float:
        """Return the share of all pixels whose amplitude is hidden: at 0, on the floor or at 1."""
        return self.zero_share + self.floor_share + self.clipped_share

    def to_json(self) -> dict[str, Any]:
        """Return the fit as strict JSON data."""
        data: dict[str, Any] = {"law": self.name, "parameters": dict(self.parameters)}
        data |= {"log_likelihood": self.log_likelihood, "bic": self.bic, "ks": self.ks, "looks": self.looks}
        data |= {"texture": self.texture, "pixels": self.pixels, "zero_share": self.zero_share}
        return data | {"floor_share": self.floor_share, "clipped_share": self.clipped_share}


@dataclass(frozen=True)
class _Sample:
    """Pixels to fit: the unclipped values (ascending, each once, 256 for an 8-bit patch) and how often each occurs.

    ``below`` pixels are at most ``low`` and ``above`` pixels at least ``high``.
    """

    values: Values
    counts: Values
    low: float
    high: float
    below: int
    above: int
    zero_share: float
    floor_share: float
    clipped_share: float

    @property
    def inside(self) -> float:
        return float(self.counts.sum())

    @property
    def count(self) -> int:
        return int(self.inside) + self.below + self.above

    def mean(self, of_values: Values) -> float:
        """Return the mean over the unclipped pixels of what is given for each value."""
        return _sum_of_products(self.counts, of_values) / self.inside


@dataclass(frozen=True)
class _Law:
    """A law as functions of its parameters: log-density, P(A <= a) and P(A > a) of amplitude."""

    title: str
    fit: Callable[[_Sample, float | None, float | None], Parameters]
    log_pdf: Callable[[Parameters, Values], Values]
    cdf: Callable[[Parameters, Values], Values]
    survival: Callable[[Parameters, Values], Values]
    looks: Callable[[Parameters], float] | None = None
    texture: str | None = None


def fit_laws(
    amplitude: ArrayLike,
    names: Sequence[str] | None = None,
    *,
    looks: float | None = None,
    looks_near: float | None = None,
    limit: int = SAMPLE,
    seed: int = 0,
) -> tuple[LawFit, ...]:
    """Return the laws fitted to the pixels of a patch (or of several), best BIC first.

    Args:
        amplitude: linear amplitude in [0, 1], of any shape.
        names: which of ``LAWS``; all of them by default.
        looks: number of looks of the speckle where it is known; K and G0 then estimate texture and level only.
        looks_near: K is the same law with looks and texture exchanged: the shape nearer to this (for instance
            ``equivalent_looks(...).looks``) is called looks. Without it the smaller one is.
        limit: most pixels to look at, sampled without replacement.
        seed: seed of the sampling.

    Raises:
        InputError: a law is unknown, looks are not positive, amplitude is not in [0, 1], or too few pixels are neither
            clipped nor of one value.
    """
    pixels = np.asarray(amplitude).ravel()
    lowest, highest = (pixels.min(), pixels.max()) if len(pixels) else (np.nan, np.nan)
    if not (lowest >= 0 and highest <= 1):
        raise InputError(
            f"Laws are fitted to amplitude in [0, 1], and these pixels lie between {lowest:.4g} and {highest:.4g}; "
            "bring them to the studio's amplitude first."
        )
    drawn = pixels
    if len(pixels) > limit:
        drawn = pixels[np.random.default_rng(seed).choice(len(pixels), limit, replace=False, shuffle=False)]
    sample = _censored(*np.unique(drawn, return_counts=True))
    if len(pixels) > limit:  # shares are of all pixels; only the fit is content with some of them
        zero, clipped = np.mean(pixels == 0), np.mean(pixels == 1)
        floor = np.mean(pixels <= sample.low) - zero if sample.below else 0.0
        sample = replace(sample, zero_share=float(zero), floor_share=float(floor), clipped_share=float(clipped))
    return _fit_all(sample, names, looks, looks_near)


def fit_histogram(
    counts: ArrayLike,
    names: Sequence[str] | None = None,
    *,
    looks: float | None = None,
    looks_near: float | None = None,
) -> tuple[LawFit, ...]:
    """Return the laws fitted to a histogram of amplitude, as of a reference set that ships without its pixels.

    All pixels take part, each as the middle of its bin. Those of the last bin count as clipped, those of the first as
    0 and are left out: amplitude under one bin cannot be told from none.

    Args:
        counts: ``(bins,)`` counts over equal bins of [0, 1], or ``(n, bins)`` of several patches, pooled.
        names: as in ``fit_laws``.
        looks: as in ``fit_laws``.
        looks_near: as in ``fit_laws``.

    Raises:
        InputError: as ``fit_laws``.
    """
    rows = np.asarray(counts)
    pooled = rows.reshape(-1, rows.shape[-1]).sum(axis=0).astype(np.int64)
    values = (np.arange(len(pooled)) + 0.5) / len(pooled)
    values[0], values[-1] = 0, 1
    return _fit_all(_censored(values[pooled > 0], pooled[pooled > 0]), names, looks, looks_near)


def law_pdf(fit: LawFit, x: ArrayLike) -> Values:
    """Return the density of the unclipped law at amplitudes ``x``; 0 where ``x`` <= 0. It integrates to 1."""
    x = np.asarray(x, dtype=np.float64)
    positive = x > 0
    density = np.zeros(x.shape)
    density[positive] = np.exp(_LAWS[fit.name].log_pdf(fit.parameters, x[positive]))
    return density


def law_cdf(fit: LawFit, x: ArrayLike) -> Values:
    """Return the probability of an amplitude up to ``x`` under the unclipped law; 0 where ``x`` <= 0."""
    x = np.asarray(x, dtype=np.float64)
    positive = x > 0
    probability = np.zeros(x.shape)
    probability[positive] = _LAWS[fit.name].cdf(fit.parameters, x[positive])
    return probability


def _censored(values: NDArray[Any], counts: NDArray[Any]) -> _Sample:
    """Sort out what is clipped among ascending values that occur ``counts`` times."""
    total = int(counts.sum())
    values, counts = values.astype(np.float64), counts.astype(np.float64)
    zero, above = float(counts[values == 0].sum()), float(counts[values == 1].sum())
    inner = (values > 0) & (values < 1)
    values, counts = values[inner], counts[inner]
    below = float(counts[0]) if len(counts) and counts[0] > PILE_UP * total else 0.0
    low = float(values[0]) if len(values) else 0.0
    if below:
        values, counts = values[1:], counts[1:]
    if counts.sum() < MIN_PIXELS or len(values) < MIN_VALUES:
        raise InputError(
            f"A law cannot be fitted: {int(counts.sum())} of {total} pixels are neither 0, at the floor nor clipped, "
            f"and they have {len(values)} different values; {MIN_PIXELS} pixels and {MIN_VALUES} values are needed."
        )
    return _Sample(values, counts, low, 1.0, int(below), int(above), zero / total, below / total, above / total)


def _fit_all(
    sample: _Sample, names: Sequence[str] | None, looks: float | None, looks_near: float | None
) -> tuple[LawFit, ...]:
    for name in names or ():
        if name not in _LAWS:
            raise InputError(f"The law {name!r} is unknown; choose from {', '.join(LAWS)}.")
    if looks is not None and not looks > 0:
        raise InputError(f"The number of looks must be positive, not {looks}.")
    return tuple(sorted((_fit(name, sample, looks, looks_near) for name in names or LAWS), key=lambda fit: fit.bic))


def _fit(name: str, sample: _Sample, looks: float | None, looks_near: float | None) -> LawFit:
    law = _LAWS[name]
    parameters = law.fit(sample, looks, looks_near)
    known = 1 if looks is not None and law.texture else 0
    log_likelihood = _sum_of_products(sample.counts, law.log_pdf(parameters, sample.values))
    log_likelihood += _tail_terms(law, parameters, sample)
    return LawFit(
        name=name,
        parameters=parameters,
        log_likelihood=log_likelihood,
        bic=(len(parameters) - known) * float(np.log(sample.count)) - 2 * log_likelihood,
        ks=_ks(law.cdf(parameters, sample.values), sample),
        looks=law.looks(parameters) if law.looks else None,
        texture=parameters[law.texture] if law.texture else None,
        pixels=sample.count,
        zero_share=sample.zero_share,
        floor_share=sample.floor_share,
        clipped_share=sample.clipped_share,
    )


def _tail_terms(law: _Law, parameters: Parameters, sample: _Sample) -> float:
    """Return what clipped pixels add to the log-likelihood; tails are kept above 1e-300."""
    total = 0.0
    if sample.below:
        total += sample.below * float(np.log(max(law.cdf(parameters, np.array([sample.low]))[0], 1e-300)))
    if sample.above:
        total += sample.above * float(np.log(max(law.survival(parameters, np.array([sample.high]))[0], 1e-300)))
    return total


def _ks(cdf: Values, sample: _Sample) -> float:
    middle = sample.below + np.cumsum(sample.counts) - sample.counts / 2
    return float(np.abs(cdf - middle / sample.count).max())


# Maximum likelihood. The unclipped pixels enter by sufficient statistics wherever the law has them.


def _maximise(
    law: _Law, sample: _Sample, start: Parameters, mean_log_pdf: Callable[[Parameters], float]
) -> Parameters:
    """Return the maximum of the censored likelihood over positive parameters (``mu`` of any sign) near ``start``."""
    from scipy.optimize import minimize

    names = list(start)
    share = sample.inside / sample.count

    def unpack(point: Values) -> Parameters:
        return {n: float(v if n == "mu" else np.exp(v)) for n, v in zip(names, point, strict=True)}

    def cost(point: Values) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            parameters = unpack(point)
            value = -share * mean_log_pdf(parameters) - _tail_terms(law, parameters, sample) / sample.count
        return value if np.isfinite(value) else 1e300

    first = np.array([start[n] if n == "mu" else np.log(start[n]) for n in names])
    simplex = np.vstack([first, first + 0.1 * np.eye(len(names))])
    options = {"initial_simplex": simplex, "xatol": 1e-6, "fatol": 1e-11, "maxiter": 400}
    return unpack(minimize(cost, first, method="Nelder-Mead", options=options).x)


def _fit_rayleigh(sample: _Sample, looks: float | None, looks_near: float | None) -> Parameters:
    mean_log, power = sample.mean(np.log(sample.values)), sample.mean(sample.values**2)
    start = {"sigma": float(np.sqrt(power / 2))}
    if not sample.below:  # closed form: a pixel beyond the limit counts as one there, but not in the denominator
        total = power * sample.inside + sample.above * sample.high**2
        return {"sigma": float(np.sqrt(total / (2 * sample.inside)))}
    return _maximise(
        _LAWS["rayleigh"],
        sample,
        start,
        lambda p: mean_log - 2 * np.log(p["sigma"]) - power / (2 * p["sigma"] ** 2),
    )


def _fit_nakagami(sample: _Sample, looks: float | None, looks_near: float | None) -> Parameters:
    from scipy.special import gammaln

    mean_log, power = sample.mean(np.log(sample.values)), sample.mean(sample.values**2)
    spread = np.log(power) - 2 * mean_log  # = ln m - psi(m), about 1 / (2 m)
    start = {"looks": 0.5 / spread + 1 / 6, "power": power}

    def mean_log_pdf(p: Parameters) -> float:
        m, omega = p["looks"], p["power"]
        return np.log(2) + m * np.log(m / omega) - gammaln(m) + (2 * m - 1) * mean_log - m * power / omega

    return _maximise(_LAWS["nakagami"], sample, start, mean_log_pdf)


def _fit_lognormal(sample: _Sample, looks: float | None, looks_near: float | None) -> Parameters:
    logs = np.log(sample.values)
    mean = sample.mean(logs)
    variance = sample.mean((logs - mean) ** 2)
    start = {"mu": mean, "sigma": float(np.sqrt(variance))}
    if not sample.below + sample.above:
        return start

    def mean_log_pdf(p: Parameters) -> float:
        square = variance + (mean - p["mu"]) ** 2
        return -mean - np.log(p["sigma"] * np.sqrt(2 * np.pi)) - square / (2 * p["sigma"] ** 2)

    return _maximise(_LAWS["lognormal"], sample, start, mean_log_pdf)


def _fit_weibull(sample: _Sample, looks: float | None, looks_near: float | None) -> Parameters:
    logs = np.log(sample.values)
    mean = sample.mean(logs)
    shape = np.pi / np.sqrt(6 * sample.mean((logs - mean) ** 2))  # ln a is Gumbel
    start = {"shape": shape, "scale": float(np.exp(mean + 0.5772 / shape))}

    def mean_log_pdf(p: Parameters) -> float:
        k, scale = p["shape"], np.log(p["scale"])
        return np.log(k) - scale + (k - 1) * (mean - scale) - sample.mean(np.exp(k * (logs - scale)))

    return _maximise(_LAWS["weibull"], sample, start, mean_log_pdf)


# K and G0 by log-cumulants of intensity: with v = ln a², speckle of L looks and texture of shape M,
#   K1 = ln mu + psi(L) - ln L +- (psi(M) - ln M),  K2 = psi'(L) + psi'(M),  K3 = psi''(L) +- psi''(M),
# plus for K (mu is the power), minus for G0 (mu = gamma / M, M = -alpha). The unclipped law is written as
# (K1, K2, share of K2 that is speckle).


def _fit_k(sample: _Sample, looks: float | None, looks_near: float | None) -> Parameters:
    found = _fit_log_cumulants(sample, looks, _k_from_cumulants, sign=1)
    if looks is not None:
        return found
    small, large = sorted((found["looks"], found["texture"]))
    if looks_near is not None and looks_near**2 > small * large:
        small, large = large, small
    return {"looks": small, "texture": large, "power": found["power"]}


def _fit_g0(sample: _Sample, looks: float | None, looks_near: float | None) -> Parameters:
    return _fit_log_cumulants(sample, looks, _g0_from_cumulants, sign=-1)


def _k_from_cumulants(first: float, looks: float, texture: float) -> Parameters:
    from scipy.special import psi

    power = np.exp(first - psi(looks) + np.log(looks) - psi(texture) + np.log(texture))
    return {"looks": float(looks), "texture": float(texture), "power": float(power)}


def _g0_from_cumulants(first: float, looks: float, texture: float) -> Parameters:
    from scipy.special import psi

    gamma = np.exp(first - psi(looks) + np.log(looks) + psi(texture))
    return {"looks": float(looks), "alpha": -float(texture), "gamma": float(gamma)}


def _shapes(second: float, share: float, looks: float | None) -> tuple[float, float]:
    """Return looks and texture whose log-variances add up to ``second``; ``looks`` may be given."""
    from scipy.special import polygamma

    if looks is None:
        return _inverse_trigamma(share * second), _inverse_trigamma((1 - share) * second)
    rest = max(second - float(polygamma(1, looks)), LEAST_SHARE * second)
    return looks, _inverse_trigamma(rest)


def _inverse_trigamma(value: float) -> float:
    """Return x > 0 with psi'(x) = ``value`` > 0, by Newton's method on 1 / psi', which is nearly straight."""
    from scipy.special import polygamma

    x = 0.5 + 1 / value
    for _ in range(50):
        now = float(polygamma(1, x))
        step = now * (1 - now / value) / float(polygamma(2, x))
        x += step
        if abs(step) < 1e-12 * x:
            break
    return x


def _fit_log_cumulants(
    sample: _Sample,
    looks: float | None,
    law: Callable[[float, float, float], Parameters],
    sign: int,
) -> Parameters:
    """Return the parameters whose first three log-cumulants (two where looks are known) are those of the pixels.

    Without clipping the equations are solved directly. With it, those of the clipped law (by quadrature over ln a²)
    are matched to those of the clipped pixels. Where no law of the family has the third log-cumulant, the nearest one
    is taken: one shape in the thousands, or for K equal shapes.
    """
    from scipy.optimize import brentq, least_squares
    from scipy.special import polygamma

    logs = 2 * np.log(sample.values)
    low, high = 2 * np.log(sample.low), 2 * np.log(sample.high)
    weights = np.append(sample.counts, [sample.below, sample.above]) / sample.count
    wanted = _cumulants(np.append(logs, [low, high]), weights)
    # K is symmetric in its shapes, so half of the range holds every law of the family.
    least = 0.5 if sign > 0 else LEAST_SHARE

    def third(share: float, second: float) -> float:
        first_shape, other = _shapes(second, share, None)
        return float(polygamma(2, first_shape) + sign * polygamma(2, other))

    def share_of(second: float, wanted_third: float) -> float:
        at_least, at_most = third(least, second), third(1 - LEAST_SHARE, second)
        if wanted_third >= at_least:
            return least
        if wanted_third <= at_most:
            return 1 - LEAST_SHARE
        return float(brentq(lambda s: third(s, second) - wanted_third, least, 1 - LEAST_SHARE, xtol=1e-10))

    share = share_of(wanted[1], wanted[2]) if looks is None else 0.5
    if not sample.below + sample.above:
        return law(wanted[0], *_shapes(wanted[1], share, looks))

    name = "k" if sign > 0 else "g0"
    grid = _log_grid(wanted[0], wanted[1])
    inner = np.clip(grid, low if sample.below else -np.inf, high)
    scale = wanted[1] ** (np.arange(1, 4) / 2)

    def matched(start: Values, fixed_share: float | None) -> Values:
        """Return (K1, ln K2, share) of the unclipped law; with a fixed share the third log-cumulant is left alone."""
        free = 3 if fixed_share is None else 2

        def misfit(point: Values) -> Values:
            density = _log_intensity_density(name, unpack(np.append(point, fixed_share or [])), grid)
            return ((_cumulants(inner, density / density.sum()) - wanted) / scale)[:free]

        bounds = np.array([[-np.inf, np.inf], [-12, 6], [least, 1 - LEAST_SHARE]])[:free]
        found = least_squares(misfit, start[:free], bounds=bounds.T, xtol=1e-10, ftol=1e-12, gtol=1e-12)
        return np.append(found.x, fixed_share or [])

    def unpack(point: Values) -> Parameters:
        return law(float(point[0]), *_shapes(float(np.exp(point[1])), float(point[2]), looks))

    start = np.array([wanted[0], np.log(wanted[1]), np.clip(share, least + 0.01, 1 - LEAST_SHARE - 0.01)])
    found = matched(start, None if looks is None else 0.5)
    for end in (least, 1 - LEAST_SHARE):
        if looks is None and abs(found[2] - end) < 1e-3:  # no such law: level and variance at least are to be right
            found = matched(start, end)
    return unpack(found)


def _cumulants(values: Values, weights: Values) -> Values:
    """Return mean, variance and third central moment under weights that sum to 1."""
    mean = _sum_of_products(weights, values)
    centred = values - mean
    return np.array([mean, *(_sum_of_products(weights, centred**power) for power in (2, 3))])


def _sum_of_products(one: Values, other: Values) -> float:
    """Return the dot product, without the library for it, whose threads wait for each other on a busy machine."""
    return float((one * other).sum())


def _log_grid(first: float, second: float, points: int = 4001) -> Values:
    """Return equally spaced ln a²: 30 deviations either way, beyond which every law here has less than 1e-12."""
    return first + np.sqrt(second) * np.linspace(-30, 30, points)


def _log_intensity_density(name: str, parameters: Parameters, grid: Values) -> Values:
    """Return the density of v = ln a² on the grid."""
    return np.exp(_LAWS[name].log_pdf(parameters, np.exp(grid / 2)) + grid / 2 - np.log(2))


# Densities and tails.


def _rayleigh_log_pdf(p: Parameters, a: Values) -> Values:
    return np.log(a) - 2 * np.log(p["sigma"]) - a**2 / (2 * p["sigma"] ** 2)


def _rayleigh_cdf(p: Parameters, a: Values) -> Values:
    return -np.expm1(-(a**2) / (2 * p["sigma"] ** 2))


def _rayleigh_survival(p: Parameters, a: Values) -> Values:
    return np.exp(-(a**2) / (2 * p["sigma"] ** 2))


def _nakagami_log_pdf(p: Parameters, a: Values) -> Values:
    from scipy.special import gammaln

    m, omega = p["looks"], p["power"]
    return np.log(2) + m * np.log(m / omega) - gammaln(m) + (2 * m - 1) * np.log(a) - m * a**2 / omega


def _nakagami_cdf(p: Parameters, a: Values) -> Values:
    from scipy.special import gammainc

    return gammainc(p["looks"], p["looks"] * a**2 / p["power"])


def _nakagami_survival(p: Parameters, a: Values) -> Values:
    from scipy.special import gammaincc

    return gammaincc(p["looks"], p["looks"] * a**2 / p["power"])


def _lognormal_log_pdf(p: Parameters, a: Values) -> Values:
    logs = np.log(a)
    return -logs - np.log(p["sigma"] * np.sqrt(2 * np.pi)) - ((logs - p["mu"]) / p["sigma"]) ** 2 / 2


def _lognormal_cdf(p: Parameters, a: Values) -> Values:
    from scipy.special import ndtr

    return ndtr((np.log(a) - p["mu"]) / p["sigma"])


def _lognormal_survival(p: Parameters, a: Values) -> Values:
    from scipy.special import ndtr

    return ndtr((p["mu"] - np.log(a)) / p["sigma"])


def _weibull_log_pdf(p: Parameters, a: Values) -> Values:
    logs = np.log(a / p["scale"])
    return np.log(p["shape"] / p["scale"]) + (p["shape"] - 1) * logs - np.exp(p["shape"] * logs)


def _weibull_cdf(p: Parameters, a: Values) -> Values:
    return -np.expm1(-((a / p["scale"]) ** p["shape"]))


def _weibull_survival(p: Parameters, a: Values) -> Values:
    return np.exp(-((a / p["scale"]) ** p["shape"]))


def _k_log_pdf(p: Parameters, a: Values) -> Values:
    """Jakeman, Pusey 1976, for any number of looks: 4 b^(L+M) a^(L+M-1) K_(M-L)(2 b a) / (Gamma(L) Gamma(M))."""
    from scipy.special import gammaln

    looks, texture = p["looks"], p["texture"]
    log_b = np.log(looks * texture / p["power"]) / 2
    constant = np.log(4) + (looks + texture) * log_b - gammaln(looks) - gammaln(texture)
    logs = np.log(a)
    bessel = _log_bessel_k(abs(texture - looks), 2 * np.exp(np.minimum(log_b + logs, 300)))
    return constant + (looks + texture - 1) * logs + bessel


def _log_bessel_k(order: float, x: Values) -> Values:
    """Return ln K_order(x) for order >= 0 and x > 0 where K itself would overflow or vanish.

    From order 30 by Debye's uniform expansion to the fourth term (DLMF 10.41.4), within 1e-8; below it by ``kve``, and
    by the leading terms where that overflows (x towards 0) or gives up (x beyond 1e5).
    """
    from scipy.special import gammaln, kve

    if order >= 30:
        z = x / order
        root = np.sqrt(1 + z**2)
        t = 1 / root
        eta = root + np.log(z / (1 + root))
        series = 1 + sum((-1 / order) ** k * np.polyval(c, t**2) * t**k for k, c in enumerate(_DEBYE, 1))
        return np.log(np.pi / (2 * order)) / 2 - order * eta - np.log(root) / 2 + np.log(series)
    result = np.empty(x.shape)
    far = x > 1e5
    result[far] = np.log(np.pi / 2) / 2 - np.log(x[far]) / 2 - x[far] + np.log1p((4 * order**2 - 1) / (8 * x[far]))
    near = x[~far]
    with np.errstate(over="ignore", divide="ignore"):
        values = np.log(kve(order, near)) - near
    over = ~np.isfinite(values)
    if over.any():
        values[over] = gammaln(order) - np.log(2) - order * np.log(near[over] / 2)
    result[~far] = values
    return result


_DEBYE = (
    np.array([-5, 3]) / 24,
    np.array([385, -462, 81]) / 1152,
    np.array([-425425, 765765, -369603, 30375]) / 414720,
    np.array([185910725, -446185740, 349922430, -94121676, 4465125]) / 39813120,
)
"""Polynomials u_k(t) / t^k in t² of Debye's expansion (DLMF 10.41.10), highest power first."""


def _k_cdf(p: Parameters, a: Values) -> Values:
    """Integrate the density over ln a²: K has no closed form. Within 1e-7."""
    from scipy.integrate import cumulative_simpson
    from scipy.interpolate import CubicHermiteSpline
    from scipy.special import polygamma, psi

    looks, texture = p["looks"], p["texture"]
    first = np.log(p["power"]) + psi(looks) - np.log(looks) + psi(texture) - np.log(texture)
    grid = _log_grid(float(first), float(polygamma(1, looks) + polygamma(1, texture)))
    density = _log_intensity_density("k", p, grid)
    cumulative = cumulative_simpson(density, x=grid, initial=0)
    total = cumulative[-1]
    position = np.clip(2 * np.log(a), grid[0], grid[-1])
    return np.clip(CubicHermiteSpline(grid, cumulative / total, density / total)(position), 0, 1)


def _k_survival(p: Parameters, a: Values) -> Values:
    return 1 - _k_cdf(p, a)


def _g0_log_pdf(p: Parameters, a: Values) -> Values:
    """Frery et al. 1997: t = L a² / gamma is beta-prime (looks, -alpha), here with logarithms for powers."""
    from scipy.special import betaln

    looks, texture = p["looks"], -p["alpha"]
    logs = np.log(a)
    log_t = np.log(looks / p["gamma"]) + 2 * logs
    density = looks * log_t - (looks + texture) * np.logaddexp(0, log_t) - betaln(looks, texture)
    return density + np.log(2) - logs


def _g0_cdf(p: Parameters, a: Values) -> Values:
    from scipy.special import betainc

    t = p["looks"] * a**2 / p["gamma"]
    return betainc(p["looks"], -p["alpha"], t / (1 + t))


def _g0_survival(p: Parameters, a: Values) -> Values:
    from scipy.special import betainc

    t = p["looks"] * a**2 / p["gamma"]
    return betainc(-p["alpha"], p["looks"], 1 / (1 + t))


def _looks(p: Parameters) -> float:
    return p["looks"]


_LAWS = {
    "rayleigh": _Law(
        "Rayleigh", _fit_rayleigh, _rayleigh_log_pdf, _rayleigh_cdf, _rayleigh_survival, lambda parameters: 1.0
    ),
    "nakagami": _Law("Nakagami", _fit_nakagami, _nakagami_log_pdf, _nakagami_cdf, _nakagami_survival, _looks),
    "lognormal": _Law("log-normal", _fit_lognormal, _lognormal_log_pdf, _lognormal_cdf, _lognormal_survival),
    "weibull": _Law("Weibull", _fit_weibull, _weibull_log_pdf, _weibull_cdf, _weibull_survival),
    "k": _Law("K", _fit_k, _k_log_pdf, _k_cdf, _k_survival, _looks, "texture"),
    "g0": _Law("G0", _fit_g0, _g0_log_pdf, _g0_cdf, _g0_survival, _looks, "alpha"),
}
LAWS = tuple(_LAWS)
"""Names of the laws."""
