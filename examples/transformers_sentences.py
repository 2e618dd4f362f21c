import datasets
import torch
from transformers import AutoModelForSequenceClassification, DistilBertConfig

import whence

texts = [f"a {how} {what}" for how in ("warm", "fresh", "dull", "flat") for what in ("film", "plot", "end")]
words = sorted({word for text in texts for word in text.split()})
rows = {"input_ids": [[words.index(word) for word in text.split()] for text in texts]}
table = datasets.Dataset.from_dict({**rows, "labels": [1] * 6 + [0] * 6, "text": texts})
config = DistilBertConfig(vocab_size=len(words), dim=16, n_layers=1, n_heads=2, hidden_dim=16, num_labels=2)
net = AutoModelForSequenceClassification.from_config(config)  # or .from_pretrained(...)
optimizer, batch = torch.optim.Adam(net.parameters(), 1e-2), table.with_format("torch")[:]
for _ in range(30):
    optimizer.zero_grad()
    net(batch["input_ids"], labels=batch["labels"]).loss.backward()
    optimizer.step()
lje = whence.RepresenterPointLJE(whence.InfluenceModel(net), table, whence.ExactIHVPFactory(), ids=texts)
print(lje.explain(table.select(range(2)), k=3).ids)
