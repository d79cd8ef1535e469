"""A task of token ids that is made on the spot: which of two sets of words is more frequent in a text."""

from __future__ import annotations

import json
import random
from pathlib import Path

LIGHT = ("sun", "lamp", "candle", "noon", "spark")
DARK = ("night", "cave", "shadow", "dusk", "cellar")
OTHER = ("the", "a", "of", "in", "under", "table", "river", "walks", "sees", "green")
LONGEST = 12  # words
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
POSITIONS = 32


def write_token_task(folder: Path, rows: int = 600) -> None:
    """Write ``train.tsv`` of ``rows`` examples, ``dev.tsv`` and ``test.tsv`` of a third as many, and ``model/``.

    The tables have the columns ``sentence`` and ``label``: 1, where words of ``LIGHT`` are more than those of
    ``DARK``, else 0; the texts differ in length and none occurs twice. ``model/`` has ``tokenizer.json``,
    ``tokenizer_config.json`` and the ``config.json`` of a BERT with two layers and no weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator, seen = random.Random(0), set[str]()
    for name, count in (("train", rows), ("dev", rows // 3), ("test", rows // 3)):
        lines = [_example(generator, number % 2, seen) for number in range(count)]
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(lines), encoding="utf-8")
    write_model_folder(folder / "model")


def _example(generator: random.Random, label: int, seen: set[str]) -> str:
    """A line of a table; the more frequent set leads by one word or more."""
    more, fewer = (LIGHT, DARK) if label else (DARK, LIGHT)
    while True:
        fewer_words = generator.randint(0, 2)
        more_words = fewer_words + generator.randint(1, 3)
        others = generator.randint(1, LONGEST - fewer_words - more_words)
        words = generator.choices(more, k=more_words) + generator.choices(fewer, k=fewer_words)
        words += generator.choices(OTHER, k=others)
        generator.shuffle(words)
        text = " ".join(words)
        if text not in seen:
            seen.add(text)
            return f"{text}\t{label}\n"


def write_model_folder(folder: Path) -> None:
    """The tokeniser of these words, one token each, and the configuration of a small BERT."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *LIGHT, *DARK, *OTHER))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": POSITIONS,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    (folder / "config.json").write_text(json.dumps(bert_config(len(vocabulary)), indent=2))


def bert_config(vocabulary: int) -> dict[str, object]:
    """Two layers of width 32."""
    return {
        "model_type": "bert",
        "architectures": ["BertForSequenceClassification"],
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "pad_token_id": 0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "id2label": {"0": "0", "1": "1"},
        "label2id": {"0": 0, "1": 1},
    }
