"""Mixtures for the phases of a run, apart from the tasks they mix, so that caches outlive them.

`wikipedia_0.7`, `wikipedia_0.5`, `wikipedia_0.3`: a language's share of the tokens is its number of
tokens to this power. XLM-R (Conneau et al. 2020) trained with 0.3, multilingual BERT with 0.7. Both
measure text, not articles: fairseq's multilingual_masked_lm.py counts blocks of 512 tokens, BERT's
multilingual.md shares of all the text.

`bible_0.7`, `bible_0.5`, `bible_0.3` count verses. All translations say the same; how many tokens
that takes is a matter of the vocabulary, not of how much there is to read.

mmBERT (Marone et al. 2025) anneals the three in this order and adds languages on the way, as here
`bible_whole`, the four languages with both testaments, can come first:

    Rows.mixture = [(0, 'bible_whole'), (20000, 'bible_0.7'), (40000, 'bible_0.3')]

`wikipedia_60_0.7` and `wikipedia_85_0.5` have the languages of mmBERT's first and second stage that
are here: all 60, and 85 of 110 (statistics/language_counts.csv of its code).
"""

from tasks import bible, text, wikipedia

EXPONENTS = (0.7, 0.5, 0.3)

_verses = [f"bible_{language}" for language in bible.LANGUAGES]
_articles = [f"wikipedia_{code}" for code in wikipedia.LANGUAGES]
for _exponent in EXPONENTS:
    text.add_language_mixture(f"bible_{_exponent}", _verses, exponent=_exponent)
    text.add_language_mixture(f"wikipedia_{_exponent}", _articles, exponent=_exponent, by="tokens")

FIRST = """
    af ar az bg bn cs da de el en es et fa fi fr ga gl gu he hi hr hu id it ja ka kk km ko lt lv mk
    ml mn mr ms my ne nl no pl ps pt ro ru si sk sl sv sw ta te th tl tr uk ur vi xh zh
"""
SECOND = f"{FIRST} am be bs ca cy eo eu fy gd hy is jv kn ku ky la lo mg or pa sd so sq sr uz"
for _name, _codes, _exponent in (("60", FIRST, 0.7), ("85", SECOND, 0.5)):
    _tasks = [f"wikipedia_{code}" for code in _codes.split()]
    text.add_language_mixture(
        f"wikipedia_{_name}_{_exponent}", _tasks, exponent=_exponent, by="tokens"
    )

text.add_language_mixture("bible_whole", [f"bible_{language}" for language in bible.WHOLE])
