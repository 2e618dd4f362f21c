"""Which sentences a text classifier answers from, and how well it finds flipped labels: on SST-2.

    python benchmarks/sst2.py --data ../shared/data/sst2

The folder holds ``train.tsv`` and ``dev.tsv``, lines of ``sentence<TAB>label``; ``$WHENCE_DATA/sst2`` is
looked in by default. A small DistilBERT with random weights is trained on the training sentences. Printed:

- for a few development sentences, drawn at random, the strongest training sentences either way;
- over all development sentences: how often those have the label that the model predicts, how many
  different ones there are, how often they share a rare word with the sentence explained, how badly the
  model fits them, beside what other methods and chance give;
- whether leaving the sentences listed out, one at a time, and training the last layer again does to the
  predictions what their values say (the layer is first trained to its damped minimum);
- with a tenth of the training labels flipped before training, the area under the ROC curve of finding
  them, and the share of them among the first tenth of a ranking.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
from _common import parser

SPECIAL = ["[PAD]", "[UNK]", "[CLS]"]
SCORES = ("ridge", "leave_one_out", "loss", "self_influence")
FLIPPED = 0.1
#: Share of words hidden in training; it keeps a model this small from learning sentences by heart.
HIDDEN_WORDS = 0.2
#: A word is rare if at most this share of the training sentences has it.
RARE = 0.01
K = 5
#: Development loss is lowest after two passes (of one, two and three; mean of two seeds).
EPOCHS = 2

Texts = tuple[list[str], np.ndarray]


def texts_of(path: Path) -> Texts:
    """Return sentences and labels."""
    lines = path.read_text(encoding="utf-8").splitlines()
    sentences, labels = zip(*(line.rsplit("\t", 1) for line in lines), strict=True)
    return list(sentences), np.asarray(labels, dtype=np.int64)


def first(texts: Texts, count: int) -> Texts:
    """Return the first sentences."""
    return texts[0][:count], texts[1][:count]


class Encoder:
    """Words to batches that a model of transformers takes: every word that two sentences have."""

    def __init__(self, sentences: list[str]) -> None:
        from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
        from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast
        from transformers.utils import logging

        logging.set_verbosity_error()
        words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        words.train_from_iterator(
            sentences,
            trainers.WordLevelTrainer(min_frequency=2, special_tokens=SPECIAL, show_progress=False),
        )
        words.post_processor = processors.TemplateProcessing(
            single="[CLS] $A", special_tokens=[("[CLS]", SPECIAL.index("[CLS]"))]
        )
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]"
        )
        self._collate = DataCollatorWithPadding(self.tokenizer)

    def batches(self, texts: Texts, size: int = 64, **options: Any) -> Any:
        """Return a loader of dict batches: ids, mask and labels."""
        from torch.utils.data import DataLoader

        encoded = self.tokenizer(texts[0], return_token_type_ids=False)
        rows = [
            {"input_ids": ids, "attention_mask": mask, "labels": int(label)}
            for ids, mask, label in zip(
                encoded["input_ids"], encoded["attention_mask"], texts[1], strict=True
            )
        ]
        return DataLoader(rows, size, collate_fn=self._collate, **options)


def trained(encoder: Encoder, texts: Texts, seed: int, epochs: int) -> Any:
    """Return a classifier trained from random weights."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.DistilBertConfig(
        vocab_size=len(encoder.tokenizer),
        dim=64,
        n_layers=1,
        n_heads=4,
        hidden_dim=128,
        max_position_embeddings=128,
        pad_token_id=SPECIAL.index("[PAD]"),
        dropout=0.3,
        seq_classif_dropout=0.3,
        num_labels=2,
    )
    net = transformers.AutoModelForSequenceClassification.from_config(config)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    net.train()
    for _ in range(epochs):
        for batch in encoder.batches(texts, 32, shuffle=True):
            ids = batch["input_ids"]
            hidden = (torch.rand(ids.shape) < HIDDEN_WORDS) & (ids >= len(SPECIAL))
            batch["input_ids"] = ids.masked_fill(hidden, SPECIAL.index("[UNK]"))
            optimiser.zero_grad()
            net(**batch).loss.backward()
            optimiser.step()
    return net.eval()


# ---- explanations -------------------------------------------------------------------------------


def methods_of(net: Any, train: Any) -> dict[str, Any]:
    """Return LJE and what it is compared with, all on the pre-activation of the predicted class."""
    import whence

    model, factory = whence.InfluenceModel(net), whence.ExactIHVPFactory()
    asked = {"effect_on": "pre_activation", "progress": False}
    return {
        "LJE": whence.RepresenterPointLJE(model, train, factory, progress=False),
        "RelatIF": whence.InfluenceFunctions(model, train, factory, normalisation="loss", **asked),
        "gradient cosine": whence.GradientCosine(model, train, **asked),
        "feature similarity": whence.FeatureSimilarity(model, train, progress=False),
    }


def show(explanation: Any, sentences: list[str], train: list[str]) -> None:
    """Print each prediction with its supporters and opponents."""
    for row in range(len(explanation)):
        print(
            f'\n[{row + 1}] "{sentences[row]}"\n    label {explanation.labels[row]}, predicted '
            f"{explanation.predictions[row]}, pre-activation {explanation.pre_activations[row]:+.3f}, "
            f"sum of all values {explanation.totals[row]:+.3f}"
        )
        for title, ids, values, labels in (
            ("for", explanation.ids, explanation.values, explanation.training_labels),
            ("against", explanation.opponent_ids, explanation.opponent_values, explanation.opponent_labels),
        ):
            print(f"  {title}:")
            for sample, value, label in zip(ids[row], values[row], labels[row], strict=True):
                print(f"    {value:+.5f}  [{label}]  {train[int(sample)]}")


def rare_words(sentences: list[str], train: list[str]) -> list[set[str]]:
    """Return the words of each sentence that are rare among the training sentences, but known there."""
    from collections import Counter

    counts = Counter(word for sentence in train for word in set(sentence.split()))
    most = RARE * len(train)
    return [{word for word in sentence.split() if 0 < counts[word] <= most} for sentence in sentences]


def summary(methods: dict[str, Any], encoder: Encoder, train: Texts, dev: Texts) -> None:
    """Print what the strongest training sentences have in common with the predictions, over all of them."""
    losses = np.empty(len(train[1]))
    ranked = methods["LJE"].suspects(encoder.batches(train), None, score="loss")
    losses[ranked.ids] = ranked.scores
    words, train_words = rare_words(dev[0], train[0]), rare_words(train[0], train[0])
    rng = np.random.default_rng(0)
    features = np.concatenate([np.asarray(shard.phi, np.float64) for shard in methods["LJE"].index.shards])
    spread = np.linalg.svd(features - features.mean(axis=0), compute_uv=False) ** 2
    print(
        f"\nthe first two directions have {spread[:2].sum() / spread.sum():.1%} of the features' variance"
        f"\nover {len(dev[1])} development sentences, {K} training sentences each way; the median loss of "
        f"a training sentence is {np.median(losses):.3f}\n"
        f"{'':31s}{'label predicted':>17s}{'different':>16s}{'same rare word':>17s}{'median loss':>13s}"
    )
    rows: list[tuple[str, np.ndarray, np.ndarray]] = []
    for name, method in methods.items():
        found = method.explain(encoder.batches(dev), K, progress=False)
        rows.append((f"{name}, for", found.ids, found.predictions))
        rows.append((f"{name}, against", found.opponent_ids, found.predictions))
    predictions = rows[0][2]
    by_class = [np.flatnonzero(train[1] == c) for c in (0, 1)]
    drawn = np.stack([rng.choice(by_class[c], K, replace=False) for c in predictions])
    rows.append(("drawn from the predicted class", drawn, predictions))
    for name, ids, predicted in rows:
        ids = ids.astype(np.int64)
        same = (train[1][ids] == predicted[:, None]).mean()
        shared = np.mean([bool(words[t] & train_words[i]) for t, of_one in enumerate(ids) for i in of_one])
        print(
            f"{name:31s}{same:17.1%}{np.unique(ids).size:10d}/{ids.size:<6d}{shared:17.1%}"
            f"{np.median(losses[ids]):13.3f}"
        )


def left_out(net: Any, train: Any, some: Any) -> None:
    """Print how well values agree with leaving sentences out; moves the last layer to its minimum."""
    import torch

    import whence
    from whence.evaluation import LayerRetraining, agreement, leave_one_out

    factory, silent = whence.ExactIHVPFactory(), {"progress": False}

    def influence() -> Any:
        model = whence.InfluenceModel(net)
        return whence.InfluenceFunctions(model, train, factory, effect_on="pre_activation", **silent)

    theta = LayerRetraining(influence(), some).theta
    with torch.no_grad():
        net.classifier.weight.copy_(torch.from_numpy(theta[:-1].T))
        net.classifier.bias.copy_(torch.from_numpy(theta[-1]))
    lje = whence.RepresenterPointLJE(whence.InfluenceModel(net), train, factory, **silent)
    found = lje.explain(some, K, **silent)
    rows = np.unique(np.concatenate([found.ids, found.opponent_ids], axis=None).astype(np.int64))
    frame = leave_one_out(lje, some, rows=rows, retraining=LayerRetraining(influence(), some), **silent)
    agreed = agreement(frame)
    actual = {(row.sample, row.training_id): row.actual for row in frame.itertuples()}
    falls = np.asarray([[actual[t, i] for i in ids] for t, ids in enumerate(found.ids)])
    other = found.training_labels != found.outputs[:, None]
    print(
        f"\n{rows.size} sentences left out one by one, last layer trained again: correlation with values "
        f"at least {agreed['pearson'].min():.4f} (Pearson), {agreed['spearman'].min():.4f} (Spearman)\n"
        f"{other.mean():.1%} of {other.size} supporters have another label than the one predicted; without "
        f"one of those the prediction falls in {(falls[other] > 0).sum()} of {other.sum()} cases"
    )


def explanations(train: Texts, dev: Texts, shown: list[str], count: int, seed: int, epochs: int) -> None:
    """Train on the labels as they are, and print what predictions come from."""
    start = time.perf_counter()
    encoder = Encoder(train[0])
    net = trained(encoder, train, seed, epochs)
    took = time.perf_counter() - start
    methods = methods_of(net, encoder.batches(train))
    chosen = np.sort(np.random.default_rng(0).choice(len(dev[1]), count, replace=False))
    some = [dev[0][i] for i in chosen], dev[1][chosen]
    everything = methods["LJE"].explain(encoder.batches(dev), 1, progress=False)
    right = (everything.predictions == dev[1]).mean()
    print(
        f"{len(train[1])} training sentences, {len(encoder.tokenizer)} words, trained in {took:.0f} s; "
        f"{right:.1%} of {len(dev[1])} development sentences predicted right"
    )
    for name in shown:
        print(f"\n==== {name}")
        show(methods[name].explain(encoder.batches(some), K, progress=False), some[0], train[0])
    summary(methods, encoder, train, dev)
    left_out(net, encoder.batches(train), encoder.batches(some))


# ---- flipped labels -----------------------------------------------------------------------------


def flips(train: Texts, seed: int, epochs: int) -> dict[str, tuple[float, float]]:
    """Train on flipped labels; return area and share found in the first tenth, for every score."""
    from sklearn.metrics import roc_auc_score

    import whence
    from whence.evaluation import flip_labels

    labels, wrong = flip_labels(train[1], FLIPPED, seed=seed)
    encoder = Encoder(train[0])
    net = trained(encoder, (train[0], labels), seed, epochs)
    batches = encoder.batches((train[0], labels))
    lje = whence.RepresenterPointLJE(
        whence.InfluenceModel(net), batches, whence.ExactIHVPFactory(), progress=False
    )
    result = {}
    for score in SCORES:
        ranked = lje.suspects(batches, None, score=score)
        is_wrong = wrong[ranked.ids]
        found = is_wrong[: round(FLIPPED * wrong.size)].sum() / wrong.sum()
        result[score] = float(roc_auc_score(is_wrong, ranked.scores)), float(found)
    return result


def label_errors(train: Texts, seeds: int, epochs: int) -> None:
    """Print a table of flipped labels found."""
    runs = [flips(train, seed, epochs) for seed in range(seeds)]
    print(f"\n{FLIPPED:.0%} of the labels flipped, {seeds} seeds, {epochs} epochs")
    print(f"{'ranked by':20s}{'ROC-AUC':>16s}{'in first 10 %':>16s}   ROC-AUC of each seed")
    for score in SCORES:
        areas, shares = np.asarray([run[score] for run in runs]).T
        print(
            f"{score:20s}{areas.mean():9.4f} ±{areas.std():.4f}{shares.mean():10.3f} ±{shares.std():.3f}   "
            + " ".join(f"{area:.4f}" for area in areas)
        )


def folder_of(named: str | None) -> Path | None:
    """Return where the data is; None if nobody said, or if it is not there and nobody said it was."""
    if named is not None:
        folder = Path(named)
        if not (folder / "train.tsv").is_file():
            sys.exit(f"There is no train.tsv in {folder}")
        return folder
    around = os.environ.get("WHENCE_DATA")
    candidates = [] if around is None else [Path(around) / "sst2", Path(around)]
    return next((c for c in candidates if (c / "train.tsv").is_file()), None)


def main() -> None:
    """Print explanations, their summary, and the table of label errors."""
    options = parser(__doc__)
    options.add_argument("--data", help="where train.tsv and dev.tsv are")
    options.add_argument("--seeds", type=int, default=3, help="of the runs with flipped labels")
    options.add_argument("--epochs", type=int, default=EPOCHS)
    options.add_argument("--sentences", type=int, default=8, help="development sentences to explain")
    options.add_argument(
        "--show", nargs="*", default=["LJE"], help="methods whose sentences are listed: LJE, RelatIF, ..."
    )
    chosen = options.parse_args()
    folder = folder_of(chosen.data)
    if folder is None:
        print("SST-2 is not here: nothing was measured. Give its folder: benchmarks/sst2.py --data FOLDER")
        return
    train, dev = texts_of(folder / "train.tsv"), texts_of(folder / "dev.tsv")
    count, seeds, epochs = chosen.sentences, chosen.seeds, chosen.epochs
    if chosen.smoke:
        train, dev, count, seeds, epochs = first(train, 400), first(dev, 40), 1, 1, 1
    explanations(train, dev, chosen.show, count, 0, epochs)
    label_errors(train, seeds, epochs)


if __name__ == "__main__":
    main()
