import torch
from sklearn.datasets import load_digits

import whence

x, y = load_digits(return_X_y=True)
x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
train = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x[:1500], y[:1500]), 64)
net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
optimizer, loss = torch.optim.Adam(net.parameters()), torch.nn.CrossEntropyLoss()
for inputs, labels in [batch for _ in range(20) for batch in train]:
    optimizer.zero_grad()
    loss(net(inputs), labels).backward()
    optimizer.step()

model = whence.InfluenceModel(net, loss_function=loss)  # the last linear layer
lje = whence.RepresenterPointLJE(model, train, whence.ExactIHVPFactory())
print(lje.explain((x[1500:1508], y[1500:1508]), k=5).ids)
print(lje.suspects(train, k=10).ids)
