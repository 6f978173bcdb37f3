"""CoNLL-U as Universal Dependencies publishes it, and what is wrong with a file."""

import pytest
from tree_rows import SENTENCES

from tasks import conllu
from xl_flax.errors import UserError


def write(folder, text):
    path = folder / "t.conllu"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_words_are_syntactic_words(tmp_path):
    path = write(tmp_path, SENTENCES)
    first, second = conllu.read_sentences(path)
    for sentence in (first, second):
        conllu.check_tree(path, sentence)
    assert [word.form for word in first] == ["in", "dem", "Haus", "!"]
    assert [word.upos for word in first] == ["ADP", "DET", "NOUN", "PUNCT"]
    assert [word.head for word in first] == [3, 3, 0, 3]
    assert [word.line for word in first] == [4, 5, 7, 8]
    assert [(w.form, w.relation) for w in second] == [("thời gian", "root"), ("_", "nsubj:pass")]


def row(number, head, form="w", relation="dep"):
    return f"{number}\t{form}\t_\tX\t_\t_\t{head}\t{relation}\t_\t_"


LONG = [row(1, 0), row(2, 1), row(3, 4), row(4, 5), row(5, 3)]
BAD = {
    "columns": (["1\tw\t_\tX\t_\t_\t0\troot\t_"], "line 2 has 9 columns .* has 10"),
    "spaces": (["1 w _ X _ _ 0 root _ _"], "line 2 has 1 column set apart by tabs"),
    "number": ([row("x", 0)], "line 2: the word's number is 'x', but it is word 1"),
    "gap": ([row(1, 0), row(3, 1)], "line 3: the word's number is '3', but it is word 2"),
    "empty": ([row(1, 0, form="")], "line 2: the column FORM is empty"),
    "head": ([row(1, "1a")], "line 2: the head '1a' is no number"),
    "hidden": ([row(1, 0, "_"), row(2, 1, "_")], "line 2: all words are _: .* without its text"),
    "none": ([row(1, 0), row(2, "_")], "line 3: the word 'w' has no head"),
    "range": ([row(1, 0), row(2, 7)], "line 3: the head 7 is out of range: .* 2 words"),
    "itself": ([row(1, 0), row(2, 2)], "line 3: the word 'w' is its own head"),
    "roots": ([row(1, 0), row(2, 0)], "line 3: a second root .* beside that of line 2"),
    "rootless": ([row(1, 2), row(2, 1)], "line 2: the sentence has no root"),
    "cycle": (LONG, "line 4: the heads of 'w' go round in a cycle"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(tmp_path, case):
    lines, message = BAD[case]
    path = write(tmp_path, "\n".join(["# text", *lines, ""]))
    with pytest.raises(UserError, match=f"t.conllu, {message}"):
        for sentence in conllu.read_sentences(path):
            conllu.check_tree(path, sentence)
