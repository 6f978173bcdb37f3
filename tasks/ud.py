"""Dependency trees of Universal Dependencies: a task for each treebank.

Files: $XL_FLAX_DATA_DIR/ud/UD_<Language>-<Name>/<prefix>-ud-{train,dev,test}.conllu, as in the
releases. The treebank UD_English-EWT has the prefix en_ewt and is the task `ud_trees_en_ewt`; "dev"
is the split "validation". Not all treebanks have all three files. The mixture `ud_trees_pud` is of
those with the same 1,000 sentences in each language, which are all tests (Zeman et al. 2017, the
CoNLL shared task, §3).

A mixture of your own, and a treebank that is not in `treebanks.TREEBANKS`, in a task module:

    from tasks import text, ud

    ud.add_treebank("UD_Breton-MINE", "br_mine", "bre")
    text.add_language_mixture("trees", ["ud_trees_br_mine", "ud_trees_cy_ccg"], exponent=0)
"""

import seqio

from tasks import text, trees
from tasks.treebanks import TREEBANKS

SPLITS = {"train": "train", "validation": "dev", "test": "test"}


def paths(folder: str, prefix: str) -> dict[str, str]:
    """The file of each split of a treebank, below XL_FLAX_DATA_DIR."""
    splits = ("test",) if folder.endswith("-PUD") else SPLITS
    return {split: f"ud/{folder}/{prefix}-ud-{SPLITS[split]}.conllu" for split in splits}


def add_treebank(folder: str, prefix: str, language: str) -> seqio.Task:
    """Registers the trees of a treebank as the task `ud_trees_<prefix>`.

    Args:
      folder: its name, as "UD_English-EWT".
      prefix: what the names of its files begin with, as "en_ewt".
      language: what the language is called; ISO 639-3 in this project.
    """
    source = trees.TreeFiles(paths(folder, prefix))
    return trees.add_tree_task(f"ud_trees_{prefix}", language, source)


for _treebank in TREEBANKS.values():
    add_treebank(*_treebank)

text.add_language_mixture(
    "ud_trees_pud",
    [f"ud_trees_{t.prefix}" for t in TREEBANKS.values() if t.folder.endswith("-PUD")],
    exponent=0,
)
