"""Networks that are built differently, with random weights and data of their own, to try every stage on.

    python benchmarks/networks.py [NAME ...]

prints for each how its logits vary. A network as its library initialises it says nothing of parity: its logits
hardly depend on the input. :func:`calibrated` spreads activations and logits, and :func:`task_data` labels
structured random inputs with the network's own answers, so that accuracy is agreement with the network.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.adapter import adapt
from autocompress.data.task import Split, TaskData, Tensors
from autocompress.torchvision_compat import import_torchvision

CLASSES = 10
TOKENS = 500
LONGEST = 24
SHORTEST = 6
_OWN_TOKENS, _OWN_SHARE = 10, 0.8  # of each class, and how many of a text are among them
_BATCH = 64
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_NORMS = (*_BATCH_NORMS, nn.LayerNorm, nn.GroupNorm)
_GATE_SPREAD = 0.05
_RIDGE = 1.0  # relative to the mean eigenvalue
_BARELY = 1e-2  # layer scales begin below this, so that training starts from the identity


class Network(NamedTuple):
    """A network as its library makes it, and what it takes.

    Attributes:
        example: inputs of two rows; their shapes and types say what the data are.
        by_name: as in :class:`autocompress.data.task.TaskData`.
    """

    model: nn.Module
    example: Tensors
    input_names: tuple[str, ...]
    by_name: bool


# Networks


def _image(model: nn.Module, side: int) -> Network:
    return Network(model, (torch.randn(2, 3, side, side),), ("image",), False)


def _torchvision(name: str, side: int = 64, **arguments: Any) -> Network:
    models = import_torchvision().models
    return _image(models.get_model(name, weights=None, num_classes=CLASSES, **arguments), side)


def _timm(name: str, side: int = 64) -> Network:
    import_torchvision()
    import timm

    return _image(timm.create_model(name, pretrained=False, num_classes=CLASSES), side)


def _transformers(name: str, **arguments: Any) -> Network:
    from autocompress.transformers_source import import_transformers

    library = import_transformers()
    config = getattr(library, f"{name}Config")(vocab_size=TOKENS, num_labels=CLASSES, pad_token_id=0, **arguments)
    model = getattr(library, f"{name}ForSequenceClassification")(config)
    ids = torch.randint(1, TOKENS, (2, LONGEST))
    return Network(model, (ids, torch.ones_like(ids)), ("input_ids", "attention_mask"), True)


def _mlp() -> Network:
    layers = [nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, CLASSES)]
    return Network(nn.Sequential(*layers), (torch.randn(2, 20),), ("features",), False)


class _Audio(nn.Module):
    """Convolutions over a second of sound: (n, 1, 16000) -> (n, classes)."""

    def __init__(self) -> None:
        super().__init__()
        widths = [(1, 32, 80, 4), (32, 64, 3, 1), (64, 128, 3, 1)]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv1d(n, m, size, stride), nn.BatchNorm1d(m), nn.ReLU(), nn.MaxPool1d(4))
                for n, m, size, stride in widths
            )
        )
        self.linear = nn.Linear(128, CLASSES)

    def forward(self, sound: Tensor) -> Tensor:
        return self.linear(self.blocks(sound).mean(-1))


class _Lstm(nn.Module):
    """The last state of an LSTM over tokens: (n, length) -> (n, classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, 64)
        self.lstm = nn.LSTM(64, 128, batch_first=True)
        self.linear = nn.Linear(128, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(self.lstm(self.embedding(tokens))[0][:, -1])


def _audio() -> Network:
    return Network(_Audio(), (torch.randn(2, 1, 16000),), ("sound",), False)


def _lstm() -> Network:
    return Network(_Lstm(), (torch.randint(1, TOKENS, (2, LONGEST)),), ("tokens",), False)


_TORCHVISION: Mapping[str, dict[str, Any]] = {
    "resnet18": {},
    "resnet50": {},
    "vgg11_bn": {},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},
    "shufflenet_v2_x0_5": {},
    "squeezenet1_1": {},
    "densenet121": {},
    "efficientnet_b0": {},
    "regnet_y_400mf": {},
    "googlenet": {"init_weights": False},
    "convnext_tiny": {},
    "vit_b_16": {"image_size": 64},
    "swin_t": {},
}
TIMM = {"repvgg_a0": 64, "ghostnet_050": 64, "mobilevit_xxs": 64, "mixer_s32_224": 224, "levit_128s": 224}
_ENCODER = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 512}
_DISTILLED = {"dim": 128, "n_layers": 3, "n_heads": 4, "hidden_dim": 512}
_DECODER = {"n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": 64, "use_cache": False}

NETWORKS: Mapping[str, Callable[[], Network]] = {
    **{name: partial(_torchvision, name, **arguments) for name, arguments in _TORCHVISION.items()},
    **{name: partial(_timm, name, side) for name, side in TIMM.items()},
    "bert": partial(_transformers, "Bert", **_ENCODER),
    "distilbert": partial(_transformers, "DistilBert", **_DISTILLED),
    "gpt2": partial(_transformers, "GPT2", **_DECODER),
    "mlp": _mlp,
    "audio": _audio,
    "lstm": _lstm,
}
"""Name -> a network with random weights, from torch's global generator."""


def prepared(name: str, seed: int = 0, train: int = 256, validation: int = 128) -> tuple[nn.Module, TaskData]:
    """A network of :data:`NETWORKS`, adapted and calibrated, in evaluation mode, with its data.

    The same seed gives the same network and data.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NETWORKS[name]()
    model = adapt(network.model, network.input_names, network.by_name, network.example)
    classes = random_classes(train, seed)
    inputs = random_inputs(network.example, classes, seed)
    model = calibrated(model, list(zip(*(x.split(_BATCH) for x in inputs), strict=True)), classes, seed)
    return model, task_data(model, network, train, validation, seed)


# Data


def random_classes(examples: int, seed: int) -> Tensor:
    """(examples,) of 0 to 9."""
    return torch.randint(CLASSES, (examples,), generator=torch.Generator().manual_seed(seed))


def random_inputs(example: Tensors, classes: Tensor, seed: int) -> Tensors:
    """Inputs shaped as those of the example, in whose content their class shows.

    Returns:
        Images of low frequencies, sums of tones, or vectors, of about unit variance; or tokens of varied
        lengths (where a second input takes the mask of padding).
    """
    generator = torch.Generator().manual_seed(seed + 1)
    first = example[0]
    if not first.is_floating_point():
        return _texts(classes, generator, masked=len(example) > 1)
    make = {2: _vectors, 3: _sounds, 4: _images}[first.dim()]
    return (make(classes, tuple(first.shape[1:]), generator),)


def _vectors(classes: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    prototypes = torch.randn(CLASSES, *shape, generator=torch.Generator().manual_seed(0))
    return prototypes[classes] * 0.9 + 0.45 * torch.randn(len(classes), *shape, generator=generator)


def _images(classes: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    coarse = _vectors(classes, (shape[0], 4, 4), generator)
    pattern = F.interpolate(coarse, shape[1:], mode="bicubic")
    fine = torch.randn(len(classes), shape[0], 16, 16, generator=generator)
    texture = F.interpolate(fine, shape[1:], mode="bilinear")
    return 1.2 * pattern + 0.4 * texture + 0.1 * torch.randn(texture.shape, generator=generator)


def _sounds(classes: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    time = torch.linspace(0, 1, shape[-1])
    tones = 100 + 1900 * torch.rand(CLASSES, 3, generator=torch.Generator().manual_seed(0))  # Hz, of each class
    phases, loudness = (torch.rand(len(classes), 3, 1, generator=generator) for _ in range(2))
    waves = (0.3 + loudness) * torch.sin(2 * math.pi * (tones[classes][..., None] * time + phases))
    sound = waves.sum(1) + 0.3 * torch.randn(len(classes), shape[-1], generator=generator)
    return sound.unsqueeze(1)


def _texts(classes: Tensor, generator: torch.Generator, masked: bool) -> Tensors:
    """Most tokens are of the class; 0 is padding, after the text or, for a network without mask, before it."""
    n = len(classes)
    own = torch.randint(1, TOKENS, (CLASSES, _OWN_TOKENS), generator=torch.Generator().manual_seed(0))[classes]
    own = own.gather(1, torch.randint(_OWN_TOKENS, (n, LONGEST), generator=generator))
    other = torch.randint(1, TOKENS, (n, LONGEST), generator=generator)
    tokens = torch.where(torch.rand(n, LONGEST, generator=generator) < _OWN_SHARE, own, other)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (n, 1), generator=generator)
    mask = (torch.arange(LONGEST) < lengths).long()
    return (tokens * mask, mask) if masked else ((tokens * mask).flip(1),)


def task_data(model: nn.Module, network: Network, train: int, validation: int, seed: int = 0) -> TaskData:
    """Random inputs for a network, labelled with its own answers: its accuracy is 1.

    Args:
        model: ``network`` as it was adapted and calibrated; in evaluation mode.
        train: examples that training sees; calibration has the first half of them.
        validation: examples of validation, and of test.
    """
    inputs = random_inputs(network.example, random_classes(train + 2 * validation, seed), seed + 1)
    whole = Split(inputs, outputs(model, inputs).argmax(1))
    rows = torch.arange(train + 2 * validation)
    free = {name: {1: "length"} for name in network.input_names} if network.by_name else {}
    return TaskData(
        train=whole.take(rows[:train]),
        calibration=whole.take(rows[: train // 2]),
        validation=whole.take(rows[train : train + validation]),
        test=whole.take(rows[train + validation :]),
        class_names=tuple(str(i) for i in range(CLASSES)),
        input_names=network.input_names,
        preprocessing={},
        prepare=_as_they_are,
        augment=_not_augmented,
        by_name=network.by_name,
        free_axes=free,
    )


def _as_they_are(rows: Tensors) -> Tensors:
    return rows


def _not_augmented(rows: Tensors, indices: Tensor, view: int) -> Tensors:
    return rows


def outputs(model: nn.Module, inputs: Tensors) -> Tensor:
    """Logits of a model in evaluation mode, batch by batch; (n, classes)."""
    with torch.no_grad():
        return torch.cat([model(*batch) for batch in zip(*(x.split(_BATCH) for x in inputs), strict=True)])


# Calibration


def calibrated(model: nn.Module, batches: Sequence[Tensors], labels: Tensor | None = None, seed: int = 0) -> nn.Module:
    """A copy in evaluation mode whose activations neither vanish nor explode and whose logits vary with the input.

    Parameters that begin at zero or nearly so are drawn anew, so that every branch counts. On the first batch
    each layer's outputs get mean 0 (where it has a bias) and variance 1, in the order of execution, as in
    Mishkin and Matas, "All you need is a good init", 2016, section 3. Statistics of batch norms are those of
    all batches. The last layer's outputs get mean 0 and variance 1 by class.

    Args:
        model: takes inputs by position and returns logits (n, classes).
        batches: model inputs; some dozens of examples each.
        labels: (n,) of all batches. With them the last layer is fitted to tell the classes apart, so that
            answers are as clear as a trained network's; without them its directions stay random.
    """
    model = copy.deepcopy(model).eval()
    spread_(model, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        classes = model(*batches[0]).shape[1]
        with _hooks(model, partial(_standardise_, classes=classes)), _batch_statistics(model):
            model(*batches[0])
        with _batch_statistics(model):
            for batch in batches:
                model(*batch)
        whole = tuple(torch.cat(x) for x in zip(*batches, strict=True))
        with _hooks(model, partial(_finish_head_, classes=classes, labels=labels)):
            model(*whole)
    return model


def spread_(model: nn.Module, generator: torch.Generator) -> None:
    """Draw norms, embeddings, layer scales and position embeddings so that they matter; scale weights by fan-in."""
    done: set[int] = set()
    with torch.no_grad():
        for module in model.modules():
            own = list(module.parameters(recurse=False))
            _spread_module_(module, generator)
            if isinstance(module, (*_NORMS, nn.Embedding, nn.RNNBase)):
                done.update(id(parameter) for parameter in own)
        for parameter in model.parameters():
            if id(parameter) not in done:
                _spread_parameter_(parameter, generator)


def _spread_module_(module: nn.Module, generator: torch.Generator) -> None:
    if isinstance(module, _NORMS) and module.weight is not None:
        # Random batch norms in a row tear similar inputs apart; not where activations are mostly positive.
        batch = isinstance(module, _BATCH_NORMS)
        module.weight.uniform_(0.3 if batch else 0.5, 0.7 if batch else 1.5, generator=generator)
        module.bias.normal_(0.5 if batch else 0.0, 0.2, generator=generator)
    if isinstance(module, nn.Embedding):
        module.weight.normal_(generator=generator)
        if module.padding_idx is not None:
            module.weight[module.padding_idx] = 0.0


def _spread_parameter_(parameter: Tensor, generator: torch.Generator) -> None:
    """Weights of layers keep their direction; what is constant has none."""
    constant = bool((parameter == parameter.flatten()[0]).all())
    if constant and 0 < float(parameter.flatten()[0]) <= _BARELY:
        parameter.fill_(0.5)
    elif constant and parameter.dim() >= 2:
        parameter.normal_(0.0, 0.3, generator=generator)
    elif not constant and parameter.dim() >= 2:
        parameter.mul_(1 / (parameter.std() * math.sqrt(parameter[0].numel())))


@contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms alone are in training: they forget their statistics and average those of the batches."""
    norms = [module for module in model.modules() if isinstance(module, _BATCH_NORMS)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    yield
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


_Change = Callable[[set[nn.Module], Any, Tensors, Tensor], Tensor | None]


@contextmanager
def _hooks(model: nn.Module, change: _Change) -> Iterator[None]:
    """``change`` sees each layer's input and output; its first argument holds the layers that it has seen."""
    seen: set[nn.Module] = set()
    layers = [m for m in model.modules() if isinstance(m, _LAYERS) or type(m).__name__ == "Conv1D"]
    handles = [layer.register_forward_hook(partial(change, seen)) for layer in layers]
    yield
    for handle in handles:
        handle.remove()


def _standardise_(seen: set[nn.Module], layer: Any, _: Tensors, output: Tensor, classes: int) -> Tensor | None:
    """Scale and shift a layer so that its output has mean 0 and variance 1; returns that output."""
    if layer in seen:
        return None
    seen.add(layer)
    axis = _channel_axis(layer, output)
    channels = output.shape[axis]
    rows = output.movedim(axis, -1).flatten(0, -2)
    mean = torch.zeros(channels) if layer.bias is None else rows.mean(0)
    spread = rows.std(0) if channels == classes else rows.std().expand(channels)
    scale = _target(output, axis, classes) / spread.clamp(min=1e-6)
    _rescale_(layer, mean, scale)
    return ((output.movedim(axis, -1) - mean) * scale).movedim(-1, axis)


def _finish_head_(
    seen: set[nn.Module], layer: Any, inputs: Tensors, output: Tensor, classes: int, labels: Tensor | None
) -> Tensor | None:
    """Fit a layer that has one output per class to the labels, at each position, and standardise its outputs."""
    axis = _channel_axis(layer, output)
    if output.shape[axis] != classes:
        return None
    if labels is not None and layer.weight[0].numel() == inputs[0].shape[axis]:
        rows = inputs[0].movedim(axis, -1).flatten(0, -2)
        targets = F.one_hot(labels, classes).float().repeat_interleave(len(rows) // len(labels), 0)
        centre = torch.zeros(rows.shape[1]) if layer.bias is None else rows.mean(0)
        layer.weight.copy_(_ridge(rows - centre, targets - targets.mean(0)).T.reshape(layer.weight.shape))
        output = layer.forward(*inputs)
    seen.discard(layer)
    return _standardise_(seen, layer, inputs, output, classes)


def _ridge(x: Tensor, y: Tensor) -> Tensor:
    """Ridge regression, by whichever of the two Gram matrices is smaller; (n, inputs), (n, outputs) -> (inputs, outputs)."""
    penalty = _RIDGE * float(x.square().sum()) / min(x.shape)
    if x.shape[0] < x.shape[1]:
        return x.T @ torch.linalg.solve(x @ x.T + penalty * torch.eye(x.shape[0]), y)
    return torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1]), x.T @ y)


def _channel_axis(layer: nn.Module, output: Tensor) -> int:
    return 1 if isinstance(layer, nn.Conv1d | nn.Conv2d) else output.dim() - 1


def _target(output: Tensor, axis: int, classes: int) -> float:
    # A convolution of one pixel steers a gate: with more, what is loud opens its gates and grows block by block.
    gate = axis == 1 and output.dim() == 4 and output.shape[2:].numel() == 1 and output.shape[1] != classes
    return _GATE_SPREAD if gate else 1.0


def _rescale_(layer: Any, mean: Tensor, scale: Tensor) -> None:
    """Subtract ``mean`` from the outputs, then multiply them by ``scale``; both (channels,)."""
    rows = isinstance(layer, _LAYERS)  # the Conv1D of Transformers has its outputs in columns
    layer.weight.mul_(scale.reshape(-1, *[1] * (layer.weight.dim() - 1)) if rows else scale)
    if layer.bias is not None:
        layer.bias.sub_(mean).mul_(scale)


# How logits vary


def variation(logits: Tensor) -> tuple[int, float]:
    """Classes that occur as answers, and the standard deviation over inputs relative to the mean size of logits."""
    return len(logits.argmax(1).unique()), float(logits.std(0).mean() / logits.abs().mean())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of networks; all by default")
    print(f"{'network':<22}{'parameters':>12}{'classes':>9}{'variation':>11}{'largest class':>15}")
    for name in parser.parse_args().names or NETWORKS:
        model, data = prepared(name)
        count, spread = variation(outputs(model, data.model_inputs(data.validation, torch.arange(64))))
        share = float(data.validation.labels.bincount().max()) / len(data.validation)
        print(f"{name:<22}{sum(p.numel() for p in model.parameters()):>12,}{count:>9}{spread:>11.2f}{share:>15.1%}")


if __name__ == "__main__":
    main()
