"""Tokenizers made here, and what makes two tokenizers the same one.

Characters or bytes, what comes out is an ordinary ``PreTrainedTokenizerFast``: saved, loaded and
called like any other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from headway.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def identity(tokenizer: Any) -> str:
    """A hash [64 hex digits] of what decides which ids a text becomes, and of the EOS token.

    Equal after saving and loading. Padding and truncation are left out: they are a caller's
    settings, not the tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DataError(f"{type(tokenizer).__name__} is not a fast tokenizer; headway needs one")
    tree = json.loads(backend.to_str())
    for setting in ("padding", "truncation"):
        tree.pop(setting, None)
    tree["eos"] = tokenizer.eos_token_id
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def train_characters(text: str, eos_token: str | None = None) -> PreTrainedTokenizerFast:
    """One token per distinct character of ``text``, as in nanoGPT's ``shakespeare_char``.

    Ids are 0, 1, 2 … in code point order; ``eos_token``, when asked for, comes after them.
    Another character is an error when it is tokenised, not an unknown token.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = sorted(set(text))
    if not characters:
        raise DataError("no character to make tokens of: the text is empty")
    model = models.WordLevel({character: i for i, character in enumerate(characters)}, "")
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False
    )
    if eos_token is not None:
        tokenizer.add_special_tokens({"eos_token": eos_token})
    return tokenizer


def train_bpe(
    texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = ("<|endoftext|>",)
) -> PreTrainedTokenizerFast:
    """A byte-level BPE (Radford et al. 2019) of at most ``vocab_size`` tokens; nothing is unknown.

    The special tokens come first, in order; the first of them is EOS and BOS. DataError when the
    vocabulary has no room for the 256 bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    smallest = 256 + len(special_tokens)
    if vocab_size < smallest or not special_tokens:
        raise DataError(
            f"a byte-level vocabulary needs a special token to end documents and at "
            f"least {smallest} tokens, not {vocab_size}"
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=special_tokens[0],
        eos_token=special_tokens[0],
        clean_up_tokenization_spaces=False,
    )
