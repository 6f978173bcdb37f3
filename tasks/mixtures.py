"""Mixtures for the phases of a run, apart from the tasks they mix, so that caches outlive them.

`bible_0.7` and `wikipedia_0.7`, and the same with 0.5 and 0.3: rates by size to this power. mmBERT
(Marone et al. 2025) anneals them in this order and adds languages on the way, as here
`bible_whole`, the four languages with both testaments, can come first:

    Rows.mixture = [(0, 'bible_whole'), (20000, 'bible_0.7'), (40000, 'bible_0.3')]
"""

from tasks import bible, text, wikipedia

EXPONENTS = (0.7, 0.5, 0.3)

_families = {
    "bible": [f"bible_{language}" for language in bible.LANGUAGES],
    "wikipedia": [f"wikipedia_{code}" for code in wikipedia.LANGUAGES],
}
for _name, _tasks in _families.items():
    for _exponent in EXPONENTS:
        text.add_language_mixture(f"{_name}_{_exponent}", _tasks, exponent=_exponent)

text.add_language_mixture("bible_whole", [f"bible_{language}" for language in bible.WHOLE])
