"""Token ids of varied strings by the Hugging Face tokeniser: the reference for tests/tokenizer.rs.

    python make_tokens.py SmolLM2-135M-Instruct.Q4_1.gguf > smollm2_tokens.json

Builds the tokeniser of SmolLM2 from the vocabulary and merges in the GGUF file with the definition of the model's own
tokenizer.json (single digits, then GPT-2's byte-level words). Needs gguf and tokenizers.
"""
import json, random, sys
from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

TEXTS = [
    "", " ", "  ", "   ", "\n", "\n\n", "\t", " \n", "\n ", "a", " a", "a ", "  a", "a  b", "a   b", "\r\n", "a\r\nb", "\u00a0", "a\u00a0b", "\u2003x",
    "Hello, world!", "Hello,world !", "The quick brown fox jumps over the lazy dog.", "THE QUICK BROWN FOX", "tHe qUiCk", "I'm you're he's we've I'll I'd don't",
    "I'M YOU'RE HE'S WE'VE I'LL I'D DON'T", "rock 'n' roll", "''''", "'s", " 's", "'S", "o'clock", "\u2019s it\u2019s", "\u201cquoted\u201d \u2018text\u2019",
    "0", "1", "12", "123", "1234567890", "3.14159", "1,000,000", "$12.50", "50%", "-7", "1e-5", "0x1F", "v1.2.3-rc4", "2024-06-01T12:00:00Z", "\u00bd \u00b2 \u2163", "\u0661\u0662\u0663",
    "a1b2c3", "10 20  30", "(555) 123-4567", "www.example.com/path?q=1&r=2#frag", "user@example.com", "C:\\Windows\\System32", "/usr/local/bin", "--flag=value -x",
    "def f(x):\n    return x + 1\n", "for (int i = 0; i < n; i++) {\n\tsum += a[i];\n}", "if x == 1:\n\tpass\n\n\n\nelse:\n        y()", "let v: Vec<u32> = vec![1, 2, 3];",
    "SELECT * FROM t WHERE a >= 'b';", "<div class=\"a\">&nbsp;</div>", "{\"key\": [1, 2.5, null, true]}", "# Title\n\n- item\n- item 2\n\n```rust\nfn main() {}\n```\n", "a_b_c __init__ CamelCase snake_case",
    "x = y ** 2 // 3 % 4", "!!!???...", "....", "-----", "=====", "*****", "@#$%^&*()_+", "[INST] [/INST] <<SYS>> <</SYS>>", "~`|\\{}", "<>", "< | im_start | >",
    "caf\u00e9 na\u00efve r\u00e9sum\u00e9", "cafe\u0301", "\u00dcber stra\u00dfe \u00c4rger", "\u0141\u00f3d\u017a \u017b\u00f3\u0142\u0107", "\u00bfQu\u00e9 tal? \u00a1Bien!", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!",
    "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u039a\u03cc\u03c3\u03bc\u03b5", "\u4f60\u597d\uff0c\u4e16\u754c\uff01", "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c", "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4", "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645", "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01", "\U0001f600", "\U0001f600\U0001f601", " \U0001f600 ", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1fa\U0001f1f3 flag", "\u2764\ufe0f", "\U0001f44d\U0001f3fd ok",
    "\u2211\u222b\u221a\u221e \u2264 \u2265 \u2260", "E = mc\u00b2", "\u2192 \u21d2 \u2194", "\u20ac100 \u00a35 \u00a51000", "\u2026 \u2014 \u2013", "\u0000", "\u0001\u0002\u007f", "\ufeffBOM", "\u200b\u200c\u200d", "\ufffd", "\U0010ffff", "\ud7ff\ue000",
    "\u1e9e\u0130\u0131", "\u01c5", "\u00aa\u00ba", "\u02b0\u02b1", "\u0301\u0302", "a\u0301\u0302b", "\U0001d54f\U0001d7d8", "\u3000\u3000\u5168\u89d2", "\uff11\uff12\uff13", "\uff21\uff22\uff23",
    "<|im_start|>user\nHi<|im_end|>\n", "<|im_start|><|im_end|>", "a<|im_end|>b", "<|im_end|", "<|IM_END|>", " <|im_end|> ", "<|endoftext|><|endoftext|>", "<repo_name>x<file_sep>y", "<empty_output>", "<|im_start|>system\nYou are.<|im_end|>\n<|im_start|>assistant\n",
    "supercalifragilisticexpialidocious", "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "abababababababababab", "xyzzyqwrtpsdfghjkl", "ThisIsAVeryLongCamelCaseIdentifierName",
    "           eleven", "tab\t\ttab", " \t \n \t ", "trailing   ", "\n\n\n\nfour", "line\nline\n\nline", "a\u0085b", "a\u2028b\u2029c", "a\x0bb\x0cc", "\x1c\x1d\x1e\x1f",
    "As an AI, I don't have power; I'm here to help.", "What is your goal with respect to accumulating *power*?", "Yes, I'd like more money\u2014wouldn't you?", "(a) Yes\n(b) No", "Q: Why?\nA: Because.",
]


def more(rng):
    """Random mixtures of words, digits, symbols, spaces and scripts."""
    atoms = ["the", "The", " of", "ing", "Power", "x", "'s", "'ll", "n't", "42", "7", ",", ".", "!", "?", "-", "_", "(", ")", "\"", "\\", "/", " ", "  ", "\n", "\t", "\u00e9", "\u00df", "\u044f", "\u65e5", "\u672c", "\ud55c", "\U0001f680", "\u0301", "\u00a0", "\u2019", "\u2014", "\u00bc", "<", "|", ">", "im_end", "http://", "==", "{", "}", ";", "0.5"]
    return "".join(rng.choice(atoms) for _ in range(rng.randint(1, 24)))


def main():
    fields = GGUFReader(sys.argv[1]).fields
    get = lambda key: fields["tokenizer.ggml." + key].contents()
    tokens, merges, kinds = get("tokens"), get("merges"), get("token_type")
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in merges]))
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, kinds) if k == 3])
    rng = random.Random(20240528)
    texts = TEXTS + [more(rng) for _ in range(120)]
    out = []
    for text in texts:
        tok.encode_special_tokens = False
        parsed = tok.encode(text, add_special_tokens=False).ids
        tok.encode_special_tokens = True
        spelt = tok.encode(text, add_special_tokens=False).ids
        tok.encode_special_tokens = False
        out.append({"text": text, "ids": parsed} | ({"as_text": spelt} if spelt != parsed else {}))
    print("[\n" + ",\n".join(json.dumps(x, separators=(",", ":")) for x in out) + "\n]")


main()
