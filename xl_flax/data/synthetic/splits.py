"""Which meanings may be said where, so that no test is given away, and no translation by chance.

Short meanings are common: two corpora drawn freely share them (8 % of beta's sentences would say
what one of 20,000 in alpha says). So the meanings are divided by a hash of their content: a quarter
for "test", an eighth for "validation", the rest for "train". The text of one language has a tenth
of the rest to itself; the last tenth is for parallel text, and for languages outside the family.
Whoever draws a meaning of another part draws again.

Words and lengths keep their frequencies in this. What changes is how often whole sentences recur: a
common one is said in one corpus only, but more often there. Of 20,000 training sentences, 25 to
28 % stand there more than once (8 % if drawn freely), the most frequent one 60 to 270 times (20).
"""

import hashlib
from collections.abc import Sequence

from xl_flax.data.synthetic.language import FAMILY
from xl_flax.data.synthetic.meaning import Meaning

EIGHTHS = {"test": (0, 1), "validation": (2,), "train": (3, 4, 5, 6, 7)}
OWNERS = (*FAMILY, "")


def key(*parts: object) -> int:
    """A 63-bit hash of the parts, the same on every machine."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def belongs(meanings: Sequence[Meaning], split: str, owner: str | None = None) -> bool:
    """Whether what is said here, taken together, is of a part.

    The concepts decide, in no order: "A beats B" and "B beats A" are of one part. Without endings
    that mean several things, two parts therefore have no sentence in common in any language.

    Args:
      meanings: one, or several that stand or fall together.
      split: "train", "validation" or "test".
      owner: whose part of "train", a language or "" for parallel text; None for any.
    """
    rest, eighth = divmod(key(*sorted([node.concept for m in meanings for node in m])), 8)
    if eighth not in EIGHTHS[split]:
        return False
    if owner is None or split != "train":
        return True
    return OWNERS[rest % len(OWNERS)] == (owner if owner in FAMILY else "")
