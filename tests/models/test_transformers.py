"""A text classifier of transformers, trained here from a small configuration, and its batches."""

import os
from pathlib import Path

import numpy as np
import pytest
from tolerances import assert_close

import whence
from whence.layers.losses import SoftmaxCrossEntropy

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")
tokenizers = pytest.importorskip("tokenizers")

N = 240
LOSS = torch.nn.CrossEntropyLoss()


def sentences():
    """Sentences with labels: of SST-2 where that is at hand, else made of a few words."""
    folder = os.environ.get("WHENCE_DATA")
    if folder and (Path(folder) / "sst2" / "train.tsv").exists():
        lines = (Path(folder) / "sst2" / "train.tsv").read_text().splitlines()
        rows = [line.rsplit("\t", 1) for line in lines[: N + 40]]
        return [text for text, _ in rows], [int(label) for _, label in rows]
    rng = np.random.default_rng(0)
    words = {0: ["dull", "flat", "bad", "long"], 1: ["fresh", "warm", "good", "short"]}
    labels = rng.integers(0, 2, N + 40).tolist()
    texts = []
    for label in labels:
        chosen = rng.choice([*words[label], "a", "the", "film", "plot"], rng.integers(3, 12))
        texts.append(" ".join(chosen))
    return texts, labels


@pytest.fixture(scope="module")
def tokenizer():
    texts, _ = sentences()
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.train_from_iterator(
        texts, tokenizers.trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]"], show_progress=False)
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]"
    )


@pytest.fixture(scope="module")
def table(tokenizer):
    texts, labels = sentences()
    rows = [dict(tokenizer(text)) for text in texts]
    columns = {key: [row[key] for row in rows] for key in ("input_ids", "attention_mask")}
    names = [f"sentence {i}" for i in range(len(texts))]
    return datasets.Dataset.from_dict({**columns, "label": labels, "name": names})


@pytest.fixture(scope="module")
def collate(tokenizer):
    padded = transformers.DataCollatorWithPadding(tokenizer)
    return lambda rows: padded([{k: v for k, v in row.items() if k != "name"} for row in rows])


@pytest.fixture(scope="module")
def net(table, collate, tokenizer):
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(
        vocab_size=len(tokenizer),
        dim=16,
        n_layers=1,
        n_heads=2,
        hidden_dim=16,
        pad_token_id=0,
        max_position_embeddings=128,
        num_labels=2,
    )
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(3):
        for batch in torch.utils.data.DataLoader(table.select(range(N)), 32, collate_fn=collate):
            optimiser.zero_grad()
            model(**batch).loss.backward()
            optimiser.step()
    return model


def batches(table, collate, **options):
    return torch.utils.data.DataLoader(table, 16, collate_fn=collate, **options)


@pytest.fixture(scope="module")
def lje(net, table, collate):
    train = table.select(range(N))
    return whence.RepresenterPointLJE(
        whence.InfluenceModel(net),  # the loss is the one that the model returns
        batches(train, collate),
        whence.ExactIHVPFactory(),
        ids=train["name"],
        progress=False,
    )


def test_the_models_own_loss_and_last_layer(lje, net):
    assert lje.influence_model.layer_name == "classifier"
    assert isinstance(lje.influence_model.loss, SoftmaxCrossEntropy)
    assert net.training


def test_a_loss_that_is_given_and_its_features(lje, net, table, collate):
    train = batches(table.select(range(N)), collate)
    given = whence.InfluenceModel(net, "classifier", loss_function=LOSS).index(train, progress=False)
    net.eval()
    with torch.no_grad():
        logits = torch.cat([net(**batch).logits for batch in train])
    net.train()
    (shard,), (own,) = given.shards, lje.index.shards
    assert_close(shard.phi, own.phi, 1e-6)
    assert_close(lje.layer.pre_activations(shard.phi), logits, 1e-5)


def test_answers_are_complete_and_name_sentences(lje, table, collate):
    test = batches(table.select(range(N, N + 40)), collate)
    explanation = lje.explain(test, k=5)
    assert explanation.ids.shape == (40, 5)
    assert all(name.startswith("sentence ") for name in explanation.ids.ravel())
    every = lje.influences(test, progress=False)
    assert_close(every.sum(axis=1), explanation.totals, 1e-4)


def test_sentences_are_recognised_whatever_they_are_padded_with(lje, table, collate):
    train = table.select(range(N))
    mixed = batches(train, collate, shuffle=True, generator=torch.Generator().manual_seed(0))
    found = torch.cat([values for _, values in lje.compute_influence_values(mixed)])
    in_order = torch.cat([v for _, v in lje.compute_influence_values(batches(train, collate))])
    assert_close(found.sort().values, in_order.sort().values, 1e-6)
    for inputs, values, samples in lje.top_k(batches(table.select(range(N, N + 5)), collate), mixed, k=3):
        assert values.shape == (len(inputs["input_ids"]), 3)
        assert samples["input_ids"].shape[:2] == values.shape
        assert samples["attention_mask"].shape == samples["input_ids"].shape


def test_a_table_is_a_training_set(lje, net, table, tokenizer):
    length = max(map(len, table["input_ids"]))
    even = table.map(lambda row: tokenizer.pad(row, padding="max_length", max_length=length))
    again = whence.RepresenterPointLJE(
        whence.InfluenceModel(net), even.select(range(N)), whence.ExactIHVPFactory(), progress=False
    )
    assert_close(again.theta_dagger, lje.theta_dagger, 1e-3)
    with pytest.raises(whence.WhenceError, match="DataCollatorWithPadding"):
        whence.InfluenceModel(net).index(table, progress=False)


def test_a_config_keeps_what_it_held(net, table, collate):
    net.config.problem_type, before = None, net.config.problem_type
    try:
        whence.InfluenceModel(net).index(batches(table, collate), progress=False)
        assert net.config.problem_type is None
    finally:
        net.config.problem_type = before


def test_a_loss_that_is_doubled(net, table, collate, lje):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, input_ids, attention_mask, labels=None):
            output = self.net(input_ids, attention_mask, labels=labels)
            if labels is not None:
                output.loss = output.loss * 2
            return output

    doubled = whence.InfluenceModel(Own())
    index = doubled.index(batches(table.select(range(N)), collate), progress=False)
    expected = 2 * lje.layer.mean_gradient(lje.index)
    assert_close(doubled.layer.mean_gradient(index), expected, 1e-5)
