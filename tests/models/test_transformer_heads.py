"""Heads of transformers: one token's, every token's, of encoder-decoders, with LoRA; against autograd."""

import numpy as np
import pytest
from tolerances import assert_close

import whence
from whence.layers.losses import SoftmaxCrossEntropy

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")

V, L, N = 20, 7, 12
RNG = np.random.default_rng(0)
IDS = torch.tensor(RNG.integers(3, V, (N, L)))
LENGTHS = torch.tensor([7, 3, 5, 4, 7, 6, 3, 5, 4, 7, 6, 5])
CLASSES = torch.tensor(RNG.integers(0, 3, N))
SIZES = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
TOKENS = {"vocab_size": V, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
GPT2 = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
DECODERS = {
    "GPT2": GPT2,
    "Llama": SIZES,
    "Mistral": SIZES,
    "Qwen2": SIZES,
    "Gemma": {"head_dim": 4, **SIZES},
}


def made(name, head, **options):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**TOKENS, **options)
    return getattr(transformers, f"{name}{head}")(config).double().eval()


def texts(left=False, **more):
    """Batches of padded texts, of two lengths."""
    batches = []
    for rows, length in ((slice(0, 5), 7), (slice(5, N), 6)):
        mask = (torch.arange(length) < LENGTHS[rows, None].clamp(max=length)).long()
        mask = mask.flip(1) if left else mask
        batch = {"input_ids": IDS[rows, :length] * mask, "attention_mask": mask}
        batches.append({**batch, **{key: value[rows] for key, value in more.items()}})
    return batches


def gradients(model, wrapped, batches, head):
    """The mean gradient of the samples' own losses: the library's, and by autograd one by one."""
    index = wrapped.index(batches, progress=False)
    got = wrapped.layer.mean_gradient(index)
    model.zero_grad()
    for batch in batches:
        for i in range(len(batch["input_ids"])):
            (model(**{key: value[i : i + 1] for key, value in batch.items()}).loss / N).backward()
    return got, model.get_submodule(head).weight.grad.T


@pytest.mark.parametrize("left", [False, True], ids=["padded right", "padded left"])
@pytest.mark.parametrize("name", DECODERS)
def test_classifiers_that_pick_the_last_token(name, left):
    model = made(name, "ForSequenceClassification", num_labels=3, **DECODERS[name])
    wrapped = whence.InfluenceModel(model)
    batches = texts(left, labels=CLASSES)
    assert_close(*gradients(model, wrapped, batches, "score"), 1e-6)
    assert wrapped.layer_name == "score"
    assert wrapped.loss == SoftmaxCrossEntropy()
    lje = whence.RepresenterPointLJE(wrapped, batches, whence.ExactIHVPFactory(), progress=False)
    explanation = lje.explain([{k: v for k, v in batches[0].items() if k != "labels"}], k=3)
    with torch.no_grad():
        logits = model(**batches[0]).logits.numpy()
    np.testing.assert_array_equal(explanation.predictions, logits.argmax(axis=1))
    assert_close(explanation.pre_activations, logits.max(axis=1), 1e-6)


def test_regression_and_several_labels_of_a_decoder():
    tags = torch.tensor(RNG.integers(0, 2, (N, 3))).double()
    for labels, n_labels in ((torch.tensor(RNG.normal(size=N)), 1), (tags, 3)):
        model = made("GPT2", "ForSequenceClassification", num_labels=n_labels, **GPT2)
        wrapped = whence.InfluenceModel(model)
        assert_close(*gradients(model, wrapped, texts(labels=labels), "score"), 1e-6)
        model.config.problem_type = None


@pytest.mark.parametrize("name", ["GPT2", "Llama"])
def test_the_next_token_is_what_causal_models_learn(name):
    head = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    model = made(name, head, tie_word_embeddings=False, **DECODERS[name])
    batches = texts()
    for batch in batches:
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    wrapped = whence.InfluenceModel(model)
    assert_close(*gradients(model, wrapped, batches, "lm_head"), 1e-6)


def test_weights_that_serve_elsewhere_too():
    model = made("GPT2", "LMHeadModel", **GPT2)
    batches = [{**batch, "labels": batch["input_ids"]} for batch in texts()]
    with pytest.warns(UserWarning, match="held fixed"):
        whence.InfluenceModel(model).index(batches, progress=False)


def test_padding_that_a_causal_model_learns_counts():
    model = made("GPT2", "LMHeadModel", tie_word_embeddings=False, **GPT2)
    batches = texts()
    for batch in batches:
        batch["labels"] = batch["input_ids"]  # padding and all
    assert_close(*gradients(model, whence.InfluenceModel(model), batches, "lm_head"), 1e-6)


def test_labels_of_tokens():
    model = made("Bert", "ForTokenClassification", num_labels=3, **SIZES)
    labels = torch.tensor(RNG.integers(0, 3, (N, L)))
    batches = texts()
    for batch, rows in zip(batches, (slice(0, 5), slice(5, N)), strict=True):
        length = batch["input_ids"].shape[1]
        batch["labels"] = labels[rows, :length].masked_fill(batch["attention_mask"] == 0, -100)
    got, expected = gradients(model, whence.InfluenceModel(model), batches, "classifier")
    assert_close(got[:-1], expected, 1e-6)


def test_encoder_decoders_get_their_labels():
    model = made(
        "T5",
        "ForConditionalGeneration",
        d_model=8,
        d_kv=4,
        d_ff=8,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    labels = torch.tensor(RNG.integers(2, V, (N, 4)))
    labels[::2, 3] = -100
    wrapped = whence.InfluenceModel(model)
    batches = texts(labels=labels)
    assert_close(*gradients(model, wrapped, batches, "lm_head"), 1e-6)
    given = whence.InfluenceModel(model, "lm_head", loss_function=torch.nn.CrossEntropyLoss())
    own, other = (w.layer.mean_gradient(w.index(batches, progress=False)) for w in (wrapped, given))
    assert_close(own, other, 1e-6)
    lje = whence.RepresenterPointLJE(wrapped, batches, whence.KroneckerIHVPFactory(), progress=False)
    question = {k: v for k, v in batches[0].items() if k != "labels"}
    with pytest.raises(whence.WhenceError, match="decoder_input_ids"):
        lje.explain([question], k=1)
    fed = {**question, "decoder_input_ids": torch.zeros(5, 1, dtype=torch.long)}
    assert lje.explain([fed], k=1).ids.shape == (5, 1)


def lora(model, targets, **options):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False, **options)
    return peft.get_peft_model(model, config).double().eval()


def test_lora_on_the_head_is_merged():
    plain = made("GPT2", "ForSequenceClassification", num_labels=3, **GPT2)
    batches = texts(labels=CLASSES)
    tuned = lora(plain, ["score"])
    wrapped = whence.InfluenceModel(tuned)
    index = wrapped.index(batches, progress=False)
    got = wrapped.layer.mean_gradient(index)
    assert wrapped.layer_name.endswith("score")
    assert "lora" not in wrapped.layer_name
    merged = tuned.merge_and_unload()
    assert_close(wrapped.layer.theta, merged.score.weight.T.detach(), 1e-9)
    for parameter in merged.parameters():
        parameter.requires_grad_()
    expected = gradients(merged, whence.InfluenceModel(merged), batches, "score")[1]
    assert_close(got, expected, 1e-6)


def test_lora_below_a_head_that_is_trained_whole():
    tuned = lora(
        made("Llama", "ForSequenceClassification", num_labels=3, **SIZES),
        ["q_proj", "v_proj"],
        modules_to_save=["score"],
    )
    batches = texts(labels=CLASSES)
    wrapped = whence.InfluenceModel(tuned)
    head = "base_model.model.score.modules_to_save.default"
    assert_close(*gradients(tuned, wrapped, batches, head), 1e-6)
    assert wrapped.layer_name == head


def test_lora_that_is_no_sum_of_weights_is_refused():
    tuned = lora(made("GPT2", "ForSequenceClassification", num_labels=3, **GPT2), ["score"], use_dora=True)
    for parameter in tuned.parameters():
        with torch.no_grad():
            parameter.mul_(1.1)
    with pytest.raises(whence.WhenceError, match="merge_and_unload"):
        whence.InfluenceModel(tuned).index(texts(labels=CLASSES), progress=False)
