"""Texts have the same ids on both sides, for every kind of vocabulary."""

import io
import itertools
import json
import os
import pathlib

import pytest
import sentencepiece
import tokenizers

from xl_flax.converters import tokenizer as lib
from xl_flax.converters.verify import TEXTS
from xl_flax.data.vocabulary import load_vocabulary, read_vocabulary
from xl_flax.errors import UserError

ODD = [
    *("", " ", "  two  spaces ", "tab\there", "\u00a0nbsp", "ﬁ ligature ①", "🙂🙂", "▁ in text"),
    *(
        "zero\u200bwidth",
        "a\u0301",
        "\x01ctl",
        "qwertzuiopasdfghjkl" * 9,
        "UPPER lower",
        "don't, 3.14 – “quoted”",
    ),
]
# Of several combining marks Transformers' own XLM-R tokenizer keeps the first (docs/conversion.md).
STACKED_MARKS = {"yor"}


def real_texts():
    """Some lines of each language of NTREX, where the data is there: language -> lines."""
    folder = pathlib.Path(os.environ.get("XL_FLAX_DATA_DIR", "/nowhere")) / "ntrex"
    found = {}
    for path in sorted(folder.glob("newstest2019-*.txt")):
        with open(path, encoding="utf-8") as file:
            found[path.name.split(".")[1]] = [x.rstrip("\n") for x in itertools.islice(file, 60)]
    return found


@pytest.fixture(scope="module")
def texts():
    return {"odd": ODD} | {k: [v] for k, v in TEXTS.items()} | real_texts()


@pytest.mark.skipif(not real_texts(), reason="needs XL_FLAX_DATA_DIR; a sentence each otherwise")
def test_texts_are_real_and_of_many_languages(texts):
    assert len(texts) > 20 + len(TEXTS) / 2
    assert sum(map(len, texts.values())) > 1000


def train(texts, **settings):
    lines = [line for some in texts.values() for line in some if line.strip()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=900, minloglevel=2,
        character_coverage=0.98, hard_vocab_limit=False, num_threads=1, **settings,
    )  # fmt: skip
    return model.getvalue()


OURS = {"bos_id": 0, "pad_id": 1, "eos_id": 2, "unk_id": 3, "control_symbols": ["<mask>"]}


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "unigram"},
        {"model_type": "unigram", "byte_fallback": True},
        {"model_type": "bpe"},
        {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "nmt_nfkc_cf"},
        {"model_type": "unigram", "normalization_rule_name": "identity"},
    ],
)
def test_a_sentencepiece_model_as_tokenizer_json(texts, settings):
    vocabulary = read_vocabulary("v.model", train(texts, **OURS, **settings))
    made = lib.from_sentencepiece(vocabulary.content, vocabulary)
    as_json = read_vocabulary("tokenizer.json", made.to_str().encode())
    model = sentencepiece.SentencePieceProcessor(model_proto=vocabulary.content)

    def tied(a, b):
        """Two ways to cut a text that are equally probable, as a model of so little text has."""
        total = lambda ids: sum(map(model.get_score, ids))  # noqa: E731
        return settings["model_type"] == "unigram" and total(a) == pytest.approx(total(b), abs=1e-4)

    assert (as_json.size, as_json.special) == (vocabulary.size, vocabulary.special)
    for language, lines in texts.items():
        for line in lines:
            ids = vocabulary.encode(line)
            assert as_json.encode(line) == ids or tied(as_json.encode(line), ids), (language, line)
            plain = 3 not in ids and not line.startswith("▁")  # where text can come back
            assert not plain or as_json.decode(ids) == vocabulary.decode(ids)
    specials = vocabulary.special
    found = made.encode("a b").ids
    assert (found[0], found[-1]) == (specials.cls, specials.sep)
    (wrong,) = {(a ^ b).sum() for a, b in [(as_json.word_starts(), vocabulary.word_starts())]}
    assert wrong == 0


def test_xlm_r_moves_the_ids_of_its_sentencepiece_model(texts, tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / lib.SENTENCEPIECE).write_bytes(train(texts, model_type="unigram"))
    vocabulary = lib.read(str(tmp_path))
    theirs = transformers.XLMRobertaTokenizer.from_pretrained(str(tmp_path))
    special = vocabulary.special
    assert (special.cls, special.pad, special.sep, special.unk) == (0, 1, 2, 3)
    assert special.mask == vocabulary.size - 1 == theirs.mask_token_id
    for language, lines in texts.items():
        for line in lines if language not in STACKED_MARKS | {"odd"} else ():
            ids = theirs(line, add_special_tokens=False)["input_ids"]
            assert vocabulary.encode(line) == ids, (language, line)


def wordpiece(texts, folder, **settings):
    """A folder with a vocab.txt."""
    made = tokenizers.BertWordPieceTokenizer(**settings)
    made.train_from_iterator([line for some in texts.values() for line in some], 1500,
                             show_progress=False)  # fmt: skip
    made.save_model(str(folder))
    config = {"do_lower_case": settings["lowercase"], "strip_accents": settings["strip_accents"]}
    config["unk_token"] = {"__type": "AddedToken", "content": "[UNK]"}  # as older folders have it
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("lowercase, strip_accents", [(True, None), (False, False), (False, None)])
def test_wordpiece(texts, tmp_path, lowercase, strip_accents):
    transformers = pytest.importorskip("transformers")
    wordpiece(texts, tmp_path, lowercase=lowercase, strip_accents=strip_accents)
    vocabulary = lib.read(str(tmp_path))
    theirs = transformers.BertTokenizer.from_pretrained(str(tmp_path))
    for lines in texts.values():
        for line in lines:
            assert vocabulary.encode(line) == theirs(line, add_special_tokens=False)["input_ids"]
    starts = vocabulary.word_starts()
    pieces = [vocabulary.piece(i) for i in range(vocabulary.size)]
    latin = [i for i, piece in enumerate(pieces) if piece.lstrip("▁").isascii()]
    special = vocabulary.special_mask()
    assert all(starts[i] == (pieces[i][0] == "▁") for i in latin if not special[i])
    assert vocabulary.piece(vocabulary.special.cls) == "[CLS]"


def test_bytewise_bpe(texts, tmp_path):
    transformers = pytest.importorskip("transformers")
    made = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    lines = [line for some in texts.values() for line in some]
    made.train_from_iterator(lines, 1500, special_tokens=special, show_progress=False)
    made.save_model(str(tmp_path))
    vocabulary = lib.read(str(tmp_path))
    theirs = transformers.RobertaTokenizer.from_pretrained(str(tmp_path))
    for line in lines:
        ids = vocabulary.encode(line)
        assert ids == theirs(line, add_special_tokens=False)["input_ids"]
        assert vocabulary.decode(ids) == line
    assert vocabulary.special_mask().sum() == len(special)
    starts = vocabulary.word_starts()
    if "jpn" in texts:  # no spaces: what begins with a whole character begins a word
        ids = vocabulary.encode(texts["jpn"][0])
        assert starts[ids].any()


def test_a_tokenizer_json_is_a_vocabulary_like_any_other(tmp_path, texts):
    wordpiece(texts, tmp_path, lowercase=True, strip_accents=None)
    path = tmp_path / "tokenizer.json"
    path.write_bytes(lib.read(str(tmp_path)).content)
    vocabulary = load_vocabulary(str(path))
    assert vocabulary.file_name == "tokenizer.json"
    assert vocabulary.decode(vocabulary.encode("All human beings")) == "all human beings"
    assert vocabulary.special_mask().sum() == 5


def test_what_a_tokenizer_puts_around_a_text_begins_and_ends_it_whatever_its_name(tmp_path):
    # As in Gemma's vocabulary, which mmBERT has: <s> is a tag of HTML.
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<s>", "</s>", "a"]
    model = tokenizers.models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>")
    made = tokenizers.Tokenizer(model)
    made.add_special_tokens(pieces[:5])
    made.add_tokens(pieces[5:7])
    around = [("<bos>", 2), ("<eos>", 1)]
    made.post_processor = tokenizers.processors.TemplateProcessing("<bos> $A <eos>", None, around)
    made.save(str(tmp_path / "tokenizer.json"))
    vocabulary = lib.read(str(tmp_path))
    special = vocabulary.special
    assert (special.cls, special.sep, special.pad, special.mask) == (2, 1, 0, 4)
    assert vocabulary.special_mask().tolist() == [True] * 5 + [False] * 3
    assert vocabulary.encode("<s>a") == [5, 7]


def test_camembert_moves_its_ids_otherwise_and_is_refused(texts, tmp_path):
    (tmp_path / lib.SENTENCEPIECE).write_bytes(train(texts, model_type="unigram"))
    (tmp_path / "config.json").write_text('{"model_type": "camembert"}')
    with pytest.raises(UserError, match="CamemBERT's.*fetch its tokenizer.json"):
        lib.read(str(tmp_path))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("vocab.txt", b"\xff\n", r"vocab\.txt is not UTF-8 text \(line 1\)"),
        ("vocab.txt", b"", r"vocab\.txt has no piece"),
        ("merges.txt", b"#version\nt h\n", r"vocab\.json is missing"),
    ],
)
def test_damaged_word_lists_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        lib.read(str(tmp_path))


@pytest.mark.parametrize("content", [b"{}", b'{"model": 3}', b"{"])
def test_a_damaged_tokenizer_json_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match="tokenizer.json is not a tokenizer.json"):
        lib.read(str(tmp_path))


def test_a_tokenizer_without_specials_says_which(tmp_path):
    model = tokenizers.models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]")
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="has no piece <pad> or .PAD."):
        lib.read(str(tmp_path))


def test_folders_without_a_tokenizer_of_ours_say_what_to_do(tmp_path):
    with pytest.raises(UserError, match="has no tokenizer.json, .*--tokenizer=FILE"):
        lib.read(str(tmp_path))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nt h</w>\n")
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match="Moses.*--tokenizer=FILE"):
        lib.read(str(tmp_path))
