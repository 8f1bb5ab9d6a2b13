"""Token shards: equal whoever writes them and however often killed; no token lost, no pad read."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from headway.data import shards
from headway.data.sources import Source
from headway.data.tokenizers import identity, train_bpe, train_characters
from headway.data.tokens import Index, TokenStream, read_npz, tokenize
from headway.errors import DataError
from tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token_id
TEXTS = [f"Document {i}: " + "Natalia sold clips. " * (1 + i % 7) for i in range(60)]


def sources(folder, texts=TEXTS):
    path = folder / "docs.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return [Source(path=str(path))]


def expected(texts=TEXTS):
    return [[*TOKENIZER(text)["input_ids"], EOS] for text in texts]


def files_of(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def npz(path, lengths, width=8, **replaced):
    """A file of the seed's format: row i holds 0, 1, 2 … (0 is a token too), padded with 0."""
    ids = np.zeros((len(lengths), width), dtype=np.int32)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = np.arange(length)
        mask[row, :length] = 1
    arrays = {
        "input_ids": ids,
        "attention_mask": mask,
        "sequence_lengths": np.array(lengths, dtype=np.int32),
    }
    arrays.update(replaced)
    np.savez_compressed(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


def test_shards_hold_every_document_with_eos_and_its_boundary(tmp_path):
    index = tokenize(sources(tmp_path), TOKENIZER, tmp_path / "t", shard_tokens=200)
    documents = expected()
    assert index.tokens == sum(map(len, documents)) and len(index.shards) > 5
    assert index.dtype == "uint16" and index.vocab_size == len(TOKENIZER)
    stream = TokenStream.open(tmp_path / "t", TOKENIZER, verify=True)
    whole = stream.window(0, len(stream))
    assert whole.ids.tolist() == [token for document in documents for token in document]
    starts = np.cumsum([0, *map(len, documents)])[:-1]
    assert whole.starts.tolist() == starts.tolist()
    assert stream.documents == 60


def test_two_workers_write_the_same_files_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_CHUNK_DOCUMENTS", 7)
    read = sources(tmp_path)
    tokenize(read, TOKENIZER, tmp_path / "one", shard_tokens=200, workers=1)
    tokenize(read, TOKENIZER, tmp_path / "two", shard_tokens=200, workers=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("survives", range(0, 27, 3))
def test_an_interrupted_run_is_finished_by_the_same_call_with_the_same_result(
    tmp_path, monkeypatch, survives
):
    """Stopped before the n-th file gets its name, for n over two shards' worth and beyond."""
    read = sources(tmp_path)
    tokenize(read, TOKENIZER, tmp_path / "whole", shard_tokens=200)
    renamed = 0
    rename = Path.replace

    def stop(self, target):
        nonlocal renamed
        if self.name.startswith(".partial-"):
            renamed += 1
            if renamed > survives:
                raise Killed
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", stop)
        with pytest.raises(Killed):
            tokenize(read, TOKENIZER, tmp_path / "cut", shard_tokens=200)
    with pytest.raises(DataError, match="interrupted"):
        TokenStream.open(tmp_path / "cut")
    tokenize(read, TOKENIZER, tmp_path / "cut", shard_tokens=200)
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_finished_shards_are_not_tokenised_again(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_CHUNK_DOCUMENTS", 5)
    read = sources(tmp_path)
    encoded = shards._encoded
    calls = []

    def counted(*arguments):
        calls.append(len(arguments[2]))
        if sum(calls) > 40:
            raise Killed
        return encoded(*arguments)

    monkeypatch.setattr(shards, "_encoded", counted)
    with pytest.raises(Killed):
        tokenize(read, TOKENIZER, tmp_path / "t", shard_tokens=200)
    monkeypatch.setattr(shards, "_encoded", encoded)
    done = sum(shard.documents for shard in shards._finished_shards(tmp_path / "t"))
    assert done > 20
    monkeypatch.setattr(shards, "_encoded", counted)
    calls.clear()
    tokenize(read, TOKENIZER, tmp_path / "t", shard_tokens=200)
    assert sum(calls) == 60 - done


def test_a_finished_folder_is_left_alone_and_another_plan_is_refused(tmp_path):
    read = sources(tmp_path)
    index = tokenize(read, TOKENIZER, tmp_path / "t")
    before = files_of(tmp_path / "t")
    assert tokenize(read, TOKENIZER, tmp_path / "t") == index == Index.read(tmp_path / "t")
    assert files_of(tmp_path / "t") == before
    for tokenizer, size in ((TOKENIZER, 99), (tiny_tokenizer(vocab_size=300), 100_000_000)):
        with pytest.raises(DataError, match="holds shards of other data"):
            tokenize(read, tokenizer, tmp_path / "t", shard_tokens=size)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(DataError, match="not empty"):
        tokenize(read, TOKENIZER, tmp_path / "mine")


def test_the_wrong_tokenizer_is_refused(tmp_path):
    tokenize(sources(tmp_path), TOKENIZER, tmp_path / "t")
    other = tiny_tokenizer(vocab_size=300)
    with pytest.raises(DataError, match=r"another tokenizer.*300 tokens"):
        TokenStream.open(tmp_path / "t", other)
    TokenStream.open(tmp_path / "t", AutoTokenizer.from_pretrained(tmp_path / "t" / "tokenizer"))


def test_damaged_shards_are_refused(tmp_path):
    tokenize(sources(tmp_path), TOKENIZER, tmp_path / "t")
    file = tmp_path / "t" / "shard-00000.bin"
    whole = file.read_bytes()
    file.write_bytes(whole[:-2])
    with pytest.raises(DataError, match="not as long"):
        TokenStream.open(tmp_path / "t")
    file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(DataError, match="content changed"):
        TokenStream.open(tmp_path / "t", verify=True)
    file.unlink()
    with pytest.raises(DataError, match="missing"):
        TokenStream.open(tmp_path / "t")
    (tmp_path / "t" / "index.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        TokenStream.open(tmp_path / "t")


lengths = st.lists(st.integers(0, 8), min_size=1, max_size=30).filter(lambda ls: sum(ls) > 1)


@given(first=lengths, second=lengths, length=st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_every_token_but_the_first_is_a_target_exactly_once(
    tmp_path_factory, first, second, length
):
    folder = tmp_path_factory.mktemp("npz")
    npz(folder / "a.npz", first)
    npz(folder / "b.npz", second)
    stream = TokenStream.open(folder)
    documents = [list(range(n)) for n in [*first, *second] if n]
    flat = [token for document in documents for token in document]
    assert len(stream) == len(flat)
    windows = [stream.window(row, length) for row in range(stream.rows(length))]
    assert [t for w in windows for t in w.ids[1:].tolist()] == flat[1:]
    assert [t for w in windows for t in w.ids[:-1].tolist()] == flat[:-1]
    for row, window in enumerate(windows):
        at = row * length
        numbered = np.concatenate([np.full(len(d), i) for i, d in enumerate(documents)])
        here = numbered[at : at + len(window.ids)]
        assert (window.segments == here - here[0]).all()
        begins = np.flatnonzero(np.diff(numbered, prepend=-1))
        wanted = begins[(begins >= at) & (begins < at + len(window.ids))] - at
        assert window.starts.tolist() == wanted.tolist()
        for segment in range(window.segments[-1] + 1):
            inside = window.positions[window.segments == segment]
            assert inside.tolist() == list(range(len(inside)))


def test_padding_is_dropped_by_length_because_id_0_is_a_token_too(tmp_path):
    part = read_npz(npz(tmp_path / "a.npz", [3, 0, 8, 1]))
    assert part.ids.tolist() == [0, 1, 2, *range(8), 0]
    assert part.ends.tolist() == [3, 11, 12]
    by_id = [t for t in np.load(tmp_path / "a.npz")["input_ids"].ravel() if t != 0]
    assert by_id != part.ids.tolist()  # the seed's way loses every <s>


def test_npz_without_lengths_uses_the_mask_and_a_disagreement_is_refused(tmp_path):
    part = read_npz(npz(tmp_path / "a.npz", [3, 2], sequence_lengths=None))
    assert part.ends.tolist() == [3, 5]
    with pytest.raises(DataError, match="row 1: attention_mask does not say the same"):
        read_npz(npz(tmp_path / "b.npz", [3, 2], sequence_lengths=np.array([3, 4])))
    with pytest.raises(DataError, match="do not fit input_ids"):
        read_npz(npz(tmp_path / "b.npz", [3, 2], sequence_lengths=np.array([3, 9])))
    with pytest.raises(DataError, match="needs input_ids"):
        read_npz(npz(tmp_path / "b.npz", [3, 2], input_ids=None))
    with pytest.raises(DataError, match="another tokenizer"):
        read_npz(npz(tmp_path / "b.npz", [8, 2]), vocab_size=5)


@pytest.mark.fault(28, 29)
def test_pickles_and_damaged_npz_files_are_refused_never_skipped(tmp_path):
    np.savez(tmp_path / "a.npz", sequences=np.array([{"x": 1}], dtype=object))
    with pytest.raises(DataError, match=r"never loaded|needs input_ids"):
        TokenStream.open(tmp_path)
    raw = npz(tmp_path / "a.npz", [3, 2]).read_bytes()
    (tmp_path / "a.npz").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DataError, match="not readable as NPZ"):
        TokenStream.open(tmp_path)
    (tmp_path / "a.npz").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match="Git-LFS pointer"):
        TokenStream.open(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        TokenStream.open(tmp_path / "nowhere")


def test_a_part_of_a_stream_is_a_stream(tmp_path):
    npz(tmp_path / "a.npz", [8] * 10)
    stream = TokenStream.open(tmp_path)
    train, held_out = stream.part(0, 60), stream.part(60, 80)
    assert (len(train), len(held_out)) == (60, 20)
    assert held_out.window(0, 100).ids.tolist() == stream.window(0, 100).ids.tolist()[60:]
    assert held_out.window(0, 100).starts.tolist() == [4, 12]
    with pytest.raises(DataError, match="not inside"):
        held_out.part(0, 21)
    with pytest.raises(IndexError):
        train.window(train.rows(7), 7)


def test_character_tokens_are_the_sorted_characters_and_survive_saving(tmp_path):
    text = "hello\nwörld  🙂"
    tokenizer = train_characters(text)
    ids = tokenizer(text)["input_ids"]
    assert ids == [sorted(set(text)).index(character) for character in text]
    assert tokenizer.decode(ids) == text
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert identity(loaded) == identity(tokenizer)
    assert loaded(text)["input_ids"] == ids and loaded.decode(ids) == text
    assert train_characters(text, "<end>").eos_token_id == len(tokenizer)


def test_character_shards_of_one_long_document_are_exact(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "_PIECE", 10)
    text = "To be, or not to be:\nthat is the question. " * 5
    (tmp_path / "play.txt").write_text(text)
    tokenizer = train_characters(text)
    tokenize([Source(path=str(tmp_path / "play.txt"))], tokenizer, tmp_path / "t")
    stream = TokenStream.open(tmp_path / "t", tokenizer)
    assert tokenizer.decode(stream.window(0, len(stream)).ids) == text


def test_a_character_never_seen_is_refused_with_its_file(tmp_path):
    tokenizer = train_characters("abc", "<end>")
    with pytest.raises(DataError, match=r"docs\.jsonl:2: cannot be tokenised"):
        tokenize(sources(tmp_path, ["cab", "dab"]), tokenizer, tmp_path / "t")
    with pytest.raises(DataError, match="no EOS token"):
        tokenize(sources(tmp_path, ["c", "a"]), train_characters("abc"), tmp_path / "u")
    with pytest.raises(DataError, match="no character"):
        train_characters("")


def test_a_record_without_text_names_its_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n{"body": "y"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: no field 'text'.*'body'"):
        tokenize([Source(path=str(path))], TOKENIZER, tmp_path / "t")


@given(st.text(max_size=60))
@settings(deadline=None, max_examples=60)
def test_a_trained_byte_level_bpe_knows_every_text(text):
    assert BPE.decode(BPE(text)["input_ids"]) == text


BPE = train_bpe(TEXTS, 300)


def test_a_trained_bpe_has_the_size_and_specials_asked_for(tmp_path):
    assert len(BPE) == 300 and BPE.eos_token_id == 0 and BPE.eos_token == "<|endoftext|>"
    BPE.save_pretrained(tmp_path)
    assert identity(AutoTokenizer.from_pretrained(tmp_path)) == identity(BPE)
    with pytest.raises(DataError, match="at least 257"):
        train_bpe(TEXTS, 100)


def test_identity_ignores_padding_and_truncation_but_not_tokens():
    tokenizer = tiny_tokenizer()
    before = identity(tokenizer)
    tokenizer(["a", "b c d e"], padding=True, truncation=True, max_length=3)
    assert identity(tokenizer) == before
    tokenizer.add_tokens(["<new>"])
    assert identity(tokenizer) != before
