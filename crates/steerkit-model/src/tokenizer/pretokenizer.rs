//! Named pre-tokenisers of GGUF files: how a text is cut into words before byte-level BPE.
//!
//! The names are those of the key `tokenizer.ggml.pre`; the patterns are the ones in the `tokenizer.json` of the
//! models that the names stand for. Each pattern is applied to the pieces the one before it left; what a pattern
//! does not match stays as a piece of its own.

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

/// GPT-2: English contractions, words, numbers and symbols with at most one space before them.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Llama 3: numbers in groups of up to three digits, newlines kept with the symbols before them.
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// Qwen 2: as Llama 3 with single digits.
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// Seed-Coder: as Qwen 2, newlines apart from the symbols before them.
const SEED_CODER: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// BLOOM: whatever lies between spaces and the sentence marks of several scripts.
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";

/// Mistral's Tekken: words cut where a lower-case letter is followed by an upper-case one, single digits.
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// GPT-4o: as Tekken with contractions at the end of words and up to three digits.
const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// DeepSeek LLM: letters with case (the ranges of its `tokenizer.json`).
const DEEPSEEK_CASED: &str = concat!(
    r"\s?[A-Za-z\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}\u{1C4}-\u{293}",
    r"\u{295}-\u{2AF}\u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}\u{37F}\u{386}\u{388}-\u{38A}\u{38C}",
    r"\u{38E}-\u{3A1}\u{3A3}-\u{3F5}\u{3F7}-\u{481}\u{48A}-\u{52F}\u{531}-\u{556}\u{10A0}-\u{10C5}",
    r"\u{13A0}-\u{13F5}\u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}\u{1CBD}-\u{1CBF}\u{1D00}-\u{1D2B}",
    r"\u{1D6B}-\u{1D77}\u{1D79}-\u{1D9A}\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}",
    r"\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}\u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}",
    r"\u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-\u{1FC4}\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}",
    r"\u{1FE0}-\u{1FEC}\u{1FF2}-\u{1FF4}\u{1FF6}-\u{1FFC}\u{2102}\u{2107}\u{210A}-\u{2113}\u{2115}",
    r"\u{2119}-\u{211D}\u{2124}\u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}",
    r"\u{213C}-\u{213F}\u{2145}-\u{2149}\u{214E}\u{2183}\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}",
    r"\u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}\u{A680}-\u{A69B}\u{A722}-\u{A76F}",
    r"\u{A771}-\u{A787}\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}",
    r"\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}\u{10400}-\u{1044F}\u{104B0}-\u{104D3}\u{104D8}-\u{104FB}",
    r"\u{10C80}-\u{10CB2}\u{10CC0}-\u{10CF2}\u{118A0}-\u{118DF}\u{1E900}-\u{1E943}]+"
);
/// DeepSeek LLM: ASCII, full-width, general and CJK punctuation.
const DEEPSEEK_PUNCTUATION: &str = r"\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+";
/// DeepSeek: Chinese, and the further ranges its file names.
const DEEPSEEK_CJK: &str = r"[一-龥ࠀ-一가-\u{D7FF}]+";

/// DeepSeek V3: words with an optional symbol before them, symbols, newlines.
const DEEPSEEK3: &str = concat!(
    r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// A way to cut a text into words.
pub(super) struct Named {
    /// Applied one after the other.
    patterns: &'static [&'static str],
    /// Whether a word that is a token is that token, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Whether the model wants BOS when its file does not say.
    pub(super) add_bos: bool,
    /// Whether the text is put in Unicode normal form C first.
    pub(super) nfc: bool,
}

const PLAIN: Named = Named { patterns: &[GPT2], ignore_merges: false, add_bos: false, nfc: false };

/// Names with one meaning each: the first is the one used in messages.
const TABLE: &[(&[&str], Named)] = &[
    // The patterns that a file without a name gets.
    (
        &["default"],
        Named { patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"], ..PLAIN },
    ),
    (
        &[
            "gpt-2",
            "mpt",
            "olmo",
            "phi-2",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
            "gigachat",
            "mellum",
            "a.x-4.0",
        ],
        PLAIN,
    ),
    (
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        Named { patterns: &[r"\p{N}", GPT2], ..PLAIN },
    ),
    (
        &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        Named { patterns: &[LLAMA3], ignore_merges: true, add_bos: true, ..PLAIN },
    ),
    (&["dbrx", "smaug-bpe", "chatglm-bpe", "glm4"], Named { patterns: &[LLAMA3], ..PLAIN }),
    (&["qwen2", "deepseek-r1-qwen", "megrez", "kormo"], Named { patterns: &[QWEN2], nfc: true, ..PLAIN }),
    (&["seed-coder"], Named { patterns: &[SEED_CODER], ..PLAIN }),
    (&["bloom", "poro-chat", "gpt3-finnish"], Named { patterns: &[BLOOM], ..PLAIN }),
    (&["viking"], Named { patterns: &[BLOOM, r"\p{N}"], ..PLAIN }),
    (&["stablelm2", "hunyuan", "solar-open"], Named { patterns: &[QWEN2], ..PLAIN }),
    (&["tekken"], Named { patterns: &[TEKKEN], ignore_merges: true, add_bos: true, ..PLAIN }),
    (&["gpt-4o", "llama4", "kanana2"], Named { patterns: &[GPT4O], ..PLAIN }),
    (&["falcon"], Named { patterns: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"], ..PLAIN }),
    (
        &["deepseek-llm"],
        Named {
            patterns: &[r"[\r\n]", DEEPSEEK_CASED, DEEPSEEK_PUNCTUATION, r"\s+$", DEEPSEEK_CJK, r"\p{N}+"],
            ..PLAIN
        },
    ),
    (
        &["deepseek-coder"],
        Named { patterns: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, r"\p{N}"], ..PLAIN },
    ),
    (&["deepseek-v3"], Named { patterns: &[r"\p{N}{1,3}", r"[一-龥\u{3040}-ゟ゠-ヿ]+", DEEPSEEK3], ..PLAIN }),
];

/// The pre-tokeniser of this name.
pub(super) fn named(name: &str) -> Option<&'static Named> {
    TABLE.iter().find(|(names, _)| names.contains(&name)).map(|(_, pre)| pre)
}

/// Every name that [`named`] knows, in alphabetical order.
pub(super) fn names() -> Vec<String> {
    let mut names: Vec<String> =
        TABLE.iter().flat_map(|(names, _)| names.iter().map(|n| n.to_string())).collect();
    names.sort();
    names
}

impl Named {
    /// The pre-tokeniser: the patterns, then bytes written as the 256 printable characters of GPT-2.
    pub(super) fn build(&self) -> PreTokenizerWrapper {
        let mut steps: Vec<PreTokenizerWrapper> = self
            .patterns
            .iter()
            .map(|pattern| {
                Split::new(
                    SplitPattern::Regex((*pattern).to_owned()),
                    SplitDelimiterBehavior::Isolated,
                    false,
                )
                .expect("the patterns of the table compile: each_pattern_compiles tests them")
                .into()
            })
            .collect();
        steps.push(ByteLevel::new(false, false, false).into());
        Sequence::new(steps).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::tokenizer::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    fn words(name: &str, text: &str) -> Vec<String> {
        let mut pieces = PreTokenizedString::from(text);
        named(name).unwrap().build().pre_tokenize(&mut pieces).unwrap();
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        splits.into_iter().map(|(_, (from, to), _)| text[from..to].to_owned()).collect()
    }

    #[test]
    fn each_pattern_compiles() {
        for (_, pre) in TABLE {
            pre.build();
        }
    }

    #[test]
    fn no_name_stands_twice() {
        let names = names();
        assert!(names.windows(2).all(|w| w[0] != w[1]), "{names:?}");
    }

    /// Expected words worked out by hand from the definitions.
    #[test]
    fn words_of_the_named_pre_tokenisers() {
        let text = "I've 1234 Cafés!\n\n  x";
        assert_eq!(words("gpt-2", text), ["I", "'ve", " 1234", " Cafés", "!", "\n\n ", " x"]);
        assert_eq!(
            words("smollm", text),
            ["I", "'ve", " ", "1", "2", "3", "4", " Cafés", "!", "\n\n ", " x"]
        );
        assert_eq!(words("llama-bpe", text), ["I", "'ve", " ", "123", "4", " Cafés", "!\n\n", " ", " x"]);
        assert_eq!(words("qwen2", text), ["I", "'ve", " ", "1", "2", "3", "4", " Cafés", "!\n\n", " ", " x"]);
        assert_eq!(words("tekken", "helloWorld"), ["hello", "World"]);
        assert_eq!(words("gpt-4o", "don't 12345"), ["don't", " ", "123", "45"]);
        assert_eq!(words("deepseek-llm", "ab 中文 12"), ["ab", " ", "中文", " ", "12"]);
        assert_eq!(words("deepseek-v3", ".map 1234"), [".map", " ", "123", "4"]);
        assert_eq!(words("seed-coder", "x.\n\ny 12"), ["x", ".", "\n\n", "y", " ", "1", "2"]);
        assert_eq!(words("poro-chat", "Hei, maailma 12!"), ["Hei", ",", " maailma", " 12", "!"]);
        assert_eq!(words("viking", "Hei 12"), ["Hei", " ", "1", "2"]);
        assert_eq!(words("falcon", "a.b 1234"), ["a", ".", "b", " ", "123", "4"]);
    }
}
