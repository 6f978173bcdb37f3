"""Caches that all processes of a job build together."""

import contextlib
from collections.abc import Sequence

from xl_flax.data.manifest import Cache
from xl_flax.data.prepare import Caches, DatasetSpec, build_share, locked, prepare, to_build
from xl_flax.data.vocabulary import Vocabulary
from xl_flax.errors import UserError
from xl_flax.files import remote
from xl_flax.parallel import distributed


def prepare_together(
    specs: Sequence[DatasetSpec], cache: Cache, vocabulary: Vocabulary, gin_flags: Sequence[str]
) -> Caches:
    """As `prepare`, by all processes: each builds its share, the first what belongs to all.

    The cache is the same, byte for byte, as when one process builds it.

    Raises:
      UserError: as `prepare`; or what the processes have found differs.
    """
    index, count = distributed.place()
    if count > 1 and distributed.on_first(lambda: to_build(specs, cache, vocabulary)):
        if where := remote.address(cache.directory):  # of which each process has its own stage
            raise UserError(
                f"{where} lacks rows that are read: run `python -m xl_flax.cache` with the Gin "
                "flags of this run, in one process, and then this"
            )
        with locked(cache) if index == 0 else contextlib.nullcontext():
            build_share(specs, cache, vocabulary, gin_flags, (index, count))
            distributed.barrier("all shares of the cache")
    caches = distributed.first_process_first(
        "caches", lambda: prepare(specs, cache, vocabulary, gin_flags)
    )
    distributed.agree({"the vocabulary": vocabulary.fingerprint[:12]} | caches.fingerprints())
    return caches
