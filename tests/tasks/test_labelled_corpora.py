"""Labelled corpora in the layouts in which they are published, and what is wrong with some files.

Where XL_FLAX_DATA_DIR holds the real ones, their counts are checked too.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
import seqio

from tasks import labelled, masakhaner, panx, pawsx, snli_cad, udpos, uner, xcopa, xnli  # noqa: F401
from xl_flax import cli
from xl_flax.data.seqio_tasks import examples, split_tasks
from xl_flax.errors import UserError

REAL = Path(os.environ.get("XL_FLAX_DATA_DIR", "/nonexistent"))
needs_real = pytest.mark.skipif(not (REAL / "xcopa").is_dir(), reason="needs XL_FLAX_DATA_DIR")


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())


def rows(task, split="test"):
    """What the source of a task yields, as strings."""
    dataset = seqio.TaskRegistry.get(task).source.get_dataset(split=split)
    return [
        {key: value.decode() if isinstance(value, bytes) else [v.decode() for v in value]
         for key, value in row.items()}
        for row in dataset.as_numpy_iterator()
    ]  # fmt: skip


def test_xnli_reads_what_xtreme_writes(data_dir, vocabulary):
    lines = 'Er sagte, er "kommt".\tEr kommt.\tcontradictory\r\n"Er ""kommt""."\tJa.\tneutral\r\n'
    write(data_dir / "xnli/test-de.tsv", "\ufeff" + lines)
    first, second = rows("xnli_deu")
    assert first["text"] == ['Er sagte, er "kommt".', "Er kommt."]
    assert first["label"] == "contradiction" and second["text"] == ['Er "kommt".', "Ja."]
    ((batch, languages),) = examples(seqio.TaskRegistry.get("xnli_deu"), "test")
    assert [e.features["label"] for e in batch] == [2, 1] and languages[0] == ("deu", "deu")


def test_the_labels_of_xnli_are_put_in_as_the_page_says(data_dir):
    page = Path(cli.ROOT, "docs", "data.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^awk .*$", page, re.MULTILINE)
    names = "\t".join(["language", "gold_label", *"abcd", "sentence1", "sentence2", "id"]) + "\n"
    rows_of = [f"{code}\tneutral\t\t\t\t\tA {code}.\tB.\t1\n" for code in ("de", "sw", "de")]
    write(data_dir / "XNLI-1.0/xnli.test.tsv", names + "".join(rows_of))
    (data_dir / "xnli").mkdir()
    subprocess.run(command, shell=True, check=True, cwd=data_dir)
    assert [row["text"] for row in rows("xnli_deu")] == [["A de.", "B."]] * 2
    assert [row["label"] for row in rows("xnli_swa")] == ["neutral"]


def test_a_test_set_without_labels_is_one_error(data_dir):
    write(data_dir / "xnli/test-de.tsv", "Er sagte.\tEr kommt.\n")
    with pytest.raises(UserError, match=r"xnli/test-de\.tsv, line 1 has 2 columns .* expected 3"):
        rows("xnli_deu")
    write(data_dir / "pawsx/test-de.tsv", "Er sagte.\tEr kommt.\t1\nJa.\tNein.\t2\n")
    with pytest.raises(UserError, match=r"test-de\.tsv, line 2: label '2' is none of 0, 1"):
        rows("pawsx_deu")


def test_labels_may_stand_in_a_file_of_their_own(data_dir):
    write(data_dir / "x.tsv", "a\tb\n\nc\td\n")
    read = labelled.columns(("0", "1"), texts=(0, 1), label=None)
    source = labelled.LabelledFiles({"test": ["x.tsv", "y.txt"]}, read)

    def read_all():
        return [
            (r["text"].tolist(), r["label"]) for r in source.get_dataset("test").as_numpy_iterator()
        ]

    write(data_dir / "y.txt", "1\r\n0\r\n")
    assert read_all() == [([b"a", b"b"], b"1"), ([b"c", b"d"], b"0")]
    write(data_dir / "y.txt", "1\n")
    with pytest.raises(UserError, match=r"y\.txt has 1 labels, but .*x\.tsv has 2 lines"):
        read_all()
    write(data_dir / "y.txt", "1\n\n7\n")
    with pytest.raises(UserError, match=r"y\.txt, line 3: label '7' is none of 0, 1"):
        read_all()


def test_labels_of_one_mixture_are_the_same(run_cache, data_dir, registry, monkeypatch):
    write(data_dir / "xnli/test-de.tsv", "Abe.\tBe.\tneutral\n")
    write(data_dir / "pawsx/test-de.tsv", "Abe.\tBe.\t1\n")
    write(
        data_dir / "odd_labels.py",
        "from tasks import pawsx, text, xnli\n"
        "text.add_language_mixture('odd', ['xnli_deu', 'pawsx_deu'], exponent=0)\n",
    )
    monkeypatch.syspath_prepend(data_dir)
    with pytest.raises(UserError, match="need the same features and labels.*'label' is .* 0, 1"):
        run_cache(["odd_labels"], "odd:test:64")


def test_an_empty_sentence_is_counted(run_cache, data_dir):
    write(data_dir / "xnli/test-de.tsv", "Abe.\tBe.\tneutral\nAb.\t\tneutral\nBe.\tAb.\tneutral\n")
    (cached,) = run_cache(["tasks.xnli"], "xnli_deu:test:64").values()
    manifest = cached.manifests["xnli_deu"]
    assert manifest.examples == 2 and manifest.dropped == {"empty text": 1}


CHOICE = (
    '{"premise": "P.", "choice1": "A.", "choice2": "B.", "question": "%s", "label": %s, "idx": 7}'
)


def test_xcopa_asks_its_question(data_dir, vocabulary):
    write(data_dir / "xcopa/val.et.jsonl", CHOICE % ("cause", 1) + "\r\n")
    (row,) = rows("xcopa_est", "validation")
    assert row["text"] == ["P. What was the cause?", "A.", "B."]
    assert row["label"] == "choice2" and row["id"] == "7"
    ((batch, languages),) = examples(seqio.TaskRegistry.get("xcopa_est"), "validation")
    assert languages == [("est",) * 3] and batch[0].features == {"id": "7", "label": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is no JSON"),
        ("[]", "line 2: expected strings premise, choice1, choice2 and a question"),
        (CHOICE % ("why", 1), "line 2: expected strings .* a question, cause or effect"),
        (CHOICE % ("cause", 2), "line 2: label 2 is neither 0 nor 1"),
        ((CHOICE % ("cause", 2)).replace('"label": 2, ', ""), "line 2: label None is neither"),
    ],
)
def test_a_bad_line_of_xcopa_is_named(data_dir, line, message):
    write(data_dir / "xcopa/test.et.jsonl", CHOICE % ("effect", 0) + f"\n{line}\n")
    with pytest.raises(UserError, match=rf"test\.et\.jsonl, {message}"):
        rows("xcopa_est")


def test_panx_may_have_its_prefix_or_not(data_dir):
    tagged = "en:New\tB-LOC\nen:York\tI-LOC\nen::\tO\n\n\nen:I\tO\n"
    for content in (tagged, tagged.replace("en:", "")):
        write(data_dir / "panx/test-en.tsv", content)
        first, second = rows("panx_eng")
        assert first["words"] == ["New", "York", ":"] and second["words"] == ["I"]
        assert first["labels"] == ["B-LOC", "I-LOC", "O"]
    write(data_dir / "panx/test-en.tsv", "en:route\tO\nNew\tB-LOC\n")  # a word, not a prefix
    assert rows("panx_eng")[0]["words"] == ["en:route", "New"]


def test_a_byte_order_mark_within_a_text_is_a_word(data_dir, vocabulary):
    write(data_dir / "panx/test-ta.tsv", "\ufeffab\tO\n\ufeff\tO\nbe\tB-PER\n")
    assert rows("panx_tam")[0]["words"] == ["ab", "\ufeff", "be"]
    ((batch, _),) = examples(seqio.TaskRegistry.get("panx_tam"), "test")
    (labels,) = batch[0].features["label"]
    assert [panx.LABELS[i] for i in labels[labels >= 0]] == ["O", "O", "B-PER"]


def test_words_between_spaces_may_hold_other_spaces(data_dir):
    write(data_dir / "masakhaner2/yor/test.txt", "a\u00a0b O\nGàní B-PER \n\nọdún I-DATE\n")
    first, second = rows("masakhaner_yor")
    assert first["words"] == ["a\u00a0b", "Gàní"] and first["labels"] == ["O", "B-PER"]
    assert second["labels"] == ["I-DATE"]


UNER = """# newdoc id = x
# sent_id = s-1
1\tRio\tB-LOC\t-\tk
2\t#\tB-OTH\t-\tk
3\t.\tO\t-\tk

# sent_id = s-2
1\tJa\tO\t-\tk
"""


def test_universal_ner_has_identifiers_and_no_other_names(data_dir, vocabulary):
    write(data_dir / "uner/pt_bosque-ud-test.iob2", UNER)
    first, second = rows("uner_pt_bosque")
    assert first == {"words": ["Rio", "#", "."], "labels": ["B-LOC", "O", "O"], "id": "s-1"}
    assert second["id"] == "s-2"
    ((batch, languages),) = examples(seqio.TaskRegistry.get("uner_pt_bosque"), "test")
    assert [e.features["id"] for e in batch] == ["s-1", "s-2"] and languages[0] == ("por",)
    write(data_dir / "uner/pt_bosque-ud-test.iob2", UNER.replace("B-LOC", "B-GPE"))
    with pytest.raises(UserError, match=r"test\.iob2, line 3: label 'B-GPE' is none of O, B-PER"):
        rows("uner_pt_bosque")


CONLLU = """# sent_id = 1
1-2\tzum\t_\t_\t_\t_\t_\t_\t_\t_
1\tzu\tzu\tADP\t_\t_\t3\tcase\t_\t_
2\tdem\tder\tDET\t_\t_\t3\tdet\t_\t_
2.1\tgut\tgut\tADJ\t_\t_\t_\t_\t3:amod\t_
3\tHaus\tHaus\tNOUN\t_\t_\t0\troot\t_\t_
"""


def test_treebanks_have_syntactic_words(data_dir):
    path = data_dir / "ud/UD_German-GSD/de_gsd-ud-test.conllu"
    write(path, CONLLU)
    (row,) = rows("ud_pos_de_gsd")
    assert row["words"] == ["zu", "dem", "Haus"] and row["labels"] == ["ADP", "DET", "NOUN"]
    write(path, CONLLU.replace("ADP", "APPR"))
    with pytest.raises(UserError, match=r"de_gsd-ud-test\.conllu, line 3: label 'APPR' is none of"):
        rows("ud_pos_de_gsd")


@needs_real
def test_the_real_files_have_the_sizes_they_are_known_for(monkeypatch):
    monkeypatch.setenv("XL_FLAX_DATA_DIR", str(REAL))

    def counts(mixture, split):
        tasks = split_tasks(seqio.get_mixture_or_task(mixture), split)
        return {t.name.split("_", 1)[1]: t.num_input_examples(split) for t in tasks}

    assert [counts("snli_cad_eng", s)["cad_eng"] for s in xnli.SPLITS] == [8330, 1000, 2000]
    assert counts("pawsx", "test") == {
        "deu": 2000,
        "eng": 1983,
        "fra": 1983,
        "spa": 1983,
        "zho": 2000,
    }
    assert counts("xcopa", "train") == {"eng": 400} and set(counts("xcopa", "test").values()) == {
        500
    }
    assert len(counts("xcopa", "validation")) == 11
    assert counts("panx", "test") | {"yor": 67, "tam": 667} == counts("panx", "test")
    assert sum(counts("panx", "train").values()) == 27_100
    assert counts("uner", "test") == {"en_ewt": 2077, "pt_bosque": 1167, "zh_gsd": 500}
    assert counts("ud_pos_pud", "test") == {"pos_ar_pud": 1000, "pos_hi_pud": 1000}
    assert counts("ud_pos", "validation")["pos_tr_boun"] == 979
    assert set(counts("ud_pos", "train")) == {"pos_en_ewt", "pos_vi_vtb"}
    if (REAL / "noncommercial").is_dir():
        assert len(counts("xnli", "validation")) == 8 and counts("xnli", "test")["swa"] == 1002
        assert counts("udpos", "test")["yor"] == 318 and len(counts("udpos", "train")) == 5
        assert counts("masakhaner", "test") == {"swa": 1883, "yor": 1964}
