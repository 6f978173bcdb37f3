"""Pieces of the text that the vocabulary does not know."""

from collections import Counter
from collections.abc import Iterable, Mapping

from xl_flax.data.manifest import Manifest

MANY_UNKNOWN = 0.05  # a language with a larger share is warned of, and its scores are flagged


def unknown_shares(manifests: Iterable[Manifest]) -> dict[str, float]:
    """Language -> share of the pieces that are unknown, in all its texts of some cached splits.

    [CLS] and [SEP] do not count; without any pieces the share is 0.
    """
    unknown, pieces = Counter(), Counter()
    for manifest in manifests:
        for language, lost, known in zip(
            manifest.languages, manifest.unknown, manifest.known, strict=True
        ):
            unknown[language] += lost
            pieces[language] += lost + known
    return {name: unknown[name] / max(pieces[name], 1) for name in sorted(pieces)}


def warn_unknown(shares: Mapping[str, float]) -> str:
    """A line about the languages of which many pieces are unknown; "" if there are none."""
    many = [f"{name} {share:.1%}" for name, share in shares.items() if share > MANY_UNKNOWN]
    if not many:
        return ""
    return (
        f"warning: many pieces are unknown to the vocabulary: {', '.join(many)}. Train one on text "
        "that has these languages, or with a higher VocabularyConfig.character_coverage"
    )
