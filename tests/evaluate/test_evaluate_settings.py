"""What is chosen in Gin: languages, phases; bad values."""

import os

import pytest

from xl_flax.errors import UserError


def test_some_languages_are_evaluated(command, rows):
    chosen = "['same', 'one']"
    command(
        f"--gin.MaskedAccuracy.languages={chosen}",
        f"--gin.SentenceRetrieval.languages={chosen}",
        "--gin.SentenceRetrieval.layers=[1]",
    )
    named = {language for r in rows() for language in r["languages"]}
    assert named == {"one", "same", "macro"}
    assert all("|languages:one,same|" in r["signature"] for r in rows())
    with pytest.raises(UserError, match="languages = .'tha'.: choose some of all's, one, ot"):
        command("--gin.MaskedAccuracy.languages=['tha']")


def test_phases_name_the_mixtures_whose_tasks_are_evaluated(command, rows):
    command()
    whole = {r["languages"][0]: r["value"] for r in rows(metric="loss")}
    phases = "[(0, 'one-same'), (7, 'one-other')]"
    command(f"--gin.MaskedAccuracy.mixture={phases}", f"--gin.SentenceRetrieval.mixture={phases}")
    assert {r["languages"][0]: r["value"] for r in rows(metric="loss")} == whole
    assert {r["data"] for r in rows(task="masked_lm")} == {"one-same+one-other/validation"}
    named = {r["data"] for r in rows(task="retrieval", metric="p@1")}
    assert {"one-same/test", "one-other/test"} < named


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--gin.SentenceRetrieval.mixture=none"], "none .test.: not cached"),
        (["--gin.SentenceRetrieval.mixture=t_one"], "has one language .one.: retrieval needs"),
        (["--gin.MaskedAccuracy.baseline=t_other"], "no 'one' to take the unigram baseline from"),
        (["--gin.SentenceRetrieval.layers=[3]"], "from 0 .embeddings. to 2"),
        (["--gin.SentenceRetrieval.head=mlm"], "head = 'mlm': .*it has translation"),
        (["--gin.SentenceRetrieval.similarity=['l2']"], "must be a list of some of 'cosine'"),
        (["--gin.MaskedAccuracy.rate=1.5"], "must be a number, more than 0 and less than 1"),
    ],
)
def test_bad_settings_are_errors_and_leave_no_results(command, model_dir, flags, message):
    with pytest.raises((UserError, ValueError), match=message):
        command(*flags)
    assert not os.path.exists(os.path.join(model_dir, "results.jsonl"))
