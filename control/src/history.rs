//! Texts of configurations: the one in force, those that were before it, and what the files hold as far as we know.

use std::collections::VecDeque;

use crate::config::Sources;

/// Configurations that `rollback` can go back by.
pub(crate) const KEPT: usize = 10;

/// What was in force, and is.
pub(crate) struct History {
    /// In force.
    pub(crate) current: Sources,
    /// What the files held when they were read or written last.
    pub(crate) saved: Sources,
    /// In force before, the latest last.
    before: VecDeque<Sources>,
}

impl History {
    /// `sources` are in force from the start.
    pub(crate) fn new(sources: Sources) -> Self {
        Self { saved: sources.clone(), current: sources, before: VecDeque::new() }
    }

    /// `sources` are in force now. A change of comments is no step to go back by.
    pub(crate) fn replace(&mut self, sources: Sources, differs: bool) {
        let before = std::mem::replace(&mut self.current, sources);
        if !differs {
            return;
        }
        if self.before.len() == KEPT {
            self.before.pop_front();
        }
        self.before.push_back(before);
    }

    /// What a rollback puts in force.
    pub(crate) fn previous(&self) -> Option<&Sources> {
        self.before.back()
    }

    /// The previous configuration is in force again, and the one before it is the previous one.
    pub(crate) fn roll_back(&mut self) {
        if let Some(previous) = self.before.pop_back() {
            self.current = previous;
        }
    }

    /// Whether the files hold what is in force.
    pub(crate) fn is_saved(&self) -> bool {
        self.current == self.saved
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;

    fn sources(text: &str) -> Sources {
        Sources::new(Source::new("a.toml".into(), text), [])
    }

    #[test]
    fn every_rollback_goes_one_configuration_further_back() {
        let mut history = History::new(sources("0"));
        for text in ["1", "2", "3"] {
            history.replace(sources(text), true);
        }
        history.replace(sources("3 # a comment"), false);
        for expected in ["2", "1", "0"] {
            assert_eq!(history.previous(), Some(&sources(expected)));
            history.roll_back();
            assert_eq!(history.current, sources(expected));
        }
        assert_eq!(history.previous(), None);
        assert!(history.is_saved(), "the files hold the first still");
    }

    #[test]
    fn what_comes_after_a_rollback_goes_back_to_what_that_put_in_force() {
        let mut history = History::new(sources("0"));
        history.replace(sources("1"), true);
        history.roll_back();
        history.replace(sources("2"), true);
        assert_eq!(history.previous(), Some(&sources("0")));
    }

    #[test]
    fn the_oldest_is_forgotten() {
        let mut history = History::new(sources("first"));
        (0..=KEPT).for_each(|number| history.replace(sources(&number.to_string()), true));
        let mut steps = 0;
        while history.previous().is_some() {
            history.roll_back();
            steps += 1;
        }
        assert_eq!((steps, &history.current), (KEPT, &sources("0")));
    }
}
