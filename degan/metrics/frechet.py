"""The Frechet distance between two Gaussians fitted to features, in float64 and without a matrix root.

    d^2 = |mean_a - mean_b|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2))

The last trace is the sum of the singular values of F_a^T F_b for any factors A = F_a F_a^T, B = F_b F_b^T:
A B has the eigenvalues of (F_a^T F_b)(F_a^T F_b)^T. The factors come from symmetric eigenvalue problems,
with eigenvalues at rounding level dropped. The common codes use `sqrtm(A @ B)`. Unlike that, this sum never
gives complex numbers, needs no offset on the diagonal for singular covariances (fewer samples than
features, or features that are always zero), and does not take the root of a rounding error.

Source: Dowson and Landau, "The Frechet distance between multivariate normal distributions", 1982; as a
measure of generated images, Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a
Local Nash Equilibrium", 2017, equation 6.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Gaussian:
    """Mean float64 `(d,)` and covariance float64 `(d, d)`, fitted to `count` samples."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int


def fit(features: np.ndarray) -> Gaussian:
    """Mean and unbiased covariance (n - 1 below) of features `(n, d)`, any float type, n >= 2.

    Raises:
        ValueError: the features are not two-dimensional, or have fewer than 2 rows.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"a Gaussian needs features (n >= 2, d), got {features.shape}")
    wide = features.astype(np.float64)
    mean = wide.mean(axis=0)
    wide -= mean
    return Gaussian(mean, wide.T @ wide / (len(wide) - 1), len(wide))


def distance(a: Gaussian, b: Gaussian) -> float:
    """The squared Frechet distance, >= 0, in the features' squared unit; known as FID.

    Not a number where a mean or covariance is not finite.

    Raises:
        ValueError: the two have different numbers of features.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"Gaussians of {a.mean.shape} and {b.mean.shape} features cannot be compared")
    if not all(np.isfinite(part).all() for part in (a.mean, a.covariance, b.mean, b.covariance)):
        return float("nan")
    cross = np.linalg.svd(_factor(a.covariance).T @ _factor(b.covariance), compute_uv=False).sum()
    apart = np.sum((a.mean - b.mean) ** 2)
    return max(0.0, float(apart + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross))


def _factor(covariance: np.ndarray) -> np.ndarray:
    """F `(d, rank)` with F F^T = covariance; rank >= 1."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)  # ascending
    kept = values > max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
    kept[-1] = True  # an all-zero covariance keeps one zero column
    return vectors[:, kept] * np.sqrt(np.maximum(values[kept], 0.0))
