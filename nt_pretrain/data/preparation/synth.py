"""A made-up task for networks of rows: scikit-learn's make_classification, small enough for minutes on two cores.

10 classes of 3 clusters each in 32 features, of which 20 are informative, 2 are sums of those and 10 are noise; 2 % of
the labels are drawn anew. 2,000 rows to train, 4,000 to test.
"""

from __future__ import annotations

import hashlib

import numpy as np

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.manifest import Source
from nt_pretrain.data.preparation.row_files import Table

TRAIN, TEST, FEATURES, CLASSES = 2000, 4000, 32, 10


def synth_tables(seed: int) -> tuple[Table, Table]:
    """The rows to train and those to test on; the same for a seed and version of scikit-learn.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import make_classification
    except ImportError:
        raise DataError(
            "this task is made by scikit-learn, which is not installed; pip install 'nt-pretrain[synth]', or pip "
            "install scikit-learn"
        ) from None
    features, labels = make_classification(
        n_samples=TRAIN + TEST, n_features=FEATURES, n_informative=20, n_redundant=2, n_classes=CLASSES,
        n_clusters_per_class=3, class_sep=2.0, flip_y=0.02, random_state=seed,
    )  # fmt: skip
    found = []
    for name, rows in (("train", slice(0, TRAIN)), ("test", slice(TRAIN, TRAIN + TEST))):
        numbers, names = features[rows], labels[rows].astype(str).astype(object)
        sha256 = hashlib.sha256(np.ascontiguousarray(numbers).tobytes()).hexdigest()
        found.append(Table(numbers, names, Source(f"synth-{seed}-{name}", 1, numbers.nbytes, sha256)))
    return found[0], found[1]
