//! What an answer must contain.

use std::hash::{Hash, Hasher};

/// Something to be found in an answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// These very bytes.
    Contains(Vec<u8>),
    /// Something that matches.
    Matches(Expression),
}

/// A regular expression over bytes. Equal expressions are written alike.
#[derive(Clone, Debug)]
pub struct Expression(regex::bytes::Regex);

impl Pattern {
    /// Whether `bytes` have it.
    pub fn is_in(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Contains(wanted) if wanted.is_empty() => true,
            Self::Contains(wanted) => bytes.windows(wanted.len()).any(|window| window == wanted),
            Self::Matches(expression) => expression.0.is_match(bytes),
        }
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Contains(wanted) => write!(out, "\"{}\"", wanted.escape_ascii()),
            Self::Matches(expression) => write!(out, "/{}/", expression.0.as_str()),
        }
    }
}

impl Expression {
    /// The expression written as `text`.
    ///
    /// # Errors
    /// When it is none, or a huge one, in words.
    pub fn new(text: &str) -> Result<Self, String> {
        match regex::bytes::RegexBuilder::new(text).size_limit(SIZE_MAX).dfa_size_limit(SIZE_MAX).build() {
            Ok(expression) => Ok(Self(expression)),
            Err(regex::Error::CompiledTooBig(_)) => Err("it is too large".to_owned()),
            // Several lines, with the place in the expression; the last says what is wrong.
            Err(error) => {
                let text = error.to_string();
                let last = text.lines().last().unwrap_or_default();
                Err(last.strip_prefix("error: ").unwrap_or(last).to_owned())
            }
        }
    }
}

/// Bytes that a compiled expression may take, and its cache.
const SIZE_MAX: usize = 1 << 20;

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Expression {}

impl Hash for Expression {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.as_str().hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_expressions_are_found_wherever_they_are() {
        let contains = |text: &str| Pattern::Contains(text.into()).is_in(b"all is well\n\xff");
        assert!(contains("all") && contains("well\n") && contains("") && !contains("Well"));
        let matches = |text| Pattern::Matches(Expression::new(text).unwrap()).is_in(b"all is well\n\xff");
        assert!(matches("^all") && matches("(?i)WELL") && matches("i.") && !matches("well$"));
    }

    #[test]
    fn what_is_wrong_with_an_expression_is_said_in_a_line() {
        assert_eq!(Expression::new("a(b").unwrap_err(), "unclosed group");
        assert_eq!(Expression::new("(a{1000}){1000}").unwrap_err(), "it is too large");
        assert_eq!(Expression::new("a"), Expression::new("a"));
        assert_ne!(Expression::new("a"), Expression::new("b"));
    }
}
