//! By which port's receive-side scaling flows find their workers, and which other ports spread frames like that.

use std::sync::Arc;

use shunt_dataplane::spread::Spread;
use shunt_engine::assign::owner;
use shunt_engine::port::PortCaps;
use shunt_engine::rss::Unknown;

/// Whether a port brings frames to the workers that their flows live on. Where not, frames are handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RssMatch {
    /// It does.
    Matches,
    /// It spreads frames otherwise than the first port that flows could be found by.
    Differs,
    /// Its queues are not those of all workers, so that flows live elsewhere too.
    FewQueues,
    /// It is not known how the port spreads frames.
    Unknown(Unknown),
}

impl std::fmt::Display for RssMatch {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Matches => out.write_str("RSS matches"),
            Self::Differs => out.write_str("RSS differs from another port's"),
            Self::FewQueues => out.write_str("RSS does not reach all workers"),
            Self::Unknown(why) => write!(out, "RSS unknown: {why}"),
        }
    }
}

/// What all of `workers` workers shall go by: the spread of the first port that reaches all of them; and what each port
/// makes of that.
pub fn agree<'a>(
    ports: impl IntoIterator<Item = &'a PortCaps>,
    workers: u16,
) -> (Option<Arc<Spread>>, Vec<RssMatch>) {
    let mut agreed: Option<Arc<Spread>> = None;
    let look = |caps: &PortCaps| match &caps.rss {
        Err(why) => RssMatch::Unknown(*why),
        Ok(rss) => match Spread::new(rss, workers, |queue| owner(queue, workers)) {
            None => RssMatch::FewQueues,
            Some(spread) if agreed.get_or_insert_with(|| Arc::new(spread.clone())).is_like(&spread) => {
                RssMatch::Matches
            }
            Some(_) => RssMatch::Differs,
        },
    };
    let matches = ports.into_iter().map(look).collect();
    (agreed, matches)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shunt_engine::port::MacAddr;
    use shunt_engine::rss::Rss;

    fn port(rss: Result<Rss, Unknown>) -> PortCaps {
        let (name, mac) = ("eth0".to_owned(), MacAddr::default());
        PortCaps { name, kind: "af_xdp native", mac, mtu: 1500, queues: 4, rss, kernel_sees_all: false }
    }

    #[test]
    fn the_first_port_that_reaches_all_workers_is_what_they_go_by() {
        let mut key = Rss::even(4).key;
        key[3] ^= 1;
        let ports = [
            Err(Unknown::Function),
            Ok(Rss::even(2)),
            Ok(Rss::even(4)),
            Ok(Rss { reta: (0..512).map(|entry| entry % 4).collect(), ..Rss::even(4) }),
            Ok(Rss { key, ..Rss::even(4) }),
            Ok(Rss { udp_ports: false, ..Rss::even(4) }),
            Ok(Rss { reta: (0..512).map(|entry| entry / 128).collect(), ..Rss::even(4) }),
            Ok(Rss { reta: (0..12).map(|entry| entry % 4).collect(), ..Rss::even(4) }),
        ]
        .map(port);
        let (agreed, matches) = agree(&ports, 4);
        use RssMatch::{Differs, FewQueues, Matches};
        let unknown = RssMatch::Unknown(Unknown::Function);
        assert_eq!(matches, [unknown, FewQueues, Matches, Matches, Differs, Differs, Differs, Differs]);
        assert_eq!(agreed.as_deref(), Spread::new(&Rss::even(4), 4, |queue| owner(queue, 4)).as_ref());
    }

    #[test]
    fn where_no_port_tells_nothing_is_agreed_on() {
        let (agreed, matches) = agree(&[port(Err(Unknown::NotTold)), port(Ok(Rss::even(2)))], 3);
        assert_eq!((agreed, matches.len()), (None, 2));
        assert!(matches.iter().all(|found| *found != RssMatch::Matches), "{matches:?}");
    }
}
