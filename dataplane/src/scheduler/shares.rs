//! Shares of a whole by weight: a number from anywhere in 64 bits falls into exactly one.

/// Where each share ends, cumulated.
#[derive(Debug)]
pub(super) struct Shares(Box<[u64]>);

impl Shares {
    /// A share for each of `weights`, in proportion; none for weight 0.
    pub(super) fn new(weights: impl Iterator<Item = u32>) -> Self {
        let ends = weights.scan(0, |end, weight| {
            *end += u64::from(weight);
            Some(*end)
        });
        Self(ends.collect())
    }

    /// The share that `hash` falls into, if there is any.
    #[inline]
    pub(super) fn of(&self, hash: u64) -> Option<usize> {
        let total = *self.0.last()?;
        let point = ((u128::from(hash) * u128::from(total)) >> 64) as u64;
        (total > 0).then(|| self.0.partition_point(|&end| end <= point))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_falls_into_one_share_and_none_into_an_empty_one() {
        let shares = Shares::new([0, 1, 0, 2, 1, 0].into_iter());
        let quarter = 1 << 62;
        let of = |hash| shares.of(hash).unwrap();
        assert_eq!((of(0), of(quarter - 1)), (1, 1));
        assert_eq!((of(quarter), of(3 * quarter - 1)), (3, 3));
        assert_eq!((of(3 * quarter), of(u64::MAX)), (4, 4));
        assert_eq!(Shares::new([0, 0].into_iter()).of(7), None);
        assert_eq!(Shares::new([].into_iter()).of(7), None);
    }

    #[test]
    fn the_largest_weights_do_not_overflow() {
        let shares = Shares::new(std::iter::repeat_n(u32::MAX, 4096));
        assert_eq!((shares.of(0), shares.of(u64::MAX)), (Some(0), Some(4095)));
    }
}
