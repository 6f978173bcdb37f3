"""Tasks on questions, from SQuAD's files through the cache command to windows in batches."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import seqio

from tasks import question_files, questions, synthetic_questions
from tasks.question_files import QuestionFiles
from xl_flax import cache as cache_command
from xl_flax.data.features import FeatureSpec
from xl_flax.data.manifest import Cache
from xl_flax.data.prepare import prepare
from xl_flax.data.seqio_tasks import examples, task_features
from xl_flax.data.stream import Rows, open_stream
from xl_flax.errors import UserError

REAL = Path(os.environ.get("XL_FLAX_DATA_DIR", "/nonexistent"))
needs_real = pytest.mark.skipif(not (REAL / "xquad").is_dir(), reason="needs XL_FLAX_DATA_DIR")


def squad(paragraphs):
    """A file of (context, [(question, [(answer, where it begins), ...]), ...])."""
    made = []
    for context, asked in paragraphs:
        qas = [
            {
                "id": f"{len(made)}-{i}",
                "question": question,
                "answers": [{"text": text, "answer_start": start} for text, start in answers],
            }
            for i, (question, answers) in enumerate(asked)
        ]
        made.append({"context": context, "qas": qas})
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": made}]}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def rows_of(source, split):
    rows = list(source.get_dataset(split=split).as_numpy_iterator())
    return [{key: value.decode() for key, value in row.items()} for row in rows]


REPAIRED = [
    (
        "\ufeffwe be.\r\nso we were: we be",
        [
            ("right", [("we be", 1)]),
            ("off by some, the second is nearer", [("we be", 17)]),
            ("outside the text", [("were", 500)]),
            ("before it", [("were", -3)]),
            ("with spaces around it", [("\nso ", 8)]),
            ("the first is nowhere", [("they", 0), ("we", 1)]),
            ("nowhere", [("they", 0)]),
        ],
    )
]


def test_answers_are_found_where_they_stand(data_dir, capfd):
    path = write(data_dir / "a.json", squad(REPAIRED))
    source = QuestionFiles({"train": path, "test": path})
    test = rows_of(source, "test")
    said = capfd.readouterr().err
    assert "a.json: 3 of 8 answers do not stand where the file says and were found nearby" in said
    assert "2 do not stand in their contexts; 1 questions have no other answer and are kept" in said
    found = [json.loads(row["answers"]) for row in test]
    starts = [[answer["answer_start"] for answer in own] for own in found]
    assert starts == [[1], [21], [15], [15], [9], [-1, 1], [-1]]
    for row, own in zip(test, found, strict=True):
        for answer in own:
            begin = answer["answer_start"]
            if begin >= 0:
                assert row["context"].startswith(answer["text"], begin)
    train = rows_of(source, "train")
    assert train == test[:-1] and "left out" in capfd.readouterr().err


def test_what_is_right_is_not_talked_about(data_dir, capfd):
    path = write(data_dir / "a.json", squad([("so be it", [("what", [("be", 3)])])]))
    (row,) = rows_of(QuestionFiles({"train": path}), "train")
    assert row["id"] == "0-0" and row["question"] == "what"
    assert "a.json" not in capfd.readouterr().err


def broken(change):
    file = squad([("so be it", [("what", [("be", 3)])])])
    change(file["data"][0]["paragraphs"][0])
    return file


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{]", "is damaged.*SQuAD"),
        ({"version": 1}, "a.json: the file has no 'data' that is a list"),
        (broken(lambda p: p.pop("context")), "article 1, paragraph 1 has no 'context'"),
        (broken(lambda p: p["qas"][0].update(answers=[])), "question 1 has no answers"),
        (broken(lambda p: p["qas"][0].update(id=7)), "question 1 has no 'id' that is a string"),
        (
            broken(lambda p: p["qas"][0]["answers"][0].update(answer_start="3")),
            "question 1 has no 'answer_start' that is a number",
        ),
        (squad([("so", [("what", [("", 0)])])]), "every answer is empty: XTREME's copies"),
    ],
)
def test_a_file_that_is_not_as_squads_is_named(data_dir, content, message):
    source = QuestionFiles({"train": write(data_dir / "a.json", content)})
    with pytest.raises(UserError, match=message):
        rows_of(source, "train")


def test_tasks_read_the_files_of_the_corpora(data_dir, vocabulary):
    file = squad([("起初神创造天地。", [("who", [("神", 2)])])])
    for name, path, split, languages in (
        ("squad", "squad/train-v1.1.json", "train", ("eng", "eng")),
        ("xquad_ell", "xquad/xquad.el.json", "test", ("ell", "ell")),
        ("mlqa_zho_deu", "mlqa/test-context-zh-question-de.json", "test", ("deu", "zho")),
        ("mlqa_ara_ara", "mlqa/dev-context-ar-question-ar.json", "validation", ("ara", "ara")),
        ("tydiqa_tel", "tydiqa/tydiqa.goldp.te.dev.json", "test", ("tel", "tel")),
    ):
        write(data_dir / path, file)
        task = seqio.TaskRegistry.get(name)
        (((example,), found),) = examples(task, split)
        assert found == [languages]
        first, last = example.features["answer"]
        assert "神" in vocabulary.decode(example.texts[1][first : last + 1])
        assert example.features["context"] == "起初神创造天地。"
    specs = task_features(task)
    assert specs["answer"] == FeatureSpec("span") and specs["id"] == FeatureSpec("text", "string")
    sizes = {"xquad": 12, "xquad_xtreme": 11, "mlqa": 7, "mlqa_cross": 49, "tydiqa": 9}
    for name, size in sizes.items():
        assert len(seqio.MixtureRegistry.get(name).tasks) == size


def test_questions_are_cut_at_64_tokens(data_dir, vocabulary):
    long = " ".join("abcdefgh"[i % 8] for i in range(100))
    file = squad([("so be it", [(long, [("be", 3)])])])
    write(data_dir / "xquad/xquad.en.json", file)
    (((example,), _),) = examples(seqio.TaskRegistry.get("xquad_eng"), "test")
    assert len(example.texts[0]) == question_files.QUESTION_TOKENS == 64
    assert example.texts[0].tolist() == vocabulary.encode(long)[:64]


def test_answers_survive_the_cache_and_windows(data_dir, vocabulary, vocabulary_path):
    draw, file = random.Random(0), []
    for i in range(40):
        words = ["".join(draw.choices("abcdefgh", k=draw.randint(1, 6))) for _ in range(i * 5 + 3)]
        context = draw.choice([" ", "\r\n", "\u00a0 "]).join(words)
        if i % 4 == 0:
            context = f"\ufeff{context}"
        answer = draw.choice(words)
        file.append((context, [("who is it", [(answer, context.index(answer))])]))
    file[7][1][0][1][0] = ("nowhere", 0)
    write(data_dir / "xquad/xquad.en.json", squad(file))
    cache = Cache(str(data_dir / "cache"), ["tasks.questions"], on_missing="stop")
    (data_dir / "run.gin").write_text(
        f"Cache.directory = {cache.directory!r}\nCache.task_modules = ['tasks.questions']\n"
        f"run_vocabulary.path = {vocabulary_path!r}\n"
    )
    rows = Rows("xquad_eng", 64, split="test", too_long="window", stride=16)
    cache_command.main([f"--gin_file={data_dir / 'run.gin'}", f"--dataset={rows.datasets[0]}"])
    stream = open_stream(rows, prepare(rows.datasets, cache, vocabulary), 0, vocabulary)
    (manifest,) = stream._manifests.values()
    batch, seen = stream.rows(range(manifest.rows)), {}
    for row, place in np.argwhere(batch["example"] >= 0):
        context, ((_, ((answer, _),)),) = file[batch["example"][row, place]]
        ids = batch["tokens"][row][batch["segment_ids"][row] == 2 * place + 2]
        first, last = batch["answer"][row, place]
        found = first >= 0
        if found:
            held = vocabulary.decode(batch["tokens"][row, first : last + 1])
            assert answer in held
        seen.setdefault(int(batch["example"][row, place]), []).append(found)
        assert len(ids) <= 64
    assert sorted(seen) == list(range(40)) and max(map(len, seen.values())) > 5
    # Answers are shorter than what windows share, so each stands whole in one of them.
    assert [number for number, found in seen.items() if not any(found)] == [7]


def test_the_synthetic_languages_ask_questions(vocabulary):
    (batch, languages) = next(examples(seqio.TaskRegistry.get("synthetic_questions_beta"), "test"))
    assert languages[0] == ("beta", "beta")
    for example in batch:
        own = synthetic_questions.question(
            synthetic_questions.FAMILY["beta"], "test", example.number
        )
        assert example.features["id"] == own["id"] == f"test-{example.number}"
        ((answer,),) = (json.loads(example.features["answers"]),)
        begin = answer["answer_start"]
        assert example.features["context"].startswith(answer["text"], begin)
        first, last = example.features["answer"]
        held = vocabulary.decode(example.texts[1][first : last + 1])
        assert answer["text"] in held or vocabulary.special.unk in example.texts[1]
    same = [
        synthetic_questions.question(synthetic_questions.FAMILY[name], "train", 11)["id"]
        for name in ("alpha", "beta")
    ]
    assert same == ["train-11"] * 2
    assert len(seqio.MixtureRegistry.get("synthetic_questions").tasks) == len(
        synthetic_questions.CORE
    )


@needs_real
def test_real_answers_stand_where_they_are_said_to(monkeypatch, capfd):
    monkeypatch.setenv("XL_FLAX_DATA_DIR", str(REAL))
    counts = {}
    for name, split in (
        ("xquad_zho", "test"),
        ("mlqa_spa_spa", "validation"),
        ("tydiqa_eng", "train"),
    ):
        rows = rows_of(seqio.TaskRegistry.get(name).source, split)
        counts[name] = len(rows)
    assert counts == {"xquad_zho": 1190, "mlqa_spa_spa": 500, "tydiqa_eng": 3696}
    assert "do not stand" not in capfd.readouterr().err
    with pytest.raises(UserError, match="fi.dev.json: the text of every answer is empty"):
        rows_of(seqio.TaskRegistry.get("tydiqa_fin").source, "test")
    assert len(questions.TYDIQA_CODES) == 9
