"""Rows that PyTorch's hooks record, against gradients of each sample alone by autograd."""

import numpy as np
import pytest
import tolerances

from whence import WhenceError
from whence.layers.products import inner

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional

from whence.models.torch.rows import TorchRows  # noqa: E402


def dense():
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, 4), nn.Tanh()), (5,)


def with_bias_only_behind():
    return nn.Sequential(nn.Linear(5, 7, bias=False), nn.Tanh()), (5,)


def convolutions(n_dims, **options):
    conv = getattr(nn, f"Conv{n_dims}d")
    body = nn.Sequential(conv(4, 6, 3, **options), nn.Tanh(), conv(6, 4, 2), nn.Flatten(1))
    return body, (4, *[9] * n_dims)


def transposed():
    body = [nn.ConvTranspose2d(2, 6, 3, stride=2, padding=1, output_padding=1, groups=2), nn.Tanh()]
    return nn.Sequential(*body, nn.ConvTranspose1d(6, 3, 2) if False else nn.Flatten(1)), (2, 4, 4)


class Residual(nn.Module):
    """Convolutions, normalisations, skip connections and a trunk that is called twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.trunk = nn.Conv2d(4, 4, 3, padding="same", padding_mode="circular")
        self.group = nn.GroupNorm(2, 4)
        self.norm.running_mean.normal_()

    def forward(self, x):
        x = functional.relu(self.norm(self.first(x)))
        x = x + self.trunk(x)
        x = x + torch.sigmoid(self.trunk(self.group(x)))
        return x.mean(dim=(2, 3))


class Attention(nn.Module):
    """Tokens, a learned position (left out), attention, a product with weights of one's own."""

    def __init__(self, batch_first=True):
        super().__init__()
        self.embedding = nn.Embedding(11, 8, padding_idx=0)
        self.place = nn.Parameter(torch.randn(5, 8))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 12, batch_first=batch_first, dropout=0.1)
        self.cross = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.own = nn.Parameter(torch.randn(8, 6))
        self.batch_first = batch_first

    def forward(self, tokens):
        x = self.embedding(tokens) + self.place
        x = x if self.batch_first else x.transpose(0, 1)
        x = self.encoder(x, src_key_padding_mask=tokens == 0)
        x = x + self.cross(x, torch.tanh(x), x)[0]
        x = x if self.batch_first else x.transpose(0, 1)
        return (x @ self.own).mean(dim=1)


class Bags(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.bag = nn.EmbeddingBag(11, 8, mode=mode, padding_idx=3)

    def forward(self, tokens):
        return self.bag(tokens)


class Tied(nn.Module):
    """An embedding whose weights an output layer shares."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.rms = nn.RMSNorm(8)
        self.vocabulary = nn.Linear(8, 11)
        self.vocabulary.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.rms(torch.tanh(self.norm(self.embedding(tokens))))
        return torch.sigmoid(self.vocabulary(x)).mean(dim=1)


class Flattened(nn.Module):
    """A dense layer on positions of all samples at once, as transformers' Conv1D."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 6))
        self.bias = nn.Parameter(torch.randn(6))

    def forward(self, x):
        flat = torch.addmm(self.bias, x.reshape(-1, 5), self.weight)
        return torch.tanh(flat).reshape(len(x), -1, 6).mean(dim=1)


class Places(nn.Module):
    """Embeddings of places that all samples share."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(11, 6), nn.Embedding(5, 6)

    def forward(self, tokens):
        places = torch.arange(tokens.shape[1])[None]
        return torch.tanh(self.words(tokens) + self.places(places)).mean(dim=1)


BODIES = {
    "dense": dense,
    "no bias": with_bias_only_behind,
    "conv1d": lambda: convolutions(1, stride=2, padding=1),
    "conv2d groups": lambda: convolutions(2, groups=2, dilation=2, padding=(1, 2)),
    "conv2d depthwise": lambda: (nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.Flatten(1)), (4, 5, 5)),
    "conv3d": lambda: convolutions(3, stride=(1, 2, 1), bias=False),
    "conv same": lambda: convolutions(2, padding="same", dilation=2),
    "transposed": transposed,
    "residual": lambda: (Residual(), (3, 6, 6)),
    "attention": lambda: (Attention(), (5,)),
    "attention, samples second": lambda: (Attention(batch_first=False), (5,)),
    "bag of means": lambda: (Bags("mean"), (5,)),
    "bag of sums": lambda: (Bags("sum"), (5,)),
    "places": lambda: (Places(), (5,)),
    "tied": lambda: (Tied(), (5,)),
    "conv1d of transformers": lambda: (Flattened(), (4, 5)),
}


class Headed(nn.Module):
    def __init__(self, body, inputs):
        super().__init__()
        self.body = body
        with torch.no_grad():
            width = body.eval()(inputs).shape[-1]
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.body(x))


def network(name, n=6, dtype=torch.float64):
    torch.manual_seed(0)
    body, shape = BODIES[name]()
    body = body.to(dtype)
    has_tokens = any(isinstance(m, nn.Embedding | nn.EmbeddingBag) for m in body.modules())
    x = torch.randint(0, 11, (n, *shape)) if has_tokens else torch.randn(n, *shape, dtype=dtype)
    if name.startswith("attention"):
        x[:, 0] = 1  # one token that is seen
    return Headed(body, x).to(dtype).train(), x


def recorder(model, chosen="all"):
    def call(x, weights):
        return torch.func.functional_call(model, weights, (torch.as_tensor(x),))

    return TorchRows(torch, model, call, "head.weight", chosen)


def recorded(model, x, chosen="all", seed=0):
    """Return the recorder, rows, and each sample's gradient by autograd of the same parameters."""
    made = recorder(model, chosen)
    weights = np.random.default_rng(seed).normal(size=(len(x), 3))
    with made.record(x.numpy(), len(x)) as seen:
        rows = seen.rows(weights)
    every = dict(model.named_parameters())
    parameters = [every[name] for spec in made.layers.values() for name in spec.parameters]
    model.eval()
    expected = []
    for i in range(len(x)):
        s = (model(x[i : i + 1]) * torch.as_tensor(weights[i : i + 1])).sum()
        parts = torch.autograd.grad(s, parameters, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for g, p in zip(parts, parameters, strict=True)]
        expected.append(torch.cat([part.reshape(-1) for part in parts]).numpy())
    model.train()
    return made, rows, np.stack(expected)


@pytest.mark.parametrize("name", BODIES)
def test_rows_are_the_gradients_of_single_samples(name):
    model, x = network(name)
    made, rows, expected = recorded(model, x)
    assert rows.n_weights == expected.shape[1]
    tolerances.assert_close(inner(rows, rows), expected @ expected.T, tolerances.FLOAT64)
    covered = {parameter for spec in made.layers.values() for parameter in spec.parameters}
    left = {parameter for parameter, _ in model.named_parameters()} - covered
    assert left == set(made.left_out)
    assert left == ({"body.place"} if name.startswith("attention") else set())


@pytest.mark.parametrize("name", ["dense", "residual", "attention", "tied"])
def test_rows_do_not_depend_on_the_batch(name):
    model, x = network(name)
    made, rows, expected = recorded(model, x)
    order = np.asarray([3, 1, 4])
    with made.record(x.numpy()[order], 3) as seen:
        some = seen.rows(np.random.default_rng(0).normal(size=(6, 3))[order])
    tolerances.assert_close(inner(some, rows), expected[order] @ expected.T, tolerances.FLOAT64)


@pytest.mark.parametrize("name", BODIES)
def test_the_module_is_left_as_it_was(name):
    model, x = network(name, dtype=torch.float32)
    model.body.requires_grad_(False)  # as for a model of which a part was trained
    for parameter in model.head.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with recorder(model).record(x.numpy(), len(x)) as seen:
        seen.rows(np.ones((len(x), 3)))
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(bool((p.grad == 1).all()) for p in model.head.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in model.body.parameters())


def test_layers_are_chosen_by_name():
    model, x = network("residual")
    made, rows, expected = recorded(model, x, ["body.trunk", "head"])
    assert list(made.layers) == ["body.trunk", "head"]
    assert made.left_out["body.first.weight"] == "not chosen"
    tolerances.assert_close(inner(rows, rows), expected @ expected.T, tolerances.FLOAT64)


def test_a_shared_weight_has_all_its_names():
    model, x = network("tied")
    by_one = recorded(model, x, ["body.embedding"])[1]
    by_other = recorded(model, x, ["body.vocabulary"])[1]
    assert np.array_equal(inner(by_one, by_one), inner(by_other, by_other))
    with pytest.raises(WhenceError, match=r"layers: expected each layer once, got 'body.embedding' twice"):
        recorded(model, x, ["body.embedding", "body.vocabulary"])


class Odd(nn.Module):
    """Weights that are used behind one's back, computed from others, never, or by a recurrent layer."""

    def __init__(self):
        super().__init__()
        self.used_twice = nn.Linear(5, 5)
        self.bound = nn.utils.parametrizations.weight_norm(nn.Linear(5, 5))
        self.never = nn.Linear(5, 5)
        self.recurrent = nn.LSTM(5, 5, batch_first=True)
        self.fine = nn.Linear(5, 5)

    def forward(self, x):
        x = self.used_twice(x) + self.used_twice.weight.sum()
        return self.fine(self.recurrent(self.bound(torch.tanh(x))[:, None])[0][:, 0])


def odd():
    torch.manual_seed(0)
    x = torch.randn(4, 5, dtype=torch.float64)
    return Headed(Odd().double(), x).double(), x


def test_what_is_left_out_is_named_with_the_reason():
    model, x = odd()
    made, rows, expected = recorded(model, x)
    assert list(made.layers) == ["body.fine", "head"]
    tolerances.assert_close(inner(rows, rows), expected @ expected.T, tolerances.FLOAT64)
    assert "also used" in made.left_out["body.used_twice.weight"]
    for name in ("body.never.weight", "body.recurrent.weight_ih_l0", "body.bound.bias"):
        assert "whence does not know" in made.left_out[name]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            ["body.fined"],
            "names of named_modules.., got 'body.fined'. Layers that can be taken are: body.fi",
        ),
        (["body.fine", "body.fine"], "each layer once, got 'body.fine' twice"),
        (["body"], "got 'body', a Odd without weights of its own"),
        (["body.recurrent"], "got 'body.recurrent', a LSTM: a weight of LSTM, used in a way that"),
        (["body.never"], "got 'body.never', a Linear: .*or not at all"),
        (["body.used_twice"], "its weights are also used"),
    ],
)
def test_layers_that_cannot_be_taken_are_refused_by_name(chosen, message):
    model, x = odd()
    with pytest.raises(WhenceError, match=message), recorder(model, chosen).record(x.numpy(), 4):
        pass


def test_samples_that_depend_on_each_other_are_refused():
    class Mixing(nn.Module):
        def forward(self, x):
            return x - x.mean(dim=0)

    x = torch.randn(4, 5, dtype=torch.float64)
    model = Headed(Mixing(), x).double()
    with (
        pytest.raises(WhenceError, match="others for a sample alone"),
        recorder(model).record(x.numpy(), 4),
    ):
        pass


def test_calls_that_depend_on_the_samples_are_refused():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(5, 5)

        def forward(self, x):
            return self.fc(x) if bool((x[:, 0] > 0).any()) else self.fc(self.fc(x))

    x = torch.ones(4, 5, dtype=torch.float64)
    model = Headed(Sometimes().double(), x).double()
    made = recorder(model)
    with made.record(x.numpy(), 4):
        pass
    with pytest.raises(WhenceError, match="1 calls in every forward pass"), made.record(-x.numpy(), 4):
        pass


def test_weight_decay_of_weights_and_biases_apart():
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("first", nn.Linear(4, 5))
    model.add_module("norm", nn.LayerNorm(5))
    model.add_module("head", nn.Linear(5, 3, bias=False))

    def call(x, weights):
        return torch.func.functional_call(model, weights, (torch.as_tensor(x),))

    made = TorchRows(torch, model, call, "head.weight", "all", weight_decay=(0.25, 0.5))
    made.learn(np.zeros((3, 4), "float32"), 3)
    np.testing.assert_array_equal(made.l2(6)["first"], [0.25] * 4 + [0.5])
    np.testing.assert_array_equal(made.l2(6)["head"], [0.25] * 5)
    np.testing.assert_array_equal(made.l2(6)["norm"], [0.25, 0.5])


def test_frozen_layers_are_left_out_unless_all_are():
    model, x = network("dense")
    model.body.requires_grad_(False)
    made = recorder(model)
    with made.record(x.numpy(), len(x)):
        pass
    assert list(made.layers) == ["head"]
    assert "frozen" in made.left_out["body.0.weight"]
    with pytest.raises(WhenceError, match="frozen"), recorder(model, ["body.0"]).record(x.numpy(), len(x)):
        pass
    model.requires_grad_(False)  # as for a model that is used, no more trained
    made = recorder(model)
    with made.record(x.numpy(), len(x)):
        pass
    assert list(made.layers) == ["body.0", "body.2", "head"]


class Recomputed(nn.Module):
    """A layer under gradient checkpointing."""

    def __init__(self, use_reentrant):
        super().__init__()
        self.fc = nn.Linear(5, 4)
        self.use_reentrant = use_reentrant

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(
            lambda z: torch.tanh(self.fc(z)), x, use_reentrant=self.use_reentrant
        )


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_gradient_checkpointing():
    x = torch.randn(4, 5, dtype=torch.float64)
    model = Headed(Recomputed(False).double(), x).double()
    made, rows, expected = recorded(model, x)
    assert list(made.layers) == ["body.fc", "head"]
    tolerances.assert_close(inner(rows, rows), expected @ expected.T, tolerances.FLOAT64)
    model.body.use_reentrant = True
    made = recorder(model)
    with made.record(x.numpy(), 4):
        pass
    assert list(made.layers) == ["head"]
    assert "without gradients" in made.left_out["body.fc.weight"]


def test_weights_whose_gradient_is_rounding_are_kept():
    class Keys(nn.Module):
        """Attention, to which a bias of its keys makes no difference."""

        def __init__(self):
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))

        def forward(self, x):
            parts = (layer(x)[:, None] for layer in (self.query, self.key, self.value))
            return functional.scaled_dot_product_attention(*parts)[:, 0].mean(dim=1)

    x = torch.randn(6, 3, 4)
    model = Headed(Keys(), x)
    made = recorder(model)
    with made.record(x.numpy(), 6):
        pass
    assert list(made.layers) == ["body.query", "body.key", "body.value", "head"]


def test_places_that_stand_for_one_sample_are_left_out():
    class Repeated(Places):
        def forward(self, tokens):
            places = self.places(torch.arange(tokens.shape[1])[None]).repeat(len(tokens), 1, 1)
            return torch.tanh(self.words(tokens) + places).mean(dim=1)

    x = torch.randint(0, 11, (4, 5))
    model = Headed(Repeated(), x).double()
    made, rows, expected = recorded(model, x)
    assert list(made.layers) == ["body.words", "head"]
    assert "mixes the samples" in made.left_out["body.places.weight"]
    tolerances.assert_close(inner(rows, rows), expected @ expected.T, tolerances.FLOAT64)
