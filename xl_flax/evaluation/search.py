"""Exact nearest neighbours by cosine."""

from collections.abc import Iterator

import jax
import numpy as np
from scipy.sparse import csr_array, issparse

from xl_flax.errors import UserError
from xl_flax.evaluation.base import NotFiniteError

# The pass over all similarities in `nearest_both`.
SMALL = 32768  # sentences on a side, below which two searches with faiss are as fast
STRIDE = 16  # one sentence in so many is searched first, for a bound on the k-th similarity
ROWS, COLUMNS = 1024, 2048  # similarities that exist at once: 8 MiB, for a processor's cache
SIMILARITIES = 2**24  # of sparse vectors, that exist at once: 64 MiB
CHUNK = 32  # similarities that are looked at if one of them passes a bound
ROUNDING = 1e-5  # by which two ways of computing a cosine differ at most
MOST = 4  # times the expected number of similarities above the bounds; more of them tie

Vectors = np.ndarray | csr_array  # [N, D]
Neighbours = tuple[np.ndarray, np.ndarray]  # cosines float32[Q, k], descending; rows int64[Q, k]


def unit(x_NxD: Vectors) -> Vectors:
    """Rows of length 1, float32; zeros stay zeros.

    Raises:
      NotFiniteError: a row has no finite length, so no neighbours either.
    """
    if issparse(x_NxD):
        length_Nx1 = np.sqrt(x_NxD.multiply(x_NxD).sum(axis=1))[:, None]
        return x_NxD.multiply(1 / np.maximum(length_Nx1, 1e-30)).tocsr()
    x_NxD = np.asarray(x_NxD, np.float32)
    with np.errstate(over="ignore"):
        length_Nx1 = np.linalg.norm(x_NxD, axis=1, keepdims=True)
    if bad := int((~np.isfinite(length_Nx1)).sum()):
        raise NotFiniteError(f"{bad:,} of {len(x_NxD):,} vectors are NaN or infinite")
    return x_NxD / np.maximum(length_Nx1, 1e-30)


def products(x_QxD: Vectors | jax.Array, y_CxD: Vectors | jax.Array) -> np.ndarray | jax.Array:
    """All products of rows of x and rows of y, float32[Q, C]; both are sparse, or neither."""
    return (x_QxD @ y_CxD.T).toarray() if issparse(x_QxD) else _products(x_QxD, y_CxD)


@jax.jit
def _products(x_QxD: jax.Array, y_CxD: jax.Array) -> jax.Array:
    return jax.numpy.einsum("qd,cd->qc", x_QxD, y_CxD, precision="highest")


def nearest(x_QxD: Vectors, y_CxD: Vectors, k: int) -> Neighbours:
    """The k nearest rows of y for each row of x, by exact search: with faiss if they are dense.

    Memory grows with Q + C, not with their product. Which of candidates that tie come is open.

    Args:
      x_QxD: queries, of length 1.
      y_CxD: candidates, of length 1.
      k: neighbours.

    Returns:
      Cosines float32[Q, k], descending, and their rows in y, int64[Q, k].

    Raises:
      UserError: faiss is missing, there are fewer than k candidates, or values are not finite.
    """
    if not 0 < k <= y_CxD.shape[0]:
        raise UserError(f"k = {k} nearest of {y_CxD.shape[0]:,} sentences: that takes k or more")
    if issparse(x_QxD):
        return _nearest_sparse(x_QxD, y_CxD, k)
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            "nearest neighbours need faiss: install the extra with pip install 'xl-flax[eval]'"
        ) from error
    index = faiss.IndexFlatIP(y_CxD.shape[1])
    index.add(np.ascontiguousarray(y_CxD, np.float32))
    similarity_Qxk, index_Qxk = index.search(np.ascontiguousarray(x_QxD, np.float32), k)
    if (index_Qxk < 0).any() or not np.isfinite(similarity_Qxk).all():
        raise UserError("embeddings are NaN or infinite, and have no nearest neighbours")
    return similarity_Qxk, index_Qxk


def _nearest_sparse(x_QxD: csr_array, y_CxD: csr_array, k: int) -> Neighbours:
    """A few queries at a time, with all candidates."""
    found = []
    rows = max(1, SIMILARITIES // y_CxD.shape[0])
    for i in range(0, x_QxD.shape[0], rows):
        s_RxC = products(x_QxD[i : i + rows], y_CxD)
        best_Rxk = np.argpartition(s_RxC, -k, axis=1)[:, -k:]
        value_Rxk = np.take_along_axis(s_RxC, best_Rxk, 1)
        order_Rxk = np.argsort(-value_Rxk, axis=1)
        found.append([np.take_along_axis(a, order_Rxk, 1) for a in (value_Rxk, best_Rxk)])
    similarity, index = zip(*found, strict=True)
    return np.concatenate(similarity), np.concatenate(index)


def nearest_both(x_NxD: Vectors, y_MxD: Vectors, k: int) -> tuple[Neighbours, Neighbours]:
    """`nearest` of x in y and of y in x, exact too, but each similarity is computed only once.

    Every sixteenth candidate, searched first, gives a lower bound on a sentence's k-th similarity.
    One pass over blocks of all similarities then keeps the few that are above the bound of their
    row or column. Memory grows with N + M. On two cores 100,000 x 100,000 vectors of width 128 take
    23 seconds; two searches take 42 to 45. Sparse vectors are searched twice. Arguments and errors
    are those of `nearest`.
    """
    many = min(x_NxD.shape[0], y_MxD.shape[0]) >= SMALL and not issparse(x_NxD)
    both = _one_pass(x_NxD, y_MxD, k) if many else None
    return both or (nearest(x_NxD, y_MxD, k), nearest(y_MxD, x_NxD, k))


def _one_pass(x_NxD: np.ndarray, y_MxD: np.ndarray, k: int) -> tuple[Neighbours, Neighbours] | None:
    """None if so many similarities tie that they cannot be kept, as of a collapsed encoder."""
    n, m = len(x_NxD), len(y_MxD)
    if min(n, m) // STRIDE < k:
        return None
    x_bound = nearest(x_NxD, y_MxD[::STRIDE], k)[0][:, -1] - ROUNDING
    y_bound = nearest(y_MxD, x_NxD[::STRIDE], k)[0][:, -1] - ROUNDING
    x_NxD, x_bound = _padded(x_NxD, x_bound, ROWS)
    y_MxD, y_bound = _padded(y_MxD, y_bound, COLUMNS)
    y_bound_GxC = y_bound.reshape(-1, CHUNK)
    x_found, y_found, room = [], [], MOST * STRIDE * k * (n + m)
    for i, j, s_RxC, passes_RxG in _blocks(x_NxD, x_bound, y_MxD, y_bound):
        row, chunk = np.nonzero(passes_RxG)
        value_HxC = s_RxC.reshape(ROWS, -1, CHUNK)[row, chunk]
        row, chunk = i + row, j // CHUNK + chunk
        at, lane = np.nonzero(value_HxC > x_bound[row][:, None])
        x_found.append((row[at], chunk[at] * CHUNK + lane, value_HxC[at, lane]))
        at, lane = np.nonzero(value_HxC > y_bound_GxC[chunk])
        y_found.append((chunk[at] * CHUNK + lane, row[at], value_HxC[at, lane]))
        room -= len(x_found[-1][0]) + len(at)
        if room < 0:
            return None
    return _best(x_found, n, k), _best(y_found, m, k)


def _padded(x: np.ndarray, bound: np.ndarray, multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """Fills up to whole blocks by NaN, which is above no bound: a zero may be."""
    more = -len(x) % multiple
    return (
        np.pad(np.asarray(x, np.float32), ((0, more), (0, 0)), constant_values=np.nan),
        np.pad(bound, (0, more), constant_values=np.nan),
    )


def _blocks(x, x_bound, y, y_bound) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """Yields row, column, similarities [ROWS, COLUMNS] and which chunks of them pass a bound."""
    waiting = None  # the next block is computed while the last one is looked at
    columns = [
        (j, *jax.device_put((y[j : j + COLUMNS], y_bound[j : j + COLUMNS])))
        for j in range(0, len(y), COLUMNS)
    ]
    for i in range(0, len(x), ROWS):
        rows = jax.device_put((x[i : i + ROWS], x_bound[i : i + ROWS]))
        for j, *block in columns:
            started = i, j, *_compare(*rows, *block)
            if waiting is not None:
                yield *waiting[:2], *map(np.asarray, waiting[2:])
            waiting = started
    yield *waiting[:2], *map(np.asarray, waiting[2:])


@jax.jit
def _compare(x_RxD, x_bound_R, y_CxD, y_bound_C) -> tuple[jax.Array, jax.Array]:
    s_RxC = jax.numpy.einsum("rd,cd->rc", x_RxD, y_CxD, precision="highest")
    passes_RxC = (s_RxC > x_bound_R[:, None]) | (s_RxC > y_bound_C)
    return s_RxC, passes_RxC.reshape(len(s_RxC), -1, CHUNK).any(axis=2)


def _best(candidates: list[tuple[np.ndarray, ...]], count: int, k: int) -> Neighbours:
    """The k largest of the (own, other, value) of each own in range(count), which has k or more."""
    own, other, value = (np.concatenate(parts) for parts in zip(*candidates, strict=True))
    # One integer sorts by own, then descending by value: 2 - cosine fits into two bits and 30.
    key = own * 2**32 + ((2.0 - value.astype(np.float64)) * 2**30).astype(np.int64)
    order = np.argsort(key)
    first = np.searchsorted(own[order], np.arange(count))
    chosen = order[first[:, None] + np.arange(k)]
    return value[chosen], other[chosen]
