import numpy as np
import pytest

from xl_flax.data.layout import Layout
from xl_flax.data.manifest import read_manifest
from xl_flax.data.stream import Rows
from xl_flax.data.unknown import unknown_shares, warn_unknown

UNKNOWN = 3  # of the tiny vocabulary


def test_unknown_pieces_are_counted_by_language(make_cache, tiny_vocabulary, opened):
    known, lost = np.array([5, 6, 7, UNKNOWN]), np.array([8, UNKNOWN])
    tasks = {"xx": [known] * 3, "yy": [np.array([5, 6])] * 2, "xx-yy": [(lost, known)]}
    cache = make_cache(tasks, {"mix": {"xx": 1.0, "yy": 1.0}})
    manifests = {task: read_manifest(cache.folder(task, "train", Layout(16))) for task in tasks}
    assert manifests["xx-yy"].unknown == (1, 1) and manifests["xx-yy"].known == (1, 3)
    shares = unknown_shares(manifests.values())
    assert shares == {"xx": pytest.approx(4 / 14), "yy": pytest.approx(1 / 8)}
    stream = opened(Rows("mix", 16), cache, 0, tiny_vocabulary)
    assert stream.unknown() == {"xx": 0.25, "yy": 0.0}
    table = " ".join(stream.table(100).split())
    assert "warning: many pieces are unknown to the vocabulary: xx 25.0%." in table
    assert "unknown: share of the pieces that the vocabulary does not know" in table


def test_a_few_unknown_pieces_are_no_reason_to_warn():
    assert warn_unknown({"xx": 0.05, "yy": 0.0}) == ""
    assert "yy 7.8%" in warn_unknown({"xx": 0.05, "yy": 0.078})
