//! The text of a completion as its tokens arrive, up to a stop string.

use crate::tokenizer::DecodeStream;

/// Tokens in, text out: never half a character, never a part of a stop string.
pub(super) struct TextStream<'t> {
    decode: DecodeStream<'t>,
    stops: StopFilter,
}

/// Text that may be shown.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Shown {
    pub(super) text: String,
    /// A stop string came; the text ends before it.
    pub(super) stopped: bool,
}

impl<'t> TextStream<'t> {
    pub(super) fn new(decode: DecodeStream<'t>, stops: Vec<String>) -> Self {
        Self { decode, stops: StopFilter { stops, held: String::new() } }
    }

    pub(super) fn push(&mut self, token: u32) -> Shown {
        self.decode.push(token).map(|text| self.stops.push(&text)).unwrap_or_default()
    }

    /// The end: what was held back, with U+FFFD for a character that was never completed.
    pub(super) fn finish(mut self) -> Shown {
        let mut shown = self.decode.finish().map(|text| self.stops.push(&text)).unwrap_or_default();
        if !shown.stopped {
            shown.text.push_str(&self.stops.held);
        }
        shown
    }
}

/// Cuts a text before the first stop string to be complete; of several that end at the same character, the
/// longest. Where the pieces are cut makes no difference.
struct StopFilter {
    stops: Vec<String>,
    /// The end of the text so far, as far as it may be the beginning of a stop string.
    held: String,
}

impl StopFilter {
    fn push(&mut self, piece: &str) -> Shown {
        self.held.push_str(piece);
        let found = self.stops.iter().filter_map(|stop| {
            let start = self.held.find(stop)?;
            Some((start + stop.len(), start))
        });
        if let Some((_, start)) = found.min() {
            self.held.truncate(start);
            return Shown { text: std::mem::take(&mut self.held), stopped: true };
        }
        let begins_stop = |start: &usize| self.stops.iter().any(|s| s.starts_with(&self.held[*start..]));
        let safe = self.held.char_indices().map(|(start, _)| start).find(begins_stop);
        let held = self.held.split_off(safe.unwrap_or(self.held.len()));
        Shown { text: std::mem::replace(&mut self.held, held), stopped: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text shown of `pieces`, piece by piece, and whether a stop string ended it.
    fn shown(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let stops = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut filter = StopFilter { stops, held: String::new() };
        let mut texts = Vec::new();
        for piece in pieces {
            let shown = filter.push(piece);
            texts.push(shown.text);
            if shown.stopped {
                return (texts, true);
            }
        }
        texts.push(filter.held);
        (texts, false)
    }

    #[test]
    fn without_stop_strings_nothing_is_held_back() {
        assert_eq!(shown(&[], &["a", "é", ""]).0, ["a", "é", "", ""]);
    }

    #[test]
    fn a_stop_string_over_several_pieces_never_shows() {
        let (texts, stopped) = shown(&["END"], &["one E", "N", "D two"]);
        assert_eq!((texts, stopped), (vec!["one ".to_owned(), String::new(), String::new()], true));
    }

    #[test]
    fn what_turns_out_to_be_no_stop_string_shows_later() {
        assert_eq!(
            shown(&["END"], &["one E", "N", "E"]),
            (vec!["one ".to_owned(), String::new(), "EN".to_owned(), "E".to_owned()], false)
        );
    }

    #[test]
    fn the_first_to_be_complete_wins_however_the_text_is_cut() {
        let stops = ["abcd", "bc", "éé"];
        for (text, expected) in [("xabcd", "xa"), ("xéabéé", "xéab"), ("aéa", "aéa"), ("abab", "abab")]
        {
            let whole = shown(&stops, &[text]);
            let chars: Vec<String> = text.chars().map(String::from).collect();
            let pieces = shown(&stops, &chars.iter().map(String::as_str).collect::<Vec<_>>());
            assert_eq!(whole.0.concat(), expected);
            assert_eq!((pieces.0.concat(), pieces.1), (whole.0.concat(), whole.1));
        }
    }

    #[test]
    fn of_two_that_end_together_the_longest_is_cut() {
        assert_eq!(shown(&["\n", "\n\n"], &["a\n\nb"]).0, ["a"]);
        assert_eq!(shown(&["User:", "\n\nUser:"], &["a\n", "\nUser:"]).0.concat(), "a");
    }
}
