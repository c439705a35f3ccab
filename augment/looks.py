"""Which pictures look alike: clusters in a reader's feature space, so that a rare look gets its share of practice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from augment.likeness import Features

MOST = 8  # looks that are told apart
EACH = 25  # pictures that make a look, on average, at least
ALIKE = 1e-3  # deviation of features under which pictures are copies


def looks_of(features: Features) -> NDArray[np.int64]:
    """The look (N,) of each picture by its features (N, F), the most frequent look 0: k-means over features of mean 0
    and deviation 1."""
    count = min(MOST, len(features) // EACH, len(np.unique(features, axis=0)))
    # copies are of one look, and in other batches differ by rounding
    if count < 2 or features.std(0).max() < ALIKE:
        return np.zeros(len(features), np.int64)
    from sklearn.cluster import KMeans  # seconds, which small sets do not pay

    scaled = (features - features.mean(0)) / np.maximum(features.std(0), 1e-6)
    found = KMeans(count, n_init=4, random_state=0).fit_predict(scaled)
    by_size = np.argsort(-np.bincount(found, minlength=count), kind="stable")
    return np.asarray(np.argsort(by_size)[found], np.int64)
