"""Packed rows of sentences with their trees, drawn trees, and trees as CoNLL-U."""

import types

import numpy as np

from xl_flax.data.features import FeatureSpec

CLS, SEP, FIRST = 2, 3, 5
# German with a range, an empty node and a comment; a Vietnamese word with a space in it.
SENTENCES = """\
# sent_id = 1
# text = Im Haus!
1-2\tIm\t_\t_\t_\t_\t_\t_\t_\tSpaceAfter=No
1\tin\tin\tADP\tAPPR\t_\t3\tcase\t3:case\t_
2\tdem\tder\tDET\tART\tCase=Dat\t3\tdet\t3:det\t_
2.1\tgroßen\t_\tADJ\t_\t_\t_\t_\t3:amod\t_
3\tHaus\tHaus\tNOUN\tNN\t_\t0\troot\t0:root\t_
4\t!\t!\tPUNCT\t$.\t_\t3\tpunct\t3:punct\t_

# sent_id = 2


1\tthời gian\t_\tNOUN\t_\t_\t0\troot\t_\t_
2\t_\t_\tX\t_\t_\t1\tnsubj:pass\t_\t_
"""

LABELS = ("root", "dep", "nsubj", "punct")


def stream(languages=("aa", "bb"), labels=LABELS):
    """What an objective sees of a stream of trees."""
    features = {
        "word": FeatureSpec("token"),
        "head": FeatureSpec("token"),
        "relation": FeatureSpec("token", labels=labels),
    }
    return types.SimpleNamespace(
        num_texts=1, languages=languages, features=features, tasks=("trees",), length=32
    )


def draw_tree(rng, count):
    """Heads int[n] of a random tree with one root, and relations int[n], 0 for the root only."""
    order, heads = rng.permutation(count), np.zeros(count, int)
    for i, word in enumerate(order[1:], 1):
        heads[word] = order[rng.integers(i)] + 1
    return heads, np.where(heads == 0, 0, rng.integers(1, len(LABELS), count))


def draw_sentence(rng, words, vocab=96, most=3):
    """(pieces of each word, heads, relations) of a random sentence."""
    pieces = [rng.integers(FIRST, vocab, rng.integers(1, most + 1)) for _ in range(words)]
    return pieces, *draw_tree(rng, words)


def pack(rows, length):
    """A batch of rows, each a list of such sentences; row r is of language r % 2."""
    shape = len(rows), length
    batch = {name: np.zeros(shape, np.int32) for name in ("tokens", "segment_ids", "positions")}
    batch |= {name: np.full(shape, -1, np.int32) for name in ("word", "head", "relation")}
    most = max(map(len, rows))
    batch["example"] = np.full((len(rows), most), -1, np.int32)
    batch["piece"] = np.full((len(rows), most), -1, np.int32)
    for r, row in enumerate(rows):
        at = 0
        for s, (pieces, heads, relations) in enumerate(row):
            tokens = [CLS, *np.concatenate(pieces), SEP]
            span = slice(at, at + len(tokens))
            batch["tokens"][r, span] = tokens
            batch["segment_ids"][r, span] = s + 1
            batch["positions"][r, span] = np.arange(len(tokens))
            sizes = [len(ids) for ids in pieces]
            batch["word"][r, at + 1 : at + 1 + sum(sizes)] = np.repeat(range(len(sizes)), sizes)
            firsts = at + 1 + np.cumsum([0, *sizes[:-1]])
            batch["head"][r, firsts], batch["relation"][r, firsts] = heads, relations
            batch["example"][r, s], batch["piece"][r, s] = 10 * r + s, 0
            at += len(tokens)
    batch["languages"] = np.arange(len(rows), dtype=np.int32)[:, None] % 2
    batch["row_id"] = 100 + np.arange(len(rows), dtype=np.int32)
    return batch
