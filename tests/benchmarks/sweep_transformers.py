"""The side of Transformers in sweep.py, which writes the folder and starts this in a process.

    python tests/benchmarks/sweep_transformers.py FOLDER

Evaluates all checkpoints in FOLDER/theirs with Transformers, sentence-transformers and faiss, and
writes P@1 by checkpoint, text and layer to FOLDER/theirs.json. It imports nothing of ours.
"""

import glob
import json
import os
import sys
from collections.abc import Sequence

import numpy as np

BATCH = 64  # sentences


def split_texts(flat: np.ndarray) -> dict[str, dict[str, list]]:
    """The inverse of `sweep.flat_texts`: text -> language -> token ids of each sentence."""
    edges = np.flatnonzero(np.any(np.diff(flat[:, :3], axis=0), axis=1)) + 1
    texts: dict[str, dict[str, list]] = {}
    for part in np.split(flat, edges):
        name, language = chr(part[0, 0]), f"l{part[0, 1]}"
        texts.setdefault(name, {}).setdefault(language, []).append(part[:, 3])
    return texts


def evaluate_all(folder: str) -> None:
    """Evaluates all checkpoints in a folder of `sweep.py`."""
    import torch
    import transformers

    texts = np.load(f"{folder}/texts.npy", allow_pickle=False)
    by_text = split_texts(texts)
    with open(f"{folder}/special.json") as file:
        special = json.load(file)
    found = {}
    for path in sorted(glob.glob(f"{folder}/theirs/*"), key=lambda p: int(os.path.basename(p))):
        model = transformers.AutoModelForMaskedLM.from_pretrained(path).eval()
        with torch.inference_mode():
            masked(model, [s for own in by_text["a"].values() for s in own], special)
            for name, languages in by_text.items():
                vectors = {k: encode(model, own, special) for k, own in languages.items()}
                found[f"{os.path.basename(path)}/{name}"] = retrieval(vectors)
                if name == "a":
                    mining(vectors)
    with open(f"{folder}/theirs.json", "w") as file:
        json.dump(found, file)


def batches(sentences: Sequence, special: dict):
    """Token ids and masks of batches by length, with the sentences' numbers."""
    import torch

    order = np.argsort([len(s) for s in sentences], kind="stable")
    for first in range(0, len(order), BATCH):
        chosen = order[first : first + BATCH]
        longest = max(len(sentences[i]) for i in chosen) + 2
        ids = np.full((len(chosen), longest), special["pad"])
        for row, i in enumerate(chosen):
            framed = [special["cls"], *sentences[i], special["sep"]]
            ids[row, : len(framed)] = framed
        yield torch.tensor(ids), torch.tensor(ids != special["pad"]), chosen


def encode(model, sentences: Sequence, special: dict) -> np.ndarray:
    """Means over tokens without special ones, of all layers: float32[Layers, N, D]."""
    output = None
    for ids, mask, chosen in batches(sentences, special):
        base = getattr(model, model.base_model_prefix)
        states = base(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        inside = mask & (ids != special["cls"]) & (ids != special["sep"])
        weights = inside / inside.sum(dim=1, keepdim=True)
        for layer, h in enumerate(states):
            mean = (h * weights[:, :, None]).sum(dim=1).numpy()
            if output is None:
                output = np.empty((len(states), len(sentences), mean.shape[1]), np.float32)
            output[layer, chosen] = mean
    return output


def masked(model, sentences: Sequence, special: dict) -> tuple[float, float]:
    """Loss and accuracy of 15 % of the tokens."""
    import torch

    generator, total, right, count = torch.Generator().manual_seed(0), 0.0, 0, 0
    for ids, mask, _ in batches(sentences, special):
        inside = mask & (ids != special["cls"]) & (ids != special["sep"])
        chosen = inside & (torch.rand(ids.shape, generator=generator) < 0.15)
        hidden = ids.masked_fill(chosen, special["mask"])
        logits = model(input_ids=hidden, attention_mask=mask).logits[chosen]
        total += float(torch.nn.functional.cross_entropy(logits, ids[chosen], reduction="sum"))
        right += int((logits.argmax(dim=-1) == ids[chosen]).sum())
        count += int(chosen.sum())
    return total / count, right / count


def retrieval(vectors: dict[str, np.ndarray]) -> list[float]:
    """P@1 by cosine of each layer, the mean over all ordered pairs of languages."""
    from sentence_transformers import util

    scores = []
    for layer in range(len(next(iter(vectors.values())))):
        own = []
        for x, queries in vectors.items():
            for y, candidates in vectors.items():
                if x != y:
                    hits = util.semantic_search(queries[layer], candidates[layer], top_k=1)
                    own.append(np.mean([h[0]["corpus_id"] == i for i, h in enumerate(hits)]))
        scores.append(float(np.mean(own)))
    return scores


def mining(vectors: dict[str, np.ndarray]) -> list[float]:
    """F1 of each layer and pair on one half of the sentences, at the threshold of the other."""
    names, scores = list(vectors), []
    number = np.arange(vectors[names[0]].shape[1])
    halves = number[number % 2 == 0], number[number % 2 == 1]
    for layer in range(len(vectors[names[0]])):
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                mined = []
                for own in halves:  # half of the sentences of each have a translation
                    kept = own[own // 2 % 4 != 3], own[own // 2 % 4 != 2]
                    x, y = vectors[a][layer][kept[0]], vectors[b][layer][kept[1]]
                    rows, columns, margins = mined_pairs(x, y)
                    gold = (own // 2 % 4 < 2).sum()
                    mined.append((kept[0][rows] == kept[1][columns], margins, gold))
                (right, margins, gold), (test_right, test_margins, test_gold) = mined
                f1 = 2 * np.cumsum(right) / (np.arange(1, len(right) + 1) + gold)
                accepted = test_margins >= margins[f1.argmax()]
                found = test_right[accepted].sum()
                scores.append(float(2 * found / (accepted.sum() + test_gold)))
    return scores


def mined_pairs(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of x and of y that belong together, one-to-one, by ratio margin (k = 4), best first."""
    import faiss

    def neighbours(queries, candidates):
        index = faiss.IndexFlatIP(queries.shape[1])
        index.add(candidates)
        return index.search(queries, 4)

    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    (x_cos, x_to_y), (y_cos, y_to_x) = neighbours(x, y), neighbours(y, x)
    x_mean, y_mean = x_cos.mean(axis=1), y_cos.mean(axis=1)
    forward = x_cos / ((x_mean[:, None] + y_mean[x_to_y]) / 2)
    backward = y_cos / ((y_mean[:, None] + x_mean[y_to_x]) / 2)
    rows, columns = np.arange(len(x)), np.arange(len(y))
    pairs = np.concatenate(
        [
            np.stack([rows, x_to_y[rows, forward.argmax(axis=1)]]),
            np.stack([y_to_x[columns, backward.argmax(axis=1)], columns]),
        ],
        axis=1,
    )
    margins = np.concatenate([forward.max(axis=1), backward.max(axis=1)])
    taken_x, taken_y, taken = set(), set(), []
    for i in np.argsort(-margins):
        a, b = pairs[:, i].tolist()
        if a not in taken_x and b not in taken_y:
            taken_x.add(a)
            taken_y.add(b)
            taken.append(i)
    return *pairs[:, taken], margins[taken]


if __name__ == "__main__":
    evaluate_all(sys.argv[1])
